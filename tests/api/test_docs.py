"""The examples of docs/python-api.md do what they say, one after the other in a notebook's way."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import fermarsi

DOC = Path(__file__).parents[2] / "docs" / "python-api.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_python_api_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    found: dict[str, Any] = vars(main)
    for number, example in enumerate(EXAMPLE.findall(DOC.read_text())):
        file = tmp_path / f"cell-{number}.py"
        file.write_text(example)
        exec(compile(example, str(file), "exec"), found)
    assert found["outcome"].reason == "targets_reached"
    assert isinstance(found["table"], pd.DataFrame)
    assert len(found["table"]) == 5
    assert found["run"].outcome.reason == "targets_reached"
    assert fermarsi.load("runs/signs").predict(split="val").columns[0] == "sample"

"""What is told of the findings: by a run, as JSON, and as a page with pictures."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from harness.checks.roles import roles_of
from harness.commands.data_page import write_page
from harness.errors import ConfigError, DataError
from tests.checks.planted import TASK, Rows, clean, looked_at, three


def flawed() -> dict[str, dict[str, Any]]:
    splits = three((2, 40))
    splits["train"]["x"][:, 1] = 2
    splits["val"]["x"][4] = splits["train"]["x"][7]
    splits["test"]["x"][3] = np.inf
    return splits


def test_a_run_is_told_the_warnings_and_ends_with_all_errors_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(DataError) as raised:
        looked_at(tmp_path, flawed()).enforce(said.append)
    assert [line.partition(": ")[0] for line in said] == ["warning"]
    lines = str(raised.value).splitlines()
    assert lines[0] == "the data does not pass data.checks:"
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["duplicates", "not_finite"]
    assert "run `fermarsi data check CONFIG --html FILE`" in lines[-1]


def test_a_check_ends_a_run_or_warns_or_is_off(tmp_path: Path) -> None:
    others = {"constant": "off", "duplicates": "off"}
    levels = {
        level: [
            one.level for one in looked_at(tmp_path, flawed(), **others, not_finite=level).findings
        ]
        for level in ("error", "warn", "off")
    }
    assert levels == {"error": ["error"], "warn": ["warn"], "off": []}


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    report = looked_at(tmp_path, flawed())
    told = json.loads(json.dumps(report.to_json()))
    assert [one["check"] for one in told["findings"]] == [one.check for one in report.findings]
    assert told["looked"][0]["classes"] == {"0": 20, "1": 20, "2": 20}
    assert told["findings"][0]["examples"] == ["data.val 4 = data.train 7"]


def page_of(directory: Path, splits: dict[str, Any], **settings: Any) -> str:
    sources = {
        name: Rows(given) if isinstance(given, dict) else given for name, given in splits.items()
    }
    write_page(
        directory / "page.html",
        "planted <data>",
        looked_at(directory, sources, **settings),
        sources,
        roles_of(TASK),
    )
    return (directory / "page.html").read_text(encoding="utf-8")


def pictures(page: str) -> list[Any]:
    return [
        imread(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 9, 7), (3, 4, 8, 8), (5, 2, 8, 8), (2, 60), (200,)]
)
def test_the_page_has_a_picture_of_samples_of_each_class_of_each_split(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    splits = {"train": clean(1, 30, shape), "val": clean(2, 9, shape)}
    page = page_of(tmp_path, splits)
    assert "<title>planted &lt;data&gt;</title>" in page
    assert "http" not in page.replace("http-equiv", "")
    train, val = pictures(page)
    assert train.shape[1] > val.shape[1]  # six samples beside each other, and three
    for picture in (train, val):  # three rows of drawings, one a class
        dark = picture[..., :3].min(axis=2) < 0.95
        thirds = np.array_split(dark[:, dark.shape[1] // 4 :], 3)
        assert all(third.mean() > 0.005 for third in thirds)


def test_a_picture_shows_the_sample(tmp_path: Path) -> None:
    images = np.zeros((3, 1, 10, 10), dtype=np.uint8)
    images[:, :, :, 5:] = 200  # dark at the left, bright at the right
    (picture,) = pictures(
        page_of(
            tmp_path,
            {"train": {"x": images, "label": np.arange(3)}},
            duplicates="off",
            missing_classes="off",
        )
    )
    rows, columns = np.nonzero(picture[..., :3].max(axis=2) < 0.01)
    black = [(row, column) for row, column in zip(rows, columns, strict=True) if column > 50]
    assert len(black) > 1000
    middle = sorted(column for _, column in black)
    assert picture[black[0][0], middle[-1] + 10, :3].min() > 0.95


def test_the_page_has_rows_of_tables_and_texts(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        {
            "train": Rows(
                {
                    "x": np.arange(12.0).reshape(6, 2) + 0.25,
                    "note": list("<bcdef"),
                    "label": np.arange(6) % 2,
                }
            )
        },
    )
    assert not pictures(page)
    assert "<tr><td>0<td>0.25, 1.25<td>&lt;<td>0<tr>" in page
    assert "<tr><td>1<td>2.25, 3.25<td>b<td>1<tr>" in page


def test_the_page_has_the_findings_and_the_counts(tmp_path: Path) -> None:
    page = page_of(tmp_path, flawed(), targets={"val/accuracy": {"at_least": 0.9}})
    assert (
        "<td class=error>error<td>not_finite<td>data.test: 1 of 30 samples have infinite numbers"
        in page
    )
    assert "<td class=warn>warn<td>constant" in page
    assert (
        "<tr><th>class<th>data.train<th>data.val<th>data.test<tr><td>0<td>20 (33.3%)<td>10 "
        "(33.3%)<td>10 (33.3%)" in page
    )
    assert "always predicting class 0 gives 0.3333" in page


def test_a_page_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    report, sources = looked_at(tmp_path, {"train": clean(1)}), {"train": Rows(clean(1))}
    with pytest.raises(
        ConfigError,
        match=r"--html: .*: No such file or directory\. Give a file in an existing",
    ):
        write_page(tmp_path / "nowhere" / "page.html", "", report, sources, roles_of(TASK))

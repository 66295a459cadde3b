"""`fermarsi data show`: what the network gets, in a page."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from harness.commands.samples import show_samples
from harness.config.document import to_yaml
from harness.config.read import read_config
from harness.data.preparing import Feedback, Preparation, Sources, fit, open_splits
from harness.errors import ConfigError
from tests.pool import command

ROOT = Path(__file__).parents[2]


def config(directory: Path, source: dict[str, Any], *treatments: dict[str, Any]) -> Path:
    split = {"source": source, "treatments": list(treatments)}
    tree = {
        "data": {"train": split, "val": split},
        "network": {"_target_": "harness.networks.Mlp", "dims": [3, 2]},
        "task": {"_target_": "harness.tasks.Classification", "input": "x", "target": "label"},
        "batch": {"size": 2, "micro_size": 2},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "stop": {"budget": {"epochs": 1}},
    }
    (directory / "c.yaml").write_text(to_yaml(tree))
    return directory / "c.yaml"


def shown(path: Path, out: Path, *asked: str, split: str = "val") -> str:
    show_samples(path, split, asked, out)
    return out.read_text(encoding="utf-8")


def test_digits_are_pictures_with_their_labels(tmp_path: Path) -> None:
    out = tmp_path / "digits.html"
    digits = ROOT / "configs" / "digits.yaml"
    ended = command("data", "show", str(digits), "train", "3", "10-14", "run.seed=3", "--html", out)
    assert ended.exit_code == 0, ended.stderr
    assert "6 of 1,085 samples of data.train, as the network gets them" in ended.stdout
    page = out.read_text(encoding="utf-8")
    assert "<td>image<td>float32<td>1 x 8 x 8<td>0 to 1" in page
    assert "<td>10<td>" in page
    assert "<td>9<td>" not in page
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    picture = imread(io.BytesIO(base64.b64decode(data)))[..., :3]
    assert (picture.max(2) < 0.01).sum() > 2000  # background of six digits, and paper beside them


def test_rows_are_shown_after_their_treatments(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,label\n1,10,x\n3,30,<y>\n")
    source = {
        "_target_": "harness.sources.tables.Table",
        "files": str(tmp_path / "t.csv"),
        "columns": {"label": "text"},
    }
    treatments = [
        {"_target_": "harness.treatments.Standardise", "key": "features"},
        {"_target_": "harness.treatments.Encode", "key": "label"},
    ]
    path = config(tmp_path, source, *treatments)
    page = shown(path, tmp_path / "rows.html")
    loaded = read_config(path)
    sources = Sources(loaded.data)
    prepared = Preparation({}, {}, fit(loaded.data, sources, Feedback()))
    split = open_splits(loaded.data, ["val"], sources, prepared, lambda batch: None)["val"]
    for row in range(2):
        at = np.array([row])
        values = split.fetch(at, at.astype(np.uint64), 0, training=False)["features"][0]
        assert f"<td>{row}<td>{str(values.tolist()).strip('[]')}<td>" in page
    assert "(&lt;y&gt;)" in page


def test_tokens_are_shown_as_the_text_that_they_stand_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be: that is the question.\n" * 9)
    files = {"files": str(tmp_path / "a.txt"), "length": 20}
    for name, treatments in (
        ("Bytes", []),
        ("Characters", [{"_target_": "harness.treatments.Vocabulary", "size": 40}]),
    ):
        source = {"_target_": f"harness.sources.text.{name}", **files}
        page = shown(config(tmp_path, source, *treatments), tmp_path / "text.html", "0")
        assert "<td>0<td>To be, or not to be: <td>" in page
    (tmp_path / "t.csv").write_text("text,label\nto be or not,0\nthat is it,1\n")
    pytest.importorskip("tokenizers")
    source = {
        "_target_": "harness.sources.tables.Table",
        "files": str(tmp_path / "t.csv"),
        "features": [],
        "columns": {"text": "text", "label": "integer"},
    }
    token = {"_target_": "harness.treatments.Tokenise", "size": 300, "special": True}
    pad = {"_target_": "harness.treatments.Pad", "key": "tokens"}
    page = shown(config(tmp_path, source, token, pad), tmp_path / "text.html")
    (text,) = re.findall(r"<td>1<td>1<td>([^<]*)<td>", page)
    assert "that is it" in text.replace("|", "")
    assert "[PAD]" in text


def test_mistakes_are_one_message(tmp_path: Path) -> None:
    digits = ROOT / "configs" / "digits.yaml"
    for split, asked, message in (
        ("val", ["357"], "357: data has samples 0 to 356"),
        ("val", ["9-3"], "9-3: data has samples 0 to 356"),
        ("val", ["0-300"], "301 samples: at most 240 fit"),
        ("dev", [], "SPLIT: 'dev' is not one of train, val, test"),
        ("val", ["data.test=null", "data.val=null"], "has no data.val"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            show_samples(digits, split, asked, tmp_path / "x.html")
    with pytest.raises(ConfigError, match="--html"):
        show_samples(digits, "val", ["1"], tmp_path / "no" / "x.html")

"""Text as bytes and as characters, and language models of it."""

import bz2
import gzip
import json
import lzma
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.sources.text import Bytes, Characters
from harness.treatments.text import Vocabulary
from tests.pool import command, train_on_ranks

ROOT = Path(__file__).parents[2]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
needs_shakespeare = pytest.mark.skipif(not SHAKESPEARE.is_file(), reason=f"needs {SHAKESPEARE}")


def learned(size: int, text: str, rows: int = 1) -> Vocabulary:
    vocabulary = Vocabulary(size)
    for part in np.array_split(np.array([ord(character) for character in text]), rows):
        vocabulary.observe({"tokens": torch.from_numpy(part[None].astype(np.int64))})
    vocabulary.finish()
    return vocabulary


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=80), length=st.integers(1, 9)
)
def test_every_character_but_the_first_is_predicted_once(
    tmp_path: Path, text: str, length: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    if len(text) < length + 1:
        with pytest.raises(
            DataError, match=rf"a\.txt: {len(text)} characters; a window needs {length + 1}"
        ):
            Characters(str(path), length)
        return
    source = Characters(str(path), length)
    tokens = source.__getitems__(list(range(len(source))))["tokens"]
    said = "".join(chr(code) for code in tokens[:, 1:].ravel().tolist())
    assert said == text[1 : 1 + (len(text) - 1) // length * length]
    known = source.known()
    assert [
        text[int(start) : int(stop)]
        for start, stop in zip(known["start"], known["stop"], strict=True)
    ] == [said[begin : begin + length] for begin in range(0, len(said), length)]
    assert source.paths() == [path]


def test_parts_predict_different_stretches_of_each_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(bytes(range(100)))
    for kind in (Bytes, Characters):
        parts = [kind(str(tmp_path / "*.txt"), 3, part, 0.3).known() for part in ("train", "val")]
        spans = [
            set(
                zip(part["recording"], map(int, part["start"]), map(int, part["stop"]), strict=True)
            )
            for part in parts
        ]
        assert max(stop for _, _, stop in spans[0]) == min(start for _, start, _ in spans[1])
        assert len(spans[0] | spans[1]) == 2 * 33


def test_packed_texts_and_those_with_a_byte_order_mark_are_the_plain_ones(tmp_path: Path) -> None:
    text = "Größe und Straße, naïve, 数据. " * 3
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
    for name, data in (
        ("mark.txt", text.encode("utf-8-sig")),
        ("packed.txt.gz", gzip.compress(text.encode())),
        ("both.txt.gz", gzip.compress(text.encode("utf-8-sig"))),
        ("packed.txt.zst", pa.compress(text.encode(), "zstd", asbytes=True)),
        ("packed.txt.bz2", bz2.compress(text.encode())),
        ("packed.txt.xz", lzma.compress(text.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        both = [Characters(str(tmp_path / one), 7) for one in ("plain.txt", name)]
        rows = [one.__getitems__(list(range(len(one))))["tokens"] for one in both]
        assert rows[0].tolist() == rows[1].tolist()
    for ending in ("gz", "zst", "bz2", "xz"):
        found = Bytes(str(tmp_path / f"packed.txt.{ending}"), 5)
        tokens = found.__getitems__(list(range(len(found))))["tokens"]
        read = bytes(tokens[:, 1:].astype(np.uint8).reshape(-1))
        assert read == text.encode()[1 : 1 + tokens.shape[0] * 5]
    for ending in ("gz", "zst", "bz2", "xz"):
        whole = (tmp_path / f"packed.txt.{ending}").read_bytes()
        (tmp_path / f"cut.txt.{ending}").write_bytes(whole[:-20])
        for source in (Bytes, Characters):
            with pytest.raises(DataError, match=r"cut\.txt\.\w+: cannot be unpacked: .* truncated"):
                source(str(tmp_path / f"cut.txt.{ending}"), 5)


def test_a_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("caf\xe9 et th\xe9".encode("latin-1"))
    with pytest.raises(
        DataError,
        match=(
            r"a\.txt: byte 3 is not valid utf-8 \(invalid continuation byte\)\. Set encoding, "
            r"or read the file with Bytes"
        ),
    ):
        Characters(str(path), 2)
    assert chr(Characters(str(path), 2, encoding="latin-1")[1]["tokens"][1]) == "\xe9"
    with pytest.raises(ConfigError, match=r"^encoding: unknown encoding: klingon"):
        Characters(str(path), 2, encoding="klingon")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt: 0 bytes; a window needs 3"):
        Bytes(str(tmp_path / "empty.txt"), 2)


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60),
    size=st.integers(2, 20),
    rows=st.integers(1, 5),
)
def test_a_vocabulary_holds_the_most_frequent_characters_and_0_is_any_other(
    text: str, size: int, rows: int
) -> None:
    vocabulary = learned(size, text, rows)
    counts = Counter(text)
    kept = sorted(sorted(counts, key=lambda character: (-counts[character], character))[: size - 1])
    assert list(vocabulary.characters) == kept
    again = Vocabulary(size)
    again.restore(json.loads(json.dumps(vocabulary.state())))
    codes = torch.tensor([[ord(character) for character in text + "\U0001f40d"]])
    for one in (vocabulary, again):
        numbers = one({"tokens": codes})["tokens"]
        assert numbers.dtype == torch.int64
        assert numbers.tolist() == [
            [
                kept.index(character) + 1 if character in kept else 0
                for character in text + "\U0001f40d"
            ]
        ]


def test_what_are_no_characters_is_refused() -> None:
    vocabulary = learned(5, "abc")
    for tokens in (torch.tensor([[0.5]]), torch.tensor([[-1]]), torch.tensor([[0x110000]])):
        with pytest.raises(
            DataError,
            match=r"^tokens: not Unicode code points\. Read the text with harness\.sources",
        ):
            vocabulary({"tokens": tokens})
    with pytest.raises(ConfigError, match=r"^size: 1: must be at least 2"):
        Vocabulary(1)
    with pytest.raises(DataError, match=r"^tokens: no characters to learn a vocabulary from"):
        Vocabulary(5).finish()


def test_characters_are_learned_on_train_and_known_to_evaluations_and_predictions(
    tmp_path: Path,
) -> None:
    # Ñ is in the last tenth alone
    (tmp_path / "a.txt").write_text("áé" * 450 + ("áé" * 9 + "ñé") * 5, encoding="utf-8")
    (tmp_path / "new.txt").write_text("éáéáéáéáéáé", encoding="utf-8")
    text: dict[str, Any] = {
        "_target_": "harness.sources.text.Characters",
        "files": str(tmp_path / "a.txt"),
        "length": 9,
    }
    treatments = [{"_target_": "harness.treatments.Vocabulary", "size": 4}]
    config: dict[str, Any] = {
        "run": {"name": "characters", "dir": str(tmp_path / "run")},
        "data": {
            part: {"source": text | {"part": part}, "treatments": treatments}
            for part in ("train", "val")
        }
        | {"checks": {"duplicates": "off"}},
        "network": {
            "_target_": "harness.networks.Gpt",
            "vocabulary": 4,
            "context": 9,
            "dim": 16,
            "depth": 1,
            "num_heads": 2,
        },
        "task": {"_target_": "harness.tasks.LanguageModelling", "input": "tokens"},
        "batch": {"size": 20, "micro_size": 10},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.03},
        "stop": {"every": {"epochs": 1}, "best": {"metric": "val/loss"}, "budget": {"epochs": 4}},
        "checkpoint": {"every": {"epochs": 4}},
    }
    (tmp_path / "characters.yaml").write_text(json.dumps(config))
    ends = train_on_ranks(2, tmp_path / "characters.yaml", [])
    assert [one.exit_code for one in ends] == [0, 0]
    evaluated = command("evaluate", tmp_path / "run", "--json", "--allow", f"{tmp_path}/")
    values = json.loads(evaluated.stdout)
    assert 0.8 < values["accuracy"] < 0.99  # never ñ
    source = json.dumps({**text, "files": str(tmp_path / "new.txt")})
    assert (
        command(
            "predict", tmp_path / "run", "--source", source, "--out", tmp_path / "out.parquet"
        ).exit_code
        == 0
    )
    predicted = pd.read_parquet(tmp_path / "out.parquet").filter(like="predicted")
    assert predicted.iloc[0].tolist() == [1, 2] * 4 + [1]  # á follows é: their numbers are 1 and 2


@needs_shakespeare
def test_shakespeare_is_soon_better_than_the_frequency_of_letters(tmp_path: Path) -> None:
    overrides = [
        f"run.dir={tmp_path / 'run'}",
        "stop.budget.steps=40",
        "stop.every.steps=40",
        "network.dim=64",
        "network.depth=2",
    ]
    ends = train_on_ranks(
        2,
        ROOT / "configs" / "shakespeare.yaml",
        overrides,
        env={"FERMARSI_SHAKESPEARE": str(SHAKESPEARE)},
    )
    assert [one.exit_code for one in ends] == [0, 0]
    counts = np.bincount(np.frombuffer(SHAKESPEARE.read_bytes(), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    # 3.31 nats
    assert (
        json.loads((tmp_path / "run" / "outcome.json").read_text())["best"]["value"]
        < -(shares * np.log(shares)).sum()
    )


@needs_shakespeare
@pytest.mark.soak
def test_shakespeare_ends_by_its_target(tmp_path: Path) -> None:
    env = {"FERMARSI_SHAKESPEARE": str(SHAKESPEARE)}
    ends = train_on_ranks(
        2,
        ROOT / "configs" / "shakespeare.yaml",
        [f"run.dir={tmp_path / 'run'}"],
        env=env,
        timeout_s=1100,
    )
    assert [one.exit_code for one in ends] == [0, 0]
    assert (
        json.loads((tmp_path / "run" / "outcome.json").read_text())["reason"] == "targets_reached"
    )
    evaluated = json.loads(
        command("evaluate", tmp_path / "run", "--json", "--allow", "/", timeout_s=300).stdout
    )
    assert math.log(evaluated["perplexity"]) == pytest.approx(evaluated["loss"], rel=1e-5)
    assert evaluated["loss"] <= 1.75

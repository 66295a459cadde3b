"""Pairs of samples from several sources, and the network that looks and listens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import ConfigError, DataError
from harness.sources.digits import Digits
from harness.sources.paired import Paired
from tests.pool import command, train_on_ranks

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT.parent / "shared" / "data" / "fsdd"
CONFIG, ENV = ROOT / "configs" / "digits_seen_and_heard.yaml", {"FERMARSI_FSDD": str(RECORDINGS)}
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"needs the spoken digits in {RECORDINGS}"
)


class Tones:
    """Sample i is the number i, of class i modulo `classes`."""

    def __init__(self, count: int, classes: int) -> None:
        self.count, self.classes = count, classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"wave": np.float32(index), "label": index % self.classes, "extra": 1}

    def known(self) -> dict[str, list[str]]:
        return {"speaker": [f"s{index}" for index in range(self.count)]}


def test_pairs_agree_and_are_spread_over_the_second_source() -> None:
    digits = Digits("train")
    pairs = Paired({"image": digits, "wave": Tones(500, 10)})
    assert len(pairs) == len(digits)
    batch = pairs.__getitems__(list(range(len(pairs))))
    assert batch.keys() == {"image", "wave", "label"}
    waves = np.asarray(batch["wave"]).astype(int)
    assert (waves % 10 == batch["label"]).all()
    assert np.array_equal(batch["label"], digits.__getitems__(list(range(len(digits))))["label"])
    # 1,085 draws from 500: 500 (1 - (1 - 1 / 50) ^ 108.5) = 444 are expected to be met
    assert 420 < len(set(waves.tolist())) < 470
    assert pairs[7]["wave"] == waves[7]
    assert pairs.known()["wave_speaker"][7] == f"s{waves[7]}"


def test_a_pair_does_not_depend_on_when_or_how_it_is_read() -> None:
    one, other = (Paired({"image": Digits("val"), "wave": Tones(40, 10)}) for _ in range(2))
    backwards = list(range(len(one)))[::-1]
    assert np.array_equal(
        one.__getitems__(backwards)["wave"], [other[index]["wave"] for index in backwards]
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Paired({"image": Digits("val")}),
            ConfigError,
            r"^sources: image: give at least two",
        ),
        (
            lambda: Paired({"image": Digits("val"), "label": Digits("val")}),
            ConfigError,
            r"none of them 'label'",
        ),
        (
            lambda: Paired({"image": Digits("val"), "wave": Tones(40, 9)}),
            DataError,
            r"^sources\.wave: no sample has 'label' 9",
        ),
        (
            lambda: Paired({"image": Digits("val"), "sound": Tones(9, 3)}),
            DataError,
            r"^sources\.sound: samples have no 'sound', they have extra",
        ),
        (
            lambda: Paired({"image": Digits("val"), "wave": Tones(9, 3)}, by="wave"),
            ConfigError,
            r"none of them 'wave'",
        ),
        (
            lambda: Paired({"wave": Tones(9, 3), "extra": Tones(9, 3)}, by="speaker"),
            DataError,
            r"^sources\.wave: samples have no 'speaker'",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@needs_recordings
def test_a_network_that_looks_and_listens_soon_tells_digits_apart(tmp_path: Path) -> None:
    ends = train_on_ranks(
        2, CONFIG, [f"run.dir={tmp_path / 'run'}", "stop.budget.epochs=2"], env=ENV, timeout_s=240
    )
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    # By chance 0.1
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["best"]["value"] > 0.5


@needs_recordings
@pytest.mark.torture
def test_a_network_that_looks_and_listens_reaches_its_target(tmp_path: Path) -> None:
    ends = train_on_ranks(2, CONFIG, [f"run.dir={tmp_path / 'run'}"], env=ENV, timeout_s=900)
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
    assert (
        json.loads((tmp_path / "run" / "outcome.json").read_text())["reason"] == "targets_reached"
    )
    evaluated = command(
        "evaluate", tmp_path / "run", "--split", "test", "--json", "--allow", "/", timeout_s=300
    )
    assert json.loads(evaluated.stdout)["accuracy"] >= 0.98

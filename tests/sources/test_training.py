"""Sources of every kind under the loop: they train, and what they give does not depend on workers,
ranks or where a run began.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.datasets import load_digits

from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.data.split import Split
from harness.sources.audio import Recordings
from harness.treatments.audio import Gain, LogMel, Shift, SpecMask
from harness.treatments.numbers import Normalise
from tests.pool import command, train_on_ranks

TABLE = """
run: {{name: table, seed: 1}}
data:
  train: &train
    source: &table
      _target_: harness.sources.tables.Table
      files: {file}
      sheet: digits
      columns: {{label: text, pen: text}}
      part: train
      split:
        _target_: harness.sources.split.Stratified
        column: label
        key: row
        val: 0.15
        test: 0.15
    treatments:
      - _target_: harness.treatments.Encode
        key: label
        categories: [zero, one, two, three, four, five, six, seven, eight, nine]
        optional: true
      - {{_target_: harness.treatments.Impute, value: median}}
      - {{_target_: harness.treatments.Standardise}}
  val: {{<<: *train, source: {{<<: *table, part: val}}}}
  test: {{<<: *train, source: {{<<: *table, part: test}}}}
network: {{_target_: harness.networks.Mlp, dims: [64, 128, 10]}}
task: {{_target_: harness.tasks.Classification, input: features, target: label}}
batch: {{size: 64, micro_size: 16}}
optimizer: {{_target_: torch.optim.AdamW, lr: 3e-3}}
stop:
  every: {{epochs: 1}}
  targets: {{val/accuracy: {{at_least: 0.95}}}}
  budget: {{epochs: 30}}
"""

SERIES = """
run: {{name: series, seed: 1}}
data:
  num_workers: 1
  train: &train
    source: &series
      _target_: harness.sources.series.Series
      files: "{folder}/{{label}}/{{subject}}.csv"
      channels: [x, y]
      length: 50
      stride: 10
      time: t
      gap_s: 0.05
      gaps: split
      part: train
      split: {{_target_: harness.sources.split.ByGroup, column: subject, val: 0.25, test: 0}}
    treatments:
      - {{_target_: harness.treatments.Standardise, key: series}}
      - {{_target_: harness.treatments.AddNoise, std: 0.05, key: series}}
      - {{_target_: harness.treatments.RandomScale, log_range: 0.2}}
      - {{_target_: harness.treatments.DropChannels, p: 0.1}}
      - {{_target_: harness.treatments.RandomCropTime, length: 40}}
      - {{_target_: harness.treatments.CropTime, length: 40}}
  val: {{<<: *train, source: {{<<: *series, part: val}}}}
network: {{_target_: harness.networks.Tcn, in_channels: 2, widths: [16, 16], out_features: 2}}
task: {{_target_: harness.tasks.Classification, input: series, target: label}}
batch: {{size: 32, micro_size: 16}}
optimizer: {{_target_: torch.optim.AdamW, lr: 3e-3}}
stop: {{every: {{epochs: 1}}, targets: {{val/accuracy: {{at_least: 0.9}}}}, budget: {{epochs: 20}}}}
"""


def outcome(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    return found


def train(tmp_path: Path, config: str) -> dict[str, Any]:
    (tmp_path / "config.yaml").write_text(config)
    ends = train_on_ranks(2, tmp_path / "config.yaml", [f"run.dir={tmp_path / 'run'}"])
    assert [one.exit_code for one in ends] == [0, 0]
    return outcome(tmp_path / "run")


def test_digits_in_an_excel_sheet_are_learned_and_evaluated(tmp_path: Path) -> None:
    words = np.array(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    found = load_digits()
    frame = pd.DataFrame(found.data, columns=[f"cell{number}" for number in range(64)])
    frame = frame.assign(label=words[found.target], row=np.arange(len(frame)), pen="blue")
    with pd.ExcelWriter(tmp_path / "digits.xlsx") as book:
        pd.DataFrame({"made by": ["hand"]}).to_excel(book, sheet_name="about", index=False)
        frame.to_excel(book, sheet_name="digits", index=False)
    assert (
        train(tmp_path, TABLE.format(file=tmp_path / "digits.xlsx"))["reason"] == "targets_reached"
    )
    evaluated = command(
        "evaluate", tmp_path / "run", "--split", "test", "--json", "--allow", f"{tmp_path}/"
    )
    assert json.loads(evaluated.stdout)["accuracy"] > 0.9

    frame.drop(columns=["label", "row", "pen"]).head(20).to_csv(tmp_path / "new.csv", index=False)
    source = f"{{_target_: harness.sources.tables.Table, files: {tmp_path / 'new.csv'}}}"
    predicted = command(
        "predict", tmp_path / "run", "--source", source, "--out", tmp_path / "predicted.csv"
    )
    assert predicted.exit_code == 0, predicted.stderr
    names = pd.read_csv(tmp_path / "predicted.csv")["predicted"]
    assert (names == words[found.target[:20]]).mean() > 0.8


def test_two_kinds_of_shaking_are_told_apart_in_subjects_never_seen(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label, hertz in (("slow", 2), ("fast", 7)):
        for subject in range(8):
            t = np.arange(300) / 100
            phase, strength = draw.uniform(0, 6), draw.uniform(0.5, 2)
            wave = strength * np.sin(2 * np.pi * hertz * t + phase)
            t[150:] += 0.5  # a gap
            folder = tmp_path / "shaking" / label
            folder.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"t": t, "x": wave, "y": 0.5 * wave + draw.normal(0, 0.1, 300)}).to_csv(
                folder / f"{subject}.csv", index=False
            )
    assert (
        train(tmp_path, SERIES.format(folder=tmp_path / "shaking"))["reason"] == "targets_reached"
    )


@pytest.fixture
def sounds(tmp_path: Path) -> Split:
    draw = np.random.default_rng(0)
    for number in range(24):
        soundfile.write(tmp_path / f"{number % 3}_{number}.wav", draw.normal(0, 0.1, 900), 8000)
    source = Recordings(str(tmp_path / "{label}_{number}.wav"), 8000, 0.1)
    treatments = [
        Gain(6),
        Shift(50),
        LogMel(8000, 20, 128, 64),
        Normalise(-5, 3, key="wave"),
        SpecMask(4, 4),
    ]
    return Split(source, treatments, "data.train", lambda batch: None)


def test_batches_after_augmentation_are_the_same_for_any_ranks_and_workers_and_after_a_resume(
    sounds: Split,
) -> None:
    sampling = Sampling(num_samples=24, size=12, micro_size=2, seed=3)

    def steps(num_ranks: int, num_workers: int, first_step: int = 0) -> list[torch.Tensor]:
        feeds = [
            Feed(
                sounds,
                sampling,
                sampling.slots_of(rank, num_ranks),
                torch.device("cpu"),
                num_workers,
                first_step,
            )
            for rank in range(num_ranks)
        ]
        return [
            torch.cat([batch["wave"] for feed in feeds for batch in feed.next_step()])
            for _ in range(first_step, 5)
        ]

    whole = steps(1, 0)
    # Another epoch treats otherwise
    assert not torch.equal(whole[0].sort(0)[0], whole[2].sort(0)[0])
    for num_ranks, num_workers in ((1, 2), (2, 0), (3, 0)):
        assert all(
            torch.equal(one, other)
            for one, other in zip(whole, steps(num_ranks, num_workers), strict=True)
        )
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole[3:], steps(2, 0, first_step=3), strict=True)
    )

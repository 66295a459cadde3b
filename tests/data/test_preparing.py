"""The stages of treatments: what is learned from the training split, what is done once and kept,
what is left for every epoch.
"""

import json
import os
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_wine

from harness.checkpoint.read import find_checkpoint, load_trainer
from harness.config.read import read_config
from harness.data.content import RACY_NS, Hashes
from harness.data.feed import Feed
from harness.data.preparing import Feedback, Sources, TreatmentState, open_splits, prepare
from harness.data.sampling import Sampling
from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import slowly
from harness.training.data import list_left_out
from harness.treatments.images import RandomCrop, RandomErase, RandomFlip
from harness.treatments.numbers import AddNoise, ToFloat
from tests.pool import RanksFailed, command, on_ranks, train_on_ranks
from tests.resume.test_exact import last_state, trace

WINE = """
run: {{name: wine, seed: 1, dir: {run}}}
data:
  train: &train
    source: &table
      _target_: harness.sources.tables.Table
      files: {folder}/*.csv
      columns: {{label: text}}
      part: train
      split:
        _target_: harness.sources.split.Stratified
        column: label
        key: row
        val: 0.2
        test: 0.2
    treatments: &treatments
      - {{_target_: harness.treatments.Standardise, key: features}}
      - {{_target_: harness.treatments.Encode, key: label, optional: true}}
      - {{_target_: harness.treatments.AddNoise, std: 0.1, key: features}}
  val: {{<<: *train, source: {{<<: *table, part: val}}}}
  test: {{<<: *train, source: {{<<: *table, part: test}}}}
network: {{_target_: harness.networks.Mlp, dims: [13, 16, 3]}}
task: {{_target_: harness.tasks.Classification, input: features, target: label}}
batch: {{size: 24, micro_size: 4}}
optimizer: {{_target_: torch.optim.AdamW, lr: 3e-2}}
stop: {{every: {{epochs: 1}}, budget: {{epochs: 5}}}}
log: {{every: {{steps: 1}}, trace: true}}
"""


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    """A config on a table of 178 wines, in two files."""
    table = pd.DataFrame(load_wine().data.round(3))
    table["label"] = np.array(["barolo", "grignolino", "barbera"])[load_wine().target]
    table["row"] = np.arange(len(table))
    (tmp_path / "wine").mkdir()
    table[::2].to_csv(tmp_path / "wine" / "a.csv", index=False)
    table[1::2].to_csv(tmp_path / "wine" / "b.csv", index=False)
    path = tmp_path / "wine.yaml"
    path.write_text(WINE.format(folder=tmp_path / "wine", run=tmp_path / "run"))
    return path


def prepared(
    path: Path, *overrides: str, names: tuple[str, ...] = ("train", "val"), learned: Any = None
) -> Any:
    config = read_config(path, overrides)
    sources = Sources(config.data)
    memo = path.parent / "memo"
    memo.mkdir(exist_ok=True)
    ready = prepare(config.data, names, sources, learned, memo, Feedback())
    return ready, open_splits(config.data, names, sources, ready, lambda batch: None)


def samples(split: Split, *, training: bool = False) -> dict[str, torch.Tensor]:
    indices = np.arange(len(split))
    return split.fetch(indices, indices.astype(np.uint64), 0, training=training)


def run_on(path: Path, ranks: int, *overrides: str, code: int = 0) -> str:
    ends = train_on_ranks(ranks, path, overrides)
    assert [one.exit_code for one in ends] == [code] * ranks, ends[0].stderr
    return ends[0].stdout + ends[0].stderr


def test_treatments_learn_from_the_training_split_alone(wine: Path) -> None:
    ready, splits = prepared(wine)
    raw = np.stack(
        [
            Sources(read_config(wine).data)["train"][index]["features"]
            for index in range(len(splits["train"]))
        ]
    ).astype(np.float64)
    np.testing.assert_allclose(ready.learned[0].state["mean"], raw.mean(0), rtol=1e-12)
    np.testing.assert_allclose(ready.learned[0].state["std"], raw.std(0), rtol=1e-9)
    assert samples(splits["train"])["features"].mean(0).abs().max() < 1e-5
    assert samples(splits["val"])["features"].mean(0).abs().max() > 0.02, (
        "val is standardised by the training split's mean, not its own"
    )
    assert json.loads(json.dumps(ready.to_json())) == ready.to_json()


def test_without_the_same_treatment_in_train_a_split_cannot_be_prepared(wine: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.val\.treatments\[0\]: .*Standardise learns from the training split.*anchor",
    ):
        prepared(wine, "data.val.treatments.0.key=label")


def test_what_was_learned_is_in_the_run_and_its_checkpoints_and_is_used_by_evaluate_and_predict(
    wine: Path, tmp_path: Path
) -> None:
    run_on(wine, 2)
    kept = json.loads((tmp_path / "run" / "treatments.json").read_text())
    assert [one["treatment"]["_target_"].rpartition(".")[2] for one in kept] == [
        "Standardise",
        "Encode",
    ]
    assert load_trainer(find_checkpoint(tmp_path / "run"))["learned"] == kept
    evaluated = command("evaluate", tmp_path / "run", "--json", "--allow", f"{tmp_path}/")
    told = json.loads(evaluated.stdout)
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    best = json.loads((tmp_path / "run" / "outcome.json").read_text())["best"]
    (record,) = [one for one in records if one["kind"] == "eval" and one["step"] == best["step"]]
    assert told["loss"] == pytest.approx(record["val/loss"], rel=1e-6)
    # One wine alone: nothing could be learned from it, and its label need not be known.
    one = pd.read_csv(tmp_path / "wine" / "a.csv").drop(columns=["label", "row"])[:1]
    one.to_csv(tmp_path / "one.csv", index=False)
    source = (
        f"{{_target_: harness.sources.tables.Table, files: {tmp_path}/one.csv, features: "
        f"{[str(index) for index in range(13)]}}}"
    )
    ends = command(
        "predict", str(tmp_path / "run"), "--source", source, "--out", str(tmp_path / "one.parquet")
    )
    assert ends.exit_code == 0, ends.stderr
    assert len(pd.read_parquet(tmp_path / "one.parquet")) == 1


@pytest.mark.parametrize("store", [False, True])
def test_a_resumed_run_uses_what_was_learned_and_ends_with_the_same_bits(
    wine: Path, tmp_path: Path, store: bool
) -> None:
    kept = [f"data.store.dir={tmp_path / 'store'}"] if store else []
    run_on(wine, 2, f"run.dir={tmp_path / 'whole'}", *kept)
    run_on(wine, 2, "stop.budget.epochs=2", *kept)
    shutil.rmtree(tmp_path / "store", ignore_errors=True)  # the checkpoint is enough
    run_on(wine, 2, *kept)
    assert trace(tmp_path / "run") == trace(tmp_path / "whole")
    assert last_state(tmp_path / "run")["files"] == last_state(tmp_path / "whole")["files"]


@pytest.mark.parametrize("store", [False, True])
def test_data_rewritten_at_the_same_size_and_time_refuses_an_exact_resume(
    wine: Path, tmp_path: Path, store: bool
) -> None:
    kept = [f"data.store.dir={tmp_path / 'store'}"] if store else []
    run_on(wine, 1, "stop.budget.epochs=1", *kept)
    file = tmp_path / "wine" / "b.csv"
    before, text = file.stat(), file.read_text()
    lines = text.splitlines()
    lines[40] = lines[40].replace("1", "2", 1)
    file.write_text("\n".join(lines) + "\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "no longer gives the samples that the run began with" in run_on(wine, 1, *kept, code=2)
    file.write_text(text)
    run_on(wine, 1, *kept)


def test_the_store_gives_the_same_samples_and_is_not_built_twice(
    wine: Path, tmp_path: Path
) -> None:
    _, fresh = prepared(wine)
    kept = f"data.store.dir={tmp_path / 'store'}"
    ready, splits = prepared(wine, kept)
    entries = {path: path.stat().st_ctime_ns for path in (tmp_path / "store").rglob("*.npy")}
    again, _ = prepared(wine, kept)
    assert again == ready
    assert {
        path: path.stat().st_ctime_ns for path in (tmp_path / "store").rglob("*.npy")
    } == entries
    for name, split in fresh.items():
        for training in (False, True):
            one, other = samples(split, training=training), samples(splits[name], training=training)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_key_changes_with_what_is_kept_and_with_nothing_else(wine: Path, tmp_path: Path) -> None:
    def keys(*overrides: str) -> list[str]:
        ready, _ = prepared(wine, f"data.store.dir={tmp_path / 'store'}", *overrides)
        return [Path(ready.stored[name]).name for name in ("train", "val")]

    first = keys()
    both = [f"data.{name}.treatments.2.std=0.2" for name in ("train", "val")]
    assert keys(*both) == first, "what is online is not kept"
    assert keys("run.seed=5") == first
    # noise of no account, but a treatment marked online is not kept, nor is what comes after it
    online = keys(*[f"data.{name}.treatments.0._stage_=online" for name in ("train", "val")])
    assert not set(online) & set(first)
    assert keys("data.val.source.part=test")[0] == first[0]
    assert keys("data.val.source.part=test")[1] != first[1]


def test_the_commands_build_inspect_and_prune(wine: Path, tmp_path: Path) -> None:
    kept = f"data.store.dir={tmp_path / 'store'}"
    wine.write_text(
        wine.read_text().replace("data:\n", f"data:\n  store: {{dir: {tmp_path / 'store'}}}\n")
    )
    assert {
        one["used_by"]: one["num_samples"]
        for one in json.loads(command("data", "inspect", str(wine), "--json").stdout)
    } == {}
    built = command("data", "build", str(wine), "--json")
    listed = json.loads(built.stdout.splitlines()[-1])
    assert [one["num_samples"] for one in listed if one["used_by"] == "test, train, val"] == [178]
    entries = {one["used_by"]: one["num_samples"] for one in listed if one["columns"]}
    assert entries.keys() == {"train", "val", "test"}
    assert sum(entries.values()) == 178
    other = tmp_path / "other.yaml"
    other.write_text(wine.read_text().replace("key: row", "key: [row, label]"))
    assert command("data", "build", str(other)).exit_code == 0
    rows = json.loads(command("data", "inspect", str(other), "--json").stdout)
    assert sorted(one["used_by"] for one in rows) == [
        *([""] * 4),
        *("test", "test, train, val", "train", "val"),
    ], "three entries and a reading of each config"
    pruned = command("data", "prune", str(wine))
    assert pruned.stdout.count("deleted") == 4, pruned.stderr
    assert json.loads(command("data", "inspect", str(wine), "--json").stdout) == listed
    none = command("data", "build", str(wine), "data.store=null")
    assert none.exit_code == 2
    assert "the config has no store" in none.stderr
    assert command("data", "build", str(wine), kept, "data.store.dir=/proc/none").exit_code == 2


@pytest.mark.parametrize("stage", ["once", "fit", "sometimes"])
def test_a_stage_that_cannot_be_set_is_a_mistake(wine: Path, stage: str) -> None:
    with pytest.raises(ConfigError, match=r"treatments.*only online can be set"):
        read_config(wine, [f"data.train.treatments.0._stage_={stage}"])


def test_a_failing_fit_names_its_place(wine: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train"):
        prepared(wine, "data.train.source.files=" + str(wine.parent / "wine" / "none.csv"))


def test_hashes_are_remembered_only_while_nothing_can_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    memo = tmp_path / "memo.json"
    first = Hashes(memo).of([file])
    assert json.loads(memo.read_text()) == {}, "too young to be trusted"
    stamp = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = Hashes(memo).of([file])
    assert second != first
    memo.write_text(
        json.dumps(
            {
                str(file): [
                    3,
                    stamp.st_mtime_ns,
                    file.stat().st_ctime_ns - RACY_NS,
                    file.stat().st_ino,
                    "old",
                ]
            }
        )
    )
    assert Hashes(memo).of([file]) == second, (
        "another time of change: what was remembered does not count"
    )
    memo.write_text(
        json.dumps(
            {
                str(file): [
                    3,
                    file.stat().st_mtime_ns,
                    file.stat().st_ctime_ns,
                    file.stat().st_ino,
                    "remembered",
                ]
            }
        )
    )
    assert Hashes(memo).of([file]) != second


class Images:
    """Sample i is a picture of its own."""

    def __len__(self) -> int:
        return 61

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        pictures = [
            np.random.default_rng(index).integers(0, 256, (1, 12, 12), dtype=np.uint8)
            for index in indices
        ]
        return {"image": np.stack(pictures), "label": np.asarray(indices) % 3}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}


def batches(
    world_size: int, num_workers: int, first_step: int, last_step: int
) -> list[list[dict[str, torch.Tensor]]]:
    """Every micro-batch of the steps, in the order of slots, as `world_size` ranks get them."""
    treatments = [RandomFlip(), RandomCrop(padding=2), RandomErase(), ToFloat(), AddNoise(std=0.1)]
    sampling = Sampling(num_samples=61, size=24, micro_size=2, seed=5)
    split = Split(Images(), treatments, "data.train", lambda batch: None)
    feeds = [
        Feed(
            split,
            sampling,
            sampling.slots_of(rank, world_size),
            torch.device("cpu"),
            num_workers,
            first_step,
        )
        for rank in range(world_size)
    ]
    return [
        [batch for feed in feeds for batch in feed.next_step()]
        for _ in range(first_step, last_step)
    ]


REFERENCE: list[list[dict[str, torch.Tensor]]] = []


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    world_size=st.sampled_from([1, 2, 3, 4]),
    num_workers=st.sampled_from([0, 2]),
    first_step=st.integers(0, 8),
    count=st.integers(1, 3),
)
def test_batches_after_augmentation_are_the_same_on_any_ranks_and_workers_and_from_any_step(
    world_size: int, num_workers: int, first_step: int, count: int
) -> None:
    if not REFERENCE:
        REFERENCE.extend(batches(1, 0, 0, 11))
    for step, found in zip(
        range(first_step, first_step + count),
        batches(world_size, num_workers, first_step, first_step + count),
        strict=True,
    ):
        assert len(found) == len(REFERENCE[step]) == 12
        for one, other in zip(found, REFERENCE[step], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("image", "label"))


def be_slow(seconds: float, fails: bool) -> str:
    def work() -> str:
        time.sleep(seconds)
        if fails:
            raise DataError("data.train: nothing there")
        return "done"

    return slowly(Ranks.join(2.0), work, heard_s=0.5)


def test_rank_0_may_take_longer_than_the_others_wait() -> None:
    assert on_ranks(2, be_slow, 5.0, False) == ["done", "done"]
    with pytest.raises(RanksFailed) as failed:
        on_ranks(2, be_slow, 3.0, True)
    assert [str(failed.value.error(rank)) for rank in (0, 1)] == ["data.train: nothing there"] * 2


def lose_a_peer(seconds: float) -> str:
    ranks = Ranks.join(5.0)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        return slowly(ranks, lambda: (time.sleep(seconds), "done")[1], heard_s=0.2)
    except RuntimeError:
        return "left"


def test_a_rank_that_works_long_does_not_stay_when_another_is_lost() -> None:
    began = time.monotonic()
    with pytest.raises(RanksFailed) as failed:
        on_ranks(2, lose_a_peer, 25.0)
    assert failed.value.results == {0: "left"}
    assert time.monotonic() - began < 20


def test_learned_survives_json() -> None:
    one = TreatmentState({"_target_": "x"}, {"mean": [0.1, 1e-300, 1 / 3]})
    assert (
        TreatmentState(**json.loads(json.dumps({"treatment": one.treatment, "state": one.state})))
        == one
    )


@pytest.mark.parametrize("store", [False, True])
def test_what_is_left_out_is_listed_in_the_run(wine: Path, tmp_path: Path, store: bool) -> None:
    (tmp_path / "wine" / "c.csv").write_text("0,1\nx,y\n")
    wine.write_text(
        wine.read_text().replace("part: train\n", "part: train\n      on_error: skip\n")
    )
    kept = [f"data.store.dir={tmp_path / 'store'}"] if store else []
    for launch in range(2):  # the second finds the store as the first left it
        config = read_config(wine, [f"run.dir={tmp_path / f'run{launch}'}", *kept])
        config.run.dir.mkdir()
        with (
            nullcontext()
            if store and launch
            else pytest.warns(UserWarning, match="1 of 3 files skipped")
        ):
            _, splits = prepared(wine, *kept)
        list_left_out(config, splits)
        left_out = json.loads((config.run.dir / "left_out.json").read_text())
        assert left_out.keys() == {"data.train", "data.val"}
        assert all(
            len(messages) == 1 and f"{tmp_path}/wine/c.csv" in messages[0]
            for messages in left_out.values()
        )

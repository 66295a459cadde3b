"""Cross-validation: folds are dealt without leaks, and each is a run."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import app
from harness.commands.folds import write
from harness.errors import ConfigError, DataError
from harness.search.folds import Folds
from harness.sources.split import ByFold, ByGroup, rows_of

words = st.lists(st.sampled_from("abcdefg"), min_size=7, max_size=60)


def dealt(rule_of_fold: "list[ByFold]", known: dict[str, list[str]], count: int) -> list[set[int]]:
    """The validation samples of each fold; train is what is left."""
    folds = []
    for rule in rule_of_fold:
        val = set(rows_of("val", rule, known, count).tolist())
        train = set(rows_of("train", rule, known, count).tolist())
        assert not val & train
        assert val | train == set(range(count))
        folds.append(val)
    return folds


@given(words, st.integers(2, 4))
def test_a_group_is_never_on_both_sides_and_each_sample_is_validated_once(
    groups: list[str], k: int
) -> None:
    known = {"subject": [*groups, *"abcdefg"]}
    count = len(known["subject"])
    folds = dealt([ByFold(k, fold, "subject") for fold in range(1, k + 1)], known, count)
    assert sorted(one for fold in folds for one in fold) == list(range(count))
    subjects = [{known["subject"][row] for row in fold} for fold in folds]
    for index, mine in enumerate(subjects):
        assert mine
        assert not any(mine & theirs for theirs in subjects[index + 1 :])
    largest = max(known["subject"].count(one) for one in "abcdefg")
    assert max(map(len, folds)) - min(map(len, folds)) <= largest


@given(st.lists(st.sampled_from("xyz"), min_size=8, max_size=60), st.integers(2, 5))
def test_folds_of_single_samples_are_equal_and_stratified_ones_in_each_class(
    labels: list[str], k: int
) -> None:
    count, known = len(labels), {"label": labels}
    for stratify in (None, "label"):
        rules = [ByFold(k, fold, stratify=stratify) for fold in range(1, k + 1)]
        folds = dealt(rules, known, count)
        assert sorted(one for fold in folds for one in fold) == list(range(count))
        sizes = [len(fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        shares = [sum(labels[row] == label for row in fold) for fold in folds]
        assert max(shares) - min(shares) <= 1


def test_the_test_part_of_a_rule_stays_out_of_all_folds() -> None:
    known = {"subject": [f"s{n % 20}" for n in range(200)]}
    inner = ByGroup("subject", val=0.2, test=0.3)
    before = rows_of("test", inner, known, 200)
    for fold in (1, 2, 3):
        rule = ByFold(3, fold, "subject", within=inner)
        assert np.array_equal(rows_of("test", rule, known, 200), before)
        assert not set(rows_of("val", rule, known, 200)) & set(before)
    nested = ByFold(2, 1, "subject", within=ByFold(5, 1))  # the outer one decides
    assert set(rows_of("val", nested, known, 200)) == set(
        rows_of("val", ByFold(2, 1, "subject"), known, 200)
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: ByFold(1, 1), "k is at least 2"),
        (lambda: ByFold(3, 4), "fold 1 to k"),
        (lambda: ByFold(3, 1, "subject", stratify="label"), "whole groups are not stratified"),
    ],
)
def test_folds_that_cannot_be_are_refused(rule: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule()  # type: ignore[operator]  # a lambda of the list above


def test_more_folds_than_groups_or_samples_are_refused() -> None:
    known = {"subject": ["a", "b", "a", "b"]}
    with pytest.raises(DataError, match="2 groups in 'subject' are too few for 3 folds"):
        rows_of("val", ByFold(3, 1, "subject"), known, 4)
    with pytest.raises(DataError, match="4 samples are too few for 5 folds"):
        rows_of("val", ByFold(5, 1), {}, 4)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A table of ten subjects whose label is their own: what leaks is recognised at once."""
    generator = np.random.default_rng(0)
    rows = ["subject,x,y,label"]
    for row in range(60):
        subject = row % 10
        rows.append(f"s{subject},{subject + generator.random():.3f},{row},{generator.integers(2)}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    path = tmp_path / "folds.yaml"
    path.write_text(
        f"""
run: {{name: folded, seed: 1, dir: {tmp_path}/runs/folded}}
data:
  train: {{source: &table {{_target_: harness.sources.tables.Table, files: {tmp_path}/table.csv,
    features: [x, y], columns: {{label: integer}}, part: train, split: &rule
    {{_target_: harness.sources.split.ByGroup, column: subject, val: 0.2, test: 0}}}}}}
  val: {{source: {{<<: *table, part: val}}}}
  num_workers: 0
network: {{_target_: harness.networks.Mlp, dims: [2, 4, 2]}}
task: {{_target_: harness.tasks.Classification, input: features, target: label}}
batch: {{size: 8, micro_size: 8}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.01}}
stop: {{every: {{epochs: 1}}, best: {{metric: val/loss}}, budget: {{epochs: 2}}}}
"""
    )
    return path


def test_each_fold_is_a_run_and_their_mean_and_spread_are_told(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["folds", str(config), "--k", "3", "--cpu"]
    assert app(asked, standalone_mode=False) == 0
    directory = config.parent / "runs" / "folded-folds"
    rows = pq.read_table(directory / "folds.parquet").to_pylist()
    assert [one["fold"] for one in rows] == [1, 2, 3]
    capsys.readouterr()
    # Again: nothing is trained, the same is said
    assert app([*asked, "--json"], standalone_mode=False) == 0
    said = json.loads(capsys.readouterr().out)
    losses = [one["val/loss"] for one in rows]
    assert said["summary"]["val/loss"]["mean"] == pytest.approx(np.mean(losses))
    assert said["summary"]["val/loss"]["spread"] == pytest.approx(np.std(losses, ddof=1))
    assert [one["val/loss"] for one in said["folds"]] == losses
    # A fold that was left counts for nothing, and is said to be missing
    ended = directory / "fold-2" / "outcome.json"
    ended.write_text(json.dumps({**json.loads(ended.read_text()), "reason": "interrupted"}))
    found = Folds.read(directory, 3, "val/loss")
    assert [one.number for one in found.folds] == [1, 3]
    assert found.missing() == "2 of 3 folds have ended; run it again to go on"
    # A metric that one fold does not have has no mean, which is said
    records = directory / "fold-1" / "metrics.jsonl"
    records.write_text(re.sub('"val/f1": [^,}]*', '"val/f1": null', records.read_text()))
    found = Folds.read(directory, 3, "val/loss")
    assert "val/f1" not in found.summary()
    write(found)
    for said in (" ".join(map(str, found.page())), (directory / "folds.html").read_text()):
        assert "val/f1: no finite value in fold 1, and so no mean" in said
    write(Folds(config.parent, "val/loss", 3, []))  # interrupted in the first
    # The config's ByGroup keeps subjects together without being asked to
    stored = (directory / "fold-2" / "config.yaml").read_text()
    assert "ByFold" in stored
    assert "column: subject" in stored
    with pytest.raises(ConfigError, match="holds folds of another config, or dealt"):
        app([*asked, "run.seed=2"], standalone_mode=False)
    # A fold that fails ends it with its message: more folds than subjects
    with pytest.raises(DataError, match=r"fold \d: DataError: .*10 groups .* too few for 11 folds"):
        app(
            ["folds", str(config), "--k", "11", "--cpu", "--dir", str(config.parent / "b")],
            standalone_mode=False,
        )
    # Dealt one by one, subjects leak: the check of the data says so before anything is trained
    leak = ["folds", str(config), "--k", "3", "--cpu", "--dir", str(config.parent / "c")]
    leak += ["--stratify", "label"]
    with pytest.raises(DataError, match=r"values of 'subject' also occur in data\.train"):
        app(leak, standalone_mode=False)


def test_configs_without_parts_or_with_two_rules_are_refused(config: Path) -> None:
    digits = Path("configs/digits.yaml").absolute()
    with pytest.raises(ConfigError, match=r"data.train.source: has no `part`"):
        app(["folds", str(digits)], standalone_mode=False)
    other = "data.val.source.split={_target_: harness.sources.split.ByGroup, column: y}"
    with pytest.raises(ConfigError, match="differ, so their parts may share samples"):
        app(["folds", str(config), other], standalone_mode=False)
    with pytest.raises(ConfigError, match="--group, --stratify: whole groups"):
        app(["folds", str(config), "--group", "a", "--stratify", "b"], standalone_mode=False)


def test_a_fold_that_is_cut_off_goes_on_to_the_bit_if_it_got_further(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mortal = "optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}"

    def folds(name: str) -> list[dict[str, object]]:
        at = config.parent / name
        asked = ["folds", str(config), mortal, "--k", "2", "--cpu", "--dir", str(at)]
        assert app(asked, standalone_mode=False) == 0
        rows: list[dict[str, object]] = pq.read_table(at / "folds.parquet").to_pylist()
        return rows

    whole = folds("whole")
    monkeypatch.setenv("DIE_AT", "0:6:term")  # of 8 steps
    assert folds("cut") == whole
    assert capsys.readouterr().out.count("was cut off at step 6; it goes on") == 2
    monkeypatch.setenv("DIE_AT", "0:2")
    with pytest.raises(DataError, match=r"fold 1: it was killed .* further than step 0, where"):
        folds("again")


@pytest.mark.torture
def test_folds_on_two_ranks_are_those_on_one(config: Path) -> None:
    # A batch of two slots: the same sums on one rank and on two
    asked = ["folds", str(config), "batch.micro_size=4", "--k", "2", "--cpu"]
    summaries = []
    for ranks in ("1", "2"):
        at = config.parent / ranks
        more = ["--dir", str(at), "--processes", ranks]
        assert app([*asked, *more], standalone_mode=False) == 0
        found = Folds.read(at, 2, "val/loss")
        assert [one.outcome.world_size for one in found.folds] == [int(ranks)] * 2
        summaries.append(found.summary())
    assert summaries[0].keys() == summaries[1].keys()
    for name, one in summaries[0].items():
        assert summaries[1][name] == pytest.approx(one, rel=1e-5), name

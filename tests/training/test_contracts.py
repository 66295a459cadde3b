"""What a user's own objects may be, and one message each, at launch, for what they may not."""

import json
from pathlib import Path

import pytest

from tests.pool import train_on_ranks

SMALL = Path(__file__).with_name("small.yaml")
PARTS = "tests.training.contract_parts"
SUPERVISED = (
    "task={_target_: harness.tasks.Supervised, input: x, target: label, "
    f"loss: {{_target_: {PARTS}.Unwraps}}}}"
)


def network(name: str, options: str = "") -> str:
    return f"network={{_target_: {PARTS}.{name}, {options}}}"


@pytest.mark.parametrize(
    "kind",
    [
        "tuple",
        "list",
        "dict",
        "namedtuple",
        "dataclass",
        "object",
        "frozen dataclass",
        "attributes",
    ],
)
def test_a_loss_may_take_outputs_in_any_wrapping(tmp_path: Path, kind: str) -> None:
    options = [network("Gives", f"kind: {kind}"), SUPERVISED]
    [end] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", *options, "stop.budget.steps=4"])
    assert end.exit_code == 0, end.stderr


@pytest.mark.parametrize(
    "options",
    [
        *(f"dtype: {dtype}" for dtype in ("uint16", "uint64", "float8_e4m3fn", "bool")),
        "expanded: true",
    ],
)
def test_buffers_of_any_type_are_trained_with_and_resumed(tmp_path: Path, options: str) -> None:
    for steps in (4, 8):
        overrides = [f"run.dir={tmp_path}", network("Buffers", options)]
        ends = train_on_ranks(2, SMALL, [*overrides, f"stop.budget.steps={steps}"])
        assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
    assert json.loads((tmp_path / "outcome.json").read_text())["exact"]


def test_a_collection_is_recorded_metric_by_metric(tmp_path: Path) -> None:
    options = [f"task.metrics={{m: {{_target_: {PARTS}.collection}}}}", "stop.budget.steps=4"]
    [end] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", *options])
    assert end.exit_code == 0, end.stderr
    last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    [evaluation] = [record for record in last if record["kind"] == "eval"]
    assert {"val/m_f1", "val/m_precision"} <= evaluation.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            [network("Gives", "kind: tuple")],
            "returns a tuple of a tensor (2, 3) of torch.float32, N",
        ),
        ([network("Gives", "kind: none"), SUPERVISED], "task: the loss of None fails with a micro"),
        ([network("Gives", "kind: tokens")], "(2, 5, 3) of torch.float32 for a tensor (2,) of"),
        ([network("Buffers", "dtype: complex128")], "model kept: torch.complex128, torch.strided"),
        ([network("Named")], "a tensor is called __metadata__, which safetensors keeps for itself"),
        ([f"optimizer={{_target_: {PARTS}.Counts, lr: 0.1}}"], "also keeps ['steps'], which cann"),
        (
            [f"optimizer={{_target_: {PARTS}.Deep, lr: 0.1}}"],
            "optimizer wide/first.weight: torch.c",
        ),
        ([network("Gives", "kind: none"), SUPERVISED, "run.exactness=none"], "the loss of None fa"),
        (
            [network("Normalised"), "batch.micro_size=1"],
            "network: a training pass fails with a micro-batch of {'x': 'a tensor (1, 6)",
        ),
        (
            [f"data.train.source={{_target_: {PARTS}.Samples, kind: tuple}}"],
            "a sample that is a tu",
        ),
        (
            [f"data.train.source={{_target_: {PARTS}.Samples, kind: none}}"],
            "sample that is a NoneT",
        ),
        (
            [f"data.train.source={{_target_: {PARTS}.Samples, kind: more}}"],
            "samples of different n",
        ),
        (
            [f"data.train.source={{_target_: {PARTS}.Samples, kind: no-label}}"],
            "is not a numeric array",
        ),
        (
            [f"data.train.source={{_target_: {PARTS}.Stream}}"],
            "has no length",
        ),
        (
            [
                f"task.metrics={{m: {{_target_: {PARTS}.collection}}, "
                "m_f1: {_target_: torchmetrics.MeanMetric}}"
            ],
            "m_f1 is the name of another metric as well",
        ),
        (
            ["task.metrics={m: {_target_: torchmetrics.MeanMetric}}"],
            "the loss and metrics of a ten",
        ),
        (
            [
                f"data.val.source={{_target_: {PARTS}.OneClass}}",
                "task.metrics={auroc: {_target_: torchmetrics.classification.MulticlassAUROC, "
                "num_classes: 3}}",
            ],
            "metric auroc: cannot be computed: No positive samples in targets",
        ),
    ],
)
def test_what_breaks_a_contract_is_told_at_launch(
    tmp_path: Path, options: list[str], words: str
) -> None:
    [end] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", *options, "checkpoint.every.steps=12"])
    assert end.exit_code == 2, end.stderr
    assert words in end.stderr
    assert "Traceback" not in end.stderr
    assert len(end.stderr.strip().splitlines()) <= 2  # a warning about the data may come before


def test_parameters_that_later_steps_do_not_use_are_named(tmp_path: Path) -> None:
    overrides = [f"run.dir={tmp_path}", network("FirstOnly")]
    ends = train_on_ranks(2, SMALL, overrides)
    assert [one.exit_code for one in ends] == [2, 2]
    errors = "".join(one.stderr for one in ends)
    assert "early.weight, early.bias no gradient" in errors
    assert "Set train.find_unused_parameters: true" in errors
    ends = train_on_ranks(2, SMALL, [*overrides, "train.find_unused_parameters=true"])
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr


def test_ranks_that_initialise_otherwise_begin_with_rank_0s_weights(tmp_path: Path) -> None:
    ends = train_on_ranks(2, SMALL, [f"run.dir={tmp_path}", network("Unseeded")])
    assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr

"""Networks that keep state: resumed exactly, refused before the first step, or named as inexact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.training.network_state import to_channels_last
from tests.pool import Launched, train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"


def launch(run: Path, how: str, steps: int, ranks: int = 1) -> list[Launched]:
    kind = "KeepsExtra" if how.startswith("extra") else "Keeps"
    asked = [
        f"run.dir={run}",
        f"network={{_target_: tests.training.state_parts.{kind}, how: {how}}}",
        "optimizer={_target_: torch.optim.AdamW, lr: 0.01}",
        "schedule=null",
        "stop={every: {steps: 4}, budget: {steps: 1}}",
        f"stop.budget.steps={steps}",
    ]
    return train_on_ranks(ranks, STORM, asked)


def trace(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


def exact(run: Path) -> tuple[bool, str]:
    said = json.loads((run / "outcome.json").read_text())
    return said["exact"], said["exact_reason"]


@pytest.mark.parametrize(
    ("how", "ranks"),
    [
        ("assigned", 1),
        ("assigned", 2),
        ("in place", 1),
        ("momentum", 1),
        ("extra tensor", 1),
        ("cache", 1),
    ],
)
def test_what_a_checkpoint_holds_resumes_exactly(tmp_path: Path, how: str, ranks: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run, steps in ((whole, 12), (cut, 4), (cut, 12)):
        ends = launch(run, how, steps, ranks)
        assert [one.exit_code for one in ends] == [0] * ranks, ends[0].stderr
    assert trace(cut) == trace(whole)
    assert exact(whole)[0], exact(whole)[1]
    assert exact(cut)[0], exact(cut)[1]


@pytest.mark.parametrize(
    ("how", "name"),
    [("not persistent", "mean"), ("attribute", "calls"), ("attribute tensor", "hidden")],
)
def test_what_no_checkpoint_holds_is_named(tmp_path: Path, how: str, name: str) -> None:
    (end,) = launch(tmp_path / "run", how, 4)
    assert end.exit_code == 0, end.stderr
    said = f"no checkpoint holds {name}, which a step changes: make it a buffer of the network"
    assert exact(tmp_path / "run") == (False, said)


PARTS = "_target_: tests.training.state_parts"


def finish(run: Path, steps: int, *more: str) -> None:
    asked = [f"run.dir={run}", "optimizer={_target_: torch.optim.SGD, lr: 0.01}", "schedule=null"]
    asked += ["stop={every: {steps: 4}, budget: {steps: 1}}", f"stop.budget.steps={steps}", *more]
    (end,) = train_on_ranks(1, STORM, asked)
    assert end.exit_code == 0, end.stderr


def test_a_generator_in_a_helper_object_is_kept(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run, steps in ((whole, 8), (cut, 4), (cut, 8)):
        finish(run, steps, f"network={{{PARTS}.Helped}}")
    assert trace(cut) == trace(whole)
    assert exact(cut)[0], exact(cut)[1]


def test_a_treatment_with_a_random_state_of_its_own_is_named(tmp_path: Path) -> None:
    finish(tmp_path / "run", 4, f"data.train.treatments=[{{{PARTS}.OwnJitter}}]")
    assert exact(tmp_path / "run") == (
        False,
        "x of data.train differs when it is fetched again (treatments.0.rng keeps a random "
        "state of its own): draw from `seeds`",
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_that_drift_apart_end_the_run_by_name(tmp_path: Path, ranks: int) -> None:
    asked = [f"run.dir={tmp_path / 'run'}", f"network={{{PARTS}.ActNorm}}", "schedule=null"]
    asked += ["optimizer={_target_: torch.optim.AdamW, lr: 0.01}", "stop.budget.steps=4"]
    ends = train_on_ranks(ranks, STORM, asked)
    said = "".join(one.stderr for one in ends)
    if ranks == 1:
        assert ends[0].exit_code == 0, said
    else:
        assert [one.exit_code for one in ends] == [1, 1], said
        assert "step 1: scale: not the same on all ranks" in said
        assert "Traceback" not in said


def test_ranks_are_compared_as_often_as_asked(tmp_path: Path) -> None:
    asked = [f"network={{{PARTS}.Drifts}}", "schedule=null", "checkpoint.every.steps=12"]
    asked += ["optimizer={_target_: torch.optim.AdamW, lr: 0.01}", "stop.budget.steps=12"]
    asked += ["stop.every.steps=12"]

    def drift(name: str, *overrides: str) -> str:
        ends = train_on_ranks(2, STORM, [f"run.dir={tmp_path / name}", *asked, *overrides])
        assert [one.exit_code for one in ends] == [1, 1]
        said = "".join(one.stderr for one in ends)
        return said.partition(": not the same")[0].rpartition("RankError: ")[2].partition(":")[0]

    assert drift("seldom") == "step 12"
    assert drift("often", "run.compare_every={steps: 2}") == "step 2"


def test_a_loss_that_keeps_state_is_named(tmp_path: Path) -> None:
    loss = f"loss: {{{PARTS}.Centred}}, reduction: none"
    task = f"task={{_target_: harness.tasks.Supervised, input: x, target: label, {loss}}}"
    finish(tmp_path / "run", 4, task)
    said = "no checkpoint holds task.loss.centre, which a step changes"
    assert exact(tmp_path / "run") == (False, f"{said}: make it a buffer of the network")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("grows", "turns the buffer mean from (0,) torch.float32 into (8,) torch.float32"),
        ("begins as None", "turns the buffer mean from None into (8,) torch.float32"),
        ("extra dict", "get_extra_state of the network gives no tensor"),
    ],
)
def test_what_could_not_be_loaded_is_refused_before_the_first_step(
    tmp_path: Path, how: str, words: str
) -> None:
    (end,) = launch(tmp_path / "run", how, 4)
    assert (end.exit_code, "Traceback" in end.stderr) == (2, False), end.stderr
    assert words in end.stderr
    assert not (tmp_path / "run" / "trace.jsonl").read_text()


def test_channels_last_leaves_what_has_other_axes() -> None:
    """A network of `nn.Conv3d` ended with torch's "required rank 4 tensor"."""
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv3d(3, 4, 2), nn.Linear(3, 2))
    to_channels_last(network)
    kept = [one.is_contiguous(memory_format=torch.channels_last) for one in network[0].parameters()]
    assert kept[0]
    assert network[1].weight.is_contiguous()

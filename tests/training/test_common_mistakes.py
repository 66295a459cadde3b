"""Mistakes that newcomers make: each ends in one message that says what to write instead."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import components
from harness.commands.evaluate import evaluate_split
from harness.config.read import read_config, resolved_yaml
from harness.errors import ConfigError, DataError
from harness.tasks import Classification
from tests.pool import train_on_ranks
from tests.training import mistake_parts

SMALL = Path(__file__).parent / "small.yaml"
PARTS = mistake_parts.__name__
SUPERVISED = "_target_: harness.tasks.Supervised, input: x, target: label, reduction: mean"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        read_config(SMALL, overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("loss", "quantile"),
    [
        (f"{PARTS}.pinball", 0.5),
        (f"{{_target_: {PARTS}.pinball}}", 0.5),
        (f"{{_target_: {PARTS}.pinball, quantile: 0.9}}", 0.9),
    ],
)
def test_a_function_is_a_loss(loss: str, quantile: float) -> None:
    task = components.build(
        read_config(SMALL, [f"task={{{SUPERVISED}, loss: {loss}}}"]).task, "task"
    )
    outputs, target = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 1.0])
    found = task.loss_sum(outputs, {"label": target})
    assert found.item() == pytest.approx(quantile * 2.0 + (1 - quantile) * 1.0)


def test_a_class_by_name_is_a_loss_too_and_factories_stay_factories() -> None:
    config = read_config(SMALL, [f"task={{{SUPERVISED}, loss: torch.nn.MSELoss}}"])
    assert isinstance(components.build(config.task, "task").loss, torch.nn.MSELoss)
    assert "_target_: torch.nn.MSELoss" in resolved_yaml(config)
    wrong = refused(f"task={{{SUPERVISED}, loss: {{_target_: {PARTS}.power_loss}}}}")
    assert f"task.loss: {PARTS}.power_loss needs exponent. Give it next to _target_." in wrong
    assert "did you mean" in refused(f"task={{{SUPERVISED}, loss: {PARTS}.pinbal}}").lower()


def test_a_stored_config_names_no_function_of_others_as_a_loss(tmp_path: Path) -> None:
    stored = tmp_path / "config.yaml"
    config = read_config(SMALL, [f"task={{{SUPERVISED}, loss: torch.nn.MSELoss}}"])
    stored.write_text(
        resolved_yaml(config).replace("_target_: torch.nn.MSELoss", "_target_: os.system")
    )
    with pytest.raises(ConfigError, match=r"task\.loss.*os\.system.*--allow os\.system"):
        read_config(stored, allow=[])
    text = resolved_yaml(config)
    start = text.index("loss:")
    stored.write_text(
        text[:start] + "loss: os.system" + text[text.index("MSELoss") + len("MSELoss") :]
    )
    with pytest.raises(ConfigError, match=r"task\.loss.*os\.system.*--allow os\.system"):
        read_config(stored, allow=[])


def test_prices_are_no_classes(tmp_path: Path) -> None:
    task = Classification(input="x", target="price")
    with pytest.raises(DataError, match=r"e\.g\. 1\.25\. To predict numbers use .*Regression"):
        task.check({"x": torch.zeros(2, 6), "price": torch.tensor([1.0, 1.25])})
    source = f"{{_target_: {PARTS}.Prices, count: 64}}"
    [end] = train_on_ranks(1, SMALL, [f"data.train.source={source}", f"run.dir={tmp_path}"])
    assert end.exit_code == 2
    assert (
        "'label': 0, 1, 2. Numbers to be predicted are no classes: use harness.tasks" in end.stderr
    )


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.epochs=10", "stop.budget.epochs"),
        ("parts.encoder.learning_rate=1", "parts.encoder.lr"),
        ("stop.every.num_epochs=2", "stop.every.epochs"),
        ("max_epochs=10", "stop.budget.epochs"),
        ("max_steps=10", "stop.budget.steps"),
        ("batch_size=10", "batch.size"),
        ("train.learning_rate=0.1", "optimizer.lr"),
        ("stop.patience=3", "stop.improvement.patience"),
        ("train.amp=true", "train.precision"),
        ("output_dir=runs/x", "run.dir"),
    ],
)
def test_the_names_of_other_tools_lead_to_ours(override: str, meant: str) -> None:
    assert f"no such key. Did you mean {meant}?" in refused(override)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("harness.schedules.WarmupCosine", "needs total_steps. Give it next to _target_."),
        ("torch.optim.lr_scheduler.StepLR", "needs step_size. Give it next to _target_."),
        ("torch.optim.lr_scheduler.CyclicLR", "needs base_lr, max_lr. Give them next to _target_."),
    ],
)
def test_a_schedule_says_what_it_lacks(schedule: str, words: str) -> None:
    assert words in refused(f"schedule={{_target_: {schedule}}}")


def test_a_network_of_timm_is_found_by_a_name_like_it() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"Unknown model.*Did you mean resnet18\?$"):
        components.build({"_target_": "timm.create_model", "model_name": "resnet_18"}, "network")


def test_memory_that_was_refused_is_told_with_step_shapes_and_peak(tmp_path: Path) -> None:
    def end(network: str) -> Any:
        overrides = [f"network={{_target_: {PARTS}.{network}}}", f"run.dir={tmp_path / network}"]
        [ended] = train_on_ranks(1, SMALL, overrides)
        assert ended.exit_code == 1, ended
        return ended.stderr.strip()

    said = end("Greedy")
    assert said.startswith("RankError: rank 0, step 2: out of memory with a micro-batch of ")
    assert "'x': 'a tensor (2, 6)" in said
    assert "you tried to allocate 4 TB" in said
    kinds = r"beside [\d.]+ GB of parameters, .* gradients, .* the optimizer's state \("
    assert re.search(kinds, said), said
    assert "GB of host memory were in use at most. Set a smaller batch.micro_size" in said
    assert "last bits and what dropout draws do not), or train.recompute: auto" in said
    assert "\n" not in said
    said = end("GreedyWhenEvaluated")
    assert said.startswith("RankError: rank 0, step 4: out of memory (MemoryError); ")
    assert "Set a smaller evaluation.micro_size" in said


def test_own_code_in_evaluate_names_what_to_allow(tmp_path: Path) -> None:
    [ended] = train_on_ranks(1, SMALL, [f"run.dir={tmp_path}", "stop.budget.steps=4"])
    assert ended.exit_code == 0
    with pytest.raises(ConfigError, match=r"add --allow tests\.training\.optimizer_parts"):
        evaluate_split(tmp_path, "val", ())

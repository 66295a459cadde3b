"""A compiled network trains, goes on to the bit, and has the names that it has without."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from harness.config.identity import identity_changes
from harness.config.read import read_config
from harness.errors import ConfigError
from harness.training.compiling import check_compiler
from harness.training.parallel import start_accelerator
from tests.pool import Launched, on_ranks, train_on_ranks
from tests.resume.test_exact import trace

SMALL = Path(__file__).with_name("small.yaml")
COMPILED = [
    "train.compile=true",
    "network={_target_: tests.resume.zoo.small, kind: batch-norm}",
    "evaluation.micro_size=7",  # other shapes than the training's, the last one by itself
]


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing compiles for the CPU here: no g++")
def test_a_compiled_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def train(name: str, *overrides: str) -> Launched:
        # In this thread: the pool's processes are to leave nothing behind
        env = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        changes = [f"run.dir={tmp_path / name}", *COMPILED, *overrides]
        return train_on_ranks(2, SMALL, changes, env=env)[0]

    plain = "train.compile=false"
    assert [train(*one).exit_code for one in [("whole",), ("plain", plain)]] == [0, 0]
    assert train("cut", "stop.budget.steps=4").exit_code == 0
    assert train("cut").exit_code == 0
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    outcome = json.loads((tmp_path / "cut" / "outcome.json").read_text())
    assert (outcome["exact"], outcome["launches"]) == (True, 2)
    assert names(tmp_path / "cut") == names(tmp_path / "plain")
    refused = train("cut", plain, "stop.budget.steps=16")
    assert refused.exit_code == 2
    assert "train.compile: True -> absent" in refused.stderr


def names(run: Path) -> list[str]:
    """Of all tensors of the last checkpoint."""
    found = []
    for path in sorted((run / "checkpoints" / "latest").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += file.keys()
    return sorted(found)


def test_compilation_identifies_a_run_and_its_absence_does_not() -> None:
    plain, compiled = read_config(SMALL), read_config(SMALL, ["train.compile=true"])
    assert identity_changes(plain, compiled) == ["train.compile: absent -> True"]
    assert identity_changes(compiled, compiled) == []


def test_a_machine_without_a_compiler_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(
        ConfigError, match=r"train.compile: no compiler works for cpu here: .*g\+\+"
    ):
        check_compiler(torch.device("cpu"))


def kernels(exactness: str, precision: str | None) -> list[Any]:
    start_accelerator("no", exactness, 60.0, precision)
    return [
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.benchmark,
    ]


def test_faster_kernels_are_taken_where_bits_may_differ() -> None:
    assert on_ranks(1, kernels, "none", None) == [["high", True, True]]
    assert on_ranks(1, kernels, "resume", None) == [["highest", False, False]]
    assert on_ranks(1, kernels, "resume", "medium") == [["medium", True, False]]

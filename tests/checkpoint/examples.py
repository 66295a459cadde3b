"""Small states to save, and what is said about them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint.history import read_history
from harness.checkpoint.read import LoadedState, load
from harness.checkpoint.retention import Ranking, Retention
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.write import CheckpointStore, SaveReport
from harness.ranks.ranks import Ranks

LOSS = Ranking("val/loss", "min")


def tensors_of(step: int) -> dict[str, Tensor]:
    """A model's tensors that tell the step they are of: several dtypes, a scalar, an empty one, a
    tied one.
    """
    weight = torch.full((6, 5), float(step)) + torch.arange(30.0).reshape(6, 5)
    return {
        "embed.weight": weight,
        "norm.scale": torch.full((5,), step, dtype=torch.bfloat16),
        "norm.count": torch.tensor(step, dtype=torch.int64),
        "nothing": torch.empty(0, 3),
        "mask": torch.arange(7) % 2 == step % 2,
        "head.weight": weight,
    }


def history_of(step: int) -> list[dict[str, Any]]:
    """Three evaluations a step, up to the hundredth."""
    return [
        {"step": number / 3, "metrics": {"val/loss": 1 / number, "val/x": float("nan")}}
        for number in range(1, 3 * min(step, 100) + 1)
    ]


def snapshot(step: int, **changes: Any) -> Snapshot:
    """The state after a step."""
    state: dict[str, Any] = {
        "step": step,
        "epoch": step // 10,
        "samples": 32 * step,
        "reason": "schedule",
        "exact": True,
        "exact_reason": "nothing stands against it",
        "model": tensors_of(step),
        "optimizer": {
            "exp_avg/embed.weight": torch.full((6, 5), step / 7, dtype=torch.float64),
            "step/embed.weight": torch.tensor(float(step)),
        },
        "rng": {"torch": torch.arange(16, dtype=torch.uint8) + step},
        "trainer": {"step": step, "lr": 0.1 * step, "history": [float("nan"), (1, 2)]},
        "metrics": {},
        "facts": {"data": "abc"},
        "config_yaml": "run: {name: example}\n",
        "extra_files": {},
        "history": history_of(step),
    }
    return Snapshot(**{**state, **changes})


def store_in(
    directory: Path, ranks: Ranks | None = None, retention: Retention | None = None, **changes: Any
) -> CheckpointStore:
    """A store that no other launch fences out."""
    settings: dict[str, Any] = {
        "run_id": "run",
        "attempt": "run-1",
        "fence": lambda: None,
        "max_failures": 3,
        "timeout_s": 20.0,
    }
    return CheckpointStore(
        directory, ranks or Ranks(), retention or Retention(), **{**settings, **changes}
    )


def save_steps(
    directory: Path, *steps: int, best: Ranking | None = None, retention: Retention | None = None
) -> list[SaveReport]:
    """Save the given steps one after another and return the reports; by default all are kept."""
    store = store_in(directory, retention=retention or Retention(keep_last=100))
    for step in steps:
        store.save(snapshot(step), best)
        store.wait()
    store.close()
    return store.reports()


def loaded_from(path: Path, rank: int = 0, num_ranks: int = 1) -> LoadedState:
    return load(path, rank=rank, num_ranks=num_ranks)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, dtypes, shapes and bits."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert same_bits(found[name], tensor), name


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def assert_is_step(path: Path, step: int, rank: int = 0, num_ranks: int = 1) -> None:
    """The checkpoint at `path` holds what `snapshot(step)` says, all of it."""
    found, expected = loaded_from(path, rank, num_ranks), snapshot(step)
    assert found.manifest.step == step
    assert_same(found.model, expected.model)
    assert_same(found.optimizer, expected.optimizer)
    assert found.rng is not None
    assert_same(found.rng, expected.rng)
    assert found.trainer["lr"] == 0.1 * step
    assert repr(read_history(path)) == repr(history_of(step))  # in which NaN equals NaN


def names_in(directory: Path, keep: Callable[[str], bool] = lambda name: True) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if keep(path.name))

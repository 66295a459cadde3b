"""A training in a process that goes on leaves nothing of itself behind but the run directory."""

import faulthandler
import gc
import logging
import multiprocessing
import multiprocessing.queues
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from harness.config.read import read_config
from harness.errors import ConfigError
from harness.randomness import Boundary, seed_ambient
from harness.rundir.outcome import Outcome
from harness.tracking.records import read_records
from harness.training.in_process import train_in_process
from tests.elastic.runs import TIMES
from tests.pool import on_ranks, train_on_ranks
from tests.resume.test_exact import last_state, trace

SMALL = Path(__file__).with_name("small.yaml")
PLAIN: list[str] = []
OTHER = [
    "train.precision=bf16",
    "train.matmul_precision=medium",
    "data.num_workers=2",
    "run.seed=5",
    "run.exactness=none",
    "network={_target_: tests.resume.zoo.small, kind: batch-norm}",
]


def train(directory: Path, overrides: list[str]) -> Outcome:
    return train_in_process(lambda: read_config(SMALL, [f"run.dir={directory}", *overrides]))


def bits(directory: Path) -> list[Any]:
    records = [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in read_records(directory / "metrics.jsonl")
        if record["kind"] != "event"
    ]
    return [trace(directory), last_state(directory), records]


def state_of_process() -> dict[str, Any]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        "environment": dict(os.environ),
        "path": list(sys.path),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": multiprocessing.active_children(),
        "files": sorted(os.listdir("/proc/self/fd")),
        "signals": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "warnings": list(warnings.filters),
        "logging": [
            (one.name, one.level, list(one.handlers), one.propagate)
            for one in loggers
            if isinstance(one, logging.Logger) and one.handlers
        ],
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "torch": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.distributed.is_initialized(),
        ),
        "accelerate": [
            dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)
        ],
        "collector": gc.isenabled(),
        "faults": faulthandler.is_enabled(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Any]:
    return [(name, before[name], after[name]) for name in before if before[name] != after[name]]


def end_late(queue: Any) -> None:
    """Threads that send to workers end some time after their queue was closed: as under load."""
    feed = queue._feed

    def slowly(*args: Any) -> None:
        feed(*args)
        time.sleep(0.2)

    queue._feed = staticmethod(slowly)


def train_twice(directory: Path) -> tuple[list[Any], list[float], list[Any]]:
    """What differs of the process afterwards, the seconds of each run, its bits."""
    # Whatever the first training of a process imports or starts for good is there
    train(directory / "first", PLAIN)
    end_late(multiprocessing.queues.Queue)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    torch.set_float32_matmul_precision("high")
    own = Accelerator(cpu=True, mixed_precision="bf16")
    child = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    child.start()
    before = state_of_process()
    outcomes = [train(directory / "plain", PLAIN), train(directory / "other", OTHER)]
    after = state_of_process()
    assert own.mixed_precision == "bf16"
    child.kill()
    different = changes(before, after)
    seconds = [sum(v for k, v in one.time.items() if k.endswith("_s")) for one in outcomes]
    return different, seconds, [bits(directory / name) for name in ("plain", "other")]


def test_two_trainings_in_one_process_are_those_of_two_fresh_ones_and_leave_no_trace(
    tmp_path: Path,
) -> None:
    ((different, seconds, found),) = on_ranks(1, train_twice, tmp_path)
    assert different == []
    for name, overrides, mine, took_s in zip(
        ("plain", "other"), (PLAIN, OTHER), found, seconds, strict=True
    ):
        fresh = tmp_path / f"fresh-{name}"
        (launched,) = train_on_ranks(1, SMALL, [f"run.dir={fresh}", *overrides])
        assert launched.exit_code == 0, launched.stderr
        assert mine == bits(fresh)
        # The process is older than the session's pool
        assert 0 < took_s < 60


def test_generators_seeded_where_they_are_looked_at_leave_what_those_of_each_step_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [
        "network={_target_: harness.networks.Mlp, dims: [6, 8, 3], dropout: 0.5}",
        "log.trace=false",
        "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 12}",
    ]
    found, seeded = [], []
    monkeypatch.setattr(
        "harness.randomness.seed_ambient", lambda seed: seeded.append(seed) or seed_ambient(seed)
    )
    for name in ("late", "each"):
        train(tmp_path / name, ours)
        found.append([last_state(tmp_path / name), len(seeded)])
        monkeypatch.setattr(
            "harness.training.engine.Boundary", lambda *, late: Boundary(late=False)
        )
    (late, few), (each, many) = found
    assert late == each
    assert many - 2 * few == 6  # of 12 steps, losses are read after every second one
    # A schedule that may be, or call, a user's
    constant = "schedule={_target_: torch.optim.lr_scheduler.ConstantLR}"
    monkeypatch.setattr("harness.training.engine.Boundary", Boundary)
    train(tmp_path / "foreign", [*ours[:2], constant])
    assert len(seeded) - many == many - few


def test_a_run_is_not_as_old_as_the_process(tmp_path: Path) -> None:
    import time

    begun = time.monotonic()
    outcome = train(tmp_path, PLAIN)
    took_s = time.monotonic() - begun
    assert sum(v for k, v in outcome.time.items() if k.endswith("_s")) <= took_s


def at_step(step: int, directory: Path, act: Callable[[], None]) -> threading.Thread:
    """Act once a record of this step is there."""

    def wait() -> None:
        import time

        while not any(one["step"] >= step for one in read_records(directory / "metrics.jsonl")):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


SLOW = ["network={_target_: tests.resume.zoo.small, kind: batch-norm}", "stop.budget.steps=400"]


def test_an_interrupt_saves_and_gives_the_outcome_and_the_run_goes_on(tmp_path: Path) -> None:
    at_step(8, tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    outcome = train(tmp_path, SLOW)
    assert (outcome.reason, outcome.is_finished) == ("interrupted", False)
    assert "SIGINT came" in outcome.detail
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.endswith(f"step-{outcome.step:08}")
    assert signal.getsignal(signal.SIGINT) is handler
    again = train(tmp_path, [*SLOW, f"stop.budget.steps={outcome.step + 4}"])
    assert (again.reason, again.launches, again.exact) == ("budget", 2, True)


def test_who_asks_the_process_to_end_is_heard_once_all_is_saved(tmp_path: Path) -> None:
    class EndedError(Exception):
        pass

    def end(*_: object) -> None:
        raise EndedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        at_step(8, tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(EndedError):
            train(tmp_path, SLOW)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted" in (tmp_path / "outcome.json").read_text()


def test_a_training_in_another_thread_ends_by_its_file(tmp_path: Path) -> None:
    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path, SLOW)))
    thread.start()
    at_step(8, tmp_path, lambda: (tmp_path / "PREEMPT").touch()).join()
    thread.join(60)
    assert found[0].reason == "interrupted"


def test_a_training_in_an_event_loop_leaves_the_loop_as_it_was(tmp_path: Path) -> None:
    import asyncio

    heard: list[int] = []

    async def cell() -> Outcome:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, heard.append, 1)
        outcome = train(tmp_path, PLAIN)
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.sleep(0.1)
        loop.remove_signal_handler(signal.SIGUSR2)
        return outcome

    assert asyncio.run(cell()).is_finished
    assert heard == [1]


def fail_twice(directory: Path) -> list[Any]:
    train(directory / "first", PLAIN)
    before = state_of_process()
    with pytest.raises(ConfigError, match=r"batch\.size: "):
        train(directory, ["batch.size=many"])
    with pytest.raises(ConfigError, match="fails with a micro-batch"):
        train(directory, ["network={_target_: torch.nn.Linear, in_features: 3, out_features: 2}"])
    return changes(before, state_of_process())


def test_a_failed_training_leaves_nothing_behind_either(tmp_path: Path) -> None:
    assert on_ranks(1, fail_twice, tmp_path) == [[]]
    assert train(tmp_path, PLAIN).is_finished


class Failing(torch.optim.SGD):
    """Ends the sixth step of rank 1 in a way that nobody knows of."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 6 and os.environ["RANK"] == "1":
            raise ValueError("my own")
        return super().step()


def fail_on_one(directory: Path) -> tuple[str, str]:
    try:
        train(directory, [f"optimizer={{_target_: {Failing.__module__}.Failing, lr: 0.01}}"])
    except Exception as error:  # noqa: BLE001 - each rank's, to be looked at
        return type(error).__name__, str(error)
    return "", ""


def test_the_failure_of_one_process_is_that_of_the_others_in_words(tmp_path: Path) -> None:
    other, first = on_ranks(2, fail_on_one, tmp_path)
    assert first == ("ValueError", "my own")
    assert other[0] == "RankError"
    assert "my own" in other[1]

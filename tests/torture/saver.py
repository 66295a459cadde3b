"""A process that imports torch once and forks ranks that save, one order after another, for
tests/torture/test_save_faults.py.

An order is a line of JSON on standard input. The ranks are forked, form a process group, open the
store and wait; their process ids are answered. At the line "go" they save, in their main threads,
so that a tracer that is attached to these sees the calls of the save and no others. How they ended
is answered.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp

from harness.checkpoint import files, history, write
from harness.checkpoint.retention import Retention
from harness.checkpoint.worker import Worker
from harness.checkpoint.write import CheckpointStore
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import LOSS, snapshot
from tests.parallel.sharded import in_rows

LIMIT_S = 60
history.SHARED_FROM_BYTES = 0  # as in runs of many evaluations
files._SMALL_BYTES = 2**9  # some of either kind


class Inline(Worker):
    """A worker that does its job at once, in the thread that gives it."""

    def start(self, job: Callable[[], None]) -> None:
        job()


def state(step: int, rank: int, metrics: dict[str, float], is_sharded: bool) -> Any:
    """What is saved: each rank's random state tells the rank, too."""
    rng = {"torch": torch.arange(16, dtype=torch.uint8) + step + rank}
    whole = snapshot(step, rng=rng, metrics=metrics)
    if not is_sharded:
        return whole
    return replace(whole, model=in_rows(whole.model), optimizer=in_rows(whole.optimizer))


def save(order: dict[str, Any], rank: int, size: int, wait: Callable[[], None]) -> list[Any]:
    """Save the ordered steps; (step, error, warning) of each.

    Those of `before` are saved first, untraced, and `<directory>-before` is as they leave it.
    """
    ranks = Ranks.join(20.0)
    store = CheckpointStore(
        Path(order["directory"]),
        ranks,
        Retention(keep_last=order["keep_last"]),
        run_id="run",
        attempt=f"attempt of rank {rank}",
        fence=lambda: None,
        max_failures=3,
        timeout_s=order["timeout_s"],
    )
    for step, metrics in order["before"]:
        store.save(state(step, rank, metrics, order["sharded"]), LOSS)
        assert [one.error for one in store.reports()] == [None]
    if rank == 0:
        shutil.rmtree(f"{order['directory']}-before", ignore_errors=True)
        subprocess.run(["cp", "-a", order["directory"], f"{order['directory']}-before"], check=True)
    # Sharding makes files of its own
    saves = [state(step, rank, metrics, order["sharded"]) for step, metrics in order["saves"]]
    wait()
    for one in saves:
        store.save(one, LOSS)
        if rank == 0:
            # By a process of its own, which is not traced.
            subprocess.run(
                ["cp", "-a", order["directory"], f"{order['directory']}-after-{one.step}"],
                check=False,
                stderr=subprocess.DEVNULL,
            )
    store.close()
    return [(one.step, one.error, one.warning) for one in store.reports()]


def be_rank(
    order: dict[str, Any], rank: int, size: int, rendezvous: str, ready: int, go: int, answer: int
) -> None:
    signal.alarm(LIMIT_S)
    if size > 1:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(rendezvous, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=20),
        )

    def wait() -> None:
        os.write(ready, b"r")
        os.read(go, 1)

    with os.fdopen(answer, "w") as file:
        json.dump(save(order, rank, size, wait), file)


def serve(order: dict[str, Any]) -> None:
    size = order["size"]
    pipes = [[os.pipe() for _ in range(3)] for _ in range(size)]
    pids = []
    with tempfile.TemporaryDirectory() as directory:
        for rank, (ready, go, answer) in enumerate(pipes):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    be_rank(order, rank, size, f"{directory}/store", ready[1], go[0], answer[1])
                    code = 0
                finally:
                    os._exit(code)
            pids.append(pid)
        for ready, go, answer in pipes:
            for end in (ready[1], go[0], answer[1]):
                os.close(end)
        for ready, _, _ in pipes:
            os.read(ready[0], 1)
        print(json.dumps(pids), flush=True)
        assert sys.stdin.readline() == "go\n"
        for _, go, _ in pipes:
            os.write(go[1], b"g")
        answers = []
        for pid, (ready, go, answer) in zip(pids, pipes, strict=True):
            with os.fdopen(answer[0]) as file:
                text = file.read()
            _, status = os.waitpid(pid, 0)
            answers.append(
                {
                    "exit": os.waitstatus_to_exitcode(status),
                    "reports": json.loads(text) if text else None,
                }
            )
            os.close(ready[0])
            os.close(go[1])
    print(json.dumps(answers), flush=True)


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    torch.set_num_threads(1)
    write.Worker = Inline  # type: ignore[misc]  # there alone
    # Whatever is read or imported at a first save is, before the ranks are forked
    with tempfile.TemporaryDirectory() as directory:
        order = {
            "directory": directory,
            "keep_last": 1,
            "timeout_s": 5.0,
            "sharded": False,
            "before": [],
            "saves": [(1, {"val/loss": 1.0}), (2, {}), (3, {})],
        }
        assert save(order, 0, 1, lambda: None) == [
            (1, None, None),
            (2, None, None),
            (3, None, None),
        ]
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith("fermarsi-save")
    ] == []
    print("ready", flush=True)
    for line in sys.stdin:
        serve(json.loads(line))


if __name__ == "__main__":
    main()

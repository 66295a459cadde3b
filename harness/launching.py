"""One launch of a run in this process, among the others it was launched with: errors become one message and an exit code."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from harness.config import read_config
from harness.engine import start_accelerator
from harness.errors import HarnessError, RankError
from harness.loading import end_workers
from harness.outcome import exit_code
from harness.ranks import Ranks, is_lost_peer, leave
from harness.run import train

T = TypeVar("T")


def launch(path: Path, overrides: Sequence[str]) -> int:
    """Train by a config; the process's exit code. Called by every rank."""
    ranks = Ranks()
    try:
        config = before_joining(lambda: read_config(path, overrides))
        accelerator = before_joining(lambda: start_accelerator(config.train.precision, config.run.exactness))
        ranks = Ranks.join(config.run.timeout_s)
        code = exit_code(train(config, accelerator, ranks), under_agent="TORCHELASTIC_RUN_ID" in os.environ)
    except KeyboardInterrupt:
        print("interrupted twice: leaving at once; launch again to go on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - a peer's failure breaks collectives anywhere; a bug of our own is shown in full by `fail`
        return fail(error, ranks)
    finally:
        end_workers()
    leave()
    return code


def before_joining(work: Callable[[], T]) -> T:
    """What each process does before they know each other: a mistake is every process's, and told by the first of each node."""
    try:
        return work()
    except HarnessError as error:
        error.origin_rank = int(os.environ.get("LOCAL_RANK", "0"))  # 0 is this process's rank until it has joined the others
        raise


def fail(error: Exception, ranks: Ranks) -> int:
    """Print the error on the rank it comes from, and there alone; returns the exit code, the same on every rank."""
    cause = ranks.published_failure()
    if cause is not None and cause.origin_rank != ranks.rank and not isinstance(error, HarnessError) and is_lost_peer(error):
        return cause.exit_code  # the rank that failed has printed it
    if not isinstance(error, HarnessError) and is_lost_peer(error) and ranks.size > 1:
        error = RankError(
            f"rank {ranks.rank}: lost another process ({str(error).splitlines()[0][:160]}). "
            "It was killed or crashed; launch again to go on from the last checkpoint."
        )
    ranks.publish_failure(error)
    if isinstance(error, HarnessError):
        first = ranks.published_failure()  # ranks that fail alike and at once publish one error between them
        if error.origin_rank == ranks.rank or (error.origin_rank is None and (first is None or first.origin_rank == ranks.rank)):
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    traceback.print_exception(error)
    return 1

"""One launch of a run in this process, among the others it was launched with: errors become one
message and an exit code.
"""

import json
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator

from harness.config.read import read_config
from harness.config.schema import Config
from harness.console import Console, is_first_process
from harness.data.feed import end_workers
from harness.errors import (
    AbandonedError,
    ConfigError,
    HarnessError,
    LeavingError,
    RankError,
)
from harness.imports import without_garbage_collection
from harness.interrupt import Interruption, under_agent
from harness.ranks.meeting import connect_lazily, has_joined, is_lost_peer, leave
from harness.ranks.ranks import NOTES, Ranks
from harness.ranks.sockets import noted_sockets
from harness.rundir.ledger import process_age_s
from harness.rundir.outcome import INTERRUPTED, exit_code
from harness.tasks.task import metrics_of
from harness.training.compiling import MOST_SHAPES, has_too_many_shapes
from harness.training.determinism import explain
from harness.training.machine import explain_machine_error
from harness.training.parallel import accelerator_for
from harness.training.train import train
from harness.wording import first_line, printable

TWICE = "interrupted twice: leaving at once; launch again to resume from the last checkpoint"
MEETING_SPARE_S = 5.0  # beyond run.timeout_s, for torch to find out by itself


# For the survivors of a lost process to report, so that it can be named: where the name server does
# not answer, each takes a second to connect to the store
SURVIVORS_S = 3.0


T = TypeVar("T")


def launch(path: Path, overrides: Sequence[str], console: Console | None = None) -> int:
    """Train by a config; the process's exit code. `console`: by default rank 0 has one.

    Called by every rank.
    """
    console = console or Console(is_first_process())
    console.again = command_again(path, overrides)
    try:
        with Interruption() as interruption:
            code = launch_among(interruption, path, overrides, console)
            if interruption.cause is not None:
                # An exit code that reports success must not become that of a second signal
                interruption.stay_deaf()
            return code
    except KeyboardInterrupt:
        print(TWICE, file=sys.stderr)
        return 130
    finally:
        end_workers()


def leave_process(code: int) -> NoReturn:
    """End this process with an exit code, also after a failure among several ranks, or where a
    thread is held by a machine that is cut off: an orderly exit would destroy its library's objects
    under it, and abort.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more: Python would try again, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if has_joined() or any(thread.name == NOTES for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def command_again(path: Path, overrides: Sequence[str]) -> str:
    """What launches again what this process is part of; nothing for several machines, where only
    their launcher knows.
    """
    size, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size != here:
        return ""
    cpu = [] if torch.cuda.is_available() else ["--cpu"]
    how = ["train"] if size == 1 else ["launch", *cpu, "--processes", str(size)]
    return shlex.join(["fermarsi", *how, str(path), *overrides])


def launch_among(
    interruption: Interruption, path: Path, overrides: Sequence[str], console: Console
) -> int:
    """The same, once signals no longer end the process."""
    ranks = Ranks()
    agent = under_agent(os.environ)
    try:
        with console:
            config, accelerator, ranks = join(
                interruption, lambda: read_aloud(path, overrides, console)
            )
            outcome = train(config, accelerator, ranks, interruption, process_age_s(), console)
        code = exit_code(outcome, under_agent=agent)
    except AbandonedError as error:
        fail(error, ranks)
        return 0 if agent else INTERRUPTED
    except LeavingError as leaving:  # before this launch held the run directory
        if ranks.is_first():
            print(f"interrupted: {leaving} before the launch began; to be resumed", file=sys.stderr)
        code = 0 if agent else INTERRUPTED
    except Exception as error:  # noqa: BLE001 - see above
        # A peer's failure breaks collectives anywhere; a bug of our own is shown in full by `fail`
        code = fail(error, ranks)
        return 0 if agent and code == INTERRUPTED else code
    leave()
    return code


def read_aloud(path: Path, overrides: Sequence[str], console: Console) -> Config:
    """The config; says what begins, before and after. Raises ConfigError."""
    console.phase(f"reading {path}")
    config = read_config(path, overrides, metrics_of=metrics_of)
    if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
        console.phase(f"waiting for all {size} processes")
    return config


def join(
    interruption: Interruption, read: Callable[[], Config]
) -> tuple[Config, Accelerator, Ranks]:
    """Read the config and meet the other processes of the launch. Raises HarnessError."""
    # A config names modules, and torch.compile's come with determinism
    with without_garbage_collection():
        config = before_joining(read)
        accelerator = before_joining(lambda: meet(config, interruption))
    ranks = Ranks.join(config.run.timeout_s)
    interruption.join(ranks.board(), ranks.rank)
    return config, accelerator, ranks


def before_joining(work: Callable[[], T]) -> T:
    """What each process does before they know each other: a mistake is every process's, and the
    first of each node reports it.
    """
    try:
        return work()
    except HarnessError as error:
        if error.origin_rank is None:
            # 0 is this process's rank until it has joined the others
            error.origin_rank = int(os.environ.get("LOCAL_RANK", "0"))
        raise


def meet(config: Config, interruption: Interruption) -> Accelerator:
    """Join the other processes of the launch.

    Raises ConfigError, and RankError if they do not meet; in any case it ends within a time limit.
    """
    interruption.give_up_after(
        config.run.timeout_s + MEETING_SPARE_S,
        f"RankError: {_connection_error(config, 'no answer')}",
    )
    connect_lazily(int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with noted_sockets():
            return accelerator_for(config)
    except Exception as error:
        if not is_lost_peer(error):
            raise
        # Each process reports it: none knows of the others
        raise RankError(_connection_error(config, first_line(error)), origin_rank=0) from error


def _connection_error(config: Config, why: str) -> str:
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return (
        f"rank {rank}, before the first step: the {size} processes of this launch could not meet "
        f"at {address} within {config.run.timeout_s:.0f} s "
        f"(run.timeout_s): {why}. Is that the machine of rank 0, is its name known here, is its "
        "port free there and open to the others, and were all processes started?"
    )


def where_in(ranks: Ranks) -> str:
    """This rank, and the step that it works on."""
    step = ranks.heartbeat.step
    return f"rank {ranks.rank}, " + ("before the first step" if step is None else f"step {step:,}")


def worded(error: Exception, ranks: Ranks) -> Exception:
    """The error in words for a user, where there are some."""
    if (
        isinstance(error, RuntimeError)
        and (words := explain(error, ranks.heartbeat.step)) is not None
    ):
        error = ConfigError(words)
    if has_too_many_shapes(error):
        error = ConfigError(
            f"{where_in(ranks)}: train.compile: the network met more than {MOST_SHAPES} shapes of "
            "inputs, each of which is compiled by itself. Pad them to one length, or a few, or set "
            "train.compile: false from the start of a run."
        )
    if (refused := explain_machine_error(error, ranks.heartbeat.phase)) is not None:
        error = RankError(
            f"{where_in(ranks)}: {refused}, and launch again: the run resumes from "
            "its last checkpoint.",
            origin_rank=ranks.rank,
        )
    return error


def name_lost(error: Exception, ranks: Ranks) -> Exception:
    """Where another rank is gone, a RankError that names it; any other error as it is."""
    if isinstance(error, HarnessError) or not is_lost_peer(error) or ranks.size == 1:
        return error
    lost = ranks.missing(SURVIVORS_S)
    who = (
        f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
        if lost
        else "another process"
    )
    return RankError(
        f"{where_in(ranks)}: lost {who} ({first_line(error)}). It was killed, "
        "crashed or hangs, or its machine cannot be reached; "
        "launch again to resume from the last checkpoint."
    )


def fail(error: Exception, ranks: Ranks) -> int:
    """Print the error on the rank it comes from, and there alone; returns the exit code, the same
    on every rank.
    """
    error = worded(error, ranks)
    cause = ranks.published_failure()
    if cause is not None and not isinstance(error, HarnessError) and is_lost_peer(error):
        tell_agent(f"{type(cause).__name__}: {cause}")
        return cause.exit_code  # the rank that failed, or saw another fail, has printed it
    error = name_lost(error, ranks)
    ranks.publish_failure(error)
    if isinstance(error, HarnessError):
        # Ranks that fail alike and at once publish one error between them
        first = ranks.published_failure()
        tell_agent(f"{type(error).__name__}: {error}")
        own = error.origin_rank == ranks.rank
        if own or (
            error.origin_rank is None and (first is None or first.origin_rank == ranks.rank)
        ):
            name = f"rank {ranks.rank}"
            who = f"{name}: " if own and ranks.rank and name not in str(error) else ""
            report(f"{type(error).__name__}: {who}{error}", ranks)
        return error.exit_code
    tell_agent("".join(traceback.format_exception(error)))
    report("".join(traceback.format_exception(error)).rstrip(), ranks)
    if ranks.size > 1:
        words = f"{type(error).__name__}: {first_line(error)} (traceback above)"
        report(f"{where_in(ranks)}: {words}", ranks)
    return 1


def report(message: str, ranks: Ranks) -> None:
    """On standard error, in a line of its own: rank 0 may have a live one on the same terminal."""
    erase = "\r\x1b[K" if ranks.rank and sys.stderr.isatty() else ""
    print(erase + printable(message), file=sys.stderr, flush=True)


def tell_agent(message: str) -> None:
    """Leave an error where torch's agent looks for it, to end its own report; nothing without
    an agent.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        text = printable(message)
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))

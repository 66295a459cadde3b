"""A thread on each rank that reports where the rank is, and ends the launch when one rank keeps all
others waiting: that rank is named, with the stack of its main thread.

Reports go through the store of the launch, over a connection of their own: one write and one read a
second and rank. The overseer reads all reports every few seconds, and every second while it makes
no progress itself. It is rank 0; if rank 0 is silent, whoever notices first takes over.
"""

import faulthandler
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

import torch.distributed as dist

from harness.bounded import read_bytes
from harness.errors import RankError
from harness.ranks.board import Board, report_of
from harness.ranks.heartbeat import BACKWARD, DATA
from harness.ranks.membership import abort_groups, is_member
from harness.ranks.ranks import NOTES, Ranks
from harness.ranks.standstill import LEAST_S, Overseer, Pace, Report, StuckRank, limit_s
from harness.wording import printable, some

PERIOD_S = 1.0
PACE_S = 5.0  # between two looks at all reports while this rank moves
SUCCESSION_S = 8.0  # without a word of the rank that oversees
LEAVING_S = 5.0  # for the main thread, once its peers are gone
SAVING_S = 10.0  # for a save in flight, which needs no main thread
STACKS = "stacks"  # a directory in the run's
_WORD = "watch"
_MOST_FRAMES = 12
_MOST_BYTES = 100_000
# In the stack of a main thread that has a reason to stand still
_REASONS = {
    "a debugger": ("/bdb.py", "/pdb.py", "/debugpy/", "/pydevd"),
    "a compiler": (
        "/torch/_dynamo/convert_frame.py",
        "/torch/_inductor/compile_fx.py",
        "/torch/_inductor/codecache.py",
        "/torch/_inductor/async_compile.py",
        "/triton/compiler/",
        "/torch/utils/cpp_extension",
    ),
}
# The innermost frame of a backward pass that waits for other ranks' gradients
_IN_BACKWARD = "/torch/autograd/graph.py"

WatchMode = Literal["leave", "warn", "off"]


class Watch:
    """Entered around a training, in the main thread; `lost`: why it ended this launch, if it did;
    `finish_save`: waits for the save in flight, so many seconds at most.

    mode: `leave` ends the launch, `warn` only names the rank; alone, a rank only warns.
    """

    def __init__(self, ranks: Ranks, mode: WatchMode, directory: Path, launch: int = 1) -> None:
        self.lost: RankError | None = None
        self.finish_save: Callable[[float], object] = lambda limit_s: None
        self._ranks = ranks
        self._leave = mode == "leave" and ranks.size > 1
        self._directory, self._launch = directory / STACKS, launch
        self._stacks: TextIO | None = None
        self._main = threading.main_thread().ident
        self._host, self._beat = socket.gethostname(), 0
        self._count, self._still_s, self._unread_s = -1, 0.0, 0.0
        self._overseer, self._pace = Overseer(ranks.size), Pace()
        self._warned: list[Any] = []
        self._warnings: deque[str] = deque()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if mode != "off":
            # Named so: a machine that is cut off may hold it for ever
            self._thread = threading.Thread(target=self._work, name=NOTES, daemon=True)

    def __enter__(self) -> "Watch":
        if self._thread is not None:
            self._stacks = self._open_stacks()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is None:
            return
        self._over.set()
        self._thread.join(2 * PERIOD_S)
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):
                if self.lost is None and os.fstat(self._stacks.fileno()).st_size == 0:
                    self._stack_file(self._ranks.rank).unlink()
                    self._directory.rmdir()  # where no other rank's is left
            self._stacks.close()

    def take_warnings(self) -> list[str]:
        """What was found since the last call, on the overseer."""
        return [self._warnings.popleft() for _ in range(len(self._warnings))]

    # -- in the thread

    def _work(self) -> None:
        try:
            self._run()
        except Exception as error:  # whatever it is: nobody else sees this thread end
            _say(f"warning: rank {self._ranks.rank} is not watched any more: {error!r}")
            raise

    def _run(self) -> None:
        board = self._ranks.board()
        if board is None and self._ranks.size > 1:
            return  # the store is gone, and with it its host: collectives fail at once
        link = None if board is None else _Link(board, self._ranks.rank)
        before, pause_s = time.monotonic(), 0.0
        while not self._over.wait(pause_s):
            pause_s = PERIOD_S
            now = time.monotonic()
            # A process that was stopped, with all others or alone, learns nothing from its clock
            elapsed_s, before = min(now - before, 2 * PERIOD_S), now
            self._arm()
            report = self._report(elapsed_s)
            if link is None:
                self._oversee([report], elapsed_s)
                continue
            found = link.exchange(report)
            if found is not None:
                self._end(**found)
                return
            self._unread_s += elapsed_s
            # Who moves needs nobody's word that all stand still
            if not link.oversees or (self._still_s == 0 and self._unread_s < PACE_S):
                continue
            reports = link.reports(self._ranks.size)
            stuck = self._oversee(reports, elapsed_s) if reports else []
            if self._leave and any(one.is_given_up for one in stuck):
                found = link.announce(self._message(stuck), stuck)
                if found is not None:
                    self._end(**found)
                    return
        if link is not None:
            link.exchange(self._report(0.0))  # that this rank has come to its end

    def _report(self, elapsed_s: float) -> Report:
        heart = self._ranks.heartbeat
        self._beat += 1
        self._still_s = 0.0 if heart.count != self._count else self._still_s + elapsed_s
        self._count = heart.count
        frames = self._frames() if self._still_s >= LEAST_S / 2 else []
        in_backward = heart.phase == BACKWARD and bool(frames) and _IN_BACKWARD in frames[0]
        limit = limit_s(heart)
        return Report(
            rank=self._ranks.rank,
            host=self._host,
            process=os.getpid(),
            beat=self._beat,
            count=heart.count,
            step=heart.step,
            phase=heart.phase,
            waiting=heart.is_waiting or in_backward,
            limit_s=limit if limit < float("inf") else None,
            held=_reason(frames),
            stack=[_short(one) for one in frames[:_MOST_FRAMES]],
            busy_s=dict(heart.busy_s),
        )

    def _frames(self) -> list[str]:
        """The main thread's, innermost first: file:line function."""
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        return [
            f"{one.f_code.co_filename}:{line} {one.f_code.co_name}"
            for one, line in traceback.walk_stack(frame)
        ]

    def _oversee(self, reports: Sequence[Report], elapsed_s: float) -> list[StuckRank]:
        if self._ranks.size > 1:
            self._warnings.extend(self._pace.look(reports, self._unread_s))
            self._unread_s = 0.0
        stuck = self._overseer.look(reports, elapsed_s)
        which = [(one.report.rank, one.report.count) for one in stuck]
        named_only = not (self._leave and any(one.is_given_up for one in stuck))
        if stuck and named_only and which != self._warned:
            _say(f"warning: {self._message(stuck)}")
        self._warned = which
        return stuck

    def _message(self, stuck: Sequence[StuckRank]) -> str:
        first = stuck[0]
        who = some([one.report.who for one in stuck], 4)
        how = "stands still" if not first.silent else "is silent"
        lines = [
            f"{first.where}: {who} {how} for {first.for_s:.0f} s, where this phase should take "
            f"{first.limit_s:.0f} s at most, and everything waits for it."
        ]
        for one in stuck[:4]:
            stack = " < ".join(self._stack_of(one)) or "no stack is known"
            lines.append(f"  rank {one.report.rank}: {stack}")
        if first.silent:
            lines.append(
                f"Last heard of: {first.report.where}. Its process was stopped, its machine cannot "
                "be reached, or code holds the lock of its interpreter."
            )
        elif first.report.phase == DATA:
            lines.append(
                "It waits for its samples: a source, a file system or a data worker hangs."
            )
        if self._leave and any(one.is_given_up for one in stuck):
            lines.append(
                f"Stacks of all ranks: {self._directory}. Launch again to resume from the last "
                "checkpoint; with run.watch: warn it would only be named."
            )
        return "\n".join(lines)

    def _stack_of(self, stuck: StuckRank) -> Sequence[str]:
        """As the rank reported it; of a silent one, as its own alarm left it in the run directory,
        if it could.
        """
        if not stuck.silent:
            return stuck.report.stack
        with suppress(OSError, ValueError):
            path = self._stack_file(stuck.report.rank)
            text = read_bytes(path, _MOST_BYTES, links=False).decode(errors="replace")
            main = text.rpartition("(most recent call first):")[2]
            found = re.findall(r'File "(.*)", line (\d+) in (.*)', main)
            return [_short(f"{file}:{line} {name}") for file, line, name in found[:_MOST_FRAMES]]
        return []

    # -- leaving

    def _end(self, message: str, stuck: Sequence[int], silent: bool, overseer: int) -> None:
        """Leave with the cause: who is stuck at once, the others in order as soon as their
        collectives break, which they do when one process has gone.

        A save in flight may end before; not where a rank is silent, whose part would not come.
        """
        # Whatever holds this thread or the interpreter: the others wait for this process to go
        faulthandler.dump_traceback_later(SAVING_S + LEAVING_S + 10, exit=True)
        rank, error = self._ranks.rank, RankError(message, origin_rank=overseer)
        self.lost = error
        if self._stacks is not None:
            faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._ranks.publish_failure(error)
        if rank == overseer:
            _say(f"RankError: {message}")
        if not silent:
            self.finish_save(SAVING_S)
        goes_on = is_member(os.environ)
        if goes_on:
            abort_groups()
        elif dist.is_initialized() and dist.get_backend() == "nccl":
            # Nothing is saved after it: what the device holds is unknown
            with suppress(RuntimeError):
                dist.distributed_c10d._abort_process_group()
        if rank == overseer:
            self._over.wait(2 * PERIOD_S)  # its process may hold the store that the others ask
        others = [one for one in range(self._ranks.size) if one not in stuck]
        goes_first = rank in stuck or (not goes_on and len(others) > 1 and rank == others[-1])
        if goes_first or not self._over.wait(LEAVING_S):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)

    # -- the stack of a process whose threads cannot run

    def _stack_file(self, rank: int) -> Path:
        return self._directory / f"launch-{self._launch}-rank-{rank:05}.txt"

    def _open_stacks(self) -> TextIO | None:
        """None where no file can be opened: there are no stacks then."""
        if self._ranks.size == 1:
            return None
        with suppress(OSError):
            self._directory.mkdir(exist_ok=True)
            holder = os.open(self._directory, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                kind = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                name = self._stack_file(self._ranks.rank).name
                return os.fdopen(os.open(name, kind, 0o666, dir_fd=holder), "w")
            finally:
                os.close(holder)
        return None

    def _arm(self) -> None:
        """Let the stacks be written if this thread does not come here again: something holds the
        interpreter.
        """
        if self._stacks is not None:
            faulthandler.dump_traceback_later(0.8 * LEAST_S, file=self._stacks)


class _Link:
    """What this rank and the others tell each other. `oversees`: whether this one looks at all."""

    def __init__(self, board: Board, rank: int) -> None:
        self._board = board
        self._rank = rank
        self._word = ""
        self._unchanged = 0
        self._number = 0
        self.oversees = False

    def exchange(self, report: Report) -> dict[str, Any] | None:
        """Leave the report, and hear the overseer's word: its verdict, None without one."""
        self._board.put(report_of(self._rank), json.dumps(report.to_json()))
        word = self._board.read(_WORD) or ""
        said: dict[str, Any] = json.loads(word) if word else {"overseer": 0, "verdict": None}
        if said["verdict"] is not None:
            return {**said["verdict"], "overseer": said["overseer"]}
        self._unchanged = self._unchanged + 1 if word == self._word else 0
        self._word = word
        silent = said["overseer"] != self._rank and self._unchanged * PERIOD_S >= SUCCESSION_S
        self.oversees = said["overseer"] == self._rank or silent
        if self.oversees:
            self._say(None)
        return None

    def reports(self, size: int) -> list[Report] | None:
        """The last of each rank, None until each has left one."""
        texts = self._board.read_all([report_of(rank) for rank in range(size)])
        return None if texts is None else [Report(**json.loads(one)) for one in texts]

    def announce(self, message: str, stuck: Sequence[StuckRank]) -> dict[str, Any] | None:
        """Give the verdict, which all ranks hear with their next exchange; None if another rank has
        taken over.
        """
        verdict = {
            "message": message,
            "stuck": [one.report.rank for one in stuck],
            "silent": any(one.silent for one in stuck),
        }
        self._say(verdict)
        return {**verdict, "overseer": self._rank} if self.oversees else None

    def _say(self, verdict: dict[str, Any] | None) -> None:
        self._number += 1
        word = json.dumps({"overseer": self._rank, "number": self._number, "verdict": verdict})
        # Of two that take over at once, one
        self.oversees = self._board.swap(_WORD, self._word, word)
        if self.oversees:
            self._word = word


def _reason(frames: Sequence[str]) -> str | None:
    return next(
        (
            reason
            for reason, files in _REASONS.items()
            if any(file in frame for frame in frames for file in files)
        ),
        None,
    )


def _short(frame: str) -> str:
    """The last two names of its path."""
    return "/".join(frame.split("/")[-2:])


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)

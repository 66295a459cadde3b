"""`fermarsi launch --min-processes`: a training whose processes may be lost and come back, without
a new launch. Survivors stay as they are, with their imports, data and devices, and are put together
anew; a lost process is started again, and trains from the end of an interval on.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from harness.data.sampling import fitting_world_sizes
from harness.errors import RankError
from harness.ranks.gathering import Gathering
from harness.ranks.generations import Coordinator, Generation
from harness.ranks.membership import HEARD, MEMBER, STORE
from harness.rundir.outcome import INTERRUPTED
from harness.wording import first_line

POLL_S = 0.1
# Survivors first: a starting process would take their cores
PAUSE_S = 5.0
MOST_EARLY = 3  # deaths in a row before a process is ready, or soon after
SOON_S = 60.0  # after its start
AWAY_S = 600.0  # for machine 0 to answer again
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


@dataclass
class _Place:
    """A process's on this machine, and who has it now."""

    number: int
    process: "subprocess.Popen[bytes] | None" = None
    member: str = ""
    started: int = 0
    early: int = 0
    begun_s: float = 0.0
    again_s: float = 0.0

    def note_loss(self, was_ready: bool, now_s: float) -> bool:
        """Whether it was one too many: whoever dies again and again also costs the others, who are
        put together anew each time.
        """
        lasted = was_ready and now_s - self.begun_s > SOON_S
        self.early = 0 if lasted else self.early + 1
        return self.early == MOST_EARLY


@dataclass
class ElasticLaunch:
    """One machine's processes.

    command: of each; least: ranks; num_slots: of a batch; grace_s: between a signal and the kill.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    processes: int
    machines: int
    machine: int
    host: str
    port: int
    num_slots: int
    least: int
    grace_s: float = 300.0
    _asked_s: float | None = field(default=None, init=False)
    _code: int | None = field(default=None, init=False)  # once the training has ended

    def run(self) -> int:
        """Train to the end; the exit code of the training: 0, 2, 3, 75, also where machine 0 is
        lost, or 1 if too few processes are left. Raises RankError where the machines do not meet.
        """
        coordinator = Coordinator(self.num_slots, self.least) if self.machine == 0 else None
        try:
            self._gathering = Gathering(
                self.machines, self.machine, self.host, self.port, coordinator
            )
        except ConnectionError as error:
            raise RankError(
                f"machine {self.machine}: the store of this launch at {self.host}:{self.port}: "
                f"{error}. Is that machine 0, its port free there and open to the others, and was "
                "the launch started on each?",
                origin_rank=0,
            ) from error
        self._places = [_Place(number) for number in range(self.processes)]
        before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        try:
            return self._watch()
        finally:
            for place in self._places:
                if place.process is not None:
                    place.process.kill()
                    place.process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> int:
        while True:
            try:
                code = self._look(time.monotonic())
            except RuntimeError as error:
                if self.machine == 0:
                    raise
                if self._code is not None:  # it has ended, as this one does
                    self._wait()
                    return self._code
                _say(f"machine 0 does not answer ({first_line(error)}): trying again")
                code = None if self._reconnects() else INTERRUPTED
            if code is not None:
                return code
            time.sleep(POLL_S)

    def _look(self, now_s: float) -> int | None:
        """Do what is due; the exit code at the end."""
        self._collect(now_s)
        live = [one.member for one in self._places if one.process is not None]
        self._gathering.tell(live)
        finals = self._gathering.finals()
        needed = self.least if self.machines == 1 else 1
        died = sum(one.early < MOST_EARLY for one in self._places) < needed
        if finals or died or self._asked_s is not None or self._gathering.is_over():
            if self.machine == 0 or not died:
                self._gathering.end()
            codes = [*finals.values(), 1 if died else 0]
            ended = finals or died
            self._code = next((one for one in codes if one), 0) if ended else INTERRUPTED
            late = self._asked_s is not None and now_s - self._asked_s > self.grace_s
            if live and not late:
                return None
            if died:
                _say(f"fewer than {needed} processes can be started here")
            return self._code
        self._start(now_s)
        if self.machine == 0:
            self._announce(self._gathering.coordinate(now_s))
        for place in self._places:
            if place.process is not None and place.member in self._gathering.hung():
                _say(f"{_name(place)} does not come back from its collectives: killed")
                place.process.kill()
        return None

    def _wait(self) -> None:
        """For this machine's processes to end, as long as they may take."""
        deadline = time.monotonic() + self.grace_s
        for place in self._places:
            if place.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    place.process.wait(max(0.0, deadline - time.monotonic()))

    def _reconnects(self) -> bool:
        """Whether machine 0 is back, also with another launch, which this machine's processes then
        join.
        """
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                self._gathering.reconnect()
            except ConnectionError as error:
                if self._asked_s is not None or time.monotonic() > deadline:
                    _say(
                        f"machine {self.machine}: machine 0 at {self.host}:{self.port} is gone: "
                        f"{error}. Launch again to resume from the last checkpoint."
                    )
                    return False
                time.sleep(1.0)
            else:
                for place in self._places:
                    place.early = 0
                return True

    def _collect(self, now_s: float) -> None:
        """Take note of processes that have ended."""
        finals: Mapping[str, int] | None = None
        for place in self._places:
            if place.process is None or place.process.poll() is None:
                continue
            finals = self._gathering.finals() if finals is None else finals
            is_asked = self._asked_s is not None or self._gathering.is_over()
            if place.member not in finals and not is_asked:
                code = place.process.returncode
                how = (
                    f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
                )
                _say(f"lost {_name(place)}: {how}")
                if place.note_loss(self._gathering.was_ready(place.member), now_s):
                    _say(
                        f"number {place.number} here was lost {MOST_EARLY} times in a row within "
                        f"{SOON_S:.0f} s: it is not started again"
                    )
            place.process, place.again_s = None, now_s + PAUSE_S

    def _start(self, now_s: float) -> None:
        few = sum(one.process is not None for one in self._places) < self.least
        for place in self._places:
            if place.process is not None or place.early >= MOST_EARLY:
                continue
            if not few and now_s < place.again_s:
                continue
            place.member = f"{self.machine:04}.{place.number:03}.{place.started}"
            place.started += 1
            place.begun_s = now_s
            place.process = subprocess.Popen(
                self.command,
                env={
                    **self.environment,
                    "LOCAL_RANK": str(place.number),
                    "LOCAL_WORLD_SIZE": str(self.processes),
                    STORE: f"{self.host}:{self._gathering.port}",
                    MEMBER: place.member,
                    HEARD: str(self._gathering.present()),
                },
                start_new_session=True,  # a terminal's Ctrl-C comes through this process
            )

    def _announce(self, made: Generation | None) -> None:
        if made is None:
            return
        size, spares = len(made.members), len(made.spares)
        if made.number == 1 and not spares:
            return
        _say(f"{size} process{'es go' if size > 1 else ' goes'} on")
        if spares:
            fitting = ", ".join(map(str, fitting_world_sizes(self.num_slots)))
            _say(f"{spares} wait: {self.num_slots} slots fit {fitting} processes")

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked_s = time.monotonic() if self._asked_s is None else self._asked_s
        for place in self._places:
            if place.process is not None:
                with suppress(ProcessLookupError):
                    place.process.send_signal(number)


def _name(place: _Place) -> str:
    assert place.process is not None
    return f"process {place.process.pid}, number {place.number} here"


def _say(text: str) -> None:
    print(f"fermarsi launch: {text}", file=sys.stderr, flush=True)

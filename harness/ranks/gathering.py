"""Where the processes of a launch meet whose number may change: the store that `fermarsi launch`
keeps on machine 0, and what the machines tell each other there.

Each machine's launcher writes which of its processes live; machine 0's decides on generations.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore

from harness.ranks.generations import Coordinator, Generation
from harness.ranks.membership import TIMEOUT_S, append_note
from harness.wording import first_line

SILENT_S = 3.0  # without a word of a machine, its processes count as gone


@dataclass
class _Machine:
    word: str = ""
    heard_s: float = 0.0
    record: Mapping[str, Any] = field(default_factory=dict)


class Gathering:
    """One machine's view; `port`: of the store. Its methods raise RuntimeError where machine 0 is
    gone.
    """

    def __init__(
        self, machines: int, machine: int, host: str, port: int, coordinator: Coordinator | None
    ) -> None:
        """coordinator: on machine 0, which keeps the store. Raises ConnectionError."""
        self._machines = {number: _Machine() for number in range(machines)}
        self._machine = machine
        self._coordinator = coordinator
        self._beat = 0
        self._host, self._asked_port = host, port
        self.reconnect()

    def reconnect(self) -> None:
        """Find the store, or on machine 0 make it. Raises ConnectionError."""
        keeps = self._coordinator is not None
        try:
            self._store = TCPStore(
                self._host,
                self._asked_port,
                is_master=keeps,
                wait_for_workers=False,
                timeout=timedelta(seconds=TIMEOUT_S),
            )
        except RuntimeError as error:
            raise ConnectionError(first_line(error)) from error
        self.port = int(self._store.port)

    def tell(self, live: Collection[str]) -> None:
        """Which of this machine's processes live."""
        self._beat += 1
        word = {"beat": self._beat, "live": sorted(live)}
        self._store.set(f"machine/{self._machine}", json.dumps(word))

    def finals(self) -> dict[str, int]:
        """The exit codes that processes told before they ended."""
        return {one: int(code) for one, code in self._notes("final")}

    def was_ready(self, member: str) -> bool:
        """Whether a process has ever been ready to train."""
        return any(one == member for one, _ in self._notes("ready"))

    def hung(self) -> set[str]:
        """The processes that do not come out of a generation that is over."""
        return {one for one, _ in self._notes("hung")}

    def is_over(self) -> bool:
        """Whether the training has ended."""
        return bool(self._store.check(["over"]))

    def end(self) -> None:
        """Let everyone who waits leave."""
        self._store.set("over", "1")

    def coordinate(self, now_s: float) -> Generation | None:
        """On machine 0: the next generation once it is due, announced."""
        assert self._coordinator is not None
        live = self._live(now_s)
        if self.finals():  # read after what lives: it is told before an end
            return None
        ready = {one: int(number) for one, number in self._notes("ready")}
        current = self._coordinator.current
        if current is not None:
            if self._coordinator.is_broken(live):
                self._store.set(f"broken/{current.number}", "1")
            key = f"grow/{current.number}"
            if self._coordinator.could_grow(live, ready):
                self._store.set(key, "1")
            elif self._store.check([key]):  # who waited is gone
                self._store.delete_key(key)
        late = self._coordinator.late(live, ready)
        made = self._coordinator.look(live, ready, now_s)
        if made is None:
            return None
        if current is not None:
            for one in late:
                append_note(self._store, "hung", f"{one}:1 ")
        self._store.set("generation", str(made.number))
        self._store.set(f"generation/{made.number}", json.dumps(made.to_json()))
        return made

    def present(self) -> int:
        """The last generation's number, 0 if there was none."""
        return int(self._store.get("generation")) if self._store.check(["generation"]) else 0

    def _live(self, now_s: float) -> set[str]:
        found: set[str] = set()
        for number, machine in self._machines.items():
            key = f"machine/{number}"
            word = self._store.get(key).decode() if self._store.check([key]) else ""
            if word != machine.word:
                machine.word, machine.heard_s = word, now_s
                machine.record = json.loads(word)
            if now_s - machine.heard_s < SILENT_S:
                found.update(machine.record.get("live", ()))
        return found

    def _notes(self, key: str) -> list[tuple[str, str]]:
        if not self._store.check([key]):
            return []
        words = self._store.get(key).decode().split()
        return [(one, value) for one, _, value in (word.partition(":") for word in words)]

"""Which of the processes that are there train together, and when they are put together anew: pure,
without a clock, a store or a process.

A generation is one process group's life. It ends when one of its members is gone, or when all have
left because more could train; the next one has as many ranks as fit, the others wait as spares.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

START_S = 60.0  # for processes that are still starting, once enough are there
LEAVE_S = 15.0  # for members to come out of a broken generation


@dataclass(frozen=True)
class Generation:
    """`members`: by rank. `spares`: who waits for the next."""

    number: int
    members: tuple[str, ...]
    spares: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Generation":
        return cls(value["number"], tuple(value["members"]), tuple(value["spares"]))


class Coordinator:
    """Decides on generations; the time is passed in.

    num_slots: of a batch, which the number of ranks must divide; least: ranks, below which nothing
    is begun.
    """

    def __init__(self, num_slots: int, least: int) -> None:
        self.current: Generation | None = None
        self._num_slots = num_slots
        self._least = least
        self._since_s: float | None = None

    def look(
        self, live: Collection[str], ready: Mapping[str, int], now_s: float
    ) -> Generation | None:
        """The next generation, once it is due.

        live: the processes that are there; ready: of those that wait, the last generation that they
        were part of or saw, 0 at first.
        """
        number = 0 if self.current is None else self.current.number
        waiting = sorted(one for one in live if ready.get(one, -1) >= number)
        if self.current is not None and not self._is_over(live, waiting):
            self._since_s = None
            return None
        size = self.fitting(len(waiting))
        if size < self._least:
            return None
        self._since_s = now_s if self._since_s is None else self._since_s
        limit_s = START_S if self.current is None else LEAVE_S
        if self.late(live, ready) and now_s - self._since_s < limit_s:
            return None
        # Who trained goes first: it has its data at hand
        trained = () if self.current is None else self.current.members
        chosen = sorted(sorted(waiting, key=lambda one: one not in trained)[:size])
        spares = tuple(one for one in waiting if one not in chosen)
        self.current, self._since_s = Generation(number + 1, tuple(chosen), spares), None
        return self.current

    def late(self, live: Collection[str], ready: Mapping[str, int]) -> list[str]:
        """Who is waited for: at the start all that are there, later the last generation's."""
        wanted = live if self.current is None else self.current.members
        number = 0 if self.current is None else self.current.number
        return sorted(one for one in wanted if one in live and ready.get(one, -1) < number)

    def could_grow(self, live: Collection[str], ready: Mapping[str, int]) -> bool:
        """Whether with those that wait more could train than do."""
        if self.current is None:
            return False
        number, members = self.current.number, self.current.members
        here = [one for one in live if one in members or ready.get(one, -1) >= number]
        return self.fitting(len(here)) > len(members)

    def is_broken(self, live: Collection[str]) -> bool:
        """Whether a member of the present generation is gone."""
        return self.current is not None and any(one not in live for one in self.current.members)

    def fitting(self, count: int) -> int:
        """The most ranks that so many processes can be, 0 for none."""
        return max((one for one in range(1, count + 1) if self._num_slots % one == 0), default=0)

    def _is_over(self, live: Collection[str], waiting: Collection[str]) -> bool:
        assert self.current is not None
        return self.is_broken(live) or any(one in waiting for one in self.current.members)

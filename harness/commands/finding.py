"""One result of `fermarsi doctor`."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do. `good` is False only for what a training
    requires.
    """

    what: str
    found: str
    to_do: str = ""
    good: bool = True

    @property
    def state(self) -> str:
        """ok, warning, or error: a training cannot run here."""
        return "error" if not self.good else "warning" if self.to_do else "ok"

    def to_json(self) -> dict[str, Any]:
        return {"state": self.state, **asdict(self)}

    def cells(self) -> tuple[str, ...]:
        """State, what, found, to do."""
        return self.state, self.what, self.found, self.to_do

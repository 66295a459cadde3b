"""Trackers of a user's own, as configs name them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.rundir.outcome import Outcome
from harness.tracking.courier import RunInfo
from harness.tracking.records import Row


class Lines:
    """Everything it is given, a JSON line each, in a file of the run directory."""

    name = "Lines"

    def __init__(self, run: RunInfo, file: str) -> None:
        self.run = run
        self.path = run.directory / file

    def write(self, kind: str, value: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([kind, value]) + "\n")

    def begin(self) -> int:
        self.path.unlink(missing_ok=True)
        self.write("begin", [self.run.name, self.run.config["run"]["seed"]])
        return 0

    def row(self, row: Row) -> None:
        self.write("row", [row.step, dict(row.values)])

    def event(self, record: Mapping[str, Any]) -> None:
        self.write("event", record["event"])

    def finish(self, outcome: Outcome | None) -> None:
        self.write("finish", None if outcome is None else outcome.reason)

    def abandon(self) -> None: ...


class Broken(Lines):
    """Raises whatever it is asked, and when it is let go too."""

    def row(self, row: Row) -> None:
        raise RuntimeError("no such table\nand more")

    def abandon(self) -> None:
        raise OSError("the socket is closed")


class Slow(Lines):
    """Takes a second to finish."""

    def finish(self, outcome: Outcome | None) -> None:
        time.sleep(1.0)


class Unmade(Lines):
    """Cannot be made."""

    def __init__(self, run: RunInfo) -> None:
        raise ValueError("no licence")


class Partial:
    """Lacks most of what a tracker has."""

    def __init__(self, run: RunInfo, file: str = "") -> None: ...

    def begin(self) -> int:
        return 0

    def row(self, row: Row) -> None: ...


def lines(path: Path, kind: str) -> list[Any]:
    """What a `Lines` was given of a kind."""
    given = [json.loads(line) for line in path.read_text().splitlines()]
    return [value for one, value in given if one == kind]

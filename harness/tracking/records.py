"""metrics.jsonl, the authoritative record of a run: a JSON object per line, in order of steps, no
step twice.
"""

import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bounded import json_lines, parse_json
from harness.durable import replace
from harness.errors import ConfigError

METRICS = "metrics.jsonl"
POLL_S = 0.2


@dataclass(frozen=True)
class Row:
    """The data of one step.

    `values`: the numbers of its training and evaluation records; `tables`: matrices by name, e.g.
    val/confusion.
    """

    step: int
    values: Mapping[str, float]
    tables: Mapping[str, Any]
    evaluated: bool

    @classmethod
    def of(cls, record: Mapping[str, Any], before: "Row | None" = None) -> "Row":
        """The row of a record, or of several of one step: `before` holds those that came before."""
        values = {
            name: value
            for name, value in record.items()
            # A flag is not a number, although bool is a subclass of int.
            if type(value) in (int, float) and name != "step"
        }
        tables, evaluated = record.get("tables", {}), record["kind"] == "eval"
        if before is None:
            return cls(record["step"], values, tables, evaluated)
        return cls(
            before.step,
            {**before.values, **values},
            {**before.tables, **tables},
            before.evaluated or evaluated,
        )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; anything else, such as half a line left by a crash at the
    end, is skipped. Raises ConfigError.
    """
    if not os.path.lexists(path):
        return
    try:
        yield from filter(None, (_record(found) for _, found in json_lines(path)))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Make it a readable file."
        ) from error


def follow(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl that is being written, as they come, up to the last one
    written before `ended` was set.
    """
    line = b""
    with path.open("rb") as file:
        while True:
            last = ended.is_set()
            while (line := line + file.readline()).endswith(b"\n"):
                record = _parse(line)
                line = b""
                if record is not None:
                    yield record
            if last:
                return
            ended.wait(POLL_S)


def cut_back(path: Path, step: int) -> None:
    """Drop the records after `step`: those steps will be repeated. Raises OSError."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with temporary.open("x") as file:
        file.writelines(
            json.dumps(record) + "\n" for record in read_records(path) if record["step"] <= step
        )
    replace(temporary, path)


def evaluations(path: Path) -> Sequence[dict[str, Any]]:
    """The evaluation records of a run, in order."""
    return [record for record in read_records(path) if record["kind"] == "eval"]


def class_names(launch: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """{table: names of its classes} of a launch's record; {} if it has none."""
    found = launch.get("classes", {})
    is_whole = isinstance(found, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in found.values()
    )
    return found if is_whole else {}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return _record(parse_json(line))
    except ValueError:
        return None


def _record(found: Any) -> dict[str, Any] | None:
    """The record in a line, if it is one."""
    if not isinstance(found, dict) or type(step := found.get("step")) is not int or step < 0:
        return None
    kind = found.get("kind")
    is_event = kind == "event" and isinstance(found.get("event"), str)
    is_measured = kind in ("train", "eval") and isinstance(found.get("tables", {}), dict)
    return found if is_event or is_measured else None

"""metrics.jsonl, the authoritative record of a run: a JSON object per line, in order of steps, no
step twice.
"""

import json
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.durable import replace

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
    """The records of a metrics.jsonl; an incomplete last line, left by a crash, is skipped."""
    if path.exists():
        with path.open("rb") as file:
            yield from filter(None, map(_parsed, file))


def follow(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl that is being written, as they come, up to the last one
    written before `ended` was set.
    """
    line = b""
    with path.open("rb") as file:
        while True:
            last = ended.is_set()
            while (line := line + file.readline()).endswith(b"\n"):
                record = _parsed(line)
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
            json.dumps(record) + "\n"
            for record in read_records(path)
            if record.get("step", 0) <= step
        )
    replace(temporary, path)


def evaluations(path: Path) -> Sequence[dict[str, Any]]:
    """The evaluation records of a run, in order."""
    return [record for record in read_records(path) if record.get("kind") == "eval"]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None

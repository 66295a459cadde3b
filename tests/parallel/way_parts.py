"""Networks for the ways of sharing, and what a run leaves in records."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend

from harness.errors import DataError
from tests.resume.parts import Blobs

GRAPHS = "TRACED_GRAPHS_FILE"


class Block(nn.Module):
    """(B, D) -> (B, D), with dropout, and BatchNorm if `norm`."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width + 1)
        self.narrow = nn.Linear(2 * width + 1, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.narrow(torch.relu(self.wide(self.norm(x)))))
        return out


class Tower(nn.Module):
    """(B, 6) -> (B, 3): blocks of 7, rows that no number of ranks divides, fewer rows than ranks,
    and weights that are tied outside of the blocks.
    """

    def __init__(self, norm: bool = False, dtype: str = "float32") -> None:
        super().__init__()
        self.enter = nn.Linear(6, 7)
        self.blocks = nn.ModuleList([Block(7, norm) for _ in range(3)])
        self.first = nn.Linear(7, 7)
        self.again = nn.Linear(7, 7)
        self.again.weight = self.first.weight
        self.head = nn.Linear(7, 3)
        self.to(getattr(torch, dtype))
        self.is_wide = dtype == "float64"

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.double() if self.is_wide else x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.again(self.first(x).tanh()))
        return out


class Wayward(Tower):
    """The same, with passes that go other ways with other samples, as `how` says: blocks that are
    left out, in another order, one instead of another, reached by no gradient, or used again.
    """

    def __init__(self, how: str, dtype: str = "float32") -> None:
        super().__init__(dtype=dtype)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        goes = float(x[0, 0]) > 0
        x = self.enter(x.double() if self.is_wide else x)
        path = {
            "drops": [0, 2],
            "turns": [1, 0, 2],
            "routes": [1, 2],
            "repeats": [0, 1, 2, 2],
        }.get(self.how, [0, 1, 2])
        straight = [0, 2] if self.how == "routes" else [0, 1, 2]
        if self.how == "evaluates" and not self.training:
            path = [0]
        for index in path if goes else straight:
            y: Tensor = self.blocks[index](x)
            # As a gate that is shut
            is_cut = self.how == "cuts" and goes and index == 1
            x = x + (y - x).detach() if is_cut else y
        x = x.detach() if self.how == "ends" and goes else x
        out: Tensor = self.head(self.again(self.first(x).tanh()))
        return out


class Tiled(Tower):
    """The same, in pieces of `rows` rows: other sizes use blocks another number of times."""

    def __init__(self, rows: int, dtype: str = "float32") -> None:
        super().__init__(dtype=dtype)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Tiled, self).forward(one) for one in x.split(self.rows)])


class Traced(Tower):
    """The same, compiled but for kernels, which take a C++ compiler half a minute; the file that
    the environment names gets a line for each graph: the number of its operations.
    """

    def compile(self, *args: Any, **options: Any) -> None:
        super().compile(*args, backend=_note, **options)


def _note(graph: Any, inputs: Any) -> Any:
    with open(os.environ[GRAPHS], "a") as file:
        file.write(f"{len(graph.graph.nodes)}\n")
    return lookup_backend("aot_eager")(graph, inputs)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [one for line in lines if (one := json.loads(line))["kind"] == kind]


def trace(run: Path) -> list[dict[str, Any]]:
    """Of trace.jsonl."""
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


class Torn(Blobs):
    """Blobs of which rank 2 cannot read one."""

    def __init__(self, count: int, torn: int) -> None:
        super().__init__(count)
        self.torn = torn

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        if self.torn in indices and os.environ.get("RANK") == "2":
            raise DataError(f"sample {self.torn} is torn")
        return super().__getitems__(indices)


class Doomed(torch.optim.AdamW):
    """AdamW whose processes all die after the step that DOOM names, counted from the start of the
    launch.
    """

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        result = super().step(closure)
        if os.environ.get("DOOM") == str(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

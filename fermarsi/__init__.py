"""Train PyTorch networks for as long as it pays, from a notebook or a script.

    outcome = fermarsi.train("configs/digits.yaml", {"optimizer.lr": 3e-4})
    model = fermarsi.load("runs/digits")
    table = model.predict(["seven.png", "nine.png"])

docs/python-api.md; the same as the commands of `fermarsi`, on the package harness. Names only:
each is imported when it is used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api.config import Config
    from harness.api.model import Model, evaluate, load
    from harness.api.record import RunRecord, forecast, read_run, replay, report
    from harness.api.training import launch, train
    from harness.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        HarnessError,
        LeavingError,
        RankError,
    )
    from harness.rundir.outcome import Outcome
    from harness.sources.given import Arrays

__all__ = [
    "EXAMPLES",
    "Arrays",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "HarnessError",
    "LeavingError",
    "Model",
    "Outcome",
    "RankError",
    "RunRecord",
    "evaluate",
    "forecast",
    "launch",
    "load",
    "read_run",
    "replay",
    "report",
    "train",
]

# Configs that run as they stand
EXAMPLES = Path(__file__).parent / "configs"

_MODULES = {
    "harness.api.config": ("Config",),
    "harness.api.model": ("Model", "evaluate", "load"),
    "harness.api.record": ("RunRecord", "forecast", "read_run", "replay", "report"),
    "harness.api.training": ("launch", "train"),
    "harness.errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "HarnessError",
        "LeavingError",
        "RankError",
    ),
    "harness.rundir.outcome": ("Outcome",),
    "harness.sources.given": ("Arrays",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

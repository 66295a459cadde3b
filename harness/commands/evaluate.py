"""`fermarsi evaluate`: the metrics of a trained network on a split of its config."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.ranks.ranks import Ranks
from harness.training.evaluation import EvaluationPlan, evaluate


@dataclass(frozen=True)
class SplitMetrics:
    """The metrics of a checkpoint on a split; `values` by name."""

    checkpoint: Path
    split: str
    values: Mapping[str, float]
    precision: str

    def to_json(self) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint), "split": self.split, **self.values}

    def page(self) -> Iterator[str | Table]:
        yield f"{self.checkpoint}: {self.split}, in the run's precision ({self.precision})"
        table = Table("metric", "value")
        for name, value in self.values.items():
            table.add_row(name, f"{value:.6g}")
        yield table


def evaluate_split(path: Path, name: str, allow: Sequence[str] = ()) -> SplitMetrics:
    """The metrics of a run's best checkpoint, or of a checkpoint, on a split of its config, e.g.
    "test". Raises HarnessError.
    """
    return evaluate_trained(load_trained(path, allow), name)


def evaluate_trained(trained: TrainedNetwork, name: str) -> SplitMetrics:
    """The same of a network that is loaded. Raises HarnessError."""
    split = open_split(trained, name)
    fit_task(trained, split)
    plan = EvaluationPlan(split, trained.micro_size, trained.num_workers)
    result = evaluate(trained.network, trained.task, plan, Ranks(), trained.device)
    precision = trained.config.train.precision
    shown = "float32" if precision == "no" else precision
    return SplitMetrics(trained.path, name, result.values, shown)

"""Metrics of a split: each sample exactly once, on the unwrapped network, summed exactly over
ranks, without a trace in the training.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.config.schema import Config
from harness.data.feed import FOREVER, EvaluationFeed, Patience, data_limit_s
from harness.data.sampling import Permutation
from harness.data.source import Batch
from harness.data.split import Split
from harness.errors import DataError
from harness.interrupt import Interruption
from harness.metrics.errors import mean_error
from harness.metrics.exact import exact_sum
from harness.metrics.groups import GroupSums, deviations
from harness.metrics.interval import IntervalMetrics
from harness.randomness import draws_nothing, preserve_random, seed_for, seeding_for
from harness.ranks.heartbeat import EVALUATION, EVALUATION_DATA, METRICS
from harness.ranks.mesh import release_parameters
from harness.ranks.ranks import Ranks
from harness.stopping.pairs import Deviations
from harness.stopping.rate import error_of
from harness.stopping.settings import TrainSample
from harness.tasks.task import Task
from harness.training.companions import asked_errors
from harness.training.items import total
from harness.training.network_state import BufferState
from harness.training.stable import writes_are_counted


@dataclass(frozen=True)
class EvaluationPlan:
    """How a split is evaluated: micro-batches of `size`, workers and how they are waited for, and
    the samples if not all; `errors`: the metrics whose gains are compared with their errors;
    `keep`: later evaluations may get the first one's micro-batches.
    """

    split: Split
    size: int
    num_workers: int = 0
    samples: NDArray[np.int64] | None = None
    patience: Patience = FOREVER
    errors: frozenset[str] = frozenset()
    keep: bool = False
    _feeds: dict[Any, EvaluationFeed] = field(default_factory=dict, init=False, repr=False)

    def feed(self, ranks: Ranks, device: torch.device) -> EvaluationFeed:
        """This rank's micro-batches, the same object for each evaluation. No collectives."""
        key = (ranks.rank, ranks.size, device)
        if key not in self._feeds:
            self._feeds[key] = EvaluationFeed(
                self.split,
                self.size,
                ranks.rank,
                ranks.size,
                device,
                self.num_workers,
                self.samples,
                self.patience,
                preserve=False,  # `evaluate` preserves all, and each forward pass seeds anew
                keep=self.keep,
            )
        return self._feeds[key]

    def num_rounds(self, num_ranks: int) -> int:
        """Of a rank, at most."""
        return -(-self.num_samples // (self.size * num_ranks))

    @property
    def num_samples(self) -> int:
        """How many samples are evaluated."""
        return len(self.split if self.samples is None else self.samples)


def evaluation_plans(
    config: Config, splits: Mapping[str, Split], num_workers: int, interruption: Interruption
) -> dict[str, EvaluationPlan]:
    """What is evaluated at each interval: the validation split, and the training split if its
    metrics are to be true ones.
    """
    size = config.evaluation.micro_size or config.batch.micro_size
    patience = Patience(data_limit_s(config.run.timeout_s), interruption.check)
    keep = writes_are_counted([config.network, config.task])
    plans = {}
    wanted, asked = config.stop.train_metrics, asked_errors(config.stop)
    errors = {
        split: frozenset(
            one.removeprefix(f"{split}/") for one in asked if one.startswith(f"{split}/")
        )
        for split in splits
    }
    if wanted != "interval":
        train = splits["train"]
        chosen = (
            fixed_sample(len(train), wanted.samples, config.run.seed)
            if isinstance(wanted, TrainSample)
            else None
        )
        plans["train"] = EvaluationPlan(
            train, size, num_workers, chosen, patience, errors["train"], keep
        )
    if "val" in splits:
        plans["val"] = EvaluationPlan(
            splits["val"], size, num_workers, None, patience, errors["val"], keep
        )
    return plans


@dataclass(frozen=True)
class Result:
    """`values`: scalars by name, "loss" among them.

    `computed`: whatever the task's metrics gave, e.g. a confusion matrix (C, C); `deviations`: of
    the metrics whose gains are compared with their errors.
    """

    values: Mapping[str, float]
    computed: Mapping[str, Tensor]
    deviations: Mapping[str, Deviations] = field(default_factory=dict)


# Numbers in what a network gives for a micro-batch, up to which several are counted at once
_MOST_JOINED = 2**14


class Tally:
    """What is counted of this rank's micro-batches.

    joins: whether those of a group may be counted at once: each has outputs in memory of their own.
    """

    def __init__(self, task: Task, plan: EvaluationPlan, *, joins: bool = False) -> None:
        self.metrics = IntervalMetrics(task.metrics())
        self.sums: list[Tensor] = []
        self.items: list[Tensor | int] = []
        self.groups = GroupSums()
        self._task = task
        self._size = plan.size
        self._counts_hits = bool(plan.errors - {"loss"}) and hasattr(task, "hits")
        self._joins = joins and hasattr(task, "join") and self.metrics.holds_all
        self._held: list[tuple[int, Batch, Any]] = []

    def add(self, block: int, batch: Batch, outputs: Any) -> None:
        """One micro-batch; no host wait on a GPU."""
        if self._joins and isinstance(outputs, Tensor) and outputs.numel() <= _MOST_JOINED:
            self._held.append((block, batch, outputs))
        else:
            self._add(block, batch, outputs)

    def end_group(self) -> None:
        """Count what is still to be counted."""
        held, self._held = self._held, []
        if len(held) > 1:
            blocks, batches, outputs = zip(*held, strict=True)
            joined = self._task.join(outputs, batches)
            if joined is not None:
                self.sums += self._task.loss_sums(*joined, len(held)).unbind()
                self.metrics.update(self._task, *joined, blocks[0])
                for one in held:
                    self._count(*one)
                return
        for one in held:
            self._add(*one)

    def _add(self, block: int, batch: Batch, outputs: Any) -> None:
        self.sums.append(self._task.loss_sum(outputs, batch).double())
        self.metrics.update(self._task, outputs, batch, block)
        self._count(block, batch, outputs)

    def _count(self, block: int, batch: Batch, outputs: Any) -> None:
        task = self._task
        self.items.append(task.num_items(batch))
        if self._counts_hits:
            self.groups.add(block * self._size, task.hits(outputs, batch))


def evaluate(
    network: nn.Module,
    task: Task,
    plan: EvaluationPlan,
    ranks: Ranks,
    device: torch.device,
    check_leave: Callable[[], None] = lambda: None,
    *,
    in_step: Callable[[Batch], AbstractContextManager[None]] | None = None,
) -> Result:
    """Metrics of the plan's samples, the same bits on every rank and on any number of ranks.

    Called by every rank.
    `check_leave` is called before each micro-batch; what it raises on one rank all raise;
    `in_step`: around each forward pass, where they are of all ranks. Raises DataError if a sample
    cannot be read or a metric is undefined on the split.
    """
    ranks.heartbeat.enter(EVALUATION_DATA)
    seed = None if draws_nothing(network, task) else seeding_for(network, task)
    tally, feed = (
        Tally(task, plan, joins=seed is None and in_step is None),
        plan.feed(ranks, device),
    )

    def forward(block: int, batch: Batch) -> Any:
        ranks.heartbeat.enter(EVALUATION)
        if seed is not None:
            seed(seed_for(0, "evaluation forward", block))
        return task.forward(network, batch)

    def run_mine() -> None:
        for group in feed.groups():
            for block, batch in group:
                check_leave()
                tally.add(block, batch, forward(block, batch))
            tally.end_group()
            ranks.heartbeat.enter(EVALUATION_DATA)

    with preserve_random(), evaluation_mode(network), torch.no_grad():
        if in_step is not None:
            run_in_step(ranks, feed, plan, check_leave, forward, tally.add, in_step)
            release_parameters(network)
        else:
            ranks.together(run_mine)
    ranks.heartbeat.enter(METRICS)
    zero = torch.zeros(0, dtype=torch.float64)
    loss_sums = torch.cat(
        ranks.gather_rows(torch.stack(tally.sums) if tally.sums else zero)
    ).tolist()
    num_items = sum(ranks.gather(total(tally.items)))
    if num_items == 0:
        raise DataError(
            f"{plan.split.where}: nothing to evaluate: every target is ignored. Give a split with "
            "at least one item."
        )
    computed = tally.metrics.compute(ranks)
    loss = exact_sum(loss_sums) / num_items
    values = {"loss": loss, **require_defined(task.values(computed), loss, plan.split.where)}
    errors, found = errors_of(plan, ranks, tally, loss_sums)
    return Result({**values, **errors}, computed, found)


def run_in_step(
    ranks: Ranks,
    feed: EvaluationFeed,
    plan: EvaluationPlan,
    check_leave: Callable[[], None],
    forward: Callable[[int, Batch], Any],
    add: Callable[[int, Batch, Any], None],
    in_step: Callable[[Batch], AbstractContextManager[None]],
) -> None:
    """The micro-batches of `feed` where a forward pass is one of all ranks: as many rounds on each,
    and a rank that has none left repeats one for the others. What lies between two passes, and may
    fail on one rank alone, they do together. Called by every rank.
    """
    batches = iter(feed)
    done: tuple[int, Batch, Any] | None = None
    spare: Batch | None = None

    def begin_next() -> tuple[int | None, Batch]:
        nonlocal spare
        ranks.heartbeat.enter(EVALUATION_DATA)
        if done is not None:
            add(*done)
        block, batch = next(batches, (None, spare))
        check_leave()
        spare = feed.spare() if batch is None else batch
        return block, spare

    for _ in range(plan.num_rounds(ranks.size)):
        block, batch = ranks.together(begin_next)
        with in_step(batch):
            outputs = forward(block or 0, batch)
        done = None if block is None else (block, batch, outputs)
    ranks.together(lambda: None if done is None else add(*done))


def errors_of(
    plan: EvaluationPlan,
    ranks: Ranks,
    tally: Tally,
    loss_sums: Sequence[float],
) -> tuple[dict[str, float], dict[str, Deviations]]:
    """The standard error of the loss, and the deviations, of what the plan asks for, as far as
    there are enough micro-batches or samples. Called by every rank; the host waits.

    `loss_sums`: of the micro-batches of all ranks.
    """
    if not plan.errors:
        return {}, {}
    each = ranks.gather((tally.groups.totals(), [int(one) for one in tally.items]))
    counts = [one for _, mine in each for one in mine]
    found = deviations_of_hits([totals for totals, _ in each], plan.num_samples)
    errors = {}
    if "loss" in plan.errors:
        error = mean_error(loss_sums, counts)
        errors = {} if error is None else {error_of("loss"): error}
        found["loss"] = deviations(loss_sums, counts, plan.num_samples)
    known = {name: one for name, one in found.items() if one is not None and name in plan.errors}
    return errors, known


def deviations_of_hits(
    totals: Sequence[Mapping[str, Sequence[Sequence[int]]]], num_samples: int
) -> dict[str, Deviations | None]:
    """By metric, from hits and items of each group on each rank, which are summed exactly."""
    found = {}
    for name in dict.fromkeys(name for mine in totals for name in mine):
        tables = [mine[name] for mine in totals if name in mine]
        hits, items = (
            [sum(column) for column in zip(*rows, strict=True)]
            for rows in zip(*tables, strict=True)
        )
        found[name] = deviations(hits, items, num_samples)
    return found


def require_defined(values: Mapping[str, float], loss: float, where: str) -> Mapping[str, float]:
    """The values, unless one is NaN while the loss is finite: then the metric has no meaning on
    this split. Raises DataError.
    """
    undefined = undefined_in(values, loss)
    if undefined:
        raise DataError(
            f"{where}: {', '.join(undefined)} is undefined on this split (no sample of a class it "
            "needs?). "
            "Remove the metric from task.metrics or give a split on which it is defined."
        )
    return values


def undefined_in(values: Mapping[str, float], loss: float) -> list[str]:
    """The metrics that are NaN where the loss is finite: without a meaning on what was seen."""
    finite = math.isfinite(loss)
    return [name for name, value in values.items() if finite and math.isnan(value)]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each module is in the mode it had, with the
    buffers it had, which observers of quantisation change in this mode as well: a run must not
    depend on how often, or with how many ranks, it is evaluated.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = BufferState(network)
    network.eval()
    try:
        yield
    finally:
        buffers.restore()
        for module, training in modes:
            module.training = training


def fixed_sample(num_samples: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """`wanted` sample indices, sorted, the same at every evaluation of a run."""
    first = np.arange(min(wanted, num_samples), dtype=np.int64)
    return np.sort(Permutation(num_samples, seed_for(seed, "fixed sample"), 0)(first))

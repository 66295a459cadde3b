"""The metrics of our tasks give what torchmetrics gives, bit by bit: tables, sums, values, errors
and what checkpoints hold, whatever the numbers, however they are spread over ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score
from torchmetrics.text import Perplexity

from harness.checkpoint import exact_json
from harness.errors import CheckpointError, DataError
from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.tasks.classification import Classification
from harness.tasks.language import LanguageModelling
from harness.tasks.regression import Regression
from harness.tasks.task import Task
from tests.fake_ranks import on_fake_ranks
from tests.pool import on_ranks

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MicroBatch = tuple[Tensor, dict[str, Tensor]]


class TorchConfusion(Metric):  # type: ignore[misc]
    """torchmetrics' table, of what is counted."""

    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, predicted: Tensor, targets: Tensor, counted: Tensor) -> None:
        table = MulticlassConfusionMatrix(self.num_classes)
        table.update(predicted[counted], targets[counted])
        self.confusion += table.compute()

    def compute(self) -> Tensor:
        return self.confusion


class TorchTokens(Metric):  # type: ignore[misc]
    """As fermarsi counted tokens when its metrics were torchmetrics'."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, right: Tensor, tokens: Tensor) -> None:
        self.nll += nll
        self.right += right
        self.tokens += tokens

    def compute(self) -> Tensor:
        return torch.stack([self.nll, self.right.double(), self.tokens.double()])


def torchs(task: Task) -> dict[str, Metric]:
    """torchmetrics' metrics in the place of the task's own."""
    if isinstance(task, Regression):
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()}
    if isinstance(task, Classification):
        assert task.num_classes is not None
        return {"confusion": TorchConfusion(task.num_classes)}
    return {"tokens": TorchTokens()}


def own(task: Task) -> dict[str, Any]:
    return task.metrics()


Kind = Callable[[Task], Mapping[str, Any]]


def bits(computed: Mapping[str, Tensor]) -> Any:
    """Each value to the last bit, but NaN without its sign, which JSON does not keep."""
    return {
        name: (one.dtype, tuple(one.shape), [float(value).hex() for value in one.flatten()])
        for name, one in computed.items()
    }


def seen(
    kinds: Sequence[Kind], task: Task, batches: Sequence[MicroBatch], owner: Sequence[int]
) -> Callable[[Ranks], Any]:
    """On a rank: what the metrics of `kinds` give and store, each after a half of the micro-batches
    and what the one before stored.
    """

    def work(ranks: Ranks) -> Any:
        half = math.ceil(len(batches) / len(kinds)) or 1
        stored: Any = None
        for index, kind in enumerate(kinds):
            metrics = IntervalMetrics(kind(task))
            if stored is not None:
                metrics.restore(exact_json.loads(stored, "test"), ranks.rank)
            for number in range(len(batches))[index * half : (index + 1) * half]:
                if owner[number] % ranks.size == ranks.rank:
                    metrics.update(task, *batches[number], number)
            stored = exact_json.dumps(metrics.state(ranks))
        try:
            found = bits(metrics.compute(ranks))
        except DataError as error:
            found = str(error)
        return found, bits(metrics.compute(ranks, or_nan=True)), stored

    return work


def assert_alike(
    task: Task, batches: Sequence[MicroBatch], ranks: int, owner: Sequence[int]
) -> None:
    """Ours and torchmetrics', in one go and one after the other, in either order."""
    (expected, *_) = on_fake_ranks(ranks, seen([torchs], task, batches, owner))
    pairs = [[own], [own, own], [torchs, own], [own, torchs]]
    for kinds in pairs:
        for values, or_nan, stored in on_fake_ranks(ranks, seen(kinds, task, batches, owner)):
            assert values == expected[0], kinds
            assert or_nan == expected[1], kinds
            if len(kinds) == 1:
                assert stored == expected[2]


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, -0.0, 1.0, 1e-5, 1e-2, 3e38, 5e-324, math.pi]
)


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 3), st.integers(1, 3))
def test_errors_of_numbers_are_torchmetrics(
    data: Any, dtype: torch.dtype, outputs: int, ranks: int
) -> None:
    rows = st.lists(st.lists(numbers, min_size=2 * outputs, max_size=2 * outputs), max_size=4)
    batches: list[MicroBatch] = []
    for pairs in data.draw(st.lists(rows, max_size=5)):
        both = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2 * outputs)
        predicted, targets = both.to(dtype).tensor_split(2, dim=1)
        targets = targets.contiguous()  # torchmetrics takes no others
        batches.append((predicted, {"y": targets.squeeze(1) if outputs == 1 else targets}))
    owner = data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))
    assert_alike(Regression("x", "y"), batches, ranks, owner)


@pytest.mark.parametrize("constant", [0.0, 2.0, 1e-3])
@pytest.mark.parametrize("wrong", [0.0, 1e-3, 1.0])
def test_targets_that_are_all_the_same_have_torchmetrics_r2(constant: float, wrong: float) -> None:
    targets = torch.full((6, 2), constant)
    batches = [(targets + wrong, {"y": targets}), (targets, {"y": targets})]
    assert_alike(Regression("x", "y"), batches, 2, [0, 1])


@given(st.data(), st.integers(2, 5), st.integers(1, 3), st.sampled_from([None, 0, 1, -100]))
def test_classes_are_counted_as_torchmetrics_counts_them(
    data: Any, num_classes: int, ranks: int, ignored: int | None
) -> None:
    labels = st.integers(0, num_classes - 1)
    targets = labels | st.just(ignored) if ignored is not None else labels
    pairs = st.lists(st.tuples(labels, targets), max_size=6)
    batches = []
    for chosen in data.draw(st.lists(pairs, max_size=5)):
        outputs = torch.zeros(len(chosen), num_classes)
        for row, (predicted, _) in enumerate(chosen):
            outputs[row, predicted] = 1
        given_targets = torch.tensor([target for _, target in chosen], dtype=torch.int16)
        batches.append((outputs, {"y": given_targets}))
    owner = data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))
    task = Classification("x", "y", ignore_index=ignored)
    task.fit_to(torch.zeros(1, num_classes))
    assert_alike(task, batches, ranks, owner)


@given(st.data(), st.integers(2, 5))
def test_values_of_a_table_are_torchmetrics(data: Any, num_classes: int) -> None:
    """Ours are float64 and rounded once, torchmetrics' float32: of a division the nearest float32
    is the same, of a mean it is within float32's precision.
    """
    labels = st.integers(0, num_classes - 1)
    pairs = data.draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=40))
    # torchmetrics takes the recall of a class without targets for 0 where scikit-learn, as we do,
    # leaves it out
    targets = torch.tensor([*range(num_classes), *(target for target, _ in pairs)])
    predicted = torch.tensor([*range(num_classes), *(chosen for _, chosen in pairs)])
    outputs = torch.nn.functional.one_hot(predicted, num_classes).float()
    task = Classification("x", "y")
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, outputs, {"y": targets}, 0)
    values = task.values(metrics.compute(Ranks()))
    expected = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
    }
    for name, metric in expected.items():
        value = float(metric(predicted, targets))
        assert values[name] == pytest.approx(value, rel=3e-7), name
        if name == "accuracy":
            assert np.float32(values[name]) == np.float32(value)


@given(st.data(), st.sampled_from(DTYPES), st.integers(2, 5), st.integers(1, 3))
def test_tokens_are_summed_as_torchmetrics_sums(
    data: Any, dtype: torch.dtype, vocabulary: int, ranks: int
) -> None:
    batches: list[MicroBatch] = []
    for size in data.draw(st.lists(st.integers(0, 3), max_size=5)):
        tokens = st.integers(0, vocabulary - 1) | st.just(-100)
        chosen = data.draw(st.lists(tokens, min_size=3 * size, max_size=3 * size))
        logits = data.draw(
            st.lists(
                st.floats(-300, 300) | st.sampled_from([math.nan, math.inf]),
                min_size=2 * size * vocabulary,
                max_size=2 * size * vocabulary,
            )
        )
        outputs = torch.tensor(logits, dtype=torch.float64).reshape(size, 2, vocabulary)
        given_tokens = torch.tensor(chosen, dtype=torch.int64).reshape(size, 3)
        batches.append((outputs.to(dtype), {"x": given_tokens}))
    owner = data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))
    task = LanguageModelling("x")
    task.fit_to(torch.zeros(1, 2, vocabulary))
    with torch.no_grad():
        assert_alike(task, batches, ranks, owner)


@given(st.integers(1, 30), st.integers(0, 9))
def test_perplexity_and_accuracy_over_tokens_are_torchmetrics(count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(1, count, 7, generator=draw, dtype=torch.float64) * 3
    tokens = torch.randint(0, 7, (1, count + 1), generator=draw)
    tokens[0, 1 : count // 2] = -100
    task = LanguageModelling("x")
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    with torch.no_grad():
        metrics.update(task, outputs, {"x": tokens}, 0)
    values = task.values(metrics.compute(Ranks()))
    perplexity = Perplexity(ignore_index=-100)
    perplexity.update(outputs, tokens[:, 1:])
    assert values["perplexity"] == pytest.approx(float(perplexity.compute()), rel=1e-6)
    accuracy = MulticlassAccuracy(7, average="micro", ignore_index=-100)
    assert np.float32(values["accuracy"]) == np.float32(accuracy(outputs.argmax(2), tokens[:, 1:]))


def merged_on_a_real_rank() -> Any:
    draw = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(4, 2, generator=draw), {"y": torch.randn(4, 2, generator=draw)})
        for _ in range(5)
    ]
    ranks = Ranks.join()
    task = Regression("x", "y")
    owner = [0, 0, 0, 0, 1]  # of three ranks one sees nothing
    return seen([own, own], task, batches, owner)(ranks), seen([torchs], task, batches, owner)(
        ranks
    )


def test_real_ranks_merge_what_torchmetrics_would() -> None:
    for (values, or_nan, _), (expected, expected_or_nan, _) in on_ranks(3, merged_on_a_real_rank):
        assert (values, or_nan) == (expected, expected_or_nan)


def test_the_metrics_of_another_task_are_refused_on_a_restore() -> None:
    task = Classification("x", "y")
    task.fit_to(torch.zeros(1, 3))
    stored = IntervalMetrics(task.metrics()).state(Ranks())
    with pytest.raises(CheckpointError, match=r"the task needs \{'mse': \['sum_squared_error'"):
        IntervalMetrics(Regression("x", "y").metrics()).restore(stored, 0)


def test_targets_of_any_layout_are_taken() -> None:
    """torchmetrics' errors take no view of every other column, and end in a traceback."""
    table = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    task = Regression("x", "y")
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, table[:, ::2] + 1, {"y": table[:, ::2]}, 0)
    assert {name: float(value) for name, value in metrics.compute(Ranks()).items()} == {
        "mse": 1.0,
        "mae": 1.0,
        "r2": pytest.approx(1 - 4 / 180),
    }


def test_what_is_held_back_is_bounded_and_counted_wherever_sums_are_asked_for() -> None:
    """Asked for in the middle, and after a restore; ignored targets may be any number."""
    task = Classification("x", "y", ignore_index=-100)
    task.fit_to(torch.zeros(1, 4))
    draw = np.random.default_rng(1)
    metrics, other = IntervalMetrics(task.metrics()), IntervalMetrics(task.metrics())
    table, most = np.zeros((4, 4), np.int64), []
    for number in range(300):
        size = int(draw.integers(1, 40)) if number % 100 else 70_000
        logits = torch.from_numpy(draw.normal(size=(size, 4)))
        labels = draw.integers(0, 4, size)
        seen = np.where(draw.random(size) < 0.3, -100, labels)
        np.add.at(table, (labels, logits.argmax(1).numpy()), seen != -100)
        metrics.update(task, logits, {"y": torch.from_numpy(seen)}, number)
        most.append(len(metrics._live["confusion"]._held))
        if number in (5, 150):
            other.restore(metrics.state(Ranks()), 0)
            metrics, other = other, metrics
        if number % 50 == 7:
            assert (metrics.compute(Ranks())["confusion"].numpy() == table).all()
    assert 2 < max(most) < 64
    assert most[100] == 0  # as large as what is held back at most
    assert (metrics.compute(Ranks())["confusion"].numpy() == table).all()
    metrics.reset()
    assert not metrics.compute(Ranks())["confusion"].any()

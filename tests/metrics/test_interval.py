"""Metrics of an interval: right against scikit-learn, and the same bits however the micro-batches
are spread.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import CatMetric, MaxMetric, MeanMetric, Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, R2Score
from torchmetrics.wrappers import MinMaxMetric

from harness.checkpoint import exact_json
from harness.errors import CheckpointError, ConfigError, DataError
from harness.metrics.confusion import Confusion
from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.tasks.classification import Classification
from tests.fake_ranks import on_fake_ranks
from tests.pool import on_ranks

CLASSES = 4


class Direct:
    """A task that hands (outputs, target) to every metric."""

    def update(
        self, metrics: Mapping[str, Metric], outputs: Tensor, batch: Mapping[str, Any]
    ) -> None:
        for metric in metrics.values():
            if isinstance(metric, SumMetric | MeanMetric | CatMetric):
                metric.update(outputs[:, 0])
            elif isinstance(metric, R2Score | MeanSquaredError):
                metric.update(outputs[:, 0], outputs[:, 1])
            else:
                metric.update(outputs, batch["target"])


def every_kind() -> dict[str, Metric]:
    """Metrics with integer sums, floating-point sums and rows."""
    return {
        "f1": MulticlassF1Score(CLASSES),
        "confusion": MulticlassConfusionMatrix(CLASSES),
        "mean": MeanMetric(nan_strategy="disable"),
        "sum": SumMetric(nan_strategy="disable"),
        "mse": MeanSquaredError(),
        "r2": R2Score(),
        "auroc": MulticlassAUROC(CLASSES),
        "rows": CatMetric(nan_strategy="disable"),
    }


def micro_batches(
    count: int, seed: int = 0, size: int = 5
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    numbers = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, CLASSES, generator=numbers)
            * 10 ** float(torch.randint(-3, 4, (), generator=numbers)),
            {"target": torch.arange(index, index + size) % CLASSES},
        )
        for index in range(count)
    ]


def share(count: int, rank: int, ranks: int) -> range:
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def bits(computed: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in computed.items()}


def spread(
    batches: Sequence[tuple[Tensor, Mapping[str, Any]]],
    ranks: int,
    owner: Sequence[int] | None = None,
) -> list[dict[str, Tensor]]:
    """What each of `ranks` ranks computes; micro-batch i is seen by owner[i], by default in
    consecutive shares.
    """

    def work(mine: Ranks) -> dict[str, Tensor]:
        metrics = IntervalMetrics(every_kind())
        for number, (outputs, batch) in enumerate(batches):
            if (
                (owner[number] == mine.rank)
                if owner is not None
                else (number in share(len(batches), mine.rank, ranks))
            ):
                metrics.update(Direct(), outputs, batch, number)
        return metrics.compute(mine)

    return on_fake_ranks(ranks, work)


@given(st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_same_bits_however_micro_batches_are_spread(
    count: int, ranks: int, random: Any
) -> None:
    batches = micro_batches(count, seed=count)
    alone = bits(spread(batches, 1)[0])
    owner = [random.randrange(ranks) for _ in batches]
    for computed in spread(batches, ranks, owner):
        assert bits(computed) == alone


def on_a_real_rank(count: int) -> dict[str, bytes]:
    ranks = Ranks.join()
    metrics = IntervalMetrics(every_kind())
    batches = micro_batches(count)
    for number in share(count, ranks.rank, ranks.size):
        metrics.update(Direct(), *batches[number], number)
    computed = bits(metrics.compute(ranks))
    stored = metrics.state(ranks)
    metrics.restore(stored, ranks.rank)
    assert bits(metrics.compute(ranks)) == computed
    return computed


def test_the_same_bits_on_real_ranks_of_which_one_saw_nothing() -> None:
    alone = bits(spread(micro_batches(2), 1)[0])
    assert on_ranks(3, on_a_real_rank, 2) == [alone] * 3


def test_values_are_those_of_scikit_learn() -> None:
    batches = micro_batches(30)
    computed = spread(batches, 1)[0]
    outputs = torch.cat([one for one, _ in batches]).double()
    targets = torch.cat([batch["target"] for _, batch in batches])
    predicted = outputs.argmax(1)
    assert computed["confusion"].tolist() == oracle.confusion_matrix(targets, predicted).tolist()
    assert float(computed["f1"]) == pytest.approx(
        oracle.f1_score(targets, predicted, average="macro"), rel=1e-6
    )
    assert float(computed["mse"]) == pytest.approx(
        oracle.mean_squared_error(outputs[:, 1], outputs[:, 0]), rel=1e-6
    )
    assert float(computed["r2"]) == pytest.approx(
        oracle.r2_score(outputs[:, 1], outputs[:, 0]), rel=1e-6
    )
    assert float(computed["auroc"]) == pytest.approx(
        oracle.roc_auc_score(
            targets, torch.cat([one.softmax(1) for one, _ in batches]).double(), multi_class="ovr"
        ),
        abs=1e-6,
    )


def test_a_floating_point_sum_is_rounded_once() -> None:
    metrics = IntervalMetrics({"sum": SumMetric(nan_strategy="disable")})
    values = [1e8, 1e-8, -1e8, 1e-8] * 100
    for number, value in enumerate(values):
        metrics.update(Direct(), torch.tensor([[value]]), {"x": torch.zeros(1)}, number)
    assert float(metrics.compute(Ranks())["sum"]) == math.fsum(
        np.float32(value) for value in values
    )


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (1, 1)])
@pytest.mark.parametrize("seen", [0, 5])
def test_an_interval_goes_on_after_a_restore_on_another_number_of_ranks(
    before: int, after: int, seen: int
) -> None:
    batches = micro_batches(9)

    def first(ranks: Ranks) -> Any:
        metrics = IntervalMetrics(every_kind())
        for number in share(seen, ranks.rank, ranks.size):
            metrics.update(Direct(), *batches[number], number)
        return metrics.state(ranks)

    stored = on_fake_ranks(before, first)
    assert all(one == stored[0] for one in stored)
    document = exact_json.loads(exact_json.dumps(stored[0]), "test")

    def second(ranks: Ranks) -> dict[str, Tensor]:
        metrics = IntervalMetrics(every_kind())
        metrics.update(Direct(), *batches[0], 77)  # is forgotten
        metrics.restore(document, ranks.rank)
        for number in share(len(batches) - seen, ranks.rank, ranks.size):
            metrics.update(Direct(), *batches[seen + number], seen + number)
        assert metrics.state(ranks).keys() == document.keys()
        return metrics.compute(ranks)

    whole = bits(spread(batches, 1)[0])
    assert [bits(computed) for computed in on_fake_ranks(after, second)] == [whole] * after


def test_computing_changes_nothing_and_a_reset_forgets_everything() -> None:
    metrics = IntervalMetrics(every_kind())
    batches = micro_batches(4)
    for number in range(2):
        metrics.update(Direct(), *batches[0], 5)
        metrics.reset()
        for index, (outputs, batch) in enumerate(batches):
            metrics.update(Direct(), outputs, batch, index)
            metrics.compute(Ranks())
        assert bits(metrics.compute(Ranks())) == bits(spread(batches, 1)[0]), number
        metrics.reset()


def test_stored_floats_keep_nan_and_infinities() -> None:
    metrics = IntervalMetrics({"sum": SumMetric(nan_strategy="disable")})
    metrics.update(Direct(), torch.tensor([[math.inf]]), {"x": torch.zeros(1)}, 0)
    metrics.update(Direct(), torch.tensor([[1.0]]), {"x": torch.zeros(1)}, 1)
    again = IntervalMetrics({"sum": SumMetric(nan_strategy="disable")})
    again.restore(exact_json.loads(exact_json.dumps(metrics.state(Ranks())), "test"), 0)
    assert float(again.compute(Ranks())["sum"]) == math.inf
    again.update(Direct(), torch.tensor([[-math.inf]]), {"x": torch.zeros(1)}, 2)
    assert math.isnan(float(again.compute(Ranks())["sum"]))


def test_millions_of_rows_are_stored_compactly() -> None:
    metrics = IntervalMetrics({"rows": CatMetric(nan_strategy="disable")})
    metrics.update(Direct(), torch.randn(100_000, 1), {"x": torch.zeros(1)}, 0)
    assert len(json.dumps(metrics.state(Ranks()))) < 6 * 100_000


def test_another_set_of_metrics_is_refused_on_a_restore() -> None:
    stored = IntervalMetrics({"confusion": Confusion(3)}).state(Ranks())
    with pytest.raises(
        CheckpointError,
        match=r"holds the states \{'confusion': \['confusion'\]\}, the task needs \{'mse'",
    ):
        IntervalMetrics({"mse": MeanSquaredError()}).restore(stored, 0)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            MaxMetric(nan_strategy="disable"),
            r"m: MaxMetric keeps a state 'max_value' that is reduced over ranks by dim_zero_max",
        ),
        (
            PearsonCorrCoef(),
            r"m: PearsonCorrCoef keeps a state 'mean_x' that is reduced over ranks by None",
        ),
        (MinMaxMetric(MeanSquaredError()), r"m: MinMaxMetric keeps no state of its own"),
    ],
)
def test_metrics_that_depend_on_how_samples_are_spread_are_refused(
    metric: Metric, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        IntervalMetrics({"m": metric})


class Odd(Metric):  # type: ignore[misc]
    """Gives what it was made with."""

    count: Tensor

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.count = self.count + (0.5 if self.result == "float" else 1)

    def compute(self) -> Any:
        return self.result


def test_a_count_that_becomes_a_float_is_refused() -> None:
    metrics = IntervalMetrics({"m": Odd("float")})
    with pytest.raises(
        ConfigError, match=r"Odd\.count began as integers \(\) and became torch\.float32"
    ):
        metrics.update(Direct(), *micro_batches(1)[0], 0)


def test_a_dict_of_results_is_spread_and_other_results_are_refused() -> None:
    outputs, batch = micro_batches(1)[0]
    spreading = IntervalMetrics(
        {"m": Odd({"low": torch.tensor([1.0]), "high": torch.tensor([1.0, 2.0])})}
    )
    spreading.update(Direct(), outputs, batch, 0)
    computed = spreading.compute(Ranks())
    assert float(computed["m_low"]) == 1
    assert computed["m_low"].dim() == 0
    assert computed["m_high"].tolist() == [1, 2]
    refused = IntervalMetrics({"m": Odd((1, 2))})
    refused.update(Direct(), outputs, batch, 0)
    with pytest.raises(ConfigError, match=r"metrics\.m: gives a tuple; only metrics that"):
        refused.compute(Ranks())


def test_what_cannot_be_computed_is_an_error_of_the_data() -> None:
    metrics = IntervalMetrics({"r2": R2Score()})
    metrics.update(Direct(), torch.ones(1, 2), {"x": torch.zeros(1)}, 0)
    with pytest.raises(
        DataError, match="metric r2: cannot be computed: Needs at least two samples"
    ):
        metrics.compute(Ranks())


@given(st.integers(2, 6), st.data())
def test_classification_metrics_are_those_of_scikit_learn(num_classes: int, data: Any) -> None:
    labels = st.integers(0, num_classes - 1)
    pairs = data.draw(st.lists(st.tuples(labels, labels, st.booleans()), min_size=1, max_size=40))
    task = Classification("x", "y", ignore_index=num_classes - 1)
    targets = [target for target, _, _ in pairs if target != num_classes - 1]
    predicted = [
        wrong if is_wrong else target
        for target, wrong, is_wrong in pairs
        if target != num_classes - 1
    ]
    outputs = torch.nn.functional.one_hot(
        torch.tensor([wrong if is_wrong else target for target, wrong, is_wrong in pairs]),
        num_classes,
    ).float()
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, outputs, {"y": torch.tensor([target for target, _, _ in pairs])}, 0)
    computed = metrics.compute(Ranks())
    values = task.values(computed)
    if not targets:
        assert all(math.isnan(value) for value in values.values())
        return
    table = computed["confusion"]
    assert table.dtype == torch.int64
    assert (
        table.tolist()
        == oracle.confusion_matrix(targets, predicted, labels=range(num_classes)).tolist()
    )
    assert values["accuracy"] == oracle.accuracy_score(targets, predicted)
    recalls = oracle.recall_score(
        targets, predicted, labels=sorted(set(targets)), average="macro", zero_division=0
    )
    assert values["balanced_accuracy"] == pytest.approx(recalls, rel=1e-12)
    assert values["f1"] == pytest.approx(
        oracle.f1_score(targets, predicted, average="macro"), rel=1e-12
    )


def test_an_update_does_not_look_at_values_on_the_device() -> None:
    """On the meta device any look at a value raises."""
    task = Classification("x", "y", ignore_index=0)
    outputs = torch.zeros(6, 3, device="meta")
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    metrics.update(
        task, outputs, {"x": outputs, "y": torch.zeros(6, dtype=torch.int64, device="meta")}, 0
    )

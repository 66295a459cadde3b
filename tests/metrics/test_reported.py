"""What users of other libraries reported of such metrics does not happen here; each test names the
report.
"""

import math
from typing import Any

import pytest
import sklearn.metrics as oracle
import torch
from torch import Tensor

from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.tasks.classification import Classification
from harness.tasks.language import LanguageModelling
from harness.tasks.regression import Regression
from harness.tasks.task import Task


def values_of(task: Task, *batches: tuple[Tensor, dict[str, Any]]) -> dict[str, float]:
    task.fit_to(batches[0][0])
    metrics = IntervalMetrics(task.metrics())
    with torch.no_grad():
        for number, (outputs, batch) in enumerate(batches):
            metrics.update(task, outputs, batch, number)
    return task.values(metrics.compute(Ranks()))


def one_hot(predicted: list[int], num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_r2_of_float32_targets_far_from_zero_is_right(size: int) -> None:
    """Lightning-AI/torchmetrics#3077: targets around -311030 gave an R2 above 1; #423: a
    micro-batch of one sample ended it. What float64 leaves of sums of squares around 6e12 is 1e-7.
    """
    draw = torch.Generator().manual_seed(1)
    targets = -311030 + 7 * torch.randn(64, generator=draw)
    predicted = targets + 3 * torch.randn(64, generator=draw)
    parts = zip(predicted.split(size), targets.split(size), strict=True)
    values = values_of(Regression("x", "y"), *((one, {"y": of}) for one, of in parts))
    expected = oracle.r2_score(targets.double(), predicted.double())
    assert values["r2"] == pytest.approx(expected, rel=1e-7)


def test_r2_of_targets_that_hardly_vary_is_never_above_1() -> None:
    """Lightning-AI/torchmetrics#1573: it was 82685."""
    targets = torch.tensor([-5.1608, -5.1609, -5.1608, -5.1608, -5.1608, -5.1608])
    predicted = torch.tensor([-3.9865, -5.4648, -5.0238, -4.3899, -5.6672, -4.7336])
    assert values_of(Regression("x", "y"), (predicted, {"y": targets}))["r2"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_in_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    """300 squared is more than float16 holds, and 4,096 such summands more than bfloat16 counts."""
    targets = torch.zeros(4096, dtype=dtype)
    values = values_of(Regression("x", "y"), (torch.full_like(targets, 300), {"y": targets}))
    assert (values["mse"], values["mae"]) == (90_000, 300)


def test_a_class_that_is_ignored_counts_in_no_mean_of_recalls() -> None:
    """Lightning-AI/torchmetrics#2441: it was 0.25; #1691: 0.6667 where all was right."""
    batch = {"y": torch.tensor([0, 0, 1, 1])}
    task = Classification("x", "y", ignore_index=0)
    assert values_of(task, (one_hot([0, 0, 0, 1], 2), batch))["balanced_accuracy"] == 0.5
    batch = {"y": torch.tensor([0, 1, 2, 0, 1, 2])}
    values = values_of(
        Classification("x", "y", ignore_index=0), (one_hot([0, 1, 2, 0, 1, 2], 3), batch)
    )
    assert values == {"accuracy": 1, "balanced_accuracy": 1, "f1": 1}


def test_an_ignored_index_below_0_is_counted_nowhere() -> None:
    """Lightning-AI/torchmetrics#1101, #1393 and #1270: refused, out of bounds, or counted as the
    last class.
    """
    task = Classification("x", "y", ignore_index=-1)
    outputs = one_hot([0, 1, 0, 0, 1], 2)
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, outputs, {"y": torch.tensor([1, 1, 0, 0, -1])}, 0)
    assert metrics.compute(Ranks())["confusion"].tolist() == [[2, 0], [1, 1]]


def test_perplexity_is_that_of_all_tokens_however_they_are_batched() -> None:
    """meta-pytorch/torcheval#154 and huggingface/transformers#13202: means of means, and ignored
    tokens in the count.
    """
    draw = torch.Generator().manual_seed(2)
    outputs = torch.randn(4, 5, 9, generator=draw, dtype=torch.float64)
    tokens = torch.randint(0, 9, (4, 6), generator=draw)
    tokens[0, 4:] = tokens[2, 2:] = -100
    items = tokens[:, 1:] != -100
    nll = -outputs.log_softmax(2).gather(2, tokens[:, 1:, None].clamp(min=0))[..., 0]
    expected = math.exp(nll[items].mean())
    for size in (1, 3, 4):
        parts = zip(outputs.split(size), tokens.split(size), strict=True)
        values = values_of(LanguageModelling("x"), *((one, {"x": of}) for one, of in parts))
        assert values["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_perplexity_beyond_all_numbers_is_infinite_and_of_nothing_nan() -> None:
    """huggingface/datasets#4108."""
    outputs = torch.tensor([[[0.0, 5000.0]]])
    assert (
        values_of(LanguageModelling("x"), (outputs, {"x": torch.tensor([[0, 0]])}))["perplexity"]
        == math.inf
    )
    nothing = values_of(LanguageModelling("x"), (outputs, {"x": torch.tensor([[0, -100]])}))
    assert all(math.isnan(nothing[name]) for name in ("perplexity", "accuracy"))

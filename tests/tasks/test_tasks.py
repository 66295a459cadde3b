"""Tasks: losses as sums over items, checks in words, metrics that mean what they say."""

import json
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix
from torchmetrics.regression import MeanSquaredError

from harness.errors import ConfigError, DataError
from harness.metrics.interval import IntervalMetrics
from harness.ranks.ranks import Ranks
from harness.stopping.verdict import MetricInfo
from harness.tasks.classification import Classification
from harness.tasks.joint import Joint
from harness.tasks.language import LanguageModelling
from harness.tasks.learning import learn, restore_learners
from harness.tasks.regression import Regression
from harness.tasks.supervised import Supervised
from harness.tasks.task import Task, detach

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
LOGITS = torch.tensor([[2.0, 0, 1], [0, 1, 3], [1, 2, 0], [3, 0, 1], [1, 0, 0], [0, 0, 2]])


def values_of(task: Task, outputs: Any, batch: dict[str, Any]) -> dict[str, float]:
    task.fit_to(outputs)
    metrics = IntervalMetrics(task.metrics())
    metrics.update(task, outputs, batch, 0)
    return task.values(metrics.compute(Ranks()))


def learned(task: Any, *batches: dict[str, Any]) -> Any:
    """The task after it has seen the training split, through JSON as a checkpoint keeps it."""
    restore_learners(task, json.loads(json.dumps(learn(task, batches))))
    return task


class Recorder(nn.Module):
    """Gives back how it was called."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


# -- how the network is called


@pytest.mark.parametrize(
    ("how", "args", "kwargs"),
    [("a", (1,), {}), (["a", "b"], ({"a": 1, "b": 2},), {}), ({"x": "b"}, (), {"x": 2})],
)
def test_the_network_is_called_as_the_input_says(how: Any, args: Any, kwargs: Any) -> None:
    assert Classification(how, "y").forward(Recorder(), {"a": 1, "b": 2}) == (args, kwargs)


def test_the_logits_are_taken_out_of_an_output_object() -> None:
    class Output:
        logits = LOGITS

    class Hub(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output()

    assert Classification("x", "y").forward(Hub(), {"x": LOGITS}) is LOGITS
    assert LanguageModelling("x", "y").forward(Hub(), {"x": LABELS[None]}) is LOGITS


# -- losses: sums over items


def tasks_with_batches() -> list[tuple[Task, Tensor, dict[str, Tensor]]]:
    numbers = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 5, (6, 8), generator=numbers)
    tokens[2, 3:] = -100
    return [
        (Classification("x", "y"), LOGITS, {"y": LABELS}),
        (
            Classification(
                "x", "y", label_smoothing=0.1, class_weights=[1, 2, 0.5], ignore_index=2
            ),
            LOGITS,
            {"y": LABELS},
        ),
        (
            Classification("x", "y"),
            torch.randn(6, 3, 4, 4, generator=numbers),
            {"y": torch.randint(0, 3, (6, 4, 4), generator=numbers)},
        ),
        (Regression("x", "y"), LOGITS, {"y": LOGITS.flip(0)}),
        (Regression("x", "y", loss="mae"), LOGITS[:, :1], {"y": LOGITS[:, 1]}),
        (Regression("x", "y", loss="huber", delta=0.5), LOGITS[:, 0], {"y": LOGITS[:, 1:2]}),
        (LanguageModelling("x"), torch.randn(6, 7, 5, generator=numbers), {"x": tokens}),
        (
            LanguageModelling("x", "y"),
            torch.randn(6, 8, 5, generator=numbers),
            {"x": tokens, "y": tokens},
        ),
        (Supervised("x", "y", nn.CrossEntropyLoss(reduction="none")), LOGITS, {"y": LABELS}),
        (Supervised("x", "y", nn.CrossEntropyLoss()), LOGITS, {"y": LABELS}),
        (Supervised("x", "y", nn.MSELoss(reduction="sum")), LOGITS, {"y": LOGITS.flip(0)}),
    ]


@pytest.mark.parametrize(("task", "outputs", "batch"), tasks_with_batches())
@given(cut=st.integers(1, 5))
def test_a_loss_is_a_sum_whatever_the_micro_batches(
    task: Task, outputs: Tensor, batch: dict[str, Tensor], cut: int
) -> None:
    whole = task.loss_sum(outputs, batch)
    assert whole.dim() == 0
    items = task.num_items(batch)
    assert isinstance(items, int) or items.dtype == torch.int64
    parts = [slice(0, cut), slice(cut, None)]
    split = [{name: value[part] for name, value in batch.items()} for part in parts]
    losses = [task.loss_sum(outputs[part], one) for part, one in zip(parts, split, strict=True)]
    assert float(sum(losses)) == pytest.approx(float(whole), rel=1e-5)
    assert sum(int(task.num_items(one)) for one in split) == int(task.num_items(batch))


@pytest.mark.parametrize(("task", "outputs", "batch"), tasks_with_batches())
def test_losses_and_probabilities_are_computed_in_float32_under_autocast(
    task: Task, outputs: Tensor, batch: dict[str, Tensor]
) -> None:
    coarse = outputs.bfloat16()
    expected = task.loss_sum(coarse.float(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss_sum(coarse, batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_the_mean_over_items_is_that_of_torch() -> None:
    task = Classification("x", "y", label_smoothing=0.1, ignore_index=2)
    mean = task.loss_sum(LOGITS, {"y": LABELS}) / task.num_items({"y": LABELS})
    assert torch.allclose(
        mean, functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, ignore_index=2)
    )
    regression = Regression("x", "y")
    batch = {"y": LOGITS.flip(0)}
    assert torch.allclose(
        regression.loss_sum(LOGITS, batch) / regression.num_items(batch),
        functional.mse_loss(LOGITS, batch["y"]),
    )


def test_class_weights_multiply_an_items_loss_and_do_not_change_the_number_of_items() -> None:
    weights = torch.tensor([1.0, 2.0, 0.0])
    task = Classification("x", "y", class_weights=[1, 2, 0])
    each = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.allclose(task.loss_sum(LOGITS, {"y": LABELS}), (each * weights[LABELS]).sum())
    assert int(task.num_items({"y": LABELS})) == 6


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda drawn: [0, 1, 2, 3, *drawn]),
    st.integers(1, 40),
)
def test_balanced_weights_are_scikit_learns_however_the_split_is_cut(
    labels: list[int], size: int
) -> None:
    batches = [
        {"y": torch.tensor(labels[begin : begin + size])} for begin in range(0, len(labels), size)
    ]
    task, logits = (
        learned(Classification("x", "y", class_weights="balanced"), *batches),
        torch.zeros(len(labels), 4),
    )
    task.fit_to(logits)
    weights = compute_class_weight("balanced", classes=np.arange(4), y=np.array(labels))
    each = [float(task.loss_sum(logits[:1], {"y": torch.tensor([label])})) for label in range(4)]
    assert each == pytest.approx((weights * math.log(4)).tolist(), rel=1e-6)
    whole = {"y": torch.tensor(labels)}
    assert int(task.num_items(whole)) == len(labels)
    # The weights' mean over the split is 1
    assert float(task.loss_sum(logits, whole)) == pytest.approx(len(labels) * math.log(4), rel=1e-5)
    assert sum(
        float(task.loss_sum(logits[: len(batch["y"])], batch)) for batch in batches
    ) == pytest.approx(len(labels) * math.log(4), rel=1e-5)


def test_balanced_weights_count_items_only() -> None:
    task = learned(
        Classification("x", "y", class_weights="balanced", ignore_index=-1),
        {"y": torch.tensor([[0, 0, -1], [0, 1, -1]])},
    )
    task.fit_to(torch.zeros(1, 2))
    assert float(task.loss_sum(torch.zeros(1, 2), {"y": torch.tensor([1])})) == pytest.approx(
        4 / 2 * math.log(2)
    )


def test_heads_learn_their_own_balanced_weights() -> None:
    task = Joint(
        {
            "kind": Classification("x", "y", class_weights="balanced"),
            "size": Classification("x", "z"),
        }
    )
    assert list(task.learners()) == ["kind_class_weights"]
    learned(task, {"y": torch.tensor([0, 0, 0, 1]), "z": torch.tensor([0, 1, 0, 1])})
    logits = {"kind": torch.zeros(1, 2), "size": torch.zeros(1, 2)}
    task.fit_to(logits)
    loss = task.loss_sum(logits, {"y": torch.tensor([1]), "z": torch.tensor([1])})
    assert float(loss) == pytest.approx((4 / 2 + 1) * math.log(2))


def test_balanced_weights_need_every_class() -> None:
    with pytest.raises(
        DataError,
        match=r"balanced, but class 1, 3 of 4 does not occur in the training split\. Add samples",
    ):
        learned(
            Classification("x", "y", class_weights="balanced"), {"y": torch.tensor([0, 2])}
        ).fit_to(torch.zeros(1, 4))
    with pytest.raises(DataError, match="no 'y' to count"):
        learned(
            Classification("x", "y", class_weights="balanced", ignore_index=7),
            {"y": torch.tensor([7, 7])},
        )
    with pytest.raises(DataError, match=r"task\.target: samples have no 'y'"):
        learned(Classification("x", "y", class_weights="balanced"), {"z": torch.tensor([0])})


@pytest.mark.parametrize(
    ("outputs", "targets"), [((4, 1), (4,)), ((4,), (4, 1)), ((4, 1, 3), (4, 3))]
)
def test_axes_of_length_one_never_broadcast(
    outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    task = Regression("x", "y")
    predicted, batch = (
        torch.arange(math.prod(outputs)).float().view(outputs),
        {"x": torch.zeros(4), "y": torch.zeros(targets)},
    )
    task.fit_to(predicted)
    task.check(batch)
    assert float(task.loss_sum(predicted, batch)) == float((predicted**2).sum())
    assert values_of(task, predicted, batch)["mse"] == pytest.approx(float((predicted**2).mean()))


def test_a_language_model_predicts_the_next_token() -> None:
    seen: list[Tensor] = []

    class Model(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return functional.one_hot((tokens + 1) % 5, 5).float() * 50

    task = LanguageModelling("x")
    batch = {"x": torch.tensor([[0, 1, 2, 3], [4, 0, 1, -100], [1, 2, -100, -100]])}
    outputs = task.forward(Model(), batch)
    # Ignored tokens are token 0 as an input
    assert seen[0].tolist() == [[0, 1, 2], [4, 0, 1], [1, 2, 0]]
    task.check(batch)
    assert int(task.num_items(batch)) == 6
    assert float(task.loss_sum(outputs, batch)) == pytest.approx(0, abs=1e-5)
    values = values_of(task, outputs, batch)
    assert values["accuracy"] == 1
    assert values["perplexity"] == pytest.approx(1)


def test_perplexity_is_that_of_the_mean_loss() -> None:
    task = LanguageModelling("x", label_smoothing=0.2)
    batch = {"x": torch.randint(0, 5, (3, 7))}
    outputs = torch.randn(3, 6, 5)
    plain = LanguageModelling("x")
    mean = float(plain.loss_sum(outputs, batch)) / int(plain.num_items(batch))
    assert values_of(task, outputs, batch)["perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)


def test_a_loss_beyond_all_numbers_is_an_infinite_perplexity() -> None:
    batch = {"x": torch.tensor([[0, 1]])}
    assert (
        values_of(LanguageModelling("x"), torch.tensor([[[1e4, 0.0]]]), batch)["perplexity"]
        == math.inf
    )
    assert math.isnan(
        values_of(
            LanguageModelling("x"), torch.tensor([[[1e4, 0.0]]]), {"x": torch.tensor([[0, -100]])}
        )["perplexity"]
    )


# -- metrics


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    outputs, targets = torch.randn(3, 40).T, torch.randn(40, 3)  # the outputs are not contiguous
    values = values_of(Regression("x", "y"), outputs, {"y": targets})
    assert values["mse"] == pytest.approx(oracle.mean_squared_error(targets, outputs))
    assert values["mae"] == pytest.approx(oracle.mean_absolute_error(targets, outputs))
    assert values["r2"] == pytest.approx(oracle.r2_score(targets, outputs))


def test_a_users_metric_is_judged_by_what_it_declares() -> None:
    task = Classification(
        "x", "y", metrics={"auroc": MulticlassAUROC(3), "table": MulticlassConfusionMatrix(3)}
    )
    assert task.infos()["auroc"] == MetricInfo(mode="max", lower=0.0, upper=1.0)
    assert "table" not in task.infos()  # says neither way is better
    values = values_of(task, LOGITS, {"y": LABELS})
    assert values["auroc"] == pytest.approx(
        oracle.roc_auc_score(LABELS, LOGITS.softmax(1), multi_class="ovr")
    )
    assert "table" not in values
    regression = Regression("x", "y", metrics={"rmse": MeanSquaredError(squared=False)})
    assert regression.infos()["rmse"] == MetricInfo(mode="min", lower=0.0, upper=None)
    assert values_of(regression, LOGITS, {"y": LOGITS + 2})["rmse"] == pytest.approx(2)


def test_a_users_metrics_are_not_shared_between_intervals() -> None:
    task = Classification("x", "y", metrics={"auroc": MulticlassAUROC(3)})
    task.fit_to(LOGITS)
    assert task.metrics()["auroc"] is not task.metrics()["auroc"]


@pytest.mark.parametrize(
    "task",
    [
        Classification("x", "y"),
        Regression("x", "y"),
        LanguageModelling("x"),
        Supervised("x", "y", nn.MSELoss()),
    ],
)
def test_every_value_is_declared(task: Task) -> None:
    assert "loss" in task.infos()
    batch = {"x": torch.tensor([[0, 1, 1], [1, 1, 0]]), "y": torch.tensor([0, 1])}
    outputs = {Classification: torch.eye(2), LanguageModelling: torch.rand(2, 2, 2)}.get(
        type(task), torch.tensor([0.5, 1.0])
    )
    assert values_of(task, outputs, batch).keys() | {"loss"} == task.infos().keys()
    for name, value in values_of(task, outputs, batch).items():
        info = task.infos()[name]
        assert info.lower is None or value >= info.lower
        assert info.upper is None or value <= info.upper


# -- what a task refuses


def refused(task: Task, outputs: Any, batch: dict[str, Any], message: str) -> None:
    if outputs is not None:
        task.fit_to(outputs)
    with pytest.raises(DataError, match=message):
        task.check(batch)


def test_a_missing_key_is_named_with_those_there_are() -> None:
    refused(
        Classification("image", "label"),
        None,
        {"img": LOGITS},
        r"task\.input: samples have no 'image', they have img\. Use one of these",
    )
    refused(
        Classification("x", "label"),
        None,
        {"x": LOGITS, "y": LABELS},
        r"task\.target: samples have no 'label', they have x, y\.",
    )
    refused(
        Classification("x", "y"),
        None,
        {"x": LOGITS, "y": ["cat", "dog"]},
        r"task\.target: 'y' is not a numeric array but e\.g\. 'cat'",
    )
    refused(Classification(["x", "z"], "y"), None, {"x": LOGITS, "y": LABELS}, r"no 'z'")
    refused(Classification({"a": "z"}, "y"), None, {"x": LOGITS, "y": LABELS}, r"no 'z'")


def test_labels_outside_of_the_classes_are_named() -> None:
    batch = {"x": LOGITS, "y": torch.tensor([0, 1, 3, 3])}
    # Before the network's first forward pass the number of classes is not known
    Classification("x", "y").check(batch)
    refused(
        Classification("x", "y"),
        LOGITS,
        batch,
        r"y: class 3 is outside of 0 … 2 \(2 of 4 in this micro-batch\)\. Number them from 0, "
        r"give the",
    )
    refused(
        Classification("x", "y"),
        None,
        {"x": LOGITS, "y": torch.tensor([-1, 0])},
        r"y: class -1 is below 0 \(1 of 2",
    )
    refused(
        Classification("x", "y"),
        None,
        {"x": LOGITS, "y": torch.tensor([0.0, 1.0])},
        r"y: torch\.float32 where class numbers are needed",
    )
    task = Classification("x", "y", ignore_index=3)
    task.fit_to(LOGITS)
    task.check(batch)
    task.check({"x": LOGITS, "y": torch.tensor([0, 1], dtype=torch.uint8)})


def test_regression_targets_that_are_not_finite_or_do_not_fit_are_named() -> None:
    refused(
        Regression("x", "y"),
        None,
        {"x": LOGITS, "y": torch.tensor([1.0, math.nan])},
        r"y: 1 of 2 targets are NaN or infinite",
    )
    refused(
        Regression("x", "y"),
        LOGITS,
        {"x": LOGITS, "y": torch.zeros(6)},
        r"y: targets \(6,\) do not fit the network's outputs \(B, 3\)",
    )
    refused(
        Regression("x", "y"),
        LOGITS,
        {"x": LOGITS, "y": torch.zeros(6, 3, dtype=torch.bool)},
        r"torch\.bool where a regression needs numbers",
    )


def test_tokens_that_are_none_are_named() -> None:
    model = torch.zeros(2, 3, 5)
    refused(
        LanguageModelling("x"),
        model,
        {"x": torch.tensor([[0, 5]])},
        r"x: token 5 is outside of 0 … 4",
    )
    refused(
        LanguageModelling("x"),
        None,
        {"x": torch.tensor([[0]])},
        r"x: a tensor \(1, 1\) where tokens \(B, T \+ 1 >= 2\) are needed",
    )
    refused(
        LanguageModelling("x", "y"),
        None,
        {"x": torch.tensor([[0]]), "y": torch.tensor([[0, 1]])},
        r"y: \(1, 2\) targets for \(1, 1\) tokens",
    )


@pytest.mark.parametrize(
    ("task", "outputs", "message"),
    [
        (
            Classification("x", "y"),
            torch.zeros(4),
            r"network: returns a tensor \(4,\) of torch\.float32; classification needs",
        ),
        (Classification("x", "y"), torch.zeros(4, 1), r"C >= 2"),
        (Classification("x", "y"), {"a": LOGITS}, r"network: returns a dict"),
        (
            Classification("x", "y", class_weights=[1, 2]),
            LOGITS,
            r"task\.class_weights: 2 weights for 3 classes",
        ),
        (
            Regression("x", "y"),
            LABELS,
            r"network: returns a tensor \(6,\) of torch\.int64; regression needs a tensor",
        ),
        (LanguageModelling("x"), LOGITS, r"a language model needs logits \(B, T, V\)"),
    ],
)
def test_outputs_that_a_task_cannot_use_are_refused(task: Task, outputs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task.fit_to(outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Classification("x", "y", label_smoothing=1.0),
            r"^label_smoothing: 1\.0: must be at least 0 and below 1",
        ),
        (
            lambda: Classification("x", "y", class_weights="even"),
            r"^class_weights: 'even' is neither balanced nor a list",
        ),
        (
            lambda: Classification("x", "y", class_weights=[1, -1]),
            r"^class_weights: \[1, -1\]: every weight must be finite",
        ),
        (
            lambda: Classification("x", "y", metrics={"accuracy": MulticlassAUROC(3)}),
            r"^metrics\.accuracy: taken, or not a single word",
        ),
        (
            lambda: Classification("x", "y", metrics={"a/b": MulticlassAUROC(3)}),
            r"^metrics\.a/b: taken, or not a single word\. The tasks' own are loss",
        ),
        (
            lambda: Classification("x", "y", metrics={"m": nn.Linear(1, 1)}),
            r"^metrics\.m: a Linear is not a torchmetrics\.Metric",
        ),
        (lambda: Regression("x", "y", loss="l2"), r"^loss: 'l2' is not one of mse, mae, huber"),  # type: ignore[arg-type]
        (lambda: Regression("x", "y", loss="huber", delta=0.0), r"^delta: 0\.0: must be above 0"),
        (
            lambda: Supervised("x", "y", functional.mse_loss),
            r"^reduction: None is not one of none, sum, mean, micro_batch",
        ),
        (
            lambda: Supervised("x", "y", nn.MSELoss(), reduction="sum"),
            r"^reduction: 'sum', but the loss has 'mean'",
        ),
        (lambda: Supervised("x", "y", nn.Linear(1, 1), reduction="sum"), r"^loss: has parameters"),
        (lambda: Classification("x", "y").metrics(), r"number of classes is not known"),
    ],
)
def test_a_mistake_in_a_tasks_settings_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("reduction", "loss"), [("none", functional.mse_loss), ("sum", nn.MSELoss(reduction="none"))]
)
def test_a_loss_that_does_not_give_what_its_reduction_says_is_refused(
    reduction: Any, loss: Any
) -> None:
    task = Supervised("x", "y", lambda outputs, target: loss(outputs, target), reduction=reduction)
    with pytest.raises(
        ConfigError, match=r"task\.loss: gave a tensor .* Set the reduction that it uses"
    ):
        task.loss_sum(LOGITS, {"y": LOGITS})


def test_a_users_loss_may_take_several_heads_and_targets() -> None:
    def loss(outputs: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(outputs["kind"], target["kind"]) + functional.mse_loss(
            outputs["size"], target["size"]
        )

    task = Supervised("x", ["kind", "size"], loss, reduction="mean")
    outputs = {"kind": LOGITS.requires_grad_(), "size": torch.ones(6)}
    batch = {"x": LOGITS, "kind": LABELS, "size": torch.zeros(6)}
    task.fit_to(outputs)
    task.check(batch)
    expected = 6 * (functional.cross_entropy(LOGITS, LABELS) + 1)
    assert torch.allclose(task.loss_sum(outputs, batch), expected)
    assert not any(value.requires_grad for value in detach(outputs).values())
    assert task.predictions(outputs, batch).keys() == {"kind", "size"}
    LOGITS.requires_grad_(False)


# -- several tasks at once


def joint() -> tuple[Joint, dict[str, Tensor], dict[str, Tensor]]:
    task = Joint(
        {"kind": Classification("x", "kind", ignore_index=2), "size": Regression("x", "size")},
        weights={"size": 0.5},
    )
    outputs = {"kind": LOGITS, "size": torch.tensor([0.0, 1, 2, 3, 4, 5])}
    return task, outputs, {"x": LOGITS, "kind": LABELS, "size": torch.ones(6)}


def test_a_joint_loss_is_the_weighted_sum_over_heads_and_its_items_are_samples() -> None:
    task, outputs, batch = joint()
    task.fit_to(outputs)
    task.check(batch)
    task.check_input({"x": LOGITS})
    expected = (
        functional.cross_entropy(LOGITS, LABELS, ignore_index=2, reduction="sum")
        + 0.5 * ((outputs["size"] - 1) ** 2).sum()
    )
    assert torch.allclose(task.loss_sum(outputs, batch), expected)
    assert int(task.num_items(batch)) == 6


def test_a_joint_tasks_values_are_its_heads() -> None:
    task, outputs, batch = joint()
    values = values_of(task, outputs, batch)
    kind = values_of(Classification("x", "kind", ignore_index=2), LOGITS, batch)
    assert values == {
        **{f"kind_{name}": value for name, value in kind.items()},
        **{
            f"size_{name}": value
            for name, value in values_of(Regression("x", "size"), outputs["size"], batch).items()
        },
    }
    assert values.keys() | {"loss"} == task.infos().keys()
    assert task.infos()["size_r2"].upper == 1
    assert task.predictions(outputs, batch).keys() == {
        "kind_predicted",
        "kind_probability",
        "size_predicted",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Joint({}), r"^heads: none"),
        (
            lambda: Joint({"a": nn.MSELoss()}),
            r"^heads\.a: a MSELoss is not a task of harness\.tasks",
        ),  # type: ignore[dict-item]
        (
            lambda: Joint({"a_b": Regression("x", "y")}),
            r"^heads\.a_b: use letters and digits",
        ),
        (
            lambda: Joint({"a": Regression("x", "y"), "b": Regression("z", "y")}),
            r"^heads: have the inputs x, z\. Give all the same",
        ),
        (
            lambda: Joint({"a": Regression("x", "y")}, weights={"b": 1}),
            r"^weights: b: no such head; the heads are a",
        ),
        (
            lambda: joint()[0].fit_to(LOGITS),
            r"^network: returns a tensor \(6, 3\) of torch\.float32; task\.heads are kind, size",
        ),
        (
            lambda: joint()[0].fit_to({"kind": LOGITS}),
            r"^network: returns heads kind; task\.heads are kind, size",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_predictions_are_columns() -> None:
    assert Classification("x", "y").predictions(LOGITS, {})["predicted"].tolist() == [
        0,
        2,
        1,
        0,
        0,
        2,
    ]
    assert Classification("x", "y").predictions(LOGITS, {})["probability"].sum(
        1
    ).tolist() == pytest.approx([1] * 6)
    assert Regression("x", "y").predictions(LOGITS, {})["predicted"] is LOGITS
    tokens = LanguageModelling("x").predictions(LOGITS[None], {})
    assert tokens["predicted"].shape == tokens["probability"].shape == (1, 6)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (torch.nn.CrossEntropyLoss(), None),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), None),
        (torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none"), None),
        (torch.nn.CrossEntropyLoss(ignore_index=2, reduction="sum"), None),
        (lambda outputs, target: functional.cross_entropy(outputs, target), "mean"),
    ],
)
def test_a_loss_does_not_depend_on_the_size_of_micro_batches(loss: Any, reduction: Any) -> None:
    task = Supervised("x", "y", loss, reduction=reduction)
    outputs = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    batch = {"x": outputs, "y": torch.arange(12) % 3}
    task.check(batch)
    sums = [
        sum(
            float(
                task.loss_sum(outputs[i : i + size], {k: v[i : i + size] for k, v in batch.items()})
            )
            for i in range(0, 12, size)
        )
        for size in (1, 2, 12)
    ]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-6)


def test_a_mean_whose_samples_weigh_differently_is_refused() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match=r"would depend on batch\.micro_size"):
        Supervised("x", "y", torch.nn.CrossEntropyLoss(weight=weight))
    outputs = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    batch = {"x": outputs, "y": torch.arange(12) % 3}

    def weighted(outputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, target, weight=weight)

    def contrasted(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs @ outputs.T).logsumexp(1).mean()

    for loss in (weighted, contrasted):
        with pytest.raises(ConfigError, match="in two pieces: samples do not weigh the same"):
            Supervised("x", "y", loss, reduction="mean").loss_sum(outputs, batch)
        whole = Supervised("x", "y", loss, reduction="micro_batch").loss_sum(outputs, batch)
        assert float(whole) == pytest.approx(12 * float(loss(outputs, batch["y"])))
    ignoring = Supervised("x", "y", torch.nn.CrossEntropyLoss(ignore_index=2))
    with pytest.raises(DataError, match="has targets that are ignored"):
        ignoring.check(batch)

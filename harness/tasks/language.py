"""The next token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, DataError
from harness.metrics.metric import AnyMetric
from harness.metrics.tokens import Tokens
from harness.stopping.verdict import MetricInfo
from harness.tasks.labels import (
    check_label_smoothing,
    check_labels,
    cross_entropy_sum,
    is_item,
)
from harness.tasks.task import (
    ACCURACY,
    ERROR,
    BaseTask,
    Batch,
    Input,
    input_names,
    kind_of,
    widen,
)

if TYPE_CHECKING:
    import torchmetrics


class LanguageModelling(BaseTask):
    """The next token: outputs (B, T, V) logits, each token to be predicted is an item.

    Without `target`, `input` holds tokens (B, T + 1): the network is given the first T and has to
    predict the last T. With it, both are (B, T) and already shifted against each other. Tokens are
    integers in [0, V); one equal to `ignore_index` is no item, and token 0 as an input. Of several
    inputs the first holds the tokens; others of the same (B, T + 1), e.g. an attention mask, are
    cut with them.

    Metrics: perplexity (exp of the mean negative log likelihood, without label smoothing) and
    accuracy over tokens. The user's `metrics` get (logits (B, T, V), targets (B, T)).
    """

    def __init__(
        self,
        input: Input,
        target: str | None = None,
        metrics: Mapping[str, torchmetrics.Metric] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        own = {
            "loss": ERROR,
            "perplexity": MetricInfo(mode="min", lower=1.0, upper=None),
            "accuracy": ACCURACY,
        }
        self.key = next(iter(input_names(input)), "")
        super().__init__(input, self.key if target is None else target, metrics, own)
        check_label_smoothing(label_smoothing)
        self.shifts = target is None
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.vocabulary: int | None = None

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return super().forward(model, {key: self._network_input(batch, key) for key in batch})

    def fit_to(self, outputs: Any) -> None:
        if not isinstance(outputs, Tensor) or outputs.dim() != 3:
            raise ConfigError(
                f"network: returns {kind_of(outputs)}; a language model needs logits (B, T, V)."
            )
        self.vocabulary = outputs.shape[2]

    def check_input(self, batch: Batch) -> None:
        super().check_input(batch)
        tokens = batch[self.key]
        if tokens.dim() != 2 or tokens.shape[1] < (2 if self.shifts else 1):
            needed = "T + 1 >= 2" if self.shifts else "T >= 1"
            raise DataError(
                f"{self.key}: a tensor {tuple(tokens.shape)} where tokens (B, {needed}) are "
                "needed. Cut the text into windows."
            )
        self._check_tokens(batch, self.key)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if batch[self.target].shape != batch[self.key].shape:
            raise DataError(
                f"{self.target}: {tuple(batch[self.target].shape)} targets for "
                f"{tuple(batch[self.key].shape)} tokens. Give one for each."
            )
        self._check_tokens(batch, self.target)

    def loss_sum(self, outputs: Any, batch: Batch) -> Tensor:
        return self._cross_entropy(outputs, self._targets(batch), self.label_smoothing)

    def num_items(self, batch: Batch) -> Tensor:
        return is_item(self._targets(batch), self.ignore_index).sum()

    def metrics(self) -> dict[str, AnyMetric]:
        return {"tokens": Tokens(), **self._extras()}

    def update(self, metrics: Mapping[str, AnyMetric], outputs: Any, batch: Batch) -> None:
        targets = self._targets(batch)
        items = is_item(targets, self.ignore_index)
        right = (outputs.argmax(2) == targets) & items
        metrics["tokens"].update(
            self._cross_entropy(outputs, targets, 0.0), right.sum(), items.sum()
        )
        self._update_extras(metrics, widen(outputs), targets)

    def values(self, computed: Mapping[str, Tensor]) -> dict[str, float]:
        nll, right, tokens = computed["tokens"].tolist()
        mean = nll / tokens if tokens else math.nan
        perplexity = math.exp(mean) if mean < 700 else mean if math.isnan(mean) else math.inf
        return {
            "perplexity": perplexity,
            "accuracy": right / tokens if tokens else math.nan,
            **super().values(computed),
        }

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`predicted`: (B, T) the likeliest next tokens; `probability`: (B, T) theirs."""
        probability, predicted = widen(outputs).softmax(2).max(2)
        return {"predicted": predicted, "probability": probability}

    def _network_input(self, batch: Batch, key: str) -> Any:
        """What the network is given of one of the batch's values."""
        value, tokens = batch[key], batch[self.key]
        if key == self.key:
            value = torch.where(tokens == self.ignore_index, 0, tokens)
        elif not isinstance(value, Tensor) or value.shape[:2] != tokens.shape:
            return value
        return value[:, :-1] if self.shifts else value

    def _check_tokens(self, batch: Batch, key: str) -> None:
        check_labels(batch[key], key, self.vocabulary, self.ignore_index, "token", "vocabulary")

    def _targets(self, batch: Batch) -> Tensor:
        tokens: Tensor = batch[self.target]
        return (tokens[:, 1:] if self.shifts else tokens).long()

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        return cross_entropy_sum(
            outputs.flatten(0, 1), targets.flatten(), self.ignore_index, smoothing
        )

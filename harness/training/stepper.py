"""An optimizer's step, with fp16's loss scaler where there is one.

The optimizer is called as it is, without Accelerate's wrapper: wrapping sends the restored state
through `Optimizer.load_state_dict`, which casts moments to their parameter's dtype, and it does not
see the steps that a fused optimizer skips by itself.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from harness.errors import ConfigError
from harness.training.average import WeightAverage
from harness.training.fused import FusedAdam
from harness.wording import first_line


class Stepper:
    """Steps one optimizer. Raises ConfigError for one that cannot be stepped here."""

    def __init__(
        self,
        optimizer: Optimizer,
        scaler: GradScaler | None,
        clip_grad_norm: float | None,
        average: WeightAverage | None = None,
    ) -> None:
        check_contract(optimizer)
        if average is not None and has_modes(optimizer):
            raise ConfigError(
                f"train.ema: {type(optimizer).__name__} averages the weights that it trains by "
                "itself. Leave train.ema out, or use another optimizer."
            )
        self.average = average
        self._optimizer = optimizer
        self._scaler = scaler
        self._clip_grad_norm = clip_grad_norm
        # Known once it was asked for: asking makes the host wait
        self._scale: float | None = None
        self._stepped = False
        self._fused: FusedAdam | None = None
        self._all: list[nn.Parameter] = []
        self._sizes: list[int] = []
        set_training(optimizer, training=True)
        if scaler is not None:
            half = [p for p in self.parameters() if p.dtype == torch.float16]
            if half:
                raise ConfigError(
                    "train.precision: fp16 scales the gradients of float32 weights, and the "
                    f"network has {len(half)} parameters in float16. Keep them in float32."
                )

    def parameters(self) -> list[nn.Parameter]:
        """All that the optimizer trains."""
        groups = self._optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if sizes != self._sizes:
            self._sizes = sizes
            self._all = [one for group in groups for one in group["params"]]
        return self._all

    def step(
        self, clip: Callable[[Sequence[nn.Parameter], float | None], Tensor]
    ) -> tuple[Tensor, bool]:
        """Clip and step; gradients are left.

        clip: scales the gradients of some parameters down to a norm and gives the norm that they
        had, as ranks that share a network have to find it.

        Returns (gradient norm before clipping, whether the scaler skipped the step). With a scaler
        the host waits: whether a step was skipped decides on the schedule's.
        """
        given = [one for one in self.parameters() if one.grad is not None]
        if self._scaler is not None:
            self._scale = self._scaler.get_scale() if self._scale is None else self._scale
            self._scaler.unscale_(self._optimizer)
        norm = clip(given, self._clip_grad_norm)
        try:
            if self._scaler is not None:
                self._scaler.step(self._optimizer)
            elif self._fused is None or not self._fused.step():
                self._optimizer.step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an optimizer may raise anything for what it cannot train
            if self._stepped:
                raise
            raise ConfigError(
                f"optimizer: {type(self._optimizer).__name__} fails in its first step: "
                f"{type(error).__name__}: {first_line(error)}. Fix its arguments, or use another "
                "optimizer."
            ) from error
        if not self._stepped and self._scaler is None:
            self._fused = FusedAdam.of(self._optimizer)  # from now on, with the state that it made
        self._stepped = True
        skipped = self._scaler is not None and self._update_scale(self._scaler)
        if self.average is not None and not skipped:
            self.average.update(self.parameters())
        return norm, skipped

    def forget_gradients(self) -> None:
        """Set them to None."""
        if type(self._optimizer).zero_grad is not Optimizer.zero_grad:
            self._optimizer.zero_grad(set_to_none=True)
            return
        for one in self.parameters():  # the same in a fifth of the time
            one.grad = None

    def forget_scale(self) -> None:
        """The scaler's state was put back: its scale is another."""
        self._scale = None

    @contextmanager
    def evaluation_weights(self) -> Iterator[list[Tensor]]:
        """Inside, the weights are those to be evaluated: their average with train.ema, or what an
        optimizer with `eval()` means (schedule-free: averages); afterwards those that are trained,
        to the bit.

        Gives the latter in the order of `parameters`; none where they are evaluated themselves.
        """
        averages = self.evaluated_averages()
        if not averages and not has_modes(self._optimizer):
            yield []
            return
        trained = [one.detach().clone() for one in self.parameters()]
        if averages:
            self.put_back(averages)
        set_training(self._optimizer, training=False)
        try:
            yield trained
        finally:
            set_training(self._optimizer, training=True)
            self.put_back(trained)

    def evaluated_averages(self) -> Sequence[Tensor]:
        """The averages of the weights if they are evaluated in their place, once there are any."""
        return self.average.tensors if self.average and self.average.is_evaluated else []

    def put_back(self, weights: Sequence[Tensor]) -> None:
        """Overwrite the parameters, in the order of `parameters`."""
        with torch.no_grad():
            for parameter, weight in zip(self.parameters(), weights, strict=True):
                parameter.copy_(weight)

    def _update_scale(self, scaler: GradScaler) -> bool:
        """Whether the scale fell, as it does at an overflow: a fused optimizer skips by itself, and
        its `step` is called all the same.
        """
        before = self._scale
        scaler.update()
        self._scale = scaler.get_scale()
        assert before is not None
        return self._scale < before


def has_modes(optimizer: Optimizer) -> bool:
    """Whether it trains other weights than it evaluates, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(
        getattr(optimizer, "eval", None)
    )


def set_training(optimizer: Optimizer, *, training: bool) -> None:
    """Switch an optimizer that has modes; nothing happens to any other."""
    if has_modes(optimizer):
        switch = getattr(optimizer, "train" if training else "eval")
        switch()


def check_contract(optimizer: Optimizer) -> None:
    """Raise ConfigError for an optimizer that needs more than a step without arguments."""
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer: {name} evaluates the loss several times a step by a closure, which has no "
            "meaning over accumulated micro-batches. Use one whose step needs no closure."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ConfigError(
            f"optimizer: {name} accepts only sparse gradients, which are neither clipped nor "
            "summed over ranks exactly. Use Adam and embeddings with sparse: false."
        )
    for index, group in enumerate(optimizer.param_groups):
        rate = group.get("lr")
        if not isinstance(rate, int | float | Tensor):
            raise ConfigError(
                f"optimizer.lr: {name} has no learning rate in its parameter group {index} ({rate})"
                ", but rates are logged and set by schedules. Give a number, and switch off "
                "what chooses rates by itself (relative_step, warmup_init of Adafactor)."
            )

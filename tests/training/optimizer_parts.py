"""Networks and optimizers that ask more of a harness than AdamW over float32."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.resume.parts import NUM_CLASSES, NUM_FEATURES


class Typed(nn.Module):
    """Two matrices without a bias, in any dtype. x: (B, 6) -> (B, 3) in float32 at least."""

    def __init__(self, dtype: str = "float32", width: int = 5) -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.first = nn.Linear(NUM_FEATURES, width, bias=False, dtype=self.dtype)
        self.last = nn.Linear(width, NUM_CLASSES, bias=False, dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x.to(self.dtype)).tanh())
        return out


class Complex(nn.Module):
    """A complex gain on each class. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.gain = nn.Parameter(torch.randn(NUM_CLASSES, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.real(x).to(torch.complex64) * self.gain).abs()


class Sparse(nn.Module):
    """An embedding with sparse gradients. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(4, NUM_CLASSES, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((x[:, 0] > 0).long())


class WideMoments(torch.optim.Optimizer):
    """Momentum kept in float32 whatever the weights are in, and a rate that is a tensor."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # as torch's own
        for group in self.param_groups:
            for one in group["params"]:
                state = self.state[one]
                moment = state.setdefault("moment", torch.zeros_like(one, dtype=torch.float32))
                moment.mul_(0.9).add_(one.grad.float())
                one.copy_(one.float() - group["lr"] * moment)


class ScheduleFree(torch.optim.Optimizer):
    """SGD without a schedule, by the protocol of the package schedulefree (Defazio et al., "The
    Road Less Scheduled", 2024): trains y, evaluates the average x, keeps z.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.5, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    @torch.no_grad()
    def eval(self) -> None:
        self._move(training=False)

    @torch.no_grad()
    def train(self) -> None:
        self._move(training=True)

    def _move(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != training:
                weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                for one in group["params"]:
                    if "z" in self.state[one]:
                        one.lerp_(self.state[one]["z"], weight)
            group["train_mode"] = training

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # as torch's own
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("call optimizer.train() first")
            share = 1 / (group["k"] + 1)
            for one in group["params"]:
                z = self.state[one].setdefault("z", one.clone())
                rate = group["lr"] * (group["beta"] * (1 - share) - 1)
                one.lerp_(z, share).add_(one.grad, alpha=rate)
                z.sub_(one.grad, alpha=group["lr"])
            group["k"] += 1


class TwoPasses(torch.optim.SGD):
    """Asks for a closure only when it is stepped."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "a closure is needed"
        return super().step(closure)


class Hot(nn.Module):
    """Overflows float16 at a large loss scale, and not at a smaller one. x: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, 8)
        self.last = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu()) * math.sqrt(2)
        return out


class Decay:
    """A share of a rate by the step, for LambdaLR; a factor for MultiplicativeLR if `constant`."""

    def __init__(self, factor: float, constant: bool = False) -> None:
        self.factor = factor
        self.constant = constant

    def __call__(self, step: int) -> float:
        return self.factor if self.constant else 1 / (1 + self.factor * step)

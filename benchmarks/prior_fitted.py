"""A network that forecasts learning curves, fitted to synthetic ones alone, beside the mixture of
harness/stopping/curves.py: S. Adriaensen et al., "Efficient Bayesian learning curve extrapolation
using prior-data fitted networks", NeurIPS 2023 (arXiv 2310.20447).

Theirs is a transformer; this is a residual MLP on a history brought to a fixed grid, which is
quicker to train. Its answer is in bins, as theirs: of the last value
of the budget, and of the best one to come, from which the chance of a target follows.

Run: python benchmarks/prior_fitted.py FILE.safetensors [steps]
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
GRID, BINS, WIDTH, BLOCKS = 24, 160, 128, 3
FEATURES = GRID + 8
# In units of the history's range; asinh spreads what a late begin may still gain
REACH = 7.0
BATCH, STEPS = 1024, 6_000


def draw_curves(
    count: int, length: int, cut: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Curves of the prior, more is better: effective times (B, N), values (B, N), upper bounds (B,)
    (infinite without one), and learning rates (B, N).
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    def spread(*shape: int, low: float, high: float) -> Tensor:
        return torch.exp(uniform(*shape, low=math.log(low), high=math.log(high)))

    def some(share: float) -> Tensor:
        return (torch.rand(count, 1, generator=generator) < share).float()

    steps = torch.arange(1.0, length + 1)[None] / length
    kind = torch.rand(count, 1, generator=generator)
    cosine = 0.5 + 0.5 * torch.cos(math.pi * steps)
    linear = 1 - 0.999 * steps
    first, second = uniform(count, 1, low=0.3, high=0.9), uniform(count, 1, low=0.6, high=1.0)
    drops = torch.where(steps < first, 1.0, torch.where(steps < second, 0.1, 0.01))
    rates = torch.where(
        kind < 0.5,
        torch.ones(count, length),
        torch.where(kind < 0.7, cosine, torch.where(kind < 0.8, linear, drops)),
    ).clamp(min=1e-4)
    times = torch.cumsum(rates, 1) / length
    still = 0.02 * uniform(count, 1) * steps
    clock = times + still
    total = torch.zeros(count, length)
    for share in (1.0, 0.5, 0.3):
        tau, power = spread(count, 1, low=0.004, high=3.0), spread(count, 1, low=0.3, high=4.0)
        begin = some(0.15) * uniform(count, 1, high=0.7)
        at = (clock - begin).clamp(min=0) / tau
        family = torch.randint(0, 4, (count, 1), generator=generator)
        shape = torch.where(
            family == 0,
            (1 + at) ** -power,
            torch.where(
                family == 1,
                torch.exp(-(at**power)),
                torch.where(family == 2, 1 / (1 + at**power), 1 / torch.log2(2 + at)),
            ),
        )
        total = total + some(share) * uniform(count, 1) * (1 - shape)
    # Noise of the rate itself, which a falling one takes back
    total = total - 0.15 * some(0.6) * uniform(count, 1) * rates
    worse = some(0.5) * spread(count, 1, low=0.01, high=3.0)
    turn = uniform(count, 1)
    total = total - worse * (clock - turn * clock[:, -1:]).clamp(min=0)
    total = total * (1 - some(0.1))
    level = spread(count, 1, low=2e-4, high=0.1) * torch.where(some(0.1) > 0, 5.0, 1.0)
    white = torch.randn(count, length, generator=generator)
    slow, rho = torch.zeros(count, length), uniform(count, 1, high=0.9)
    steps_of_it = torch.randn(count, length, generator=generator)
    for n in range(1, length):
        slow[:, n] = rho[:, 0] * slow[:, n - 1] + steps_of_it[:, n] * (1 - rho[:, 0] ** 2).sqrt()
    noise = level * (white + some(0.5) * slow) * (0.3 + 0.7 * rates.sqrt())
    values = total + noise
    # A share or a loss: it cannot be better than its bound
    room = spread(count, 1, low=0.003, high=2.0) * (
        total.amax(1, keepdim=True) - total[:, :1] + 0.05
    )
    upper = total.amax(1, keepdim=True) + room
    bounded = some(0.8)
    values = torch.where(bounded > 0, torch.minimum(values, upper), values)
    grain = some(0.3) * spread(count, 1, low=1e-3, high=2e-2)
    values = torch.where(grain > 0, (values / grain.clamp(min=1e-9)).round() * grain, values)
    upper = torch.where(bounded > 0, upper, torch.full_like(upper, math.inf))
    return clock, values, upper[:, 0], rates


def features_of(
    times: Tensor, values: Tensor, upper: Tensor, rates: Tensor, ahead: Tensor, left: Tensor
):
    """What the network sees of histories (B, n) that end at the effective time `ahead` (B,) after
    `left` (B,) more evaluations: (B, FEATURES); and the level and range (B,) of each.
    """
    count, length = values.shape
    tail = min(3, length)
    level = values[:, -tail:].mean(1)
    second = (values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]).abs()
    sigma = second.median(1).values / 0.6745 / math.sqrt(6)
    reach = values.amax(1) - values.amin(1) + 1e-6 * level.abs() + 1e-9
    z = (values - level[:, None]) / reach[:, None]
    # Means of the linear interpolant over equal stretches of the time so far
    now = times[:, -1:]
    at = times / now
    area = torch.zeros(count, length)
    area[:, 1:] = torch.cumsum((z[:, 1:] + z[:, :-1]) / 2 * (at[:, 1:] - at[:, :-1]), 1)
    edges = at[:, :1] + (1 - at[:, :1]) * torch.linspace(0, 1, GRID + 1)[None]
    right = torch.searchsorted(at.contiguous(), edges.contiguous()).clamp(1, length - 1)
    left_of = right - 1
    a0, a1 = at.gather(1, left_of), at.gather(1, right)
    z0, z1 = z.gather(1, left_of), z.gather(1, right)
    part = ((edges - a0) / (a1 - a0).clamp(min=1e-9)).clamp(0, 1)
    height = z0 + part * (z1 - z0)
    integral = area.gather(1, left_of) + (z0 + height) / 2 * part * (a1 - a0)
    means = (integral[:, 1:] - integral[:, :-1]) / (edges[:, 1:] - edges[:, :-1]).clamp(min=1e-9)
    best = (values.amax(1) - level) / reach
    room = torch.where(torch.isinf(upper), torch.full_like(upper, 20.0), (upper - level) / reach)
    more = torch.stack(
        [
            torch.log2(ahead / now[:, 0]),
            torch.log2(left.clamp(min=1)),
            torch.full((count,), math.log2(length)),
            torch.log10((sigma / reach).clamp(min=1e-4)),
            best,
            torch.asinh(room.clamp(0, 1e4)),
            torch.isinf(upper).float(),
            rates[:, -1] / rates.amax(1).clamp(min=1e-12),
        ],
        1,
    )
    return torch.cat([means, more], 1), level, reach


def to_bins(z: Tensor) -> Tensor:
    """The bin of each value."""
    place = (torch.asinh(10 * z) / REACH + 1) / 2
    return (place * BINS).long().clamp(0, BINS - 1)


class Net(nn.Module):
    """Logits (B, 2, BINS) of the last value and of the best to come."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
            )
            for _ in range(BLOCKS)
        )
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * BINS))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).view(-1, 2, BINS)


def train(path: Path, steps: int, seed: int = 1) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    told = 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 200, 1.02 - step / steps)
        length = int(2 ** float(4 + 2.5 * torch.rand(1, generator=generator)))
        cut = int(torch.randint(6, max(7, length - 1), (1,), generator=generator))
        times, values, upper, rates = draw_curves(BATCH, length, cut, generator)
        # What effective_times tells of the future: a steady fall goes on, another rate stays
        end = foreseen_end(times, rates, cut)
        left = torch.full((BATCH,), float(length - cut))
        x, level, reach = features_of(
            times[:, :cut], values[:, :cut], upper, rates[:, :cut], end, left
        )
        future = values[:, cut:]
        goals = torch.stack([future[:, -1], future.amax(1)], 1)
        z = (goals - level[:, None]) / reach[:, None]
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), to_bins(z).flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        told = 0.99 * told + 0.01 * float(loss.detach())
        if step % 500 == 0:
            print(f"step {step} loss {told:.3f}", flush=True)
    save_file(net.state_dict(), path)


def foreseen_end(times: Tensor, rates: Tensor, cut: int) -> Tensor:
    """The effective time (B,) at the budget's end, as it is foreseen at the cut."""
    length = times.shape[1]
    now, rate = times[:, cut - 1], rates[:, cut - 1]
    tail = max(2, (cut - 1) // 3)
    falls = rates[:, cut - tail : cut] - rates[:, cut - tail - 1 : cut - 1]
    slope = torch.where((falls < 0).all(1), falls.sum(1) / tail * length, torch.zeros(len(rate)))
    ahead = (length - cut) / length
    spent = torch.where(
        slope < 0,
        torch.minimum(torch.tensor(ahead), rate / -slope.clamp(max=-1e-9)),
        torch.tensor(ahead),
    )
    gained = (rate * spent + slope * spent**2 / 2).clamp(min=0)
    return now + gained + 1e-3 * ahead


@dataclass
class Answer:
    """The interface of harness.stopping.curves.Future, in bins."""

    chances: Array  # (2, BINS)
    level: float
    reach: float
    num_times: int

    def _edges(self) -> Array:
        place = np.linspace(-1, 1, BINS + 1)
        return self.level + self.reach * np.sinh(place * REACH) / 10

    def chance(self, value: float) -> float:
        below = np.interp(value, self._edges(), np.concatenate([[0.0], np.cumsum(self.chances[1])]))
        return float(1 - below)

    def band(self, share: float) -> tuple[float, float]:
        cumulative = np.concatenate([[0.0], np.cumsum(self.chances[0])])
        low, high = np.interp([(1 - share) / 2, (1 + share) / 2], cumulative, self._edges())
        return float(low), float(high)

    def bands(self, share: float) -> list[tuple[float, float]]:
        return [self.band(share)] * self.num_times


class PriorFitted:
    """In place of harness.stopping.curves.extrapolate."""

    def __init__(self, path: Path) -> None:
        from safetensors.torch import load_file

        self.net = Net()
        self.net.load_state_dict(load_file(path))
        self.net.eval()

    @torch.inference_mode()
    def __call__(
        self, times: Array, values: Array, future: Array, counts: Array, bounds: tuple[float, float]
    ) -> Answer:
        def row(given: Array) -> Tensor:
            return torch.from_numpy(np.asarray(given, np.float32))[None]

        pace = np.diff(times, prepend=0.0)
        features, level, reach = features_of(
            row(times),
            row(values),
            torch.tensor([bounds[1]], dtype=torch.float32),
            row(pace / pace.max()),
            torch.tensor([future[-1]], dtype=torch.float32),
            torch.tensor([counts.sum()], dtype=torch.float32),
        )
        chances = self.net(features)[0].softmax(1).double().numpy()
        return Answer(chances, float(level), float(reach), len(future))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)

"""Where a learning curve is going: a posterior over parametric curves, in milliseconds.

A curve is y = a - b phi(t), a mixture over the families of T. Domhan, J. T. Springenberg &
F. Hutter, "Speeding up automatic hyperparameter optimization of deep neural networks by
extrapolation of learning curves", IJCAI 2015. The nonlinear parameters of phi are on a grid. At
each point of it a and b have a conjugate posterior (normal-inverse-gamma) in closed form, whose
evidence weighs it: nothing is optimised, so nothing can end in a local minimum. No family knows a
second rise after a plateau (of language models, of spirals), so each draw has one at some time to
come. The draws are the same each time: a forecast follows from the history alone.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_DRAWS = 512
# Averages of neighbours beyond: a fit costs the same after 100 evaluations as after 100,000
_MOST_POINTS = 64
# How much a point counts beside an independent one: residuals of learning curves are correlated
_TEMPER = 0.5
# Later points tell more of what comes: weights are t**_RECENCY
_RECENCY = 0.5
# Degrees of freedom of the prior of the noise
_NOISE_FREEDOM = 4.0
# What the families leave open, in standard deviations of the noise per doubling of the time
_DISCREPANCY = 1.0
_TAIL_FREEDOM = 3.0
# The same as a share of the gain that is forecast
_GAIN_DISCREPANCY = 0.3
# A new rise after a plateau: its chance, about this times ln 2 per doubling of the time, and mean
# height, a share of what is left to the metric's best (docs/benchmarks.md)
_BREAK_RATE = 0.25
_BREAK_HEIGHT = 0.05


@functools.cache
def _grid() -> tuple[tuple[str, float, float], ...]:
    """(family, its two nonlinear parameters), with time in units of the history's length."""
    times = np.geomspace(0.02, 3.0, 16).tolist()
    return (
        *(("power", tau, c) for tau in (0.01, 0.05, 0.2) for c in (0.2, 0.4, 0.7, 1.2, 2.0, 4.0)),
        *(("exponential", tau, 1.0) for tau in np.geomspace(0.02, 3.0, 32).tolist()),
        *(("log_power", tau, c) for tau in times for c in (1.0, 1.5, 2.0, 3.0, 5.0)),
        *(("ilog2", tau, 1.0) for tau in (0.01, 0.05, 0.2)),
        *(("janoschek", tau, c) for tau in times for c in (0.4, 0.6, 0.8, 1.5, 2.5)),
    )


def _shapes(times: Array) -> Array:
    """phi of each grid point at each time: (K, T) in [0, 1], falling."""
    rows = []
    for family, tau, power in _grid():
        if family == "power":
            rows.append((1 + times / tau) ** -power)
        elif family == "log_power":
            rows.append(1 / (1 + (times / tau) ** power))
        elif family == "ilog2":
            rows.append(1 / np.log2(2 + times / tau))
        else:
            rows.append(np.exp(-((times / tau) ** power)))
    return np.stack(rows)


@functools.cache
def _draws() -> tuple[Array, Array]:
    """Normal (S, 3) and the uniform of each draw (S,), the same in every process: the stream of
    RandomState is frozen.
    """
    state = np.random.RandomState(20150727)
    return state.standard_normal((NUM_DRAWS, 3)), state.uniform(size=NUM_DRAWS)


@functools.cache
def _tails() -> Array:
    """Draws (S,) of Student's t: what a family leaves open may be a lot."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy has no stubs

    order = np.random.RandomState(1908).permutation(NUM_DRAWS)
    quantiles: Array = stdtrit(_TAIL_FREEDOM, (order + 0.5) / NUM_DRAWS)
    return quantiles


@functools.cache
def _breaks() -> tuple[Array, Array]:
    """Of each draw (S,) when a new rise begins, in units of the history's length (Pareto), and its
    height over the mean (exponential).
    """
    when, height = (
        (np.random.RandomState(seed).permutation(NUM_DRAWS) + 0.5) / NUM_DRAWS for seed in (1, 2)
    )
    return when ** (-1 / _BREAK_RATE), -np.log(height)


@dataclass(frozen=True)
class Future:
    """Draws of what is to come, where more is better: `values` (S, F) of the curve, `noise` (S,) of
    an evaluation of it, `counts` (F,) evaluations that each time stands for.
    """

    values: Array
    noise: Array
    counts: Array

    def chance(self, value: float) -> float:
        """The probability that some evaluation reaches a value."""
        from scipy.special import log_ndtr

        below = log_ndtr((value - self.values) / self.noise[:, None]) @ self.counts
        return float(1 - np.exp(below).mean())

    def band(self, share: float) -> tuple[float, float]:
        """Between which values the last evaluation lies, with a probability of `share`."""
        return self.bands(share)[-1]

    def bands(self, share: float) -> list[tuple[float, float]]:
        """The same of an evaluation at each of the future times."""
        normal, _ = _draws()
        drawn = self.values + (self.noise * normal[:, 2])[:, None]
        edges = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2], axis=0)
        return [(float(low), float(high)) for low, high in edges.T]


def extrapolate(
    times: Array, values: Array, future: Array, counts: Array, bounds: tuple[float, float]
) -> Future:
    """The posterior of a curve (n,) of at least 3 increasing times, where more is
    better, at future times (F,); it stays within `bounds`.
    """
    points, heights, weights = _thin(times, values)
    # Of a height of about 0 nothing cancels
    level = float(heights[-1])
    heights = heights - level
    sigma = noise_of(heights)
    length = points[-1]
    shapes = _shapes(points / length)
    reach = float(np.ptp(heights)) + 4 * sigma
    weights = weights * (points / length) ** _RECENCY * _TEMPER
    # Normal equations of y = a - b phi for all grid points at once
    prior = (sigma / (np.array([1.0, 2.0]) * reach)) ** 2
    middle = np.array([float(heights.max()), reach])
    total, cross, square = weights.sum(), shapes @ weights, shapes**2 @ weights
    precision = np.empty((len(shapes), 2, 2))
    precision[:, 0, 0], precision[:, 1, 1] = prior[0] + total, prior[1] + square
    precision[:, 0, 1] = precision[:, 1, 0] = -cross
    right = np.empty((len(shapes), 2))
    right[:, 0] = prior[0] * middle[0] + weights @ heights
    right[:, 1] = prior[1] * middle[1] - shapes @ (weights * heights)
    covariance: Array = np.linalg.inv(precision).astype(np.float64)
    mean = np.einsum("kij,kj->ki", covariance, right)
    squares = weights @ heights**2 + prior @ middle**2 - np.einsum("ki,ki->k", mean, right)
    squares = np.maximum(squares, 0) + _NOISE_FREEDOM * sigma**2
    shape = (_NOISE_FREEDOM + total) / 2
    evidence = np.linalg.slogdet(covariance)[1] / 2 - shape * np.log(np.maximum(squares, 1e-300))
    chances = np.exp(evidence - evidence.max())
    posterior = _Posterior(chances / chances.sum(), mean, covariance, squares / 2, float(shape))
    values, noise = _draw(posterior, future / length)
    low, high = (bound - level for bound in bounds)
    room = max(high, 0.0) if math.isfinite(high) else reach
    values = values + _BREAK_HEIGHT * room * _new_rises(future / length)
    return Future(np.clip(values, low, high) + level, noise, counts)


class _Posterior(NamedTuple):
    """Of each grid point: its probability (K,), the mean (K, 2) and covariance (K, 2, 2; in units
    of the noise) of a and b, and of the noise the scale (K,) and shape of an inverse gamma.
    """

    chances: Array
    mean: Array
    covariance: Array
    scale: Array
    shape: float


def _draw(posterior: _Posterior, future: Array) -> tuple[Array, Array]:
    """Curves (S, F) at future times and the noise (S,) of each, drawn from a posterior."""
    from scipy.special import ndtri

    normal, uniform = _draws()
    cumulative = np.cumsum(posterior.chances)
    which = np.searchsorted(cumulative, (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS)
    which = which.clip(0, len(cumulative) - 1)
    # A gamma variate by its cube root, which is nearly normal (Wilson & Hilferty, 1931)
    shape = posterior.shape
    cube = (1 - 1 / (9 * shape) + ndtri(uniform) / (3 * math.sqrt(shape))) ** 3
    noise = np.sqrt(posterior.scale[which] / (shape * np.maximum(cube, 0.05)))
    factor = np.linalg.cholesky(posterior.covariance)[which]
    drawn = posterior.mean[which] + noise[:, None] * np.einsum("sij,sj->si", factor, normal[:, :2])
    drop = np.maximum(drawn[:, 1], 0)[:, None]
    here, there = _shapes(np.ones(1))[which], _shapes(future)[which]
    gain = drop * (here - there)
    left_open = np.log2(future) * (_DISCREPANCY * noise[:, None] + _GAIN_DISCREPANCY * gain)
    return drawn[:, :1] - drop * there + left_open * _tails()[:, None], noise


def _new_rises(future: Array) -> Array:
    """What a new rise has added by future times, (S, F), over its mean height in the end."""
    when, height = _breaks()
    rises: Array = height[:, None] * (1 - np.minimum(when[:, None] / future, 1) ** 2)
    return rises


def noise_of(values: Array) -> float:
    """The standard deviation of the noise, from second differences: their median, so that jumps do
    not count; never 0.
    """
    second = np.abs(values[2:] - 2 * values[1:-1] + values[:-2])
    floor = 1e-4 * float(np.ptp(values)) + 1e-9 * float(np.abs(values).max()) + 1e-12
    return max(floor, float(np.median(second)) / 0.6745 / math.sqrt(6))


def is_monotone(values: Array) -> bool:
    """Whether a curve, where more is better, never fell far and for long: by more than five
    deviations of the noise and a twentieth of its range, seen in medians of three; its first third
    may.
    """
    smooth = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    fall = (np.maximum.accumulate(smooth) - smooth)[len(smooth) // 3 :].max()
    return bool(fall <= max(5 * noise_of(values), 0.05 * float(np.ptp(values))))


def effective_times(steps: Array, rates: Array, future: Array) -> tuple[Array, Array]:
    """Steps of the past (n,) and the future (F,) weighed by the learning rate, the clock of a
    training: a rate that falls steadily goes on falling as fast, another stays as it is.
    """
    falls = np.diff(rates)
    tail = falls[-max(2, len(falls) // 3) :]
    slope = 0.0
    if rates[-1] > 0 and (tail < 0).all():
        slope = float(tail.sum()) / float(steps[-1] - steps[-len(tail) - 1])
    ahead = future - steps[-1]
    end = ahead.max() if slope == 0 else min(ahead.max(), rates[-1] / -slope)
    spent = np.minimum(ahead, end)
    past = np.cumsum(np.diff(steps, prepend=0.0) * np.maximum(rates, 0))
    still = 1e-3 * past[-1] / steps[-1]  # time does not stand still
    gained = np.maximum(rates[-1] * spent + slope * spent**2 / 2, 0)
    return past, past[-1] + gained + still * ahead


def _thin(times: Array, values: Array) -> tuple[Array, Array, Array]:
    """At most _MOST_POINTS (times, values, how many each is of): averages of neighbours."""
    if len(times) <= _MOST_POINTS:
        return times, values, np.ones(len(times))
    edges = np.linspace(0, len(times), _MOST_POINTS + 1).astype(int)
    counts = np.diff(edges).astype(np.float64)
    sums = [np.add.reduceat(one, edges[:-1]) for one in (times, values)]
    return sums[0] / counts, sums[1] / counts, counts

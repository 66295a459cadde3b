"""Random changes of series (B, C, T): C channels at T times. In training only. Noise on every number is `AddNoise` with this key."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds
from harness.treatments.numbers import numbers

Batch = dict[str, Any]


class RandomScale:
    """Each channel times a factor of its own, exp of a number from -`log_range` to `log_range`: as a sensor of another gain would give it."""

    training_only = True

    def __init__(self, log_range: float = 0.1, key: str = "series", salt: int = 0) -> None:
        if not log_range > 0:
            raise ConfigError(f"log_range: {log_range}: above 0, or nothing changes.")
        self.log_range = log_range
        self.key = key
        self._draws = Draws("RandomScale", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        series = _series(batch, self.key)
        drawn = np.stack([self._draws.uniform(seeds, str(channel)) for channel in range(series.shape[1])], axis=1)
        return {**batch, self.key: series * torch.from_numpy(np.exp((2 * drawn - 1) * self.log_range)).to(series.dtype)[:, :, None]}


class RandomCropTime:
    """`length` of the T times, from anywhere. Put `CropTime` of the same length after it, for evaluations."""

    training_only = True

    def __init__(self, length: int, key: str = "series", salt: int = 0) -> None:
        self.length = _at_least_one(length)
        self.key = key
        self._draws = Draws("RandomCropTime", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        series = _series(batch, self.key, self.length)
        begins = torch.from_numpy(self._draws.integers(seeds, series.shape[-1] - self.length + 1))
        places = begins[:, None] + torch.arange(self.length)
        return {**batch, self.key: series.gather(-1, places[:, None].expand(-1, series.shape[1], -1))}


class CropTime:
    """`length` of the T times, from the middle; in training too, where a `RandomCropTime` before it leaves nothing to cut."""

    def __init__(self, length: int, key: str = "series") -> None:
        self.length = _at_least_one(length)
        self.key = key

    def __call__(self, batch: Batch) -> Batch:
        series = _series(batch, self.key, self.length)
        begin = (series.shape[-1] - self.length) // 2
        return {**batch, self.key: series[..., begin : begin + self.length].contiguous()}


class DropChannels:
    """Each channel becomes `fill` with probability p, but never all of a sample's: as if a device had failed."""

    training_only = True

    def __init__(self, p: float = 0.1, fill: float = 0, key: str = "series", salt: int = 0) -> None:
        if not 0 <= p < 1:
            raise ConfigError(f"p: {p} is outside of [0, 1).")
        self.p = p
        self.fill = fill
        self.key = key
        self._draws = Draws("DropChannels", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        series = _series(batch, self.key)
        drawn = np.stack([self._draws.uniform(seeds, str(channel)) for channel in range(series.shape[1])], axis=1)
        dropped = (drawn < self.p) & (drawn < drawn.max(axis=1, keepdims=True))  # the largest draw of a sample stays
        return {**batch, self.key: series.masked_fill(torch.from_numpy(dropped)[:, :, None], self.fill)}


def _at_least_one(length: int) -> int:
    if length < 1:
        raise ConfigError(f"length: {length}: at least one time has to be left.")
    return length


def _series(batch: Batch, key: str, shortest: int = 1) -> Tensor:
    series = numbers(batch, key)
    if series.dim() != 3 or not series.is_floating_point() or series.shape[-1] < shortest:
        raise DataError(f"{key}: {tuple(series.shape)} of {series.dtype} where series (B, C, T >= {shortest}) of floats are needed. Set the key.")
    return series

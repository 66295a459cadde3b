"""Treatments of series (B, C, T): C channels at T times.

What is random is in training only. Jitter is `AddNoise` with this key.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds
from harness.treatments.numbers import Batch, numbers


class RandomScale:
    """Each channel times a factor of its own, exp of a number from -`log_range` to `log_range`: as
    a sensor of another gain would give it.
    """

    training_only = True

    def __init__(self, log_range: float = 0.1, key: str = "series", salt: int = 0) -> None:
        if not log_range > 0:
            raise ConfigError(f"log_range: {log_range}: above 0, or nothing changes.")
        self.log_range = log_range
        self.key = key
        self._draws = Draws("RandomScale", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        series = _series(batch, self.key)
        drawn = np.stack(
            [self._draws.uniform(seeds, str(channel)) for channel in range(series.shape[1])], axis=1
        )
        return {
            **batch,
            self.key: series
            * torch.from_numpy(np.exp((2 * drawn - 1) * self.log_range)).to(series.dtype)[
                :, :, None
            ],
        }


class RandomCropTime:
    """`length` of the T times, from anywhere.

    Put `CropTime` of the same length after it, for evaluations.
    """

    training_only = True

    def __init__(self, length: int, key: str = "series", salt: int = 0) -> None:
        self.length = _at_least_one(length)
        self.key = key
        self._draws = Draws("RandomCropTime", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        series = _series(batch, self.key, self.length)
        begins = torch.from_numpy(self._draws.integers(seeds, series.shape[-1] - self.length + 1))
        places = begins[:, None] + torch.arange(self.length)
        return {
            **batch,
            self.key: series.gather(-1, places[:, None].expand(-1, series.shape[1], -1)),
        }


class CropTime:
    """`length` of the T times, from the middle; in training too, where a `RandomCropTime` before it
    leaves nothing to cut.
    """

    def __init__(self, length: int, key: str = "series") -> None:
        self.length = _at_least_one(length)
        self.key = key

    def __call__(self, batch: Batch) -> Batch:
        series = _series(batch, self.key, self.length)
        begin = (series.shape[-1] - self.length) // 2
        return {**batch, self.key: series[..., begin : begin + self.length].contiguous()}


At = Literal["begin", "middle", "end"]


class Window:
    """`length` times of each series, whatever their own lengths: (B, C, T), or a list of B arrays
    (T, C) or (T,) -> (B, C, length).

    `at`: which of them are kept of a longer one, and where a shorter one lies between times of
    `fill`.
    """

    def __init__(self, length: int, at: At = "begin", fill: float = 0, key: str = "series") -> None:
        if at not in get_args(At):
            raise ConfigError(f"at: {at!r} is none of {', '.join(get_args(At))}.")
        self.length = _at_least_one(length)
        self.at = at
        self.fill = fill
        self.key = key

    def __call__(self, batch: Batch) -> Batch:
        ragged = batch.get(self.key)
        if not isinstance(ragged, list):
            return {**batch, self.key: self._fitted(_series(batch, self.key))}
        each = [torch.as_tensor(one) for one in ragged if not isinstance(one, str)]
        if (
            len(each) < len(ragged)
            or {one.dim() for one in each} not in ({1}, {2})
            or len({one.shape[1:] for one in each}) > 1
        ):
            raise DataError(
                f"{self.key}: arrays (T, C) with as many channels in each sample, or (T,), are "
                "needed. Set the key."
            )
        return {
            **batch,
            self.key: torch.stack(
                [self._fitted(one.T if one.dim() == 2 else one[None]) for one in each]
            ),
        }

    def _fitted(self, series: Tensor) -> Tensor:
        """(..., T) -> (..., length)"""
        surplus = series.shape[-1] - self.length
        before = {"begin": 0, "middle": abs(surplus) // 2, "end": abs(surplus)}[self.at]
        if surplus >= 0:
            return series[..., before : before + self.length].contiguous()
        return torch.nn.functional.pad(series, [before, -surplus - before], value=self.fill)


class DropChannels:
    """Each channel becomes `fill` with probability p, but never all of a sample's: as if a device
    had failed.
    """

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
        drawn = np.stack(
            [self._draws.uniform(seeds, str(channel)) for channel in range(series.shape[1])], axis=1
        )
        # The largest draw of a sample stays
        dropped = (drawn < self.p) & (drawn < drawn.max(axis=1, keepdims=True))
        return {
            **batch,
            self.key: series.masked_fill(torch.from_numpy(dropped)[:, :, None], self.fill),
        }


def _at_least_one(length: int) -> int:
    if length < 1:
        raise ConfigError(f"length: {length}: at least one time has to be left.")
    return length


def _series(batch: Batch, key: str, shortest: int = 1) -> Tensor:
    series = numbers(batch, key)
    if series.dim() != 3 or not series.is_floating_point() or series.shape[-1] < shortest:
        raise DataError(
            f"{key}: {tuple(series.shape)} of {series.dtype} where series (B, C, T >= {shortest}) "
            "of floats are needed. Set the key."
        )
    return series

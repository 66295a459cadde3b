"""Treatments of series (B, C, T): C channels, T time steps.

Random ones are for training only. For jitter use `AddNoise` with this key.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ConfigError, DataError, require_choice
from harness.treatments.draws import Seeds
from harness.treatments.numbers import Batch, Form, Plain, Random

SERIES = Form("series (B, C, T)", 3, floats=True, shortest=1)


class RandomScale(Random):
    """Multiplies each channel by a random factor, exp of a number from -`log_range` to `log_range`,
    as if the gain of a sensor varied.
    """

    form = SERIES

    def __init__(self, log_range: float = 0.1, key: str = "series", salt: int = 0) -> None:
        super().__init__("RandomScale", key, salt)
        if not log_range > 0:
            raise ConfigError(f"log_range: {log_range}: must be above 0.")
        self.log_range = log_range

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        drawn = self._draws.uniform_by_channel(seeds, values.shape[1])
        factors = torch.from_numpy(np.exp((2 * drawn - 1) * self.log_range))
        return values * factors.to(values.dtype)[:, :, None]


class RandomCropTime(Random):
    """Crops `length` time steps at a random position.

    Put a `CropTime` of the same length after it, for evaluations.
    """

    form = SERIES

    def __init__(self, length: int, key: str = "series", salt: int = 0) -> None:
        super().__init__("RandomCropTime", key, salt)
        self.length = _at_least_one(length)
        self.form = replace(SERIES, shortest=length)

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        begins = self._draws.integers(seeds, values.shape[-1] - self.length + 1)
        return cut(values, begins, self.length)


class CropTime(Plain):
    """Crops `length` time steps from the middle; in training too, where after a `RandomCropTime`
    there is nothing left to crop.
    """

    form = SERIES

    def __init__(self, length: int, key: str = "series") -> None:
        super().__init__(key)
        self.length = _at_least_one(length)
        self.form = replace(SERIES, shortest=length)

    def treat(self, values: Tensor) -> Tensor:
        begin = (values.shape[-1] - self.length) // 2
        return values[..., begin : begin + self.length].contiguous()


At = Literal["begin", "middle", "end"]


class Window(Plain):
    """Cuts or pads each series to `length` time steps: (B, C, T), or a list of B arrays (T, C) or
    (T,) -> (B, C, length).

    `at`: which part of a longer series is kept, and where a shorter one lies within the padding
    with `fill`.
    """

    form = SERIES

    def __init__(self, length: int, at: At = "begin", fill: float = 0, key: str = "series") -> None:
        super().__init__(key)
        require_choice("at", at, get_args(At))
        self.length = _at_least_one(length)
        self.at = at
        self.fill = fill

    def __call__(self, batch: Batch) -> Batch:
        ragged = batch.get(self.key)
        if not isinstance(ragged, list):
            return super().__call__(batch)
        each = [torch.as_tensor(one) for one in ragged if not isinstance(one, str)]
        if (
            len(each) < len(ragged)
            or {one.dim() for one in each} not in ({1}, {2})
            or len({one.shape[1:] for one in each}) > 1
        ):
            raise DataError(
                f"{self.key}: arrays (T, C), all with the same channels, or (T,), are needed. "
                "Set the key."
            )
        fitted = [self.treat(one.T if one.dim() == 2 else one[None]) for one in each]
        return {**batch, self.key: torch.stack(fitted)}

    def treat(self, values: Tensor) -> Tensor:
        """values: (..., T) -> (..., length)"""
        surplus = values.shape[-1] - self.length
        before = {"begin": 0, "middle": abs(surplus) // 2, "end": abs(surplus)}[self.at]
        if surplus >= 0:
            return values[..., before : before + self.length].contiguous()
        return torch.nn.functional.pad(values, [before, -surplus - before], value=self.fill)


class DropChannels(Random):
    """Sets each channel to `fill` with probability p, but never all channels of a sample, as if a
    sensor had failed.
    """

    form = SERIES

    def __init__(self, p: float = 0.1, fill: float = 0, key: str = "series", salt: int = 0) -> None:
        super().__init__("DropChannels", key, salt)
        if not 0 <= p < 1:
            raise ConfigError(f"p: {p}: must be at least 0 and below 1.")
        self.p = p
        self.fill = fill

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        drawn = self._draws.uniform_by_channel(seeds, values.shape[1])
        # The largest draw of a sample stays
        dropped = (drawn < self.p) & (drawn < drawn.max(axis=1, keepdims=True))
        return values.masked_fill(torch.from_numpy(dropped)[:, :, None], self.fill)


def cut(series: Tensor, begins: NDArray[np.int64], length: int) -> Tensor:
    """series: (B, C, T), begins: (B,) -> (B, C, length): a window of each series."""
    positions = torch.from_numpy(begins)[:, None] + torch.arange(length)
    return series.gather(-1, positions[:, None].expand(-1, series.shape[1], -1))


def _at_least_one(length: int) -> int:
    if length < 1:
        raise ConfigError(f"length: {length}: must be at least 1.")
    return length

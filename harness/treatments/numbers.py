"""Treatments of any tensor of numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds

Batch = dict[str, Any]


class ToFloat:
    """Integers to float32, multiplied by `scale`: 1/255 takes the bytes of an image to [0, 1]."""

    def __init__(self, key: str = "image", scale: float = 1 / 255) -> None:
        self.key = key
        self.scale = scale

    def __call__(self, batch: Batch) -> Batch:
        return {**batch, self.key: (numbers(batch, self.key) * self.scale).float()}


class ToDegrees:
    """Counts of a thermal camera to degrees, in float32: counts x scale + offset.

    0.01 and -273.15 take centikelvin to degrees Celsius. Computed in float64, so that no count is
    rounded on the way.
    """

    def __init__(self, scale: float, offset: float = 0.0, key: str = "image") -> None:
        if scale == 0:
            raise ConfigError("scale: 0 makes all counts alike.")
        self.key = key
        self.scale = scale
        self.offset = offset

    def __call__(self, batch: Batch) -> Batch:
        return {
            **batch,
            self.key: (numbers(batch, self.key).double() * self.scale + self.offset).float(),
        }


class Normalise:
    """(x - mean) / std, in float32: one number for all channels, or one for each of (B, C, ...)."""

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], key: str = "image"
    ) -> None:
        self.key = key
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1)
        if not (self._std > 0).all():
            raise ConfigError(f"std: {std}: each must be above 0.")
        if len({len(self._mean), len(self._std)} - {1}) > 1:
            raise ConfigError(
                f"mean, std: {len(self._mean)} and {len(self._std)} numbers. Give one for each "
                "channel, or one for all."
            )

    def __call__(self, batch: Batch) -> Batch:
        values = numbers(batch, self.key)
        channels = {len(self._mean), len(self._std)} - {1}
        if channels and (values.dim() < 2 or channels != {values.shape[1]}):
            raise DataError(
                f"{self.key}: {tuple(values.shape)} does not have the {max(channels)} channels "
                "that mean and std are given for."
            )
        return {
            **batch,
            self.key: (values.float() - by_channel(self._mean, values))
            / by_channel(self._std, values),
        }


class AddNoise:
    """Gaussian noise of standard deviation `std` on every number, in training only."""

    training_only = True

    def __init__(self, std: float, key: str = "image", salt: int = 0) -> None:
        if not std >= 0:
            raise ConfigError(f"std: {std} is below 0.")
        self.key = key
        self.std = std
        self._draws = Draws("AddNoise", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        values = numbers(batch, self.key)
        if not values.is_floating_point():
            raise DataError(
                f"{self.key}: noise needs floating-point numbers, these are {values.dtype}. Put "
                "harness.treatments.ToFloat before it."
            )
        noise = torch.empty_like(values)
        generator = torch.Generator()
        for one, seed in zip(noise, self._draws.seeds(seeds, "noise").tolist(), strict=True):
            one.normal_(0, self.std, generator=generator.manual_seed(seed))
        return {**batch, self.key: values + noise}


def numbers(batch: Batch, key: str) -> Tensor:
    """The tensor of a batch under a key. Raises DataError if there is none."""
    values = batch.get(key)
    if not isinstance(values, Tensor):
        raise DataError(
            f"a treatment needs {key!r} as an array of numbers; samples have "
            f"{', '.join(sorted(batch))}. Set its key."
        )
    return values


def by_channel(parameter: Tensor, values: Tensor) -> Tensor:
    """parameter: (C,) or (1,) -> in a shape that goes with values (B, C, ...)."""
    return parameter.view(-1, *[1] * (values.dim() - 2)) if len(parameter) > 1 else parameter

"""Treatments of numeric tensors of any shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds

Batch = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """The tensors that a treatment accepts: of `num_axes` axes (None: any), the last of at least
    length `shortest`.
    """

    name: str = "numbers (B, ...)"
    num_axes: int | None = None
    floats: bool = False
    shortest: int = 0
    hint: str = "Set the key."


class KeyedTreatment:
    """A treatment of the tensor under one key: see `Plain` and `Random`."""

    form = Form()

    def __init__(self, key: str) -> None:
        self.key = key

    def numbers(self, batch: Batch) -> Tensor:
        """The tensor under the key. Raises DataError if it is not of the `form`."""
        values, form = numbers(batch, self.key), self.form
        if (
            (form.num_axes is not None and values.dim() != form.num_axes)
            or (form.floats and not values.is_floating_point())
            or values.shape[-1] < form.shortest
        ):
            needed = (
                form.name.replace("T)", f"T >= {form.shortest})") if form.shortest else form.name
            )
            needed += " of floats" if form.floats else ""
            raise DataError(
                f"{self.key}: {tuple(values.shape)} of {values.dtype} where {needed} are needed. "
                f"{form.hint}"
            )
        return values


class Plain(KeyedTreatment):
    """A deterministic treatment of the tensor under one key."""

    def __call__(self, batch: Batch) -> Batch:
        return {**batch, self.key: self.treat(self.numbers(batch))}

    def treat(self, values: Tensor) -> Tensor:
        """values: of the `form` -> the values that replace them."""
        raise NotImplementedError


class Random(KeyedTreatment):
    """A random treatment of the tensor under one key, in training only.

    `name`, `salt`: see `Draws`.
    """

    training_only = True

    def __init__(self, name: str, key: str, salt: int) -> None:
        super().__init__(key)
        self._draws = Draws(name, salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        return {**batch, self.key: self.treat(self.numbers(batch), seeds)}

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        """values: of the `form`, seeds: (B,) -> the values that replace them."""
        raise NotImplementedError


class ToFloat(Plain):
    """Integers to float32, multiplied by `scale`: 1/255 maps the bytes of an image to [0, 1]."""

    def __init__(self, key: str = "image", scale: float = 1 / 255) -> None:
        super().__init__(key)
        self.scale = scale

    def treat(self, values: Tensor) -> Tensor:
        return (values * self.scale).float()

    def invert(self, values: Tensor) -> Tensor:
        """Back to the numbers of the data, in float64."""
        return values.double() / self.scale


class ToDegrees(Plain):
    """Counts of a thermal camera to degrees, in float32: counts x scale + offset.

    0.01 and -273.15 convert centikelvin to degrees Celsius. Computed in float64, so that no count
    is rounded on the way.
    """

    def __init__(self, scale: float, offset: float = 0.0, key: str = "image") -> None:
        if scale == 0:
            raise ConfigError("scale: 0 maps all counts to the same value.")
        super().__init__(key)
        self.scale = scale
        self.offset = offset

    def treat(self, values: Tensor) -> Tensor:
        return (values.double() * self.scale + self.offset).float()

    def invert(self, values: Tensor) -> Tensor:
        """Back to counts, in float64."""
        return (values.double() - self.offset) / self.scale


class Normalise(Plain):
    """(x - mean) / std, in float32, with one value for all channels of (B, C, ...) or one each."""

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], key: str = "image"
    ) -> None:
        super().__init__(key)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1)
        if not (self._std > 0).all():
            raise ConfigError(f"std: {std}: every value must be above 0.")
        if len({len(self._mean), len(self._std)} - {1}) > 1:
            raise ConfigError(
                f"mean, std: {len(self._mean)} and {len(self._std)} values. Give one per channel, "
                "or one for all."
            )

    def treat(self, values: Tensor) -> Tensor:
        num_channels = max(len(self._mean), len(self._std))
        if num_channels > 1:
            check_channels(values, self.key, num_channels, "of mean and std")
        centred = values.float() - by_channel(self._mean, values)
        return centred / by_channel(self._std, values)

    def invert(self, values: Tensor) -> Tensor:
        """Back to the unit of the data, in float64."""
        scaled = values.double() * by_channel(self._std, values)
        return scaled + by_channel(self._mean, values)


class AddNoise(Random):
    """Gaussian noise of standard deviation `std` on every number, in training only."""

    form = Form(floats=True, hint="Put harness.treatments.ToFloat before it.")

    def __init__(self, std: float, key: str = "image", salt: int = 0) -> None:
        super().__init__("AddNoise", key, salt)
        if not std >= 0:
            raise ConfigError(f"std: {std}: must not be negative.")
        self.std = std

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        noise = torch.empty_like(values)
        generator = torch.Generator()
        for one, seed in zip(noise, self._draws.seeds(seeds, "noise").tolist(), strict=True):
            one.normal_(0, self.std, generator=generator.manual_seed(seed))
        return values + noise


def numbers(batch: Batch, key: str) -> Tensor:
    """The tensor of a batch under a key. Raises DataError if there is none."""
    values = batch.get(key)
    if not isinstance(values, Tensor):
        raise DataError(
            f"a treatment needs {key!r} as a numeric array; samples have "
            f"{', '.join(sorted(batch))}. Set its key."
        )
    return values


def check_channels(values: Tensor, key: str, count: int, whose: str) -> None:
    """Raise DataError unless values are (B, count, ...), or (B,) for a count of 1."""
    if (values.shape[1] if values.dim() > 1 else 1) != count:
        raise DataError(
            f"{key}: {tuple(values.shape)} does not have the {count} channels or columns {whose}."
        )


def by_channel(parameter: Tensor, values: Tensor) -> Tensor:
    """parameter: (C,) or (1,) -> in a shape that broadcasts with values (B, C, ...)."""
    return parameter.view(-1, *[1] * (values.dim() - 2)) if len(parameter) > 1 else parameter

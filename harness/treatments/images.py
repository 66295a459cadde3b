"""Treatments of images (B, C, H, W).

What is random is drawn for each sample by itself, made for all at once, and in training only.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds
from harness.treatments.numbers import Batch, numbers


class Resize:
    """To `height` x `width`: each cell the mean of those it covers, weighted by a triangle (as
    Pillow's BILINEAR); integers are rounded and stay what they are. Other proportions are squeezed
    or stretched.
    """

    def __init__(self, height: int, width: int, key: str = "image") -> None:
        if min(height, width) < 1:
            raise ConfigError(f"height, width: {height}, {width}: at least 1 each.")
        self.size = (height, width)
        self.key = key

    def __call__(self, batch: Batch) -> Batch:
        images = _images(batch, self.key)
        resized = torch.nn.functional.interpolate(
            images.double(), self.size, mode="bilinear", antialias=True, align_corners=False
        )
        if not images.is_floating_point():
            resized = resized.round()  # a weighted mean is never outside of what its numbers span
        return {**batch, self.key: resized.to(images.dtype)}


class RandomFlip:
    """Mirrors an image left to right ("horizontal") or upside down, with probability p."""

    training_only = True

    def __init__(
        self,
        p: float = 0.5,
        axis: Literal["horizontal", "vertical"] = "horizontal",
        key: str = "image",
        salt: int = 0,
    ) -> None:
        if axis not in ("horizontal", "vertical"):
            raise ConfigError(f"axis: {axis!r} is neither horizontal nor vertical.")
        self.p = _probability(p)
        self.key = key
        self._axis = -1 if axis == "horizontal" else -2
        self._draws = Draws(f"RandomFlip/{axis}", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        images = _images(batch, self.key)
        flipped = torch.from_numpy(self._draws.uniform(seeds) < self.p)
        return {
            **batch,
            self.key: torch.where(flipped[:, None, None, None], images.flip(self._axis), images),
        }


class RandomCrop:
    """Puts `padding` cells of `fill` around an image and cuts a window of the image's own size out
    of it, anywhere.
    """

    training_only = True

    def __init__(self, padding: int, fill: float = 0, key: str = "image", salt: int = 0) -> None:
        if padding < 1:
            raise ConfigError(f"padding: {padding}: at least 1, or there is nothing to move.")
        self.padding = padding
        self.fill = fill
        self.key = key
        self._draws = Draws("RandomCrop", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        images = _images(batch, self.key)
        size, _, height, width = images.shape
        padded = torch.nn.functional.pad(images, [self.padding] * 4, value=self.fill)
        top = torch.from_numpy(self._draws.integers(seeds, 2 * self.padding + 1, "top"))
        left = torch.from_numpy(self._draws.integers(seeds, 2 * self.padding + 1, "left"))
        rows = (top[:, None] + torch.arange(height))[:, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, :]
        cut = padded[torch.arange(size)[:, None, None], :, rows, columns]  # (B, H, W, C)
        return {**batch, self.key: cut.permute(0, 3, 1, 2).contiguous()}


class RandomErase:
    """Fills a rectangle with `fill`, with probability p (Zhong et al., "Random erasing data
    augmentation", AAAI 2020).

    Its area is between `smallest` and `largest` of the image's, its sides' ratio between 3/10 and
    10/3; where it does not fit it is cut to the image.
    """

    training_only = True

    def __init__(
        self,
        p: float = 0.5,
        smallest: float = 0.02,
        largest: float = 0.33,
        fill: float = 0,
        key: str = "image",
        salt: int = 0,
    ) -> None:
        if not 0 < smallest <= largest <= 1:
            raise ConfigError(
                f"smallest, largest: {smallest}, {largest}: needed are 0 < smallest <= largest <= "
                "1, as shares of the image."
            )
        self.p = _probability(p)
        self.smallest = smallest
        self.largest = largest
        self.fill = fill
        self.key = key
        self._draws = Draws("RandomErase", salt)

    def __call__(self, batch: Batch, seeds: Seeds) -> Batch:
        images = _images(batch, self.key)
        height, width = images.shape[2:]
        area = (
            (self.smallest + (self.largest - self.smallest) * self._draws.uniform(seeds, "area"))
            * height
            * width
        )
        ratio = np.exp((2 * self._draws.uniform(seeds, "ratio") - 1) * np.log(10 / 3))
        rows = np.clip(np.rint(np.sqrt(area * ratio)), 1, height).astype(np.int64)
        columns = np.clip(np.rint(np.sqrt(area / ratio)), 1, width).astype(np.int64)
        top = (self._draws.uniform(seeds, "top") * (height - rows + 1)).astype(np.int64)
        left = (self._draws.uniform(seeds, "left") * (width - columns + 1)).astype(np.int64)
        wanted = self._draws.uniform(seeds, "whether") < self.p
        inside_rows = _between(top, top + rows, height) & wanted[:, None]
        # (B, H, W)
        inside = torch.from_numpy(
            inside_rows[:, :, None] & _between(left, left + columns, width)[:, None, :]
        )
        return {**batch, self.key: images.masked_fill(inside[:, None], self.fill)}


def _between(begin: Any, end: Any, length: int) -> Any:
    """begin, end: (B,) -> (B, length) bool: which places lie in [begin, end)."""
    places = np.arange(length)
    return (places >= begin[:, None]) & (places < end[:, None])


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ConfigError(f"p: {p} is outside of [0, 1].")
    return p


def _images(batch: Batch, key: str) -> Tensor:
    images = numbers(batch, key)
    if images.dim() != 4:
        raise DataError(
            f"{key}: {tuple(images.shape)} where images (B, C, H, W) are needed. Set the "
            "treatment's key, or leave the treatment out."
        )
    return images

"""Treatments of images (B, C, H, W).

Random ones draw for each sample, apply to the whole batch at once, and are for training only.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError, require_choice
from harness.treatments.draws import Seeds
from harness.treatments.numbers import Form, Plain, Random

Axis = Literal["horizontal", "vertical"]
IMAGES = Form("images (B, C, H, W)", 4, hint="Set the treatment's key, or remove the treatment.")


class Resize(Plain):
    """Resizes to `height` x `width` by antialiased bilinear interpolation (as Pillow's BILINEAR);
    integers are rounded and keep their data type. The aspect ratio is not preserved.
    """

    form = IMAGES

    def __init__(self, height: int, width: int, key: str = "image") -> None:
        super().__init__(key)
        if min(height, width) < 1:
            raise ConfigError(f"height, width: {height}, {width}: each must be at least 1.")
        self.size = (height, width)

    def treat(self, values: Tensor) -> Tensor:
        resized = torch.nn.functional.interpolate(
            values.double(), self.size, mode="bilinear", antialias=True, align_corners=False
        )
        if not values.is_floating_point():
            resized = resized.round()  # a weighted mean never leaves the range of its inputs
        return resized.to(values.dtype)


class RandomFlip(Random):
    """Mirrors an image left to right ("horizontal") or upside down, with probability p."""

    form = IMAGES

    def __init__(
        self, p: float = 0.5, axis: Axis = "horizontal", key: str = "image", salt: int = 0
    ) -> None:
        super().__init__(f"RandomFlip/{axis}", key, salt)
        require_choice("axis", axis, get_args(Axis))
        self.p = _probability(p)
        self._axis = -1 if axis == "horizontal" else -2

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        flipped = torch.from_numpy(self._draws.uniform(seeds) < self.p)
        return torch.where(flipped[:, None, None, None], values.flip(self._axis), values)


class RandomCrop(Random):
    """Pads an image with `padding` pixels of `fill` on all sides, and crops a window of the
    original size at a random position.
    """

    form = IMAGES

    def __init__(self, padding: int, fill: float = 0, key: str = "image", salt: int = 0) -> None:
        super().__init__("RandomCrop", key, salt)
        if padding < 1:
            raise ConfigError(f"padding: {padding}: must be at least 1.")
        self.padding = padding
        self.fill = fill

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        size, _, height, width = values.shape
        padded = torch.nn.functional.pad(values, [self.padding] * 4, value=self.fill)
        top = torch.from_numpy(self._draws.integers(seeds, 2 * self.padding + 1, "top"))
        left = torch.from_numpy(self._draws.integers(seeds, 2 * self.padding + 1, "left"))
        rows = (top[:, None] + torch.arange(height))[:, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, :]
        cut = padded[torch.arange(size)[:, None, None], :, rows, columns]  # (B, H, W, C)
        return cut.permute(0, 3, 1, 2).contiguous()


class RandomErase(Random):
    """Fills a rectangle with `fill`, with probability p (Zhong et al., "Random erasing data
    augmentation", AAAI 2020).

    Its area is a share of the image between `smallest` and `largest`, its aspect ratio between 3/10
    and 10/3; it is clipped to the image.
    """

    form = IMAGES

    def __init__(
        self,
        p: float = 0.5,
        smallest: float = 0.02,
        largest: float = 0.33,
        fill: float = 0,
        key: str = "image",
        salt: int = 0,
    ) -> None:
        super().__init__("RandomErase", key, salt)
        if not 0 < smallest <= largest <= 1:
            raise ConfigError(
                f"smallest, largest: {smallest}, {largest}: required are 0 < smallest <= "
                "largest <= 1, as shares of the image."
            )
        self.p = _probability(p)
        self.smallest = smallest
        self.largest = largest
        self.fill = fill

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        height, width = values.shape[2:]
        drawn = self._draws.uniform(seeds, "area")
        area = (self.smallest + (self.largest - self.smallest) * drawn) * height * width
        ratio = np.exp((2 * self._draws.uniform(seeds, "ratio") - 1) * np.log(10 / 3))
        rows = np.clip(np.rint(np.sqrt(area * ratio)), 1, height).astype(np.int64)
        columns = np.clip(np.rint(np.sqrt(area / ratio)), 1, width).astype(np.int64)
        wanted = self._draws.uniform(seeds, "whether") < self.p
        inside_rows = self._draws.spans(seeds, rows, height, "top") & wanted[:, None]
        inside_columns = self._draws.spans(seeds, columns, width, "left")
        inside = torch.from_numpy(inside_rows[:, :, None] & inside_columns[:, None, :])  # (B, H, W)
        return values.masked_fill(inside[:, None], self.fill)


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ConfigError(f"p: {p}: must be between 0 and 1.")
    return p

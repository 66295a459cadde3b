"""Pictures brought to one size."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import ConfigError, require_choice

Fit = Literal["crop", "pad", "stretch"]


class Fitting:
    """Brings images to `size`: [height, width], by antialiased bilinear interpolation; "crop" cuts
    off what exceeds the wanted shape, equally on both sides, "pad" fills with 0, and
    "stretch" changes the aspect ratio.
    """

    def __init__(self, size: Sequence[int], fit: Fit = "crop") -> None:
        require_choice("fit", fit, get_args(Fit))
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"size: {list(size)}: give [height, width].")
        self.height, self.width = size
        self._fit = fit

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """values: (C, any H, any W) -> (C, height, width), of the same data type."""
        height, width = values.shape[1:]
        if (height, width) == (self.height, self.width):
            return values
        scales = self.height / height, self.width / width
        if self._fit == "stretch":
            return _resize(values, self.height, self.width)
        scale = max(scales) if self._fit == "crop" else min(scales)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        resized = _resize(values, *inner)
        if self._fit == "crop":
            top, left = (inner[0] - self.height) // 2, (inner[1] - self.width) // 2
            cut = resized[:, top : top + self.height, left : left + self.width]
            return np.ascontiguousarray(cut)
        filled = np.zeros((len(values), self.height, self.width), dtype=values.dtype)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        filled[:, top : top + inner[0], left : left + inner[1]] = resized
        return filled


def _resize(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    # Torch interpolates bytes as bytes, in a fraction of the time
    wide = torch.from_numpy(values)[None]
    wide = wide.double() if values.dtype != np.uint8 else wide
    resized = torch.nn.functional.interpolate(
        wide, (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0].numpy()
    # A weighted mean never leaves the range of its inputs
    whole = resized if values.dtype.kind == "f" else np.rint(resized)
    return whole.astype(values.dtype)

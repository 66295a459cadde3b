"""Treatments of waves (B, C, T) and of their spectrograms (B, C, F, T)."""

from dataclasses import replace
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ConfigError
from harness.treatments.draws import Seeds
from harness.treatments.numbers import Form, Plain, Random
from harness.treatments.series import cut

WAVES = Form("waves (B, C, T)", 3, floats=True, shortest=1)


class Resample(Plain):
    """Waves or series (B, C, T) from one sampling rate to another: (B, C, ceil(T x to_hz /
    from_hz)) float32, by an antialiasing polyphase filter (scipy.signal.resample_poly). The
    wave is taken to be zero outside its ends.
    """

    form = WAVES

    def __init__(self, from_hz: int, to_hz: int, key: str = "wave") -> None:
        super().__init__(key)
        if min(from_hz, to_hz) < 1 or from_hz == to_hz:
            raise ConfigError(
                f"from_hz, to_hz: {from_hz}, {to_hz}: give two different rates of at least 1."
            )
        self._up, self._down = to_hz // gcd(from_hz, to_hz), from_hz // gcd(from_hz, to_hz)

    def treat(self, values: Tensor) -> Tensor:
        # Loaded when used
        from scipy.signal import resample_poly  # type: ignore[import-untyped]  # scipy has no stubs

        resampled = resample_poly(values.double().numpy(), self._up, self._down, axis=-1)
        return torch.from_numpy(resampled).float()


class LogMel(Plain):
    """Waves to log mel spectrograms: (B, C, T) -> (B, C, num_mels, 1 + T // hop)
    float32.

    Frames of `window` samples under a Hann window, `hop` apart, centred (the wave is reflected at
    its ends); triangular filters of equal height on the mel scale 2595 log10(1 + f / 700)
    (O'Shaughnessy, "Speech communication", 1987) between `lowest_hz` and `highest_hz`, by default
    half the rate; then ln(power + floor).
    """

    form = WAVES

    def __init__(
        self,
        rate_hz: int,
        num_mels: int = 40,
        window: int = 256,
        hop: int = 80,
        lowest_hz: float = 0.0,
        highest_hz: float | None = None,
        floor: float = 1e-6,
        key: str = "wave",
    ) -> None:
        super().__init__(key)
        highest_hz = rate_hz / 2 if highest_hz is None else highest_hz
        if not (0 <= lowest_hz < highest_hz <= rate_hz / 2):
            raise ConfigError(
                f"lowest_hz, highest_hz: {lowest_hz} to {highest_hz}: required are 0 <= lowest "
                f"< highest <= {rate_hz / 2}."
            )
        if not (0 < hop <= window) or not floor > 0:
            raise ConfigError(
                f"hop, window, floor: {hop}, {window}, {floor}: required are 0 < hop <= window and "
                "floor > 0."
            )
        filters = mel_filters(num_mels, window, rate_hz, lowest_hz, highest_hz)
        if not (filters.sum(axis=1) > 0).all():
            raise ConfigError(
                f"num_mels: {num_mels} bands are too narrow for a window of {window} samples. Set "
                "fewer bands, or a longer window."
            )
        self._hop = hop
        self.form = replace(WAVES, shortest=window // 2 + 1)
        self._floor = floor
        self._window = torch.hann_window(window)
        self._filters = torch.from_numpy(filters.astype(np.float32))

    def treat(self, values: Tensor) -> Tensor:
        # (B x C, bins, frames)
        spectra = torch.stft(
            values.flatten(0, 1),
            len(self._window),
            self._hop,
            window=self._window,
            return_complex=True,
        )
        power = spectra.real.square() + spectra.imag.square()
        mels = torch.log(self._filters @ power + self._floor)
        return mels.view(*values.shape[:2], *mels.shape[1:])


def mel_filters(
    num_mels: int, window: int, rate_hz: int, lowest_hz: float, highest_hz: float
) -> NDArray[np.float64]:
    """(num_mels, window // 2 + 1): triangular filters with corners evenly spaced in mel, each
    from the peak of the previous one to that of the next.
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (lowest_hz, highest_hz))
    corners = 700 * (10 ** (np.linspace(low, high, num_mels + 2) / 2595) - 1)  # in Hz
    bins = np.arange(window // 2 + 1) * rate_hz / window
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return filters


class Gain(Random):
    """Changes the volume by up to `decibels`, by one factor per recording. In training only."""

    form = WAVES

    def __init__(self, decibels: float = 6.0, key: str = "wave", salt: int = 0) -> None:
        super().__init__("Gain", key, salt)
        if not decibels > 0:
            raise ConfigError(f"decibels: {decibels}: must be above 0.")
        self.decibels = decibels

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        factors = 10 ** ((2 * self._draws.uniform(seeds) - 1) * self.decibels / 20)
        return values * torch.from_numpy(factors).float()[:, None, None]


class Shift(Random):
    """Shifts by up to `steps` time steps either way, filling with zeros. In training only."""

    form = WAVES

    def __init__(self, steps: int, key: str = "wave", salt: int = 0) -> None:
        super().__init__("Shift", key, salt)
        if steps < 1:
            raise ConfigError(f"steps: {steps}: must be at least 1.")
        self.steps = steps

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        padded = torch.nn.functional.pad(values, [self.steps, self.steps])
        begins = self._draws.integers(seeds, 2 * self.steps + 1)
        return cut(padded, begins, values.shape[-1])


class SpecMask(Random):
    """Sets bands of a spectrogram (B, C, F, T) and stretches of its time to `fill`. In training
    only.

    `num_bands` of up to `band` rows and `num_stretches` of up to `stretch` columns, at random, of
    any width from 0 (Park et al., "SpecAugment: a simple data augmentation method for automatic
    speech recognition", Interspeech 2019, without time warping).
    """

    form = Form("spectrograms (B, C, F, T)", 4, hint="Put harness.treatments.LogMel before it.")

    def __init__(
        self,
        band: int = 8,
        stretch: int = 16,
        num_bands: int = 1,
        num_stretches: int = 1,
        fill: float = 0,
        key: str = "wave",
        salt: int = 0,
    ) -> None:
        super().__init__("SpecMask", key, salt)
        if min(band, stretch, num_bands, num_stretches) < 0:
            raise ConfigError(
                f"band, stretch, num_bands, num_stretches: {band}, {stretch}, {num_bands}, "
                f"{num_stretches}: none may be negative."
            )
        self._axes = [("band", num_bands, band), ("stretch", num_stretches, stretch)]
        self.fill = fill

    def treat(self, values: Tensor, seeds: Seeds) -> Tensor:
        rows, columns = (
            self._mask(seeds, *axis, length)
            for axis, length in zip(self._axes, values.shape[2:], strict=True)
        )
        hidden = torch.from_numpy(rows[:, :, None] | columns[:, None, :])
        return values.masked_fill(hidden[:, None], self.fill)

    def _mask(
        self, seeds: Seeds, name: str, count: int, widest: int, length: int
    ) -> NDArray[np.bool_]:
        """(B, length): True where masked."""
        hidden = np.zeros((len(seeds), length), dtype=bool)
        for number in map(str, range(count)):
            widths = self._draws.integers(seeds, min(widest, length) + 1, name, number, "width")
            hidden |= self._draws.spans(seeds, widths, length, name, number, "begin")
        return hidden

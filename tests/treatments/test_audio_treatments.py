"""Treatments of sound: the spectrogram against a computation by hand, and what is drawn."""

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.errors import ConfigError, DataError
from harness.treatments.audio import Gain, LogMel, Resample, Shift, SpecMask, mel_filters
from harness.treatments.draws import Seeds

RANDOM = [Gain(12), Shift(30), SpecMask(4, 30, num_bands=2, num_stretches=2, fill=7)]


def seeds_of(count: int, seed: int = 0) -> Seeds:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def values_for(treatment: Any, count: int, seed: int = 0) -> Tensor:
    shape = (count, 2, 12, 80) if isinstance(treatment, SpecMask) else (count, 2, 200)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_log_mel_spectrogram_is_what_its_formula_says() -> None:
    rate, window, hop, num_mels = 8000, 256, 80, 20
    waves = np.random.default_rng(0).normal(size=(3, 2, 2000)).astype(np.float32) * 0.1
    found = LogMel(rate, num_mels, window, hop, lowest_hz=50, highest_hz=3800, floor=1e-5)(
        {"wave": torch.from_numpy(waves), "label": 1}
    )
    assert found["label"] == 1
    assert found["wave"].shape == (3, 2, num_mels, 1 + 2000 // hop)
    assert found["wave"].dtype == torch.float32

    hann = scipy.signal.get_window("hann", window, fftbins=True)
    padded = np.pad(
        waves.astype(np.float64), [(0, 0), (0, 0), (window // 2, window // 2)], mode="reflect"
    )
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 3800 / 700), num_mels + 2)
    corners = 700 * (10 ** (mel / 2595) - 1)
    for frame in (0, 7, 25):
        power = np.abs(np.fft.rfft(padded[..., frame * hop : frame * hop + window] * hann)) ** 2
        for band in (0, 9, 19):
            triangle = np.interp(
                np.arange(window // 2 + 1) * rate / window, corners[band : band + 3], [0, 1, 0]
            )
            assert found["wave"][:, :, band, frame].numpy() == pytest.approx(
                np.log((power * triangle).sum(-1) + 1e-5), rel=1e-4, abs=1e-4
            )


def test_a_tone_is_loudest_in_the_band_that_holds_it() -> None:
    for hertz in (300, 1000, 2500):
        wave = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / 8000)[None, None]
        loudest = LogMel(8000, 30)({"wave": wave})["wave"][0, 0, :, 20].argmax()
        middle = 700 * (
            10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 32)[1:-1] / 2595) - 1
        )
        assert int(loudest) == np.abs(middle - hertz).argmin()


def test_neighbouring_filters_add_up_to_one_between_the_first_and_the_last() -> None:
    filters = mel_filters(10, 1024, 8000, 0, 4000)
    middle = filters.argmax(axis=1)
    assert filters.sum(axis=0)[middle[0] + 1 : middle[-1] - 1] == pytest.approx(1)


@pytest.mark.parametrize("treatment", RANDOM)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_a_sample_is_treated_in_a_batch_as_it_is_alone(
    treatment: Any, count: int, seed: int
) -> None:
    before, seeds = values_for(treatment, count, seed), seeds_of(count, seed)
    kept = before.clone()
    together = treatment({"wave": before}, seeds=seeds)["wave"]
    alone = [
        treatment({"wave": before[index : index + 1]}, seeds=seeds[index : index + 1])["wave"]
        for index in range(count)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(before, kept)


@pytest.mark.parametrize("treatment", RANDOM)
def test_another_seed_treats_otherwise_and_only_in_training(treatment: Any) -> None:
    before = values_for(treatment, 16)
    one, other = (treatment({"wave": before}, seeds=seeds_of(16, seed))["wave"] for seed in (1, 2))
    assert not torch.equal(one, other)
    assert treatment.training_only


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(8000, 4000), (4000, 8000), (11025, 8000), (50, 32)]
)
def test_a_tone_resampled_is_the_tone_at_the_new_rate_and_what_it_cannot_hold_is_gone(
    from_hz: int, to_hz: int
) -> None:
    def tone(hertz: float, rate_hz: int) -> Tensor:
        return torch.sin(
            2 * torch.pi * hertz * torch.arange(20 * from_hz // 8 * rate_hz // from_hz) / rate_hz
        ).expand(2, 3, -1)

    low = 0.1 * min(from_hz, to_hz)
    found = Resample(from_hz, to_hz)({"wave": tone(low, from_hz)})["wave"]
    expected = tone(low, to_hz)
    middle = slice(found.shape[-1] // 4, found.shape[-1] * 3 // 4)  # at the ends silence comes in
    assert found.dtype == torch.float32
    assert abs(found.shape[-1] - expected.shape[-1]) <= 1
    np.testing.assert_allclose(found[..., middle], expected[..., middle], atol=0.01)
    if to_hz < from_hz:
        assert float(
            Resample(from_hz, to_hz)({"wave": tone(0.6 * to_hz, from_hz)})["wave"][..., middle]
            .abs()
            .max()
        ) < (0.15 if to_hz > 0.6 * from_hz else 0.05)


def test_gain_changes_a_recording_by_one_factor_within_its_bounds() -> None:
    before = values_for(None, 500)
    after = Gain(6)({"wave": before}, seeds=seeds_of(500))["wave"]
    decibels = 20 * torch.log10((after / before)[:, 0, 0])
    assert torch.allclose(after, before * 10 ** (decibels / 20)[:, None, None], rtol=1e-4)
    assert float(decibels.min()) == pytest.approx(-6, abs=0.1)
    assert float(decibels.max()) == pytest.approx(6, abs=0.1)


def test_a_shift_moves_all_channels_alike_and_lets_zeros_in() -> None:
    before = torch.zeros(400, 2, 21)
    before[:, :, 10] = 1
    after = Shift(3)({"wave": before}, seeds=seeds_of(400))["wave"]
    places = after.argmax(-1)
    assert torch.equal(places[:, 0], places[:, 1])
    assert set(places[:, 0].tolist()) == set(range(7, 14))
    assert (after.sum(-1) == 1).all()


def test_masks_are_bands_and_stretches_of_every_width_up_to_the_widest() -> None:
    before = torch.ones(600, 1, 12, 40)
    after = SpecMask(band=4, stretch=6, fill=0)({"wave": before}, seeds=seeds_of(600))["wave"][:, 0]
    rows, columns = (after == 0).all(2), (after == 0).all(1)
    assert set(rows.sum(1).tolist()) == set(range(5))
    assert set(columns.sum(1).tolist()) == set(range(7))
    assert torch.equal(after == 0, rows[:, :, None] | columns[:, None, :])
    assert (rows.int().diff(dim=1).abs().sum(1) <= 2).all()  # in one piece
    assert torch.equal(SpecMask(0, 0)({"wave": before}, seeds=seeds_of(600))["wave"], before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogMel(8000, highest_hz=5000), r"^lowest_hz, highest_hz: 0\.0 to 5000"),
        (lambda: LogMel(8000, hop=300), r"^hop, window, floor: 300, 256"),
        (
            lambda: LogMel(8000, num_mels=128, window=128, hop=64),
            r"^num_mels: 128 bands are too narrow for a window of 128",
        ),
        (lambda: Resample(8000, 8000), r"^from_hz, to_hz: 8000, 8000: give two different rates"),
        (lambda: Gain(0), r"^decibels: 0"),
        (lambda: Shift(0), r"^steps: 0"),
        (lambda: SpecMask(band=-1), r"^band, stretch, num_bands, num_stretches: -1"),
    ],
)
def test_a_mistake_in_the_settings_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_no_wave_or_spectrogram_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=(
            r"^wave: \(2, 100\) of torch\.float32 where waves \(B, C, T >= 129\) of floats are "
            r"needed"
        ),
    ):
        LogMel(8000)({"wave": torch.zeros(2, 100)})
    with pytest.raises(
        DataError, match=r"^wave: \(2, 1, 100\) of torch\.float32 where waves \(B, C, T >= 129\)"
    ):
        LogMel(8000)({"wave": torch.zeros(2, 1, 100)})
    with pytest.raises(
        DataError, match=r"^wave: \(2, 1, 100\) of .* where spectrograms \(B, C, F, T\) are needed"
    ):
        SpecMask()({"wave": torch.zeros(2, 1, 100)}, seeds=seeds_of(2))

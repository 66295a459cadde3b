"""Treatments of series and of the columns of tables."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.treatments.draws import Seeds
from harness.treatments.numbers import ToDegrees
from harness.treatments.series import CropTime, DropChannels, RandomCropTime, RandomScale, Window
from harness.treatments.tables import Encode, Impute, Join, OneHot

RANDOM = [RandomScale(0.2), RandomCropTime(20), DropChannels(0.4, fill=9)]


def seeds_of(count: int, seed: int = 0) -> Seeds:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def series(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 30, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("treatment", RANDOM)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_a_sample_is_treated_in_a_batch_as_it_is_alone(
    treatment: Any, count: int, seed: int
) -> None:
    before, seeds = series(count, seed), seeds_of(count, seed)
    kept = before.clone()
    together = treatment({"series": before}, seeds=seeds)["series"]
    alone = [
        treatment({"series": before[index : index + 1]}, seeds=seeds[index : index + 1])["series"]
        for index in range(count)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(before, kept)
    assert treatment.training_only


def test_each_channel_is_scaled_by_a_factor_of_its_own() -> None:
    before = series(500)
    factors = RandomScale(0.2)({"series": before}, seeds=seeds_of(500))["series"] / before
    assert float((factors.amax(-1) - factors.amin(-1)).max()) < 1e-4
    logs = factors[..., 0].log()
    assert float(logs.abs().max()) == pytest.approx(0.2, abs=0.01)
    assert abs(float(torch.corrcoef(logs.T)[0, 1])) < 0.15


def test_a_window_is_cut_from_anywhere_in_training_and_from_the_middle_elsewhere() -> None:
    before = torch.arange(30.0).expand(400, 3, 30)
    cut = RandomCropTime(27)({"series": before}, seeds=seeds_of(400))["series"]
    assert set(cut[:, 0, 0].tolist()) == {0, 1, 2, 3}
    assert (cut.diff() == 1).all()
    assert torch.equal(CropTime(27)({"series": cut})["series"], cut)
    assert CropTime(27)({"series": before})["series"][0, 0].tolist() == list(range(1, 28))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from(["begin", "middle", "end"]),
)
def test_series_of_any_lengths_become_windows_of_one(
    lengths: list[int], length: int, at: Any
) -> None:
    ragged = [torch.arange(1.0, 2 * count + 1).view(2, count).T for count in lengths]  # (T, 2)
    found = Window(length, at, fill=-1)({"series": ragged})["series"]
    assert found.shape == (len(lengths), 2, length)
    for one, window in zip(ragged, found.numpy(), strict=True):
        whole = one.T.numpy()
        surplus = whole.shape[1] - length
        before = {"begin": 0, "middle": abs(surplus) // 2, "end": abs(surplus)}[at]
        around = (
            np.pad(whole, [(0, 0), (before, max(0, -surplus) - before)], constant_values=-1)
            if surplus < 0
            else whole[:, before:][:, :length]
        )
        assert (window == around).all()
    even = torch.stack([ragged[0].T] * 3)
    assert torch.equal(
        Window(length, at, fill=-1)({"series": even})["series"], found[:1].expand(3, -1, -1)
    )
    assert Window(length, at, key="wave")({"wave": [one[:, 0].numpy() for one in ragged]})[
        "wave"
    ].shape == (len(lengths), 1, length)


def test_what_is_no_list_of_series_makes_no_windows() -> None:
    for wrong in (
        ["a", "b"],
        [torch.zeros(3, 2), torch.zeros(3, 1)],
        [torch.zeros(3), torch.zeros(3, 1)],
        [torch.zeros(1, 2, 3)],
    ):
        with pytest.raises(DataError, match=r"^series: arrays \(T, C\), all with the same"):
            Window(4)({"series": wrong})
    with pytest.raises(ConfigError, match=r"^at: 'start' is not one of begin, middle, end"):
        Window(4, "start")  # type: ignore[arg-type]


def test_channels_are_dropped_as_often_as_asked_but_never_all() -> None:
    before = torch.ones(3000, 3, 5)
    dropped = (DropChannels(0.3)({"series": before}, seeds=seeds_of(3000))["series"] == 0).all(-1)
    assert not dropped.all(1).any()
    assert float(dropped.float().mean()) == pytest.approx(0.3 - 0.3**3 / 3, abs=0.02)
    assert not (
        DropChannels(0.9)({"series": before[:, :1]}, seeds=seeds_of(3000))["series"] == 0
    ).any()


def test_categories_become_numbers_in_their_order() -> None:
    assert Encode("c", ["red", 7])({"c": ["7", "red", "7"]})["c"].tolist() == [1, 0, 1]
    assert Encode("c", ["red", 7], others=True)({"c": ["blue", "red"]})["c"].tolist() == [2, 0]
    with pytest.raises(
        DataError,
        match=(
            r"^c: 'blue' is not one of the categories red, 7\. Add it to categories, or set "
            r"others: true"
        ),
    ):
        Encode("c", ["red", 7])({"c": ["red", "blue"]})
    with pytest.raises(DataError, match=r"^Encode needs 'd' as text; samples have c"):
        Encode("d", ["red"])({"c": ["red"]})
    assert Encode("d", ["red"], optional=True)({"c": ["red"]}) == {"c": ["red"]}
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ConfigError, match=r"^categories: "):
            Encode("c", wrong)


def test_numbers_become_rows_with_a_one_in_their_place() -> None:
    found = OneHot("c", 3)({"c": torch.tensor([2, 0])})["c"]
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]
    for wrong in (torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.0])):
        with pytest.raises(DataError, match=r"^c: integers from 0 to 2 are needed"):
            OneHot("c", 3)({"c": wrong})


def test_missing_numbers_are_filled_in_and_marked() -> None:
    batch = {"features": torch.tensor([[1.0, float("nan")], [float("nan"), 4.0]])}
    assert Impute(0)(batch)["features"].tolist() == [[1, 0], [0, 4]]
    assert Impute([5, 6], mark=True)(batch)["features"].tolist() == [[1, 6, 0, 1], [5, 4, 1, 0]]
    with pytest.raises(
        DataError, match=r"^features: \(2, 2\) does not have the 3 channels or columns"
    ):
        Impute([1, 2, 3])(batch)
    with pytest.raises(ConfigError, match=r"^value: nan: must be finite numbers"):
        Impute(float("nan"))


def test_columns_are_joined_in_the_order_given() -> None:
    batch = {
        "features": torch.tensor([[1.0, 2.0]]),
        "n": torch.tensor([3]),
        "label": torch.tensor([0]),
    }
    joined = Join(["n", "features"])(batch)
    assert joined["features"].tolist() == [[3, 1, 2]]
    assert joined.keys() == {"features", "label"}


def test_counts_become_degrees_without_rounding_before() -> None:
    counts = torch.tensor([[[[0, 27315, 65535, 2**24 + 1]]]], dtype=torch.int32)
    found = ToDegrees(0.01, -273.15)({"image": counts})["image"]
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([-273.15, 0, 382.2, 167499.02], abs=1e-2)
    with pytest.raises(ConfigError, match=r"^scale: 0 maps all counts to the same value"):
        ToDegrees(0)


def test_what_is_no_series_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=(
            r"^series: \(2, 3, 5\) of torch\.float32 where series \(B, C, T >= 6\) of floats are "
            r"needed"
        ),
    ):
        CropTime(6)({"series": torch.zeros(2, 3, 5)})
    for make in (
        lambda: RandomScale(0),
        lambda: CropTime(0),
        lambda: RandomCropTime(0),
        lambda: DropChannels(1.0),
    ):
        with pytest.raises(ConfigError, match=r"^(log_range|length|p): "):
            make()

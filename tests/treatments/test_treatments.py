"""Treatments: what they do, and that what is drawn for a sample depends on its seed alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.treatments.draws import Draws, Seeds
from harness.treatments.images import RandomCrop, RandomErase, RandomFlip, Resize
from harness.treatments.numbers import AddNoise, Normalise, ToFloat

RANDOM = [
    RandomFlip(),
    RandomFlip(p=0.3, axis="vertical"),
    RandomCrop(padding=3, fill=7),
    RandomErase(p=0.8, fill=9),
    AddNoise(std=0.5),
]


def seeds_of(count: int, seed: int = 0) -> Seeds:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def images(count: int, seed: int = 0, height: int = 9, width: int = 11) -> Tensor:
    return torch.randn(count, 2, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("treatment", RANDOM)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_sample_is_treated_in_a_batch_as_it_is_alone(
    treatment: Any, count: int, seed: int
) -> None:
    before, seeds = images(count, seed), seeds_of(count, seed)
    together = treatment({"image": before}, seeds=seeds)["image"]
    alone = [
        treatment({"image": before[index : index + 1]}, seeds=seeds[index : index + 1])["image"]
        for index in range(count)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("treatment", RANDOM)
def test_drawing_uses_no_ambient_generator_and_changes_no_input(treatment: Any) -> None:
    before, seeds = images(6), seeds_of(6)
    kept = before.clone()
    ambient = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[index]
    first = treatment({"image": before}, seeds=seeds)["image"]
    assert torch.equal(torch.get_rng_state(), ambient[0])
    assert np.random.get_state()[1].tobytes() == ambient[1]  # type: ignore[index]
    assert torch.equal(treatment({"image": before}, seeds=seeds)["image"], first)
    assert torch.equal(before, kept)
    assert treatment.training_only


@pytest.mark.parametrize("treatment", RANDOM)
def test_another_seed_treats_otherwise(treatment: Any) -> None:
    before = images(32)
    assert not torch.equal(
        treatment({"image": before}, seeds=seeds_of(32, 1))["image"],
        treatment({"image": before}, seeds=seeds_of(32, 2))["image"],
    )


def test_an_image_and_its_mask_stay_together_and_another_salt_parts_them() -> None:
    before, seeds = images(64), seeds_of(64)
    batch = {"image": before, "mask": before}
    moved = RandomCrop(2, key="mask")(RandomCrop(2)(batch, seeds=seeds), seeds=seeds)
    assert torch.equal(moved["image"], moved["mask"])
    parted = RandomCrop(2, key="mask", salt=1)(RandomCrop(2)(batch, seeds=seeds), seeds=seeds)
    assert not torch.equal(parted["image"], parted["mask"])


def test_draws_are_even_and_independent_of_each_other() -> None:
    seeds = np.arange(50_000, dtype=np.uint64)
    draws = Draws("Test", 0)
    a, b, c = (
        draws.uniform(seeds, "a"),
        draws.uniform(seeds, "b"),
        Draws("Test", 1).uniform(seeds, "a"),
    )
    for values in (a, b, c):
        assert values.min() >= 0
        assert values.max() < 1
        assert np.histogram(values, 10, (0, 1))[0] == pytest.approx(5000, abs=350)
    for one, other in ((a, b), (a, c), (a[1:], a[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert np.bincount(draws.integers(seeds, 5, "n"), minlength=5) == pytest.approx(10_000, abs=500)


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    before = images(400)
    for axis, dim in (("horizontal", 3), ("vertical", 2)):
        after = RandomFlip(axis=axis)({"image": before}, seeds=seeds_of(400))["image"]  # type: ignore[arg-type]
        flipped = (after == before.flip(dim)).flatten(1).all(1)
        assert torch.equal(after[~flipped], before[~flipped])
        assert 150 < int(flipped.sum()) < 250


def test_a_crop_moves_an_image_by_up_to_the_padding_in_each_direction() -> None:
    before = torch.zeros(500, 1, 7, 7, dtype=torch.uint8)
    before[:, :, 3, 3] = 1
    after = RandomCrop(2, fill=5)({"image": before}, seeds=seeds_of(500))["image"]
    assert after.dtype == torch.uint8
    assert after.is_contiguous()
    places = (after == 1).nonzero()[:, 2:]
    assert len(places) == 500
    assert {tuple(place) for place in places.tolist()} == {
        (row, column) for row in range(1, 6) for column in range(1, 6)
    }
    assert ((after == 5).sum((1, 2, 3)) == 49 - (7 - (places - 3).abs()).prod(1)).all()


def test_an_erased_rectangle_has_the_area_asked_for() -> None:
    before = torch.ones(500, 3, 32, 32)
    after = RandomErase(p=0.5, smallest=0.1, largest=0.2)({"image": before}, seeds=seeds_of(500))[
        "image"
    ]
    gone = after == 0
    assert torch.equal(gone[:, 0], gone[:, 2])
    shares = gone[:, 0].float().mean((1, 2))
    assert 200 < int((shares > 0).sum()) < 300
    assert float(shares.max()) < 0.23
    assert float(shares[shares > 0].min()) > 0.08
    rows, columns = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, gone[:, 0].sum((1, 2)))  # rectangles


def test_noise_has_the_deviation_asked_for() -> None:
    noise = AddNoise(std=0.5)({"image": torch.zeros(100, 1, 20, 20)}, seeds=seeds_of(100))["image"]
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(4, 5), (9, 3), (23, 30), (1, 1)])
def test_resizing_is_what_pillow_does_and_keeps_every_kind_of_number(
    height: int, width: int
) -> None:
    floats = images(3, height=9, width=11)
    found = Resize(height, width)({"image": floats})["image"]
    assert found.shape == (3, 2, height, width)
    for one, other in zip(floats.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = np.asarray(
            Image.fromarray(one.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        )
        np.testing.assert_allclose(other.numpy(), expected, rtol=1e-5, atol=1e-5)
    counts = torch.randint(
        0, 2**16, (2, 1, 9, 11), dtype=torch.int32, generator=torch.Generator().manual_seed(0)
    )
    resized = Resize(height, width)({"image": counts})["image"]
    assert resized.dtype == torch.int32
    assert torch.equal(
        resized, Resize(height, width)({"image": counts.double()})["image"].round().int()
    )
    full = torch.full((1, 3, 9, 11), 255, dtype=torch.uint8)
    assert torch.equal(
        Resize(height, width)({"image": full})["image"],
        torch.full((1, 3, height, width), 255, dtype=torch.uint8),
    )
    with pytest.raises(ConfigError, match=r"^height, width: 0, 3"):
        Resize(0, 3)


def test_integers_become_floats_and_floats_are_normalised() -> None:
    batch = {
        "image": torch.arange(12, dtype=torch.uint8).view(2, 2, 3),
        "label": torch.tensor([1, 2]),
    }
    scaled = ToFloat(scale=0.5)(batch)
    assert scaled["image"].dtype == torch.float32
    assert scaled["image"].flatten().tolist() == [value / 2 for value in range(12)]
    assert scaled["label"] is batch["label"]
    assert batch["image"].dtype == torch.uint8
    floats = {"image": torch.ones(2, 2, 3)}
    assert ToFloat()(floats)["image"].mean() == pytest.approx(1 / 255)
    assert floats["image"].mean() == 1  # what the source gave is not changed
    assert (
        Normalise(mean=1, std=2)({"image": torch.full((2, 3), 5)})["image"].tolist()
        == [[2.0] * 3] * 2
    )
    by_channel = Normalise(mean=[0, 1], std=[1, 2])({"image": torch.ones(2, 2, 3)})["image"]
    assert by_channel[0].tolist() == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(
    ("treatment", "batch", "message"),
    [
        (
            ToFloat(key="pixels"),
            {"image": torch.zeros(2)},
            r"a treatment needs 'pixels' as a numeric array; samples have image\. Set its key",
        ),
        (ToFloat(), {"image": ["a", "b"]}, r"a treatment needs 'image' as a numeric array"),
        (
            Normalise([0, 0, 0], [1, 1, 1]),
            {"image": torch.zeros(2, 1, 4, 4)},
            r"image: \(2, 1, 4, 4\) does not have the 3 channels",
        ),
        (
            RandomFlip(),
            {"image": torch.zeros(2, 4, 4)},
            r"image: \(2, 4, 4\) of torch\.float32 where images \(B, C, H, W\) are needed",
        ),
        (
            AddNoise(1),
            {"image": torch.zeros(2, 4, dtype=torch.uint8)},
            r"image: .* of torch\.uint8 where numbers .* of floats are needed\. Put",
        ),
    ],
)
def test_a_batch_that_does_not_suit_a_treatment_is_refused(
    treatment: Any, batch: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        treatment(batch, **({"seeds": seeds_of(2)} if hasattr(treatment, "training_only") else {}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFlip(p=1.5), r"^p: 1\.5: must be between 0 and 1"),
        (lambda: RandomFlip(axis="left"), r"^axis: 'left' is neither horizontal nor vertical"),  # type: ignore[arg-type]
        (lambda: RandomCrop(0), r"^padding: 0: must be at least 1"),
        (lambda: RandomErase(smallest=0.5, largest=0.2), r"^smallest, largest: 0\.5, 0\.2"),
        (lambda: AddNoise(-1), r"^std: -1: must not be negative"),
        (lambda: Normalise(0, 0), r"^std: 0: every value must be above 0"),
        (lambda: Normalise([0, 0], [1, 1, 1]), r"^mean, std: 2 and 3 values"),
    ],
)
def test_a_mistake_in_a_treatments_settings_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_evaluation_is_not_augmented() -> None:
    class Ones:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": np.full((1, 6, 6), 255, dtype=np.uint8)}

    split = Split(
        Ones(),
        [RandomCrop(2), RandomErase(p=1.0), ToFloat(), AddNoise(1.0)],
        "data.train",
        lambda batch: None,
    )
    rows = np.arange(8, dtype=np.int64)
    assert (split.fetch(rows, seeds_of(8), 0, training=False)["image"] == 1).all()
    assert (split.fetch(rows, seeds_of(8), 0, training=True)["image"] != 1).any()

"""Samples of two splits that are nearly the same: copies that were saved anew, louder, rounded."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.checks import near
from harness.checks.check import check_data
from harness.checks.report import Report
from harness.data.split import Split
from tests.checks.planted import Rows, config_of

Image = pytest.importorskip("PIL.Image")
imagehash = pytest.importorskip("imagehash")


def checked(directory: Path, splits: dict[str, dict[str, Any]], **settings: Any) -> Report:
    others = {"constant": "off", "clipped": "off", "missing_classes": "off", "drift": "off"}
    config = config_of(directory, list(splits), **others | settings)
    sources = {
        name: Split(Rows(columns), (), f"data.{name}", lambda batch: None)
        for name, columns in splits.items()
    }
    return check_data(config.data, config.task, {}, sources, thorough=True)


def near_pairs(report: Report) -> list[str]:
    return [
        example
        for one in report.findings
        if one.check == "near_duplicates"
        for example in one.examples
    ]


def labelled(values: Any) -> dict[str, Any]:
    return {"x": values, "label": np.arange(len(values)) % 3}


def photos(count: int, seed: int) -> NDArray[np.uint8]:
    """(count, 3, 48, 48): blurred noise, which has structure at all scales."""
    draw = np.random.default_rng(seed)
    found = np.zeros((count, 48, 48, 3))
    for size in (3, 6, 12, 24):
        coarse = draw.integers(0, 255, (count, size, size, 3)).astype(np.uint8)
        found += [np.asarray(Image.fromarray(one).resize((48, 48))) for one in coarse]
    return (found / 4).astype(np.uint8).transpose(0, 3, 1, 2)


def saved(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def test_copies_of_photos_that_were_changed_are_found_and_no_others(tmp_path: Path) -> None:
    train, val = photos(60, 1), photos(20, 2)
    val[3] = saved(train[7], 80)
    val[4] = np.clip(train[8] * 0.9 + 8.0, 0, 255).astype(np.uint8)
    small = Image.fromarray(train[9].transpose(1, 2, 0)).resize((32, 32)).resize((48, 48))
    val[5] = np.asarray(small).transpose(2, 0, 1)
    val[6] = train[10]  # the same: a duplicate
    splits = {"train": labelled(train), "val": labelled(val)}
    report = checked(tmp_path, splits)
    expected = [f"data.val {at} ~ data.train {of}" for at, of in ((3, 7), (4, 8), (5, 9))]
    assert near_pairs(report) == expected
    (finding,) = [one for one in report.findings if one.check == "near_duplicates"]
    assert (finding.level, finding.count) == ("warn", 3)
    assert finding.pairs[0] == ("val", 3, "train", 7)
    assert "3 of 20 samples (15.0%) are nearly the same" in finding.message
    assert not near_pairs(checked(tmp_path, splits, near_duplicates="off"))


def test_flat_pictures_are_no_copies_of_each_other(tmp_path: Path) -> None:
    """Their hash is that of noise: JohannesBuchner/imagehash, issue 150, and
    d4rken-org/sdmaid-se, pull request 2335.
    """
    draw = np.random.default_rng(3)
    dark = draw.integers(0, 3, (40, 1, 32, 32), dtype=np.uint8)
    splits = {"train": labelled(dark[:20]), "val": labelled(dark[20:])}
    assert not near_pairs(checked(tmp_path, splits))


def test_the_search_finds_what_comparing_all_pairs_finds() -> None:
    draw = np.random.default_rng(4)
    one = draw.integers(0, 2**63, (300, 4), dtype=np.uint64)
    other = draw.integers(0, 2**63, (200, 4), dtype=np.uint64)
    for at, flips in enumerate(range(100)):
        bits = np.unpackbits(one[at].view(np.uint8))
        bits[draw.choice(256, flips % 24, replace=False)] ^= 1
        other[at] = np.packbits(bits).view(np.uint64)
    as_hash = [
        [imagehash.ImageHash(np.unpackbits(row.view(np.uint8)).reshape(16, 16)) for row in of]
        for of in (one, other)
    ]
    expected = {
        (a, b)
        for a, mine in enumerate(as_hash[0])
        for b, theirs in enumerate(as_hash[1])
        if mine - theirs <= near.MOST_BITS
    }
    pairs, ended = near._alike(one, other)
    assert ({*map(tuple, pairs.tolist())}, ended) == (expected, False)
    assert len(expected) > 60


def test_a_search_among_too_many_alike_is_ended_and_says_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "_PAIRS", 100)
    monkeypatch.setattr(near, "_AT_ONCE", 10)
    noise = np.random.default_rng(5).integers(0, 2, (60, 3, 48, 48))
    alike = np.clip(photos(1, 6).repeat(60, 0) + noise, 0, 255).astype(np.uint8)
    splits = {"train": labelled(alike[:30]), "val": labelled(alike[30:])}
    (finding,) = [
        one for one in checked(tmp_path, splits).findings if one.check == "near_duplicates"
    ]
    assert "data.val: at least " in finding.message


def test_sound_that_is_louder_or_has_noise_is_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    time = np.arange(8000) / 8000

    def chirps(count: int) -> NDArray[np.float32]:
        begin, end = draw.uniform(100, 3500, (2, count, 3, 1))
        waves = np.sin(2 * np.pi * (begin + (end - begin) * time / 2) * time)
        return (waves.sum(1, keepdims=True) / 4).astype(np.float32)

    train, val = chirps(40), chirps(12)
    val[2] = 0.4 * train[5]
    val[3] = train[6] + draw.normal(0, 0.01, 8000).astype(np.float32)
    report = checked(tmp_path, {"train": labelled(train), "val": labelled(val)})
    pairs = [f"data.val {at} ~ data.train {of}" for at, of in ((2, 5), (3, 6))]
    assert near_pairs(report) == pairs


def test_rows_that_were_written_with_fewer_digits_are_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(8)
    train, val = draw.normal(5, 2, (500, 8)), draw.normal(5, 2, (200, 8))
    val[10:60] = train[30:80].round(5)
    splits = {"train": labelled(train), "val": labelled(val)}
    (finding,) = checked(tmp_path, splits).findings
    assert (finding.check, finding.count) == ("near_duplicates", 50)


def test_rows_of_few_columns_that_agree_by_chance_are_not_called_copies(tmp_path: Path) -> None:
    draw = np.random.default_rng(9)
    splits = {
        name: labelled(draw.normal(size=(count, 2)).astype(np.float32))
        for name, count in (("train", 3000), ("val", 1000))
    }
    report = checked(tmp_path, splits)
    assert not report.findings
    assert any("are expected to agree by chance" in note for note in report.notes)


def test_texts_that_differ_in_case_and_punctuation_are_found(tmp_path: Path) -> None:
    words = np.random.default_rng(10).integers(0, 1000, (80, 8))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    train, val = texts[:60], texts[60:]
    val[4] = train[9].upper().replace(" ", ",  ") + "!"
    report = checked(tmp_path, {"train": labelled(train), "val": labelled(val)})
    assert near_pairs(report) == ["data.val 4 ~ data.train 9"]


def test_what_cannot_be_compared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = np.random.default_rng(11).integers(0, 255, (12, 3, 4, 8, 8), dtype=np.uint8)
    monkeypatch.setattr(near, "find_spec", lambda name: None)
    report = checked(tmp_path, {"train": labelled(photos(9, 1)), "val": labelled(photos(9, 2))})
    assert "pip install 'fermarsi[images]'" in report.notes[0]
    ragged = [np.zeros((2, size), np.float32) for size in (3, 4, 5)]
    report = checked(tmp_path, {"train": {"x": ragged, "label": np.arange(3)}})
    assert "samples are neither images, sound, numbers nor texts" in report.notes[0]
    assert not near_pairs(checked(tmp_path, {"train": labelled(clips), "val": labelled(clips[:3])}))


def test_samples_of_several_shapes_and_with_infinite_numbers_do_no_harm(tmp_path: Path) -> None:
    draw = np.random.default_rng(12)
    x = draw.normal(size=(30, 5))
    x[3, 2], x[4, 1] = np.inf, 1e300
    splits = {"train": labelled(x), "val": labelled(draw.normal(size=(9, 4)))}
    report = checked(tmp_path, splits, drift="warn", not_finite="off")
    assert [one.check for one in report.findings] == []
    mixed = [*photos(3, 1), *photos(3, 2)[:, :, :4]]
    report = checked(tmp_path, {"train": labelled(photos(9, 1)), "val": labelled(mixed)})
    assert "samples are neither images" in report.notes[0]

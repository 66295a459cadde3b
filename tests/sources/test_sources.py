"""Sources: what they give, how they split, what they say of files that are no good."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.sources.digits import Digits
from harness.sources.idx import Idx, read_idx
from harness.sources.order import position_in_class
from harness.sources.text import Bytes

FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(array: NDArray[Any]) -> bytes:
    code = {
        "uint8": 0x08,
        "int8": 0x09,
        "int16": 0x0B,
        "int32": 0x0C,
        "float32": 0x0D,
        "float64": 0x0E,
    }[array.dtype.name]
    return (
        bytes([0, 0, code, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write(path: Path, array: NDArray[Any]) -> str:
    path.write_bytes(gzip.compress(idx_bytes(array)) if path.suffix == ".gz" else idx_bytes(array))
    return str(path)


@given(st.lists(st.integers(0, 5)))
def test_places_count_those_of_the_same_class_before(labels: list[int]) -> None:
    assert position_in_class(np.array(labels, dtype=np.int64)).tolist() == [
        labels[:index].count(label) for index, label in enumerate(labels)
    ]


def test_the_digits_are_split_without_overlap_and_alike() -> None:
    splits = {split: Digits(split) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in splits.items()} == {
        "train": 1085,
        "val": 357,
        "test": 355,
    }
    whole = {name: source.__getitems__(list(range(len(source)))) for name, source in splits.items()}
    # No digit twice in the data, hence none in two splits
    assert len({image.tobytes() for one in whole.values() for image in one["image"]}) == 1797
    for one in whole.values():
        assert one["image"].dtype == np.float32
        assert one["image"].shape[1:] == (1, 8, 8)
        assert (one["image"].min(), one["image"].max()) == (0, 1)
        counts = np.bincount(one["label"], minlength=10)
        assert counts == pytest.approx(len(one["label"]) / 10, rel=0.06)


def test_digits_read_whole_are_those_read_one_by_one() -> None:
    source = Digits("val")
    rows = [5, 3, 5, 356]
    together = source.__getitems__(rows)
    assert all(
        (source[row]["image"] == image).all()
        for row, image in zip(rows, together["image"], strict=True)
    )
    assert [source[row]["label"] for row in rows] == together["label"].tolist()


def test_another_split_of_the_digits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^split: 'valid' is not one of train, val, test"):
        Digits("valid")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["a.idx", "a.gz"])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 3, 4, 5), (0, 2)])
def test_an_idx_file_gives_the_array_that_was_written(
    tmp_path: Path, dtype: str, name: str, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    found = read_idx(Path(write(tmp_path / name, array)))
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert np.array_equal(found, array)


def test_images_get_a_channel_axis_and_keep_their_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1, 1, 0], dtype=np.uint8)
    source = Idx(write(tmp_path / "images", images), write(tmp_path / "labels.gz", labels))
    batch = source.__getitems__([4, 0])
    assert (batch["image"] == images[[4, 0], None]).all()
    assert batch["image"].dtype == np.uint8
    assert batch["image"].flags.writeable
    assert batch["label"].tolist() == [1, 0]
    assert (source[4]["image"] == images[4, None]).all()
    assert source[4]["label"] == 1
    assert Idx(str(tmp_path / "images")).__getitems__([1]).keys() == {"image"}


def test_every_kth_sample_of_each_class_is_held_out(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100).astype(np.uint8)
    images = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    paths = write(tmp_path / "images", images), write(tmp_path / "labels", labels)
    parts = {part: Idx(*paths, part=part, val_every=4) for part in ("train", "val", "all")}
    rows = {
        name: source.__getitems__(list(range(len(source))))["image"][:, 0, 0, 0].tolist()
        for name, source in parts.items()
    }
    assert sorted(rows["train"] + rows["val"]) == rows["all"] == list(range(100))
    for label in range(3):
        assert [row for row in rows["val"] if labels[row] == label] == np.flatnonzero(
            labels == label
        )[3::4].tolist()


def image_file(directory: Path) -> str:
    return write(directory / "images", np.zeros((4, 2, 2), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read"),
        (b"PK\x03\x04 and so on", r"begins with 50 4b 03 04, so it is not an idx file"),
        (b"\0\0\x07\x01\0\0\0\x01a", r"begins with 00 00 07 01, so it is not an idx file"),
        (
            idx_bytes(np.zeros((4, 2, 2), dtype=np.uint8))[:-1],
            r"31 bytes, which do not match the array \(4, 2, 2\) of uint8 .* Download it again",
        ),
        (
            idx_bytes(np.zeros(3, dtype=np.int32)) + b"x",
            r"21 bytes, which do not match the array \(3,\) of int32",
        ),
        (b"\0\0\x08\x03\0\0", r"6 bytes, which do not match the array \(\) of uint8"),
        (
            gzip.compress(idx_bytes(np.zeros(300, dtype=np.uint8)), mtime=0)[:-9],
            r"cannot be read: .* It may be truncated: download it again",
        ),
        (b"\x1f\x8bgarbage", r"cannot be read"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: {message}"):
        Idx(str(path))


def test_a_missing_file_is_named_with_the_package_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=rf"{tmp_path}/a: no such file \(looked in {tmp_path}\)\. "
        "Give the path of an idx file",
    ):
        Idx(str(tmp_path / "a"))
    with pytest.raises(
        DataError,
        match=r"no such file .* available as a package: apt-get install dataset-fashion-mnist",
    ):
        Idx(str(FASHION / "no-such-file"))


def test_labels_that_are_not_the_images_are_refused(tmp_path: Path) -> None:
    images = image_file(tmp_path)
    for labels in (
        np.zeros(3, dtype=np.uint8),
        np.zeros((4, 1), dtype=np.uint8),
        np.zeros(4, dtype=np.float32),
    ):
        with pytest.raises(
            DataError, match=r"labels: .* expected 4 labels for .* Give the labels of these images"
        ):
            Idx(images, write(tmp_path / "labels", labels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "test"}, r"^part: 'test' is not one of all, train, val"),
        ({"part": "val"}, r"^part: 'val' holds out samples of each class\. Give labels too"),
        ({"val_every": 1}, r"^val_every: 1: at most every second sample"),
    ],
)
def test_a_mistake_in_an_idx_sources_settings_is_named(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Idx(image_file(tmp_path), **settings)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_what_it_says() -> None:
    images, labels = (
        [str(FASHION / f"{part}-{kind}-ubyte.gz") for part in ("train", "t10k")]
        for kind in ("images-idx3", "labels-idx1")
    )
    test = Idx(images[1], labels[1])
    assert len(test) == 10_000
    assert test[0]["image"].shape == (1, 28, 28)
    assert np.bincount(test.__getitems__(list(range(10_000)))["label"]).tolist() == [1000] * 10
    assert [len(Idx(images[0], labels[0], part=part)) for part in ("train", "val")] == [
        54_000,
        6_000,
    ]


# -- text


@given(st.binary(min_size=2, max_size=60), st.integers(1, 20))
@example(b"version https://git-lfs is what pointers begin with", 3)
def test_each_byte_is_predicted_once(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text)
    if len(text) <= length:
        with pytest.raises(DataError, match=rf"{len(text)} bytes; a window needs {length + 1}"):
            Bytes(str(path), length)
        return
    source = Bytes(str(path), length)
    windows = source.__getitems__(list(range(len(source))))["tokens"]
    assert windows.dtype == np.int64
    assert bytes(windows[:, 1:].flatten().tolist()) == text[1 : 1 + len(source) * length]
    assert len(text) - 1 - len(source) * length < length
    parts = [Bytes(str(path), length, part=part, held_out=0.3) for part in ("train", "val")]
    assert [
        sample["tokens"].tolist()
        for part in parts
        for sample in (part[row] for row in range(len(part)))
    ] == windows.tolist()


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in (("b.txt", b"bbbbbb"), ("a.txt", b"aaaa")):
        (tmp_path / name).write_bytes(text)
    source = Bytes(str(tmp_path / "*.txt"), 3)
    assert [bytes(source[row]["tokens"].tolist()) for row in range(len(source))] == [
        b"aaaa",
        b"bbbb",
    ]
    assert len(Bytes([str(tmp_path / "b.txt"), str(tmp_path / "a.txt")], 1, part="val")) == 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"files": "/nowhere/a.txt"},
            DataError,
            r"/nowhere/a\.txt: no such file \(looked in /nowhere\)",
        ),
        ({"length": 0}, ConfigError, r"^length: 0: must be at least 1 \(bytes"),
        ({"part": "test"}, ConfigError, r"^part: 'test' is not one of"),
        ({"held_out": 1.0}, ConfigError, r"^held_out: 1\.0: must be between 0 and 1"),
    ],
)
def test_a_mistake_in_a_text_sources_settings_is_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Bytes(**{"files": __file__, "length": 8, **settings})

"""Image files, and that the counts in them survive."""

import gzip
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.sources.images import Images
from harness.sources.split import ByValue, Stratified
from harness.treatments.numbers import ToDegrees
from tests.sources.make_thermal import FASHION, centikelvin, make


def save(path: Path, counts: NDArray[Any], **settings: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(counts).save(path, **settings)
    return str(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    counts=st.lists(st.integers(0, 65535), min_size=6, max_size=6),
    ending=st.sampled_from([".png", ".tiff", "lzw.tiff"]),
)
def test_every_count_of_sixteen_bits_survives(
    tmp_path: Path, counts: list[int], ending: str
) -> None:
    frame = np.array(counts, dtype=np.uint16).reshape(2, 3)
    source = Images(
        save(
            tmp_path / f"a{ending}",
            frame,
            **({"compression": "tiff_lzw"} if "lzw" in ending else {}),
        )
    )
    image = source[0]["image"]
    assert image.dtype == np.int32
    assert image.tolist() == [frame.tolist()]


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_counts_above_255_and_above_32767_reach_the_network_as_degrees(
    tmp_path: Path, ending: str
) -> None:
    frame = np.array([[0, 255, 256, 27315], [32767, 32768, 40000, 65535]], dtype=np.uint16)
    split = Split(
        Images(save(tmp_path / f"a{ending}", frame)),
        [ToDegrees(0.01, -273.15)],
        "data.train",
        lambda batch: None,
    )
    found = split.fetch(np.array([0]), np.array([0], dtype=np.uint64), 0, training=True)["image"]
    assert found.shape == (1, 1, 2, 4)
    assert found.numpy()[0, 0] == pytest.approx(frame * 0.01 - 273.15, abs=1e-4)
    assert len(set(found.flatten().tolist())) == 8


def test_a_big_endian_tiff_gives_the_same_counts(tmp_path: Path) -> None:
    counts = np.array([[1, 40000]], dtype=">u2")
    tags = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 1),
        (279, 4, 4),
    ]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    (tmp_path / "b.tiff").write_bytes(
        b"MM\0*"
        + struct.pack(">I", 12)
        + counts.tobytes()
        + struct.pack(">H", len(tags))
        + entries
        + bytes(4)
    )
    save(tmp_path / "a.tiff", counts.astype(np.uint16))
    assert (
        Images(str(tmp_path / "?.tiff")).__getitems__([0, 1])["image"].tolist()
        == [[[[1, 40000]]]] * 2
    )


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.float32)]
)
def test_images_of_every_kind_are_kept_as_they_are(
    tmp_path: Path, channels: int, dtype: Any, keep: Any
) -> None:
    draw = np.random.default_rng(0)
    frames = [(255 * draw.random((3, 5, channels))).astype(dtype) for _ in range(4)]
    for number, frame in enumerate(frames):
        save(
            tmp_path / "ab"[number % 2] / f"{number}.tiff",
            frame[..., 0] if channels == 1 else frame,
        )
    source = Images(str(tmp_path / "{label}/*.tiff"), keep=keep)
    batch = source.__getitems__([0, 1, 2, 3])
    assert batch["image"].shape == (4, channels, 3, 5)
    assert batch["image"].dtype == dtype
    assert batch["label"].tolist() == [0, 0, 1, 1]
    for image, number in zip(batch["image"], (0, 2, 1, 3), strict=True):
        assert (image == frames[number].transpose(2, 0, 1)).all()
    assert (source[2]["image"] == batch["image"][2]).all()


def png_of_sixteen_bits_in_colour() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" + bytes(6)))
        + chunk(b"IEND", b"")
    )


def test_what_would_be_rounded_without_a_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of_sixteen_bits_in_colour())
    with pytest.raises(
        DataError,
        match=rf"^{tmp_path}/a\.png: 16 bits in colour, which Pillow would round to 8\. Save it as",
    ):
        Images(str(tmp_path / "a.png"))
    Image.new("P", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: an image of mode P\. Save it as"):
        Images(str(tmp_path / "b.png"))
    pages = [Image.new("L", (2, 2)) for _ in range(3)]
    pages[0].save(tmp_path / "c.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"c\.tiff: 3 pages or frames\. Give one image per file"):
        Images(str(tmp_path / "c.tiff"))


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(
    ("other", "what"),
    [
        (np.zeros((4, 5), np.uint8), "5 x 4 L, but"),
        (np.zeros((3, 5, 3), np.uint8), "5 x 3 RGB, but"),
        (np.zeros((3, 5), np.uint16), "5 x 3 I;16, but"),
    ],
)
def test_images_that_are_not_alike_are_refused_with_both_named(
    tmp_path: Path, other: NDArray[Any], what: str, keep: Any
) -> None:
    first, second = (
        save(tmp_path / "1.png", np.zeros((3, 5), np.uint8)),
        save(tmp_path / "2.png", other),
    )
    with pytest.raises(
        DataError,
        match=rf"^{second}: {what} {first} has 5 x 3 L\. All images must have one size and mode",
    ):
        Images(str(tmp_path / "*.png"), keep=keep)


def test_a_corrupt_image_among_many_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(6):
        save(tmp_path / f"{number}.png", draw.integers(0, 65536, (20, 20)).astype(np.uint16))
    bad = tmp_path / "0.png"  # the first: the others are not measured by it
    whole = bad.read_bytes()
    for content, what in (
        (whole[: len(whole) // 2], "cannot be decoded"),
        (b"", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
    ):
        bad.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"^{bad}: {what}: .* Or skip such files with on_error: skip"
        ):
            Images(str(tmp_path / "*.png"))
        with pytest.warns(UserWarning, match=rf"^1 of 6 files skipped: {bad}: {what}"):
            source = Images(str(tmp_path / "*.png"), on_error="skip")
        assert len(source) == 5
        assert len(source.skipped) == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz"])
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_table_lists_the_images_and_says_what_they_show(
    tmp_path: Path, ending: str, keep: Any
) -> None:
    rows = [
        {
            "file_name": f"p/{n}.png",
            "label": "ba"[n % 2],
            "degrees": 20.5 + n,
            "count": 7 * n,
            "site": f"s{n // 2}",
        }
        for n in range(4)
    ]
    for number in range(5):
        # 4.png is not listed
        save(tmp_path / "p" / f"{number}.png", np.full((2, 2), number, np.uint8))
    text = (
        "\n".join(map(json.dumps, rows))
        if ending == "jsonl"
        else "\n".join(",".join(map(str, row)) for row in (rows[0], *(r.values() for r in rows)))
    )
    table = tmp_path / f"metadata.{ending}"
    table.write_bytes(gzip.compress(text.encode()) if ending == "csv.gz" else text.encode())
    source = Images(
        str(table), columns={"degrees": "number", "count": "integer", "site": "text"}, keep=keep
    )
    batch = source.__getitems__([3, 0])
    assert batch["image"][:, 0, 0, 0].tolist() == [3, 0]
    assert (batch["label"].tolist(), source.classes) == ([0, 1], ["a", "b"])
    assert (batch["degrees"].dtype, batch["degrees"].tolist()) == (np.float32, [23.5, 20.5])
    assert (batch["count"].dtype, batch["count"].tolist()) == (np.int64, [21, 0])
    assert batch["site"] == ["s1", "s0"]
    assert source.paths() == [table, *(tmp_path / "p" / f"{number}.png" for number in range(4))]
    assert source.known()["site"] == ["s0", "s0", "s1", "s1"]
    by_site: Any = ByValue("site", test=["s1"])
    assert len(Images(str(table), part="test", split=by_site, keep=keep)) == 2
    (tmp_path / "p" / "2.png").unlink()
    with pytest.raises(
        DataError,
        match=rf"^{tmp_path}/p/2\.png: there is no such file\."
        r".* Or skip such files with on_error: skip",
    ):
        Images(str(table), keep=keep)


def test_what_a_table_says_has_to_be_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    for number in range(2):
        save(tmp_path / f"{number}.png", np.zeros((2, 2), np.uint8))

    def refused(text: str, what: str, **settings: Any) -> None:
        table.write_text(text)
        with pytest.raises((DataError, ConfigError), match=what):
            Images(str(table), **settings)

    refused(
        "file_name,age\n0.png,3\n1.png,old\n",
        r"1\.png: its 'age' is 'old', not a number",
        columns={"age": "number"},
    )
    refused(
        "file_name,age\n0.png,3\n1.png,3.5\n",
        r"1\.png: its 'age' is '3\.5', not a number",
        columns={"age": "integer"},
    )
    refused(
        "file_name,age\n0.png,3\n1.png,\n",
        r"1\.png: its 'age' is '', not a number",
        columns={"age": "number"},
    )
    refused(
        "file_name,age\n0.png,3\n",
        r"^columns\.sex: no such field; the fields are age",
        columns={"sex": "text"},
    )
    refused(
        "file_name,age\n0.png,3\n",
        r"^columns\.label: samples already have",
        columns={"label": "integer"},
    )
    refused(
        "file_name,age\n0.png,3\n",
        r"^columns\.age: 'date' is not one of number, integer, text",
        columns={"age": "date"},
    )
    refused("name,age\n0.png,3\n", r"metadata\.csv: no column 'file_name', only name, age")
    refused("file_name,label\n0.png,a\n1.png,\n", r"1\.png: no label in its table")
    refused(
        "file_name,label\n0.png,a\n./0.png,b\n",
        r"metadata\.csv: row 3: \./0\.png is listed twice\. List each file once",
    )
    refused("file_name,label\n,a\n", r"metadata\.csv: row 2: no file_name")
    refused("file_name,label\n", r"metadata\.csv: lists no file")


def test_a_source_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    source = Images(save(tmp_path / "a.png", np.full((2, 2), 40000, np.uint16)), keep="disk")
    assert pickle.loads(pickle.dumps(source))[0]["image"].tolist() == [[[40000] * 2] * 2]


def test_another_place_to_keep_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^keep: 'cloud' is neither memory nor disk"):
        Images("a.png", keep="cloud")  # type: ignore[arg-type]


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_thermal_frames_are_not_saturated(tmp_path: Path) -> None:
    make(tmp_path, 200, 0)
    files = str(tmp_path / "train/{label}/{number}.tiff")
    source = Images(files)
    counts = source.__getitems__(list(range(200)))["image"]
    assert counts.min() == 29115
    assert counts.max() == 29115 + 24 * 255 > 32767
    assert len(np.unique(counts)) == 256
    assert (counts > 32767).mean() > 0.1
    assert centikelvin(np.array([255], np.uint8)).tolist() == [35235]
    parts = [
        Images(files, part=part, split=Stratified("label", key="number", val=0.2, test=0))
        for part in ("train", "val")
    ]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == 200
    assert {path for one in parts for path in one.files.paths} == set(source.files.paths)


def test_files_that_are_checked_when_they_are_read_are_refused_then(tmp_path: Path) -> None:
    for name, size in (("a-x/0", 4), ("a/0", 4), ("a/1", 5)):
        save(tmp_path / f"{name}.png", np.zeros((size, size), np.uint8))
    (tmp_path / "a/2.png").write_bytes(b"no image")
    (tmp_path / "a/3.png").symlink_to(tmp_path / "gone.png")
    files = str(tmp_path / "{label}/*.png")
    with pytest.raises(DataError, match=r"3\.png: a link to .*gone\.png"):
        Images(files, keep="disk", check="first")
    (tmp_path / "a/3.png").unlink()

    source = Images(files, keep="disk", check="first")
    assert source.known()["path"] == [
        str(tmp_path / f"{name}.png") for name in ("a/0", "a/1", "a/2", "a-x/0")
    ]  # as paths are ordered, by their parts
    assert source[3]["image"].shape == (1, 4, 4)
    with pytest.raises(DataError, match=r"a/1\.png: 5 x 5 L, but .*a/0\.png has 4 x 4 L"):
        source[1]
    with pytest.raises(DataError, match=r"a/2\.png: not an image"):
        source[2]
    for other in ({"keep": "memory"}, {"keep": "disk", "on_error": "skip"}):
        with pytest.raises(ConfigError, match="check: first needs keep: disk and on_error: stop"):
            Images(files, check="first", **other)

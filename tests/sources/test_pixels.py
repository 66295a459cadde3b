"""The formats that `Images` reads give exactly the values that are in their files, upright; others
are refused by name. Each is compared with another reader: ffmpeg through PyAV, torchvision's
libjpeg, or what the test itself wrote byte by byte.
"""

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.errors import DataError
from harness.sources.hub import Hub
from harness.sources.images import ImageReader, Images
from tests.sources.test_configs import ROOT

CASES = ROOT.parent / "shared" / "cases" / "data"
GREY = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype(np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (6, 9, 4)).astype(np.uint8)
COUNTS = np.random.default_rng(3).integers(0, 65536, (6, 9)).astype(np.uint16)


def read(data: bytes) -> NDArray[Any]:
    """(H, W) or (H, W, C), as the source gives it; its header alone says the same size."""
    ImageReader().check(data, "it")
    image = ImageReader().read(data, "it")
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def written(pixels: NDArray[Any], kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **settings)
    return file.getvalue()


def by_ffmpeg(data: bytes, pixels: str) -> NDArray[Any]:
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format=pixels)


def tiff(
    strips: bytes | list[bytes],
    size: tuple[int, int],
    bits: list[int],
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    extra: int | None = None,
    more: dict[int, int] | None = None,
    packed: bool = True,
) -> bytes:
    """A TIFF of one strip, or one for each plane, as its specification 6.0 says."""
    planes = [strips] if isinstance(strips, bytes) else strips
    data = [zlib.compress(plane) if packed else plane for plane in planes]
    places = [8 + sum(map(len, data[:number])) for number in range(len(data))]
    fields: dict[int, list[int]] = {
        256: [size[0]],
        257: [size[1]],
        258: bits,
        259: [8 if packed else 1],
        262: [photometric],
        273: places,
        277: [len(bits)],
        278: [size[1]],
        279: list(map(len, data)),
        339: [sample_format] * len(bits),
        **({} if extra is None else {338: [extra]}),
        **{tag: [value] for tag, value in (more or {}).items()},
    }
    body = b"".join(data)
    body += bytes(len(body) % 2)
    start = 8 + len(body)
    behind = start + 2 + 12 * len(fields) + 4
    entries, tail = b"", b""
    for tag, values in sorted(fields.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        cell = struct.pack(order + letter * len(values), *values)
        if len(cell) > 4:
            tail, cell = tail + cell, struct.pack(order + "I", behind + len(tail))
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + cell.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + body + struct.pack(order + "H", len(fields)) + entries + bytes(4) + tail


def png(pixels: NDArray[Any], depth: int, kind: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(pixels.dtype.newbyteorder(">")))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tga(pixels: NDArray[Any], kind: int, flags: int) -> bytes:
    """Rows as they are given: flags say from where they are counted; from kind 9 on in runs."""
    height, width = pixels.shape[:2]
    depth = pixels.shape[2] if pixels.ndim == 3 else 1
    order = {1: [0], 2: [0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[depth]
    rows = [row.tobytes() for row in pixels.reshape(height, width, depth)[..., order]]
    body = b"".join(bytes([width - 1]) + row if kind > 8 else row for row in rows)
    return struct.pack("<BBB5xHHHHBB", 0, 0, kind, 0, 0, width, height, 8 * depth, flags) + body


@pytest.mark.parametrize(
    ("pixels", "kind", "settings", "layout"),
    [
        (GREY, "PNG", {}, "gray"),
        (COLOUR, "PNG", {}, "rgb24"),
        (ALPHA, "PNG", {}, "rgba"),
        (COUNTS, "PNG", {}, "gray16le"),
        (COLOUR, "BMP", {}, "rgb24"),
        (GREY, "GIF", {"optimize": False}, "gray"),
        (GREY, "SGI", {}, "gray"),
        (COLOUR, "SGI", {}, "rgb24"),
        (ALPHA, "SGI", {}, "rgba"),
        (COLOUR, "PCX", {}, "rgb24"),
        (COLOUR, "QOI", {}, "rgb24"),
        (ALPHA, "QOI", {}, "rgba"),
        (COLOUR, "WEBP", {"lossless": True}, "rgb24"),
        (ALPHA, "WEBP", {"lossless": True, "exact": True}, "rgba"),
        (GREY, "JPEG2000", {}, "gray"),
        (COLOUR, "JPEG2000", {}, "rgb24"),
        (COUNTS, "JPEG2000", {"irreversible": False}, "gray16le"),
        (GREY, "TIFF", {"compression": "tiff_lzw"}, "gray"),
        (COLOUR, "TIFF", {"compression": "packbits"}, "rgb24"),
        (COUNTS, "TIFF", {"compression": "tiff_lzw"}, "gray16le"),
    ],
)
def test_a_format_without_loss_is_read_as_ffmpeg_reads_it(
    pixels: NDArray[Any], kind: str, settings: dict[str, Any], layout: str
) -> None:
    data = written(pixels, kind, **settings)
    assert read(data).tolist() == by_ffmpeg(data, layout).tolist() == pixels.tolist()


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
def test_a_photograph_is_read_as_torchvision_reads_it() -> None:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

    smooth = np.add.outer(np.arange(48), 2 * np.arange(64)).astype(np.uint8)
    for pixels, mode in (
        (smooth, ImageReadMode.GRAY),
        (np.stack([smooth, smooth // 2, 255 - smooth], axis=2), ImageReadMode.RGB),
    ):
        data = written(pixels, "JPEG", quality=80)
        found = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
        assert ImageReader().read(data, "it").tolist() == found.tolist()
    data = written(pixels, "WEBP", quality=80)
    found = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    assert ImageReader().read(data, "it").tolist() == found.tolist()


def test_an_avif_of_eight_bits_has_the_grey_values_that_ffmpeg_finds() -> None:
    data = written(np.repeat(GREY[..., None], 3, axis=2), "AVIF", quality=100, subsampling="4:4:4")
    with av.open(io.BytesIO(data)) as container:
        luma = next(container.decode(video=0)).to_ndarray()[0]
    assert (abs(read(data).astype(int) - luma[..., None].astype(int)) <= 1).all()


def test_deeper_avifs_are_refused() -> None:
    data = bytearray(written(COLOUR, "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x40  # ten bits, which the next box has to say too
    at = data.index(b"pixi") + 9
    data[at : at + 3] = [10] * 3
    with pytest.raises(DataError, match=r"^it: a AVIF image of 10 bits, which Pillow would"):
        ImageReader().check(bytes(data), "it")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "sample_format"), [("u1", 1), ("u2", 1), ("i2", 2), ("i4", 2), ("f4", 3)]
)
def test_a_grey_tiff_has_the_numbers_that_were_written_or_is_refused(
    order: str, dtype: str, sample_format: int, packed: bool
) -> None:
    values = np.random.default_rng(4).integers(0, 2**15, (4, 5)).astype(dtype)
    if sample_format > 1:
        values[0, :3] = -1, -300, 300
    pixels = values.astype(order + dtype).tobytes()
    bits = [8 * values.itemsize]
    data = tiff(pixels, (5, 4), bits, 1, sample_format, order, packed=packed)
    if packed and order == ">" and sample_format > 1:
        with pytest.raises(
            DataError, match=r"compressed big-endian TIFF, whose bytes Pillow would"
        ):
            read(data)
    else:
        assert read(data).tolist() == values.tolist()


def test_colour_and_twelve_bits_in_tiffs_are_what_was_written() -> None:
    assert read(tiff(COLOUR.tobytes(), (9, 6), [8] * 3, 2)).tolist() == COLOUR.tolist()
    assert read(tiff(ALPHA.tobytes(), (9, 6), [8] * 4, 2, extra=2)).tolist() == ALPHA.tolist()
    pair = GREY[..., None].repeat(2, axis=2)
    assert read(tiff(pair.tobytes(), (9, 6), [8] * 2, 1, extra=2)).tolist() == pair.tolist()
    planes = [plane.tobytes() for plane in COLOUR.transpose(2, 0, 1)]
    for packed in (True, False):
        data = tiff(planes, (9, 6), [8] * 3, 2, more={284: 2}, packed=packed)
        assert read(data).tolist() == COLOUR.tolist()
    packed = bytes([0x12, 0x34, 0x56, 0xFF, 0xF0, 0x01])
    assert read(tiff(packed, (4, 1), [12])).tolist() == [[0x123, 0x456, 0xFFF, 0x001]]
    differences = np.diff(GREY.astype(int), axis=1, prepend=0).astype(np.uint8)
    assert read(tiff(differences.tobytes(), (9, 6), [8], more={317: 2})).tolist() == GREY.tolist()


CHANGED_BY_PILLOW: list[tuple[bytes, str]] = [
    (tiff(GREY.tobytes(), (9, 6), [8], 0), r"a TIFF of 8 bits \(photometric interpretation 0"),
    (tiff(COUNTS.tobytes(), (9, 6), [16], 0), r"a TIFF of 16 bits \(photometric interpretation 0"),
    (tiff(GREY.tobytes(), (9, 6), [8], 1, 2), r"a TIFF of 8 bits .* sample format 2"),
    (tiff(bytes(18), (9, 4), [4]), r"a TIFF of 4 bits"),
    (tiff(ALPHA.tobytes(), (9, 6), [8] * 4, 2, extra=1), r"a TIFF of 8 \+ 8 \+ 8 \+ 8 bits"),
    (tiff(ALPHA.tobytes(), (9, 6), [8] * 4, 2, extra=0), r"a TIFF of 8 \+ 8 \+ 8 \+ 8 bits"),
    (tiff(bytes(324), (9, 6), [16] * 3, 2), "16 bits in colour, which Pillow would round to 8"),
    (png(GREY[:, :2], 2, 0), "a PNG image of mode L from L;2"),
    (png(GREY[:, :5], 4, 0), "a PNG image of mode L from L;4"),
    (png(np.zeros((2, 2, 2), np.uint16), 16, 4), "16 bits in colour"),
    (png(np.zeros((2, 2, 4), np.uint16), 16, 6), "16 bits in colour"),
    (tga(np.zeros((2, 2, 2), np.uint8), 2, 0), "a TGA image of mode RGBA from BGRA;15Z"),
    (written(COUNTS, "IM"), "a IM image"),
    (written(COLOUR, "SGI", bpc=2), "a SGI image of 16 bits"),
    (written(np.zeros((16, 16, 3), np.uint8), "ICO"), "a ICO image"),
    (b"P4\n8 1\n\xaa", "an image of mode 1"),
]


@pytest.mark.parametrize(("data", "why"), CHANGED_BY_PILLOW)
def test_what_pillow_would_change_is_refused_by_name(data: bytes, why: str) -> None:
    for use in (ImageReader().check, ImageReader().read):
        with pytest.raises(DataError, match=rf"^it: {why}.* Save it as 8- or 16-bit greyscale"):
            use(data, "it")


def test_a_jpeg_2000_of_twelve_bits_is_refused() -> None:
    data = bytearray(written(COUNTS, "JPEG2000", no_jp2=True))
    data[42] = 11  # the precision less one, of the first component
    with pytest.raises(DataError, match=r"JPEG2000 image of 12 bits, which Pillow would rescale"):
        ImageReader().check(bytes(data), "it")


def test_unsigned_tiffs_of_32_bits_keep_their_counts_or_are_refused() -> None:
    counts = np.array([[0, 70_000, 2**31 - 1]], dtype=np.uint32)
    assert read(tiff(counts.tobytes(), (3, 1), [32])).tolist() == counts.tolist()
    with pytest.raises(DataError, match=r"^it: cannot be decoded: counts above 2147483647"):
        read(tiff((counts + 1).tobytes(), (3, 1), [32]))


@settings(max_examples=60)
@given(
    data=st.data(),
    maximum=st.one_of(st.integers(1, 65535), st.just(255)),
    kind=st.sampled_from([2, 3, 5, 6]),
)
def test_netpbm_files_keep_their_values_whatever_their_maximum(
    data: st.DataObject, maximum: int, kind: int
) -> None:
    depth = 1 if kind in (2, 5) else 3
    values = data.draw(st.lists(st.integers(0, maximum), min_size=6 * depth, max_size=6 * depth))
    head = f"P{kind}\n# by a camera\n3 2 # columns, rows\n{maximum}\n".encode()
    body = " ".join(map(str, values)).encode()
    if kind > 3:
        body = np.array(values).astype(">u2" if maximum > 255 else "u1").tobytes()
    found = ImageReader().read(head + body, "it")
    assert found.dtype == (np.uint8 if maximum == 255 else np.int32)
    shape = (2, 3) if depth == 1 else (2, 3, 3)
    assert found.transpose(1, 2, 0).reshape(shape).tolist() == np.reshape(values, shape).tolist()


ALONE = r"Give one image per file, with nothing after it\.$"


@pytest.mark.parametrize("mode", [None, "L"])
@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"P2\n2 1\n100\n5 101\n", "it holds 101, but its header declares at most 100"),
        (b"P5\n2 1\n300\n\0\1\2\0", "it holds 512, but its header declares at most 300"),
        (
            b"P5\n2 2\n255\nabc",
            "its header declares 4 values, and it holds only 3\\. It may be trunc",
        ),
        (b"P2\n1 1\n9\n1 2", rf"its header declares 1 values, and 1 more follow\. {ALONE}"),
        (b"P5\n1 1\n9\n\1\0\0", rf"its .* 1 values, and 2 more bytes follow\. {ALONE}"),
        (b"P5\n1 1\n9\n\1P5\n1 1\n9\n\1", rf"its .* and 10 more bytes follow\. {ALONE}"),
    ],
)
def test_a_netpbm_file_that_its_header_belies_is_refused(file: bytes, why: str, mode: Any) -> None:
    if mode is not None and b"300" in file:
        why = "16 bits, which a mode would round to 8"
    with pytest.raises(DataError, match=rf"^it: (cannot be decoded: )?{why}"):
        ImageReader(mode=mode).read(file, "it")


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_maximum_of_zero_is_named(tmp_path: Path, keep: Any) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n2 1\n0\n\0\0")
    with pytest.raises(DataError, match=r"a\.pgm: .*a maximum of 0\. Correct it\.$"):
        Images(str(tmp_path / "a.pgm"), keep=keep)


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_netpbm_files_of_two_maxima_are_read_as_the_message_says(tmp_path: Path, keep: Any) -> None:
    for name, maximum in (("1", 243), ("2", 255)):
        (tmp_path / f"{name}.pgm").write_bytes(b"P5\n3 1\n%d\n\0\x50\xf3" % maximum)
    files = str(tmp_path / "*.pgm")
    with pytest.raises(DataError, match=r"All images must have one size and mode\. Set mode: RGB"):
        Images(files, keep=keep)
    pictures = Images(files, mode="L", keep=keep).__getitems__([0, 1])["image"]
    assert pictures.tolist() == [[[[0, round(0x50 / 243 * 255), 255]]], [[[0, 0x50, 0xF3]]]]
    (tmp_path / "2.pgm").write_bytes(b"P5\n1 1\n65535\n\1\0")
    (tmp_path / "1.pgm").write_bytes(b"P5\n1 1\n255\n\1")
    with pytest.raises(DataError, match=r"mode\. Give images of one mode only\. Or skip"):
        Images(files, keep=keep)


def filled(data: bytes, kind: bytes, before: bytes) -> bytes:
    """A file of boxes, with one of 100,000 bytes put before the first of a kind."""
    at = data.index(before) - 4
    return data[:at] + struct.pack(">I4s", 100_008, kind) + bytes(100_000) + data[at:]


@pytest.mark.parametrize("pixels", [GREY, COUNTS])
def test_what_stands_before_the_codestream_may_be_long(pixels: NDArray[Any]) -> None:
    data = filled(written(pixels, "JPEG2000", irreversible=False), b"free", b"jp2c")
    assert np.array_equal(read(data), pixels)
    twelve = bytearray(data)
    twelve[data.index(b"\xff\x4f\xff\x51") + 42] = 11
    with pytest.raises(DataError, match=r"^it: a JPEG2000 image of 12 bits"):
        ImageReader().check(bytes(twelve), "it")


@pytest.mark.parametrize(
    "head", [struct.pack(">I4s", 0, b"jp2c"), struct.pack(">I4sQ", 1, b"jp2c", 0)]
)
def test_a_codestream_may_reach_to_the_end_or_have_a_wide_size(head: bytes) -> None:
    data = written(GREY, "JPEG2000", irreversible=False)
    at = data.index(b"jp2c") - 4
    if len(head) == 16:
        head = head[:8] + struct.pack(">Q", len(data) - at + 8)
    assert np.array_equal(read(data[:at] + head + data[at + 8 :]), GREY)


def test_a_long_box_does_not_hide_the_bits_of_an_avif() -> None:
    ImageReader().check(filled(written(COLOUR, "AVIF"), b"free", b"meta"), "it")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_frames_of_a_thermal_camera_keep_their_counts() -> None:
    source = Images(str(CASES / "lepton_pgm" / "pics/{label}/*"))
    for path, image in zip(source.files.paths, source.__getitems__([0, 1])["image"], strict=True):
        words = path.read_text().split()
        assert words[:3] == ["P2", "80", "60"]
        assert image.ravel().tolist() == list(map(int, words[4:]))
        assert 255 < image.max() <= int(words[3])


def test_portable_float_maps_are_read_from_the_bottom() -> None:
    values = np.array([[1.5, -2.25], [1e-3, 7e8]], dtype=np.float32)
    for order, scale in (("<f4", "-1.0"), (">f4", "1.0")):
        data = f"Pf\n2 2\n{scale}\n".encode() + values[::-1].astype(order).tobytes()
        assert read(data).tolist() == values.tolist()


@pytest.mark.parametrize("flags", [0x00, 0x10, 0x20, 0x30])
@pytest.mark.parametrize(
    ("pixels", "kind"), [(GREY, 3), (COLOUR, 2), (ALPHA, 2), (GREY, 11), (COLOUR, 10)]
)
def test_a_tga_begins_where_its_flags_say(pixels: NDArray[Any], kind: int, flags: int) -> None:
    stored = pixels if flags & 0x20 else pixels[::-1]
    stored = stored[:, ::-1] if flags & 0x10 else stored
    assert read(tga(stored, kind, flags)).tolist() == pixels.tolist()


def bmp(pixels: NDArray[Any], palette: bytes = b"") -> bytes:
    """Rows from the bottom, padded to four bytes; four bytes with alpha have masks."""
    height, width, depth = pixels.shape
    rows = b"".join(row.tobytes().ljust(-(-width * depth // 4) * 4, b"\0") for row in pixels[::-1])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF << 24) + bytes(52)
    size, masks = (108, masks) if depth == 4 else (40, b"")
    start = 14 + size + len(palette)
    kind = 3 if depth == 4 else 0
    fields = (size, width, height, 1, 8 * depth, kind, len(rows), 0, 0, len(palette) // 4, 0)
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", *fields) + masks + palette + rows


def test_bitmaps_are_what_was_written() -> None:
    greys = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    assert read(bmp(GREY[..., None], greys)).tolist() == GREY.tolist()
    assert read(bmp(COLOUR[..., ::-1])).tolist() == COLOUR.tolist()
    assert read(bmp(ALPHA[..., [2, 1, 0, 3]])).tolist() == ALPHA.tolist()
    with pytest.raises(DataError, match=r"^it: an image of mode P"):
        read(bmp(GREY[..., None], greys[::-1]))


# EXIF 2.32, section 4.6.4, tag 274: where row 0 and column 0 of what is stored are to be seen
STORED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def oriented(pixels: NDArray[Any], kind: str, orientation: int) -> bytes:
    stored = np.ascontiguousarray(STORED[orientation](pixels))
    if kind == "TIFF":
        return written(stored, kind, tiffinfo={274: orientation})
    exif = Image.Exif()
    exif[274] = orientation
    settings: dict[str, Any] = {"exif": exif}
    settings |= {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    return written(stored, kind, **settings)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "MPO"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_by_its_exif(tmp_path: Path, kind: str, orientation: int) -> None:
    smooth = np.add.outer(7 * np.arange(16), 3 * np.arange(32)).astype(np.uint8)
    colour = np.stack([smooth, smooth // 2, smooth // 3], axis=2)
    data = oriented(colour, kind, orientation)
    path = tmp_path / "a.pic"
    path.write_bytes(data)
    for keep in ("memory", "disk"):
        image = Images(str(path), keep=keep)[0]["image"].transpose(1, 2, 0)  # type: ignore[arg-type] # the two
        assert image.shape == (16, 32, 3)
        rounding = 12 if kind in ("JPEG", "MPO") else 0
        assert abs(image.astype(int) - colour).max() <= rounding


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_odd_tags_in_exif_do_not_keep_a_picture_from_being_turned(
    orientation: int, kind: str
) -> None:
    # Big-endian: 274 (orientation), a SHORT; 282 (resolution, a RATIONAL) as text
    tags = struct.pack(">HHIHH", 274, 3, 1, orientation, 0) + struct.pack(
        ">HHI4s", 282, 2, 4, b"odd"
    )
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x02" + tags + bytes(4)
    stored = np.ascontiguousarray(STORED[orientation](COLOUR))
    data = written(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert read(data).tolist() == COLOUR.tolist()
    picture = ImageReader(mode="RGB").read(data, "it")
    assert picture.transpose(1, 2, 0).tolist() == COLOUR.tolist()


def test_a_square_picture_with_broken_exif_is_refused_by_its_header_too() -> None:
    data = written(np.zeros((4, 4), np.uint8), "PNG", exif=b"Exif\0\0not a TIFF header")
    for look in (ImageReader().check, ImageReader().read):
        with pytest.raises(DataError, match=r"^it: .*not a TIFF file"):
            look(data, "it")


def test_sizes_are_compared_after_turning_and_in_the_hub_too(tmp_path: Path) -> None:
    for orientation in (1, 6, 8):
        folder = tmp_path / "pics" / "ab"[orientation % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{orientation}.png").write_bytes(oriented(COLOUR, "PNG", orientation))
    for keep in ("memory", "disk"):
        source = Images(str(tmp_path / "pics/{label}/*.png"), keep=keep)  # type: ignore[arg-type] # the two
        assert (source.__getitems__([0, 1, 2])["image"].transpose(0, 2, 3, 1) == COLOUR).all()
    hub = Hub(str(tmp_path / "pics"))
    assert (hub.__getitems__([0, 1, 2])["image"].transpose(0, 2, 3, 1) == COLOUR).all()


def test_a_png_that_says_its_orientation_behind_its_pixels_is_turned() -> None:
    data = oriented(COLOUR, "PNG", 6)
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    rest = data.replace(chunk, b"")
    late = rest[:-12] + chunk + rest[-12:]
    assert read(late).tolist() == COLOUR.tolist()
    reader = ImageReader()
    reader.check(late, "late")
    reader.check(written(COLOUR, "PNG"), "upright")
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    stored = written(
        np.ascontiguousarray(STORED[6](COLOUR)), "WEBP", lossless=True, xmp=xmp.encode()
    )
    assert read(stored).tolist() == COLOUR.tolist()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_photos_of_all_seven_orientations_are_one_picture() -> None:
    images = Images(str(CASES / "exif" / "pics/{label}/*")).__getitems__(list(range(7)))["image"]
    assert abs(images.astype(int) - images[0]).mean() < 3


def test_a_later_frame_of_a_photo_does_no_harm() -> None:
    file = io.BytesIO()
    first, second = (Image.fromarray(one) for one in (COLOUR, COLOUR[::-1].copy()))
    first.save(file, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    plain = written(COLOUR, "JPEG", quality=100, subsampling=0)
    assert read(file.getvalue()).tolist() == read(plain).tolist()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_a_file_whose_layers_are_torn_can_be_skipped() -> None:
    files = str(CASES / "skip_does_not_skip" / "pics/{label}/*")
    with pytest.raises(DataError, match=r"2\.psd: not an image: Layer block too short"):
        Images(files)
    with pytest.warns(UserWarning, match=r"1 of 2 files skipped: .*2\.psd"):
        assert len(Images(files, on_error="skip")) == 1


def test_exif_that_is_torn_stops_no_picture() -> None:
    data = written(COLOUR, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(data).tolist() == COLOUR.tolist()


def heic(pixels: NDArray[Any], **settings: Any) -> bytes:
    """Without loss: of the colours as they are, not as brightness and two differences."""
    file = io.BytesIO()
    picture = pillow_heif.from_pillow(Image.fromarray(pixels.repeat(16, 0).repeat(16, 1)))
    picture.save(file, quality=-1, chroma=444, matrix_coefficients=0, **settings)
    return file.getvalue()


@pytest.mark.parametrize(("pixels", "layout"), [(GREY, "gray"), (COLOUR, "rgb24")])
def test_photos_of_phones_are_read_as_ffmpeg_reads_them(pixels: NDArray[Any], layout: str) -> None:
    data = heic(pixels)
    np.testing.assert_array_equal(read(data), pixels.repeat(16, 0).repeat(16, 1))
    np.testing.assert_array_equal(read(data), by_ffmpeg(data, layout))


def test_photos_of_phones_are_named_where_they_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = pillow_heif.from_bytes("RGB;16", (64, 64), bytes(64 * 64 * 6))
    file = io.BytesIO()
    deep.save(file, quality=-1)
    with pytest.raises(DataError, match="a HEIF image of 10 bits, which Pillow would rescale"):
        read(file.getvalue())
    with pytest.raises(DataError, match=r"it: .*(HEIC|decoded)"):
        read(heic(COLOUR)[:2000])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a HEIC photo needs pillow_heif.*fermarsi\[images\]"):
        read(heic(COLOUR))


def test_every_format_that_pillow_writes_is_read_as_written_or_refused() -> None:
    """But for those that lose something when they are written."""
    Image.init()
    lossy = {"JPEG", "MPO", "AVIF", "WEBP", "HEIF"}
    draw = np.random.default_rng(4)
    floats = draw.normal(size=(16, 16)).astype(np.float32)
    seen = set()
    for pixels in (*(each.repeat(3, 0) for each in (GREY, COLOUR, ALPHA, COUNTS)), floats):
        for kind in sorted(set(Image.SAVE) - lossy):
            try:
                data = written(pixels, kind)
                found = read(data)
            except (OSError, ValueError, TypeError, DataError):  # of the writer, and of ours
                continue
            if found.shape == pixels.shape:  # PPM and BMP are written without alpha
                np.testing.assert_array_equal(found, pixels)
                seen.add(kind)
    assert seen >= {"BMP", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"}

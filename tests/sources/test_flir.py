"""Radiometric JPEG files of FLIR cameras, written here as ExifTool's tables say; what temperatures
they hold was computed by flyr 5.1.0, an independent reader.
"""

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.errors import ConfigError, DataError
from harness.sources.images import Images

COUNTS = (12000 + 5 * np.arange(30 * 40)).astype(np.uint16).reshape(30, 40)
# Offset: value; the constants of G. Tattersall's camera (Thermimage), at 1 m, through a window
CAMERA: dict[int, float] = {
    32: 0.95,
    36: 1.0,
    40: 295.15,
    44: 293.15,
    48: 294.15,
    52: 0.97,
    60: 0.5,
    88: 21106.77,
    92: 1501.0,
    96: 1.0,
    780: 0.012545258,
    776: -7340,
    112: 0.006569,
    116: 0.01262,
    120: -0.002276,
    124: -0.00667,
    128: 1.9,
}
OF_FLYR = {(0, 0): -23.5923, (0, 1): -23.5374, (14, 20): 2.5014, (29, 39): 23.1497}


def photo(counts: NDArray[np.uint16], camera: dict[int, float], kind: int) -> bytes:
    """A JPEG with counts in bytes (kind 1: big-endian, 2: little) or a PNG (3)."""
    height, width = counts.shape
    order = ">" if kind == 1 else "<"
    if kind == 3:
        file = io.BytesIO()
        Image.fromarray(counts.byteswap()).save(file, "PNG")
        pixels = file.getvalue()
    else:
        pixels = counts.astype(f"{order}u2").tobytes()
    raw = struct.pack(f"{order}HHH", 2, width, height).ljust(32, b"\0") + pixels
    constants = bytearray(struct.pack("<H", 2).ljust(1000, b"\0"))
    for offset, value in camera.items():
        struct.pack_into("<i" if offset == 776 else "<f", constants, offset, value)
    places, directory, body = 14, b"", b""
    for number, subtype, record in ((1, kind, raw), (32, 1, bytes(constants))):
        at = 64 + 32 * places + len(body)
        entry = struct.pack(">HHIIII", number, subtype, 100, 1, at, len(record))
        directory += entry.ljust(32, b"\0")
        body += record
    head = b"FFF\0" + b"CAMCTRL".ljust(16, b"\0") + struct.pack(">III", 100, 64, places)
    whole = head.ljust(64, b"\0") + directory.ljust(32 * places, b"\0") + body
    parts = [whole[at : at + 1000] for at in range(0, len(whole), 1000)]
    segments = b"".join(
        b"\xff\xe1"
        + struct.pack(">H", len(part) + 10)
        + b"FLIR\0\1"
        + bytes([number, len(parts) - 1])
        + part
        for number, part in enumerate(parts)
    )
    file = io.BytesIO()
    Image.new("RGB", (80, 60), "orange").save(file, "JPEG")
    return file.getvalue()[:2] + segments + file.getvalue()[2:]


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_counts_and_temperatures_of_a_camera_are_those_that_others_read(
    tmp_path: Path, kind: int, keep: Any
) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(COUNTS, CAMERA, kind))
    path = str(tmp_path / "a.jpg")
    counts = Images(path, keep=keep, radiometric="counts")[0]["image"]
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts[0], COUNTS)
    degrees = Images(path, keep=keep, radiometric="degC")[0]["image"]
    assert (degrees.dtype, degrees.shape) == (np.float32, (1, 30, 40))
    for at, wanted in OF_FLYR.items():
        assert degrees[0][at] == pytest.approx(wanted, abs=2e-4)
    (tmp_path / "a.jpg").write_bytes(photo(COUNTS, {**CAMERA, 60: 50.0}, kind))  # percent
    in_percent = Images(path, keep=keep, radiometric="degC")[0]["image"]
    np.testing.assert_array_equal(in_percent, degrees)


def test_a_picture_in_false_colours_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(COUNTS, CAMERA, 2))
    with pytest.warns(UserWarning, match=r"a\.jpg: holds the counts of a thermal camera"):
        assert Images(str(tmp_path / "a.jpg"))[0]["image"].shape == (3, 60, 80)
    with pytest.raises(ConfigError, match=r"mode, radiometric: counts have no mode"):
        Images(str(tmp_path / "a.jpg"), radiometric="counts", mode="L")


def test_counts_of_two_cameras_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(COUNTS, CAMERA, 2))
    (tmp_path / "b.jpg").write_bytes(photo(COUNTS, {**CAMERA, 88: 14364.633}, 2))
    pattern = str(tmp_path / "*.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: counts of another camera .* radiometric: degC"):
        Images(pattern, radiometric="counts")
    assert len(Images(pattern, radiometric="degC")) == 2


def test_files_that_are_torn_or_hold_nothing_are_named(tmp_path: Path) -> None:
    whole = photo(COUNTS, CAMERA, 2)
    picture = whole[whole.index(b"\xff\xe0") :]
    begins = [found.start() for found in re.finditer(rb"\xff\xe1..FLIR", whole, re.DOTALL)]
    sizes = [struct.pack("<HHH", 2, width, 30) for width in (40, 41)]
    cases = {
        "no counts of a FLIR camera": whole[:2] + picture,
        r"3 of \d segments": whole[: begins[3]] + picture,
        "no emissivity": photo(COUNTS, {**CAMERA, 32: 0.0}, 2),
        "no distance": photo(COUNTS, {**CAMERA, 36: -1.0}, 2),
        "no x of": photo(COUNTS, {**CAMERA, 128: np.nan}, 2),
        "bytes of counts for 41 x 30": whole.replace(*sizes),
        "in another format": whole.replace(b"FFF\0", b"ABC\0"),
    }
    for why, data in cases.items():
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(DataError, match=rf"a\.jpg: .*{why}"):
            Images(str(tmp_path / "a.jpg"), radiometric="counts")

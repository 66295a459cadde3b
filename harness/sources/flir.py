"""Radiometric JPEG files of FLIR cameras: the counts of the sensor and the constants that turn them
into temperatures, in APP1 segments beside a picture in false colours.

The layout is that of ExifTool (https://exiftool.org/TagNames/FLIR.html), the formula that of
`raw2temp` in Thermimage 4.1 (G. Tattersall, https://doi.org/10.5281/zenodo.1069704).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.sources.files import need

MARK = b"FLIR\0"
_COUNTS, _CAMERA = 1, 32  # types of records
# Constants of the camera, by their offset in its record; temperatures in K, distance in m
_FLOATS = {
    "emissivity": 32,
    "distance": 36,
    "reflected": 40,
    "air": 44,
    "window": 48,
    "window_transmission": 52,
    "humidity": 60,  # a share
    "r1": 88,
    "b": 92,
    "f": 96,
    "alpha1": 112,
    "alpha2": 116,
    "beta1": 120,
    "beta2": 124,
    "x": 128,
    "r2": 780,
}
_OFFSET = 776  # of the integer that is added to counts


class FlirError(ValueError):
    """The segments are not as they should be."""


@dataclass(frozen=True)
class Thermogram:
    """`counts` (H, W) uint16, and the constants of the camera by name."""

    counts: NDArray[np.uint16]
    constants: dict[str, float]

    @property
    def camera(self) -> tuple[float, ...]:
        """The constants that say which radiance a count is."""
        return tuple(self.constants[name] for name in ("r1", "r2", "b", "f", "o"))

    def degrees(self) -> NDArray[np.float32]:
        """(H, W) degC, of objects with the emissivity and at the distance that the file states; NaN
        where counts are below those of any temperature.
        """
        of = self.constants
        air = of["air"] - 273.15
        water = of["humidity"] * np.exp(
            1.5587 + 6.939e-2 * air - 2.7816e-4 * air**2 + 6.8455e-7 * air**3
        )
        path = np.sqrt(of["distance"] / 2)  # to the window, and as much behind it
        tau = of["x"] * np.exp(-path * (of["alpha1"] + of["beta1"] * np.sqrt(water)))
        tau += (1 - of["x"]) * np.exp(-path * (of["alpha2"] + of["beta2"] * np.sqrt(water)))
        emitted, passed = of["emissivity"], of["window_transmission"]
        others = (1 - emitted) / emitted * self._counts_at(of["reflected"])
        others += (1 - tau) / emitted / tau * self._counts_at(of["air"])
        others += (1 - passed) / emitted / tau / passed * self._counts_at(of["window"])
        others += (1 - tau) / emitted / tau**2 / passed * self._counts_at(of["air"])
        own = self.counts / emitted / tau**2 / passed - others
        with np.errstate(invalid="ignore", divide="ignore"):
            kelvin = of["b"] / np.log(of["r1"] / (of["r2"] * (own + of["o"])) + of["f"])
        return np.asarray(kelvin - 273.15, np.float32)

    def _counts_at(self, kelvin: float) -> float:
        of = self.constants
        return float(of["r1"] / (of["r2"] * (np.exp(of["b"] / kelvin) - of["f"])) - of["o"])


def read_thermogram(data: bytes) -> Thermogram | None:
    """What a JPEG file holds of a FLIR camera; None if nothing. Raises FlirError."""
    parts: dict[int, bytes] = {}
    last = 0
    for segment in _segments(data):
        number, last = segment[6], segment[7]
        parts[number] = segment[8:]
    if not parts:
        return None
    if set(parts) != set(range(last + 1)):
        raise FlirError(f"{len(parts)} of {last + 1} segments of the camera")
    joined = b"".join(parts[number] for number in sorted(parts))
    try:
        records = _records(joined)
        return Thermogram(_read_counts(*records[_COUNTS]), _read_constants(records[_CAMERA][1]))
    except KeyError as error:
        raise FlirError("no counts, or no constants of the camera") from error
    except (struct.error, OSError, SyntaxError) as error:
        raise FlirError(f"records of the camera that cannot be read ({error})") from error


def _segments(data: bytes) -> Iterator[bytes]:
    """The contents of the APP1 segments of FLIR before the pixels (ISO 10918-1, annex B)."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 :].startswith(MARK) and length > 10:
            yield data[at + 4 : at + 2 + length]
        at += 2 + length


def _records(data: bytes) -> dict[int, tuple[int, bytes]]:
    """{type: (subtype, content)}"""
    if data[:4] not in (b"FFF\0", b"AFF\0"):
        raise FlirError("segments of a camera in another format")
    order = ">" if struct.unpack_from(">I", data, 20)[0] < 2**16 else "<"
    begin, count = struct.unpack_from(f"{order}II", data, 24)
    records = {}
    for number in range(min(count, 1000)):
        entry = begin + 32 * number
        kind, subtype = struct.unpack_from(f"{order}HH", data, entry)
        offset, length = struct.unpack_from(f"{order}II", data, entry + 12)
        if offset + length > len(data):
            raise FlirError("a record that reaches beyond its segments")
        if kind:
            records[kind] = subtype, data[offset : offset + length]
    return records


def _order_of(record: bytes) -> str:
    return "<" if struct.unpack_from("<H", record)[0] == 2 else ">"


def _read_counts(subtype: int, record: bytes) -> NDArray[np.uint16]:
    order = _order_of(record)
    width, height = struct.unpack_from(f"{order}HH", record, 2)
    stored = record[32:]
    if stored.startswith(b"\x89PNG"):
        with need("PIL.Image", "images", "images").open(BytesIO(stored)) as image:
            pixels = np.asarray(image)
        if pixels.dtype != np.uint16:
            raise FlirError(f"counts of {pixels.dtype}")
        # The bytes of each count are swapped in the PNG
        counts = pixels.byteswap()
    elif len(stored) == 2 * width * height:
        counts = np.frombuffer(stored, ">u2" if subtype == 1 else "<u2").reshape(height, width)
    else:
        raise FlirError(f"{len(stored):,} bytes of counts for {width} x {height}")
    if counts.shape != (height, width):
        raise FlirError(f"counts of {counts.shape[::-1]} for {width} x {height}")
    return counts.astype(np.uint16)


def _read_constants(record: bytes) -> dict[str, Any]:
    order = _order_of(record)
    found: dict[str, Any] = {
        name: struct.unpack_from(f"{order}f", record, offset)[0] for name, offset in _FLOATS.items()
    }
    found["o"] = struct.unpack_from(f"{order}i", record, _OFFSET)[0]
    if found["humidity"] > 2:  # some programs write percent, as ExifTool has seen
        found["humidity"] /= 100
    needed = ("emissivity", "window_transmission", "r1", "r2", "b", "reflected", "air", "window")
    wrong = [name for name in needed if not 0 < found[name] < np.inf]
    wrong += [name for name in ("distance", "humidity") if not 0 <= found[name] < np.inf]
    wrong += [name for name, value in found.items() if not np.isfinite(value)]
    if wrong:
        raise FlirError(f"no {wrong[0]} of the camera")
    return found

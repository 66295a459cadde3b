"""Exact access to frames of video files by number, with PyAV alone, which brings its own ffmpeg:
what a network gets depends neither on the libraries of a machine nor on a choice between two
decoders, which differ in the colours of interlaced films and in the stream that they take.
"""

from collections.abc import Callable, Sequence
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.files import need
from harness.sources.mistaken import what_is

Frames = NDArray[np.uint8]
# The number of frames in a file -> the wanted ones, ascending
Choose = Callable[[int], Sequence[int]]

_NONE: Frames = np.empty((0, 0, 0, 3), np.uint8)


class _DeepError(Exception):
    """More bits per value than a uint8 frame can hold."""


class _DamagedError(Exception):
    """A frame, by its number, in which the decoder concealed errors."""


def read_frames(path: Path, choose: Choose) -> tuple[int, Frames]:
    """How many frames a file has, and the chosen ones, (N, H, W, 3) RGB, upright.

    Of several streams the one that ffmpeg would take; cover pictures are not films. Frames are
    counted in presentation order, whatever their timestamps. Raises a DataError that names the
    file.
    """
    _refuse_cut(path)
    av = decoder()
    try:
        return _read(av, path, choose)
    except _DeepError as error:
        raise DataError(
            f"{path}: its pixel format ({error}) has more than 8 bits, which would be "
            "rounded. Convert it to 8 bits: ffmpeg -i IN -pix_fmt yuv420p OUT."
        ) from error
    except _DamagedError as error:
        raise DataError(
            f"{path}: frame {error}: damaged, and the decoder concealed it. Download the file "
            "again, or if it may show such errors write it anew: ffmpeg -i IN OUT."
        ) from error
    except (TypeError, AttributeError):  # from this code or another PyAV, not from the file
        raise
    except Exception as error:
        if (what := what_is(path, "film")) is not None:
            raise DataError(f"{path}: not a video, but {what}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise DataError(
            f"{path}: cannot be decoded as video: {reason}. It may be truncated."
        ) from error


def decoder() -> Any:
    """PyAV. Raises a DataError that says what to install if it is missing."""
    return need("av", "video", "video")


def _read(av: Any, path: Path, choose: Choose) -> tuple[int, Frames]:
    """Raises what PyAV raises, EOFError for a file that ends too early, and ValueError."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = ", ".join(sorted({one.type for one in container.streams})) or "no streams"
            raise ValueError(f"it has no video, only {kinds}")
        if stream.codec_context is None or stream.format is None:
            raise ValueError("it does not say its codec or pixel format")
        _refuse_deep(stream.format.name)
        count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
    indices = list(choose(count))
    found: list[Frames] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1  # many worker processes read a source
        for number, frame in enumerate(container.decode(stream) if indices else ()):
            # Frames that it does not need count too: others are made from them
            if frame.is_corrupt:
                raise _DamagedError(number)
            if number == indices[len(found)]:
                found.append(_upright(av, frame))
                if len(found) == len(indices):
                    break
    if len(found) < len(indices):
        raise EOFError("it has fewer frames than packets")
    return count, np.stack(found) if found else _NONE


def _upright(av: Any, frame: Any) -> Frames:
    """(H, W, 3), turned and mirrored by the frame's display matrix (ISO 14496-12, section 6.2.2),
    which maps a point (x, y) to (a x + c y, b x + d y).
    """
    # One thread: a worker that is forked while others run would wait for them forever
    pixels: Frames = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if a == d == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    elif not b == c == 0:
        raise ValueError("it is rotated by an angle that is not a multiple of 90 degrees")
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _refuse_deep(pixels: str) -> None:
    # Ffmpeg's names of formats whose values take two bytes, such as yuv420p10le and gray16le
    if pixels.endswith(("le", "be")):
        raise _DeepError(pixels)


def _refuse_cut(path: Path) -> None:
    """Refuse a file that is shorter than its header declares: decoders read what is left of it
    without an error.
    """
    try:
        with path.open("rb") as file:
            length = file.seek(0, SEEK_END)
            file.seek(0)
            cut = declared_length(file, length) > length + 1  # 1: a missing pad byte
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}. Make it readable.") from error
    if cut:
        raise DataError(
            f"{path}: truncated: it ends before the length it declares. Download it again."
        )


def declared_length(file: BinaryIO, length: int) -> int:
    """The length that a file declares; 0 if it declares none."""
    head = file.read(12)
    if head[:4] == b"RIFF":  # AVI
        return int.from_bytes(head[4:8], "little") + 8
    # ISO 14496-12, section 4.2: boxes of a size (0: to the end; 1: eight bytes that follow) and a
    # type
    if _kind(head) == "mp4":
        end = 0
        while end < length:
            file.seek(end)
            box = file.read(16)
            size = int.from_bytes(box[8:16] if box[:4] == b"\0\0\0\1" else box[:4], "big")
            if size < 8:
                return 0
            end += size
        return end
    # RFC 8794: elements of an id and a size; the second at the top is the segment, all the rest
    if _kind(head) == "mkv":
        begin, size = _ebml_size(file, 4)
        segment, declared = _ebml_size(file, begin + size + 4)
        return segment + declared
    return 0


def _kind(head: bytes) -> str | None:
    """A file's format by its first 12 bytes: "mp4" (MOV too), "mkv" (WebM too), or None."""
    if head[4:8] == b"ftyp":
        return "mp4"
    return "mkv" if head[:4] == b"\x1aE\xdf\xa3" else None


def _ebml_size(file: BinaryIO, offset: int) -> tuple[int, int]:
    """The size field at an offset: (where the field ends, the size; 0 if it is unknown). The number
    of leading zero bits is the number of bytes that follow the first.
    """
    file.seek(offset)
    raw = file.read(8)
    more = 8 - raw[0].bit_length() if raw and raw[0] else 0
    size = int.from_bytes(raw[: more + 1], "big") & ((1 << 7 * (more + 1)) - 1)
    return offset + more + 1, 0 if size == (1 << 7 * (more + 1)) - 1 else size

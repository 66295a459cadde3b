"""Exact access to frames of video files by number, with torchcodec where it works, else PyAV.

Both return the same bytes; tests compare them.
"""

import base64
import functools
import importlib
from collections.abc import Callable, Sequence
from io import BytesIO
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.wording import first_line

Frames = NDArray[np.uint8]
# The number of frames in a file -> the wanted ones, ascending
Choose = Callable[[int], Sequence[int]]
Decode = Callable[[str | bytes, Choose], tuple[int, Frames]]

# A one-pixel GIF to decode as a probe: torchcodec can be imported even where it finds no ffmpeg.
_PIXEL = base64.b64decode("R0lGODdhAQABAIEAAAAAAAAAAAAAAAAAACwAAAAAAQABAAAIBAABBAQAOw==")
_NONE: Frames = np.empty((0, 0, 0, 3), np.uint8)
_TOGETHER = 32  # frames that torchcodec decodes at once


class _DeepError(Exception):
    """More bits per value than a uint8 frame can hold."""


def read_frames(path: Path, choose: Choose) -> tuple[int, Frames]:
    """How many frames a file has, and the chosen ones, (N, H, W, 3) RGB, upright.

    Frames are counted in presentation order, whatever their timestamps. Raises a DataError that
    names the file.
    """
    _refuse_cut(path)
    problem = Exception()
    for decode in decoders():
        try:
            return decode(str(path), choose)
        except _DeepError as error:
            raise DataError(
                f"{path}: its pixel format ({error}) has more than 8 bits, which would be "
                "rounded. Convert it to 8 bits: ffmpeg -i IN -pix_fmt yuv420p OUT."
            ) from error
        except Exception as error:  # noqa: BLE001 - both decoders raise errors of any type
            problem = error
    raise DataError(
        f"{path}: cannot be decoded as video: {str(problem).strip().splitlines()[-1]}. It may be "
        "truncated."
    ) from problem


@functools.cache
def decoders() -> tuple[Decode, ...]:
    """The decoders that work on this machine, the preferred one first.

    Raises a DataError that says what to install if there is none.
    """
    able: list[Decode] = []
    reasons: list[str] = []
    decode: Decode
    for name, decode in (("torchcodec", with_torchcodec), ("av", with_pyav)):
        try:
            decode(_PIXEL, range)
            able.append(decode)
        except Exception as error:  # noqa: BLE001 - a missing library shows in many ways
            reasons.append(f"{name}: {first_line(error)}")
    if not able:
        raise DataError(
            f"no working video decoder ({'; '.join(reasons)}). Install one: pip "
            "install 'fermarsi[video]'."
        )
    return tuple(able)


def with_torchcodec(video: str | bytes, choose: Choose) -> tuple[int, Frames]:
    """A path or a file's content -> as `read_frames`.

    Raises what torchcodec raises, and ValueError for a file that it would miscount.
    """
    with BytesIO(video) if isinstance(video, bytes) else Path(video).open("rb") as file:
        kind = _kind(file.read(12))
    if kind is None:
        raise ValueError(
            "torchcodec returns wrong frames for formats other than MP4, Matroska, WebM and "
            "GIF. Install PyAV, which reads this one: pip install av"
        )
    # One thread: many worker processes read a source. "exact", the default, counts frames
    # instead of trusting the header.
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(
        video, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="exact"
    )
    _refuse_deep(str(decoder.metadata.pixel_format))
    indices = np.asarray(choose(len(decoder)), dtype=np.int64)
    found = []
    # From the start, without gaps: a seek loses frames of open groups of pictures (torchcodec
    # 0.17).
    for begin in range(0, int(indices.max(initial=-1)) + 1, _TOGETHER):
        end = min(begin + _TOGETHER, len(decoder))
        frames = decoder.get_frames_in_range(begin, end).data.numpy()
        found.append(frames[indices[(indices >= begin) & (indices < end)] - begin])
    return len(decoder), np.concatenate(found) if found else _NONE


def with_pyav(video: str | bytes, choose: Choose) -> tuple[int, Frames]:
    """A path or a file's content -> as `read_frames`.

    Raises what PyAV raises, and EOFError for a file that ends too early.
    """
    av = importlib.import_module("av")
    with av.open(video if isinstance(video, str) else BytesIO(video)) as container:
        stream = container.streams.video[0]
        _refuse_deep(stream.format.name)
        count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
    indices = list(choose(count))
    found: list[Frames] = []
    with av.open(video if isinstance(video, str) else BytesIO(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream) if indices else ()):
            if number == indices[len(found)]:
                pixels = frame.to_ndarray(format="rgb24")
                found.append(np.rot90(pixels, round(frame.rotation / 90) % 4))
                if len(found) == len(indices):
                    break
    if len(found) < len(indices):
        raise EOFError("it has fewer frames than packets")
    return count, np.stack(found) if found else _NONE


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
            cut = _declared_length(file, length) > length + 1  # 1: a missing pad byte
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    if cut:
        raise DataError(
            f"{path}: truncated: it ends before the length it declares. Download it again."
        )


def _declared_length(file: BinaryIO, length: int) -> int:
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
    """A file's format by its first 12 bytes: "mp4" (MOV too), "mkv" (WebM too), "gif", or None."""
    if head[4:8] == b"ftyp":
        return "mp4"
    return {b"\x1aE\xdf\xa3": "mkv", b"GIF8": "gif"}.get(head[:4])


def _ebml_size(file: BinaryIO, offset: int) -> tuple[int, int]:
    """The size field at an offset: (where the field ends, the size; 0 if it is unknown). The number
    of leading zero bits is the number of bytes that follow the first.
    """
    file.seek(offset)
    raw = file.read(8)
    more = 8 - raw[0].bit_length() if raw and raw[0] else 0
    size = int.from_bytes(raw[: more + 1], "big") & ((1 << 7 * (more + 1)) - 1)
    return offset + more + 1, 0 if size == (1 << 7 * (more + 1)) - 1 else size

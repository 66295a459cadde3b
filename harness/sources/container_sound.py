"""The sound of M4A, MP4, WMA and WebM files, which libsndfile does not read, with PyAV alone, as
decoders.py reads films: what a network gets does not depend on the libraries of a machine.
"""

from io import BytesIO
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.decoders import declared_length
from harness.sources.files import decodable, need
from harness.sources.mistaken import what_is

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # the header object
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the file properties object
_MATROSKA = b"\x1aE\xdf\xa3"
# For each sample type: the values of silence and of 1
_SCALES = {"u1": (128, 2**7), "i2": (0, 2**15), "i4": (0, 2**31), "f4": (0, 1), "f8": (0, 1)}


def is_container(recording: Path | bytes) -> bool:
    """Whether a file is an M4A, MP4, WMA, Matroska or WebM file, by its first bytes."""
    try:
        with recording.open("rb") if isinstance(recording, Path) else BytesIO(recording) as file:
            head = file.read(16)
    except OSError:
        return False
    if head[4:8] == b"ftyp":  # pictures have it too
        return what_is(recording, "sound") is None
    return head[:4] == _MATROSKA or head == _ASF


def read_container(recording: Path | bytes, name: str) -> tuple[int, NDArray[np.float32]]:
    """(rate in Hz, sound (T, C) float32) of the stream that ffmpeg would choose, without the
    silence that an encoder put before it, where the file says how much.

    Raises DataError for a file that is truncated or cannot be decoded.
    """
    _refuse_cut(recording, name)
    av = need("av", "audio", "M4A, WMA and WebM")
    opened = decodable(recording)
    try:
        with av.open(str(opened) if isinstance(opened, Path) else opened) as container:
            stream = container.streams.best("audio")
            if stream is None:
                kinds = ", ".join(sorted({one.type for one in container.streams})) or "no streams"
                raise ValueError(f"it has no sound, only {kinds}")
            stream.codec_context.thread_count = 1  # many worker processes read a source
            blocks, forms = [], set()
            for frame in container.decode(stream):
                forms.add((frame.sample_rate, frame.layout.nb_channels, frame.format.name))
                blocks.append(_as_floats(frame))
    except (TypeError, AttributeError):  # from this code or another PyAV, not from the file
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise DataError(
            f"{name}: cannot be decoded as sound: {reason}. It may be truncated."
        ) from error
    if len(forms) > 1:
        raise DataError(f"{name}: its rate or channels change midway. Convert it to FLAC.")
    if not blocks:
        raise DataError(f"{name}: it contains no sound. Remove it.")
    [(rate_hz, _, _)] = forms
    return rate_hz, np.concatenate(blocks)


def _as_floats(frame: Any) -> NDArray[np.float32]:
    """(T, C) in [-1, 1]; planes are (C, T), others (1, T C)."""
    samples = frame.to_ndarray()
    zero, one = _SCALES[samples.dtype.str[1:]]
    turned = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    floats: NDArray[np.float32] = ((turned - np.float64(zero)) / one).astype(np.float32)
    return floats


def _refuse_cut(recording: Path | bytes, name: str) -> None:
    try:
        with recording.open("rb") if isinstance(recording, Path) else BytesIO(recording) as file:
            length = file.seek(0, SEEK_END)
            file.seek(0)
            declared = max(declared_length(file, length), _asf_length(file))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}. Make it readable.") from error
    if declared > length:
        raise DataError(
            f"{name}: truncated: it ends before the length it declares. Download it again."
        )


def _asf_length(file: BinaryIO) -> int:
    """The length that an ASF file declares (Advanced Systems Format, sections 3.1 and 3.2): objects
    of a GUID, a size and content; 0 for other files and live recordings.
    """
    file.seek(0)
    head = file.read(2**16)
    if head[:16] != _ASF:
        return 0
    at = 30
    while len(head) >= at + 48:
        size = int.from_bytes(head[at + 16 : at + 24], "little")
        if head[at : at + 16] == _ASF_FILE:
            return int.from_bytes(head[at + 40 : at + 48], "little")
        at += max(size, 24)
    return 0

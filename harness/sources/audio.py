"""Sound recordings, one per sample."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import gcd
from os import SEEK_END
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import Kind
from harness.sources.collection import Collection, Keep
from harness.sources.files import OnError, decodable, need
from harness.sources.split import Part, Rule

Align = Literal["start", "centre"]
Wave = NDArray[np.float32]


class Recordings(Collection):
    """WAV, FLAC or OGG files, all of one length, channel count and sampling rate.

    A sample: `wave` (C, seconds x rate) float32 in [-1, 1], and `label` int64 if the path has a
    {label}. `files`: e.g. `speech/{label}/*.wav` or `digits/{label}_{speaker}_{take}.wav`, or
    `speech/metadata.csv`, a table that lists them; its `columns`, e.g. {age: number}, are
    added to samples (see `Collection`). Classes are numbered in the order of `classes`, by default
    by name. Waves are cut or padded as `WaveReader` describes.

    `keep`: "memory" decodes every file at start-up, so that a corrupt file is found then (with
    `on_error: skip` it is skipped and named in `skipped`); "disk" checks headers only and decodes
    a file when it is read. Raises a DataError that names the file.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        rate_hz: int,
        seconds: float,
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        columns: Mapping[str, Kind] | None = None,
        channels: int = 1,
        resample: bool = False,
        align: Align = "start",
        keep: Keep = "memory",
        on_error: OnError = "stop",
    ) -> None:
        self.reader = WaveReader(rate_hz, seconds, channels, resample, align)
        super().__init__("wave", files, part, split, classes, keep, on_error, columns)


class WaveReader:
    """Reads recordings, from files or from bytes, as waves (C, seconds x rate) float32; `name` is
    used in messages. Raises DataError.

    A longer recording is cut, a shorter one padded with silence: at its end, or with `align:
    centre` on both sides. A recording with a rate other than `rate_hz` is rejected, or with
    `resample` converted by a polyphase filter (scipy.signal.resample_poly).
    """

    def __init__(
        self,
        rate_hz: int,
        seconds: float,
        channels: int = 1,
        resample: bool = False,
        align: Align = "start",
    ) -> None:
        require_choice("align", align, get_args(Align))
        if rate_hz < 1 or round(seconds * rate_hz) < 1:
            raise ConfigError(
                f"rate_hz, seconds: {rate_hz} and {seconds} give an empty wave. Increase them."
            )
        self.rate_hz, self.channels, self.num_frames = rate_hz, channels, round(seconds * rate_hz)
        self._resample, self._align = resample, align
        _decoder()

    def read(self, file: Path | bytes, name: str) -> Wave:
        """The wave (C, T) of a recording, with the requested rate and length."""
        num_frames = self.check(file, name)
        soundfile = _decoder()
        try:
            frames, rate_hz = soundfile.read(decodable(file), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise DataError(f"{name}: cannot be decoded: {error}. It may be truncated.") from error
        if len(frames) != num_frames:
            raise DataError(
                f"{name}: {len(frames)} frames, but its header declares {num_frames}. It may be "
                "truncated."
            )
        if len(frames) == 0:
            raise DataError(f"{name}: it contains no sound. Remove it.")
        if not np.isfinite(frames).all():
            raise DataError(f"{name}: it contains NaN or infinite values. Remove it.")
        if rate_hz != self.rate_hz:
            common = gcd(rate_hz, self.rate_hz)
            # Loaded when used
            from scipy.signal import resample_poly  # type: ignore[import-untyped]  # scipy has no stubs

            frames = resample_poly(
                frames, self.rate_hz // common, rate_hz // common, axis=0
            ).astype(np.float32)
        return self._fitted(frames.T)

    def check(self, file: Path | bytes, name: str) -> int:
        """How many frames a recording declares.

        Raises DataError for one that is not as requested, or that is truncated.
        """
        soundfile = _decoder()
        try:
            head = soundfile.info(decodable(file))
        except soundfile.SoundFileError as error:
            raise DataError(f"{name}: not a sound file: {error}. It may be truncated.") from error
        if _is_cut(file):
            raise DataError(
                f"{name}: truncated: it ends before the length it declares. Download it again."
            )
        if head.channels != self.channels:
            raise DataError(
                f"{name}: {head.channels} channels, expected {self.channels}. Set channels, or "
                "remove the file."
            )
        if head.samplerate != self.rate_hz and not self._resample:
            raise DataError(
                f"{name}: {head.samplerate} Hz, expected {self.rate_hz} Hz. Set resample: true, or "
                "change rate_hz."
            )
        return int(head.frames)

    def _fitted(self, wave: Wave) -> Wave:
        """(C, any T) -> (C, num_frames)."""
        surplus = wave.shape[1] - self.num_frames
        before = abs(surplus) // 2 if self._align == "centre" else 0
        if surplus >= 0:
            return np.ascontiguousarray(wave[:, before : before + self.num_frames])
        fitted = np.zeros((len(wave), self.num_frames), dtype=np.float32)
        fitted[:, before : before + wave.shape[1]] = wave
        return fitted


def _decoder() -> Any:
    # Not kept by the source, which must be picklable for a worker; a module is not
    return need("soundfile", "audio", "sound")


def _is_cut(recording: Path | bytes) -> bool:
    """Whether a file is shorter than it declares: libsndfile reads a truncated WAV or Ogg file to
    its end without an error.
    """
    with recording.open("rb") if isinstance(recording, Path) else BytesIO(recording) as file:
        head = file.read(12)
        length = file.seek(0, SEEK_END)
        if head[:4] == b"RIFF":
            declared = int.from_bytes(head[4:8], "little")
            # Larger: written to a pipe, the length unknown; 1: a missing pad byte
            return declared < 2**31 - 1 and declared + 8 > length + 1
        if head[:4] == b"OggS":
            file.seek(max(0, length - 65_307))  # the largest page there can be
            tail = file.read()
            page = tail[max(0, tail.rfind(b"OggS")) :]
            # RFC 3533, section 6: flags (4: the last page of a stream), and from byte 26 the number
            # of segments and the length of each.
            whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
            return not (whole and page[5] & 4)
    return False

"""Sound recordings, one per sample."""

import warnings
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import Kind
from harness.sources.collection import Collection, Keep
from harness.sources.files import OnError, decodable, need
from harness.sources.mistaken import what_is
from harness.sources.sound_files import FORMATS, is_cut
from harness.sources.split import Part, Rule

Align = Literal["start", "centre"]
Wave = NDArray[np.float32]
_LOSSY = 1.5  # what decoders make of sound that was at most 1


class Recordings(Collection):
    """WAV, FLAC, OGG and other files (`FORMATS` in sound_files.py), all of one length, channel
    count and sampling rate.

    A sample: `wave` (C, seconds x rate) float32 in [-1, 1] (floats beyond are kept, with a
    warning), and `label` int64 if the path has a
    {label}. `files`: e.g. `speech/{label}/*.wav` or `digits/{label}_{speaker}_{take}.wav`, or
    `speech/metadata.csv`, a table that lists them; its `columns`, e.g. {age: number}, are
    added to samples (see `Collection`). Classes are numbered in the order of `classes`, by default
    by name. Waves are cut or padded as `WaveReader` describes.

    `keep`: "memory" decodes every file at start-up, so that a corrupt file is found then (with
    `on_error: skip` it is skipped and named in `skipped`); "disk" checks headers only and decodes
    a file when it is read. Raises a DataError that names the file.
    """

    version = 2  # labels as harness.data.written.text_of writes values

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
        self._told = False
        _decoder()

    def read(self, file: Path | bytes, name: str) -> Wave:
        """The wave (C, T) of a recording, with the requested rate and length."""
        head = self._inspect(file, name)
        num_frames = int(head.frames)
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
        self._tell_loud(name, frames, most=_LOSSY if head.format in ("OGG", "MP3") else 1.0)
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
        return int(self._inspect(file, name).frames)

    def _inspect(self, file: Path | bytes, name: str) -> Any:
        """What soundfile says of a recording. Raises DataError as `check`."""
        soundfile = _decoder()
        try:
            head = soundfile.info(decodable(file))
        except soundfile.SoundFileError as error:
            if (what := what_is(file, "sound")) is not None:
                raise DataError(f"{name}: not a sound file that is read, but {what}") from error
            raise DataError(f"{name}: not a sound file: {error}. It may be truncated.") from error
        if head.format not in FORMATS:
            raise DataError(
                f"{name}: {head.format_info}: whether such a file is whole cannot be told. Convert "
                f"it to WAV or FLAC; read are {', '.join(FORMATS)}."
            )
        if is_cut(file):
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
        return head

    def _tell_loud(self, name: str, frames: Wave, most: float) -> None:
        """Warn once of floats beyond [-1, 1]."""
        loudest = float(np.abs(frames).max())
        if loudest > most and not self._told:
            self._told = True
            warnings.warn(
                f"{name}: sound up to {loudest:.4g}, beyond [-1, 1]; it is kept as it is, and so "
                "is that of any further file. If it was stored without being scaled, scale it with "
                "harness.treatments.ToFloat: {key: wave, scale: ...}.",
                stacklevel=2,
            )

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

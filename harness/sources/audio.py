"""Sound recordings, one per sample."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import Kind
from harness.sources.collection import Check, Collection, Keep, refuse_uncounted
from harness.sources.container_sound import is_container, read_container
from harness.sources.files import OnError, decodable, need
from harness.sources.held_files import Held
from harness.sources.mistaken import what_is
from harness.sources.sound_files import FORMATS, is_cut, is_mp3_frame, is_unmeasured_mp3
from harness.sources.source import span_columns
from harness.sources.split import Part, Rule

Align = Literal["start", "centre"]
Wave = NDArray[np.float32]
Channels = int | Literal["mono"]
_LOSSY = 1.5  # the peak that decoders may give sound that was at most 1
_LOSSY_FORMATS = ("OGG", "MP3")
_EMPTY_ID3 = b"ID3\3\0\0\0\0\0\x0a" + bytes(10)


class Recordings(Collection):
    """WAV, FLAC, OGG, MP3 and other files (`FORMATS` in sound_files.py), and the sound of M4A, MP4,
    WMA and WebM files, all of one channel count and sampling rate.

    A sample: `wave` (C, seconds x rate) float32 in [-1, 1] (floats beyond are kept, with a
    warning), and `label` int64 if the path has a {label}. Without `hop_s` the beginning of each
    recording; with it windows of `seconds`, one every `hop_s` seconds, up to its end, so that no
    sound is left out; the last is padded with silence. Shorter recordings are padded as
    `WaveReader` describes.

    `files`: e.g. `speech/{label}/*.wav` or `digits/{label}_{speaker}_{take}.wav`, or
    `speech/metadata.csv`, a table that lists them; its `columns`, e.g. {age: number}, are
    added to samples (see `Collection`). Classes are numbered in the order of `classes`, by default
    by name. All windows of a recording are in one part. Known about windows: "recording", "start"
    and "stop", in samples at `rate_hz`.

    `keep`: "memory" decodes every file at start-up, so that a corrupt file is found then (with
    `on_error: skip` it is skipped and named in `skipped`); "disk" checks headers only and decodes
    a file when it is read: for WAV, FLAC and the like only the window, for others or with another
    rate the whole file; with `check`: "first" (not with `hop_s`) that of the first file only, and
    others when they are read. Raises ConfigError, and a DataError that names the file.
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
        channels: Channels = 1,
        resample: bool = False,
        align: Align = "start",
        keep: Keep = "memory",
        on_error: OnError = "stop",
        hop_s: float | None = None,
        check: Check = "all",
    ) -> None:
        self.reader: WaveReader = WaveReader(rate_hz, seconds, channels, resample, align)
        if hop_s is not None and (align != "start" or round(hop_s * rate_hz) < 1):
            raise ConfigError(
                f"hop_s, align: {hop_s} and {align}: windows begin at the start, at least one "
                "sample apart. Increase hop_s, or remove align."
            )
        if hop_s is not None:
            refuse_uncounted(check, "hop_s", "remove hop_s, for the beginning of each recording")
        self._hop = None if hop_s is None else round(hop_s * rate_hz)
        settings = (rate_hz, seconds, channels, resample, align, self._hop)
        super().__init__(
            "wave", files, part, split, classes, keep, on_error, columns, settings, check
        )

    def known(self) -> Mapping[str, Sequence[str]]:
        """{field: (N,) texts}: the fields of the paths, and with `hop_s` recording, start, stop."""
        known = super().known()
        if self._hop is None:
            return known
        return {**known, **span_columns(known["path"], self._begins, self._stops)}

    def _read_rows(self, path: Path) -> Mapping[str, NDArray[Any]]:
        if self._hop is None:
            return super()._read_rows(path)
        return {"values": self.reader.whole(path, str(path)).T}

    def _check(self, path: Path) -> int:
        return self.reader.check(path, str(path))

    def _arrange_held(self, held: Held) -> NDArray[np.int64] | None:
        if self._hop is None:
            return super()._arrange_held(held)
        self._held: Held | None = held
        return self._windows(held.lengths())

    def _arrange_checked(self, checked: list[Any]) -> NDArray[np.int64] | None:
        if self._hop is None:
            return super()._arrange_checked(checked)
        self._held = None
        return self._windows(np.array(checked, dtype=np.int64))

    def _windows(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """lengths (F,) -> the file (N,) of each window."""
        assert self._hop is not None
        surplus = np.maximum(lengths - self.reader.num_frames, 0)
        # With a hop longer than a window the next may begin after the end
        counts = np.minimum(1 + -(-surplus // self._hop), -(-lengths // self._hop))
        self._begins = np.concatenate([np.arange(count) for count in counts]) * self._hop
        file_of = np.repeat(np.arange(len(lengths)), counts)
        self._stops = np.minimum(self._begins + self.reader.num_frames, lengths[file_of])
        self._window_of = file_of
        return file_of

    def _gather(self, indices: list[int]) -> Wave:
        """(B, C, T)"""
        if self._hop is None:
            return super()._gather(indices)
        return np.stack([self._window(index) for index in indices])

    def _window(self, index: int) -> Wave:
        number, begin = int(self._window_of[index]), int(self._begins[index])
        if self._held is not None:
            first = int(self._held.begins[number])
            return self.reader.fit(self._held.values[first + begin : first + self._stops[index]].T)
        path = self.files.paths[number]
        return self.reader.window(path, str(path), begin)


class WaveReader:
    """Reads recordings, from files or from bytes, as waves (C, seconds x rate) float32; `name` is
    used in messages. Raises DataError.

    A longer recording is cut, a shorter one padded with silence: at its end, or with `align:
    centre` on both sides. A recording with a rate other than `rate_hz` is rejected, or with
    `resample` converted by a polyphase filter (scipy.signal.resample_poly). `channels: mono` takes
    the mean of however many there are.
    """

    def __init__(
        self,
        rate_hz: int,
        seconds: float,
        channels: Channels = 1,
        resample: bool = False,
        align: Align = "start",
    ) -> None:
        require_choice("align", align, get_args(Align))
        if rate_hz < 1 or round(seconds * rate_hz) < 1:
            raise ConfigError(
                f"rate_hz, seconds: {rate_hz} and {seconds} give an empty wave. Increase them."
            )
        if channels != "mono" and (not isinstance(channels, int) or channels < 1):
            raise ConfigError(f"channels: {channels!r}: give their number, or mono.")
        self.rate_hz, self.channels, self.num_frames = rate_hz, channels, round(seconds * rate_hz)
        self._resample, self._align = resample, align
        self._has_warned = False
        _decoder()

    def read(self, file: Path | bytes, name: str) -> Wave:
        """The wave (C, T) of a recording, with the requested rate and length."""
        return self.fit(self.whole(file, name))

    def whole(self, file: Path | bytes, name: str) -> Wave:
        """The wave (C, T) of a recording, with the requested rate and its own length."""
        if _is_for_ffmpeg(file):
            rate_hz, frames = read_container(file, name)
            self._require(name, frames.shape[1], rate_hz)
            return self._prepare(name, frames, rate_hz, lossy=True)
        head = self._inspect(file, name)
        frames = _decode(file, name, 0, int(head.frames))
        return self._prepare(name, frames, head.samplerate, lossy=head.format in _LOSSY_FORMATS)

    def window(self, file: Path | bytes, name: str, begin: int) -> Wave:
        """The wave (C, T) from a sample on, counted at the requested rate."""
        if not _is_for_ffmpeg(file):
            head = self._inspect(file, name)
            if head.samplerate == self.rate_hz and head.format not in _LOSSY_FORMATS:
                count = max(0, min(self.num_frames, int(head.frames) - begin))
                frames = _decode(file, name, begin, count)
                return self.fit(self._prepare(name, frames, self.rate_hz, lossy=False))
        # Decoders of lossy formats do not give the same samples after a seek
        return self.fit(self.whole(file, name)[:, begin:])

    def check(self, file: Path | bytes, name: str) -> int:
        """How many samples a recording has at the requested rate, as its header declares.

        Raises DataError for one that is not as requested, or that is truncated.
        """
        if _is_for_ffmpeg(file):  # whose headers do not say it exactly
            return int(self.whole(file, name).shape[1])
        head = self._inspect(file, name)
        return -(-int(head.frames) * self.rate_hz // int(head.samplerate))

    def fit(self, wave: Wave) -> Wave:
        """(C, any T) -> (C, num_frames)."""
        surplus = wave.shape[1] - self.num_frames
        before = abs(surplus) // 2 if self._align == "centre" else 0
        if surplus >= 0:
            return np.ascontiguousarray(wave[:, before : before + self.num_frames])
        fitted = np.zeros((len(wave), self.num_frames), dtype=np.float32)
        fitted[:, before : before + wave.shape[1]] = wave
        return fitted

    def _prepare(
        self, name: str, frames: NDArray[np.float32], rate_hz: int, *, lossy: bool
    ) -> Wave:
        """(T, C) as decoded -> (C, T) at the requested rate."""
        if len(frames) == 0:
            raise _no_sound(name)
        if not np.isfinite(frames).all():
            raise DataError(f"{name}: it contains NaN or infinite values. Remove it.")
        self._warn_loud(name, frames, most=_LOSSY if lossy else 1.0)
        if self.channels == "mono":
            frames = frames.mean(axis=1, keepdims=True)
        if rate_hz != self.rate_hz:
            common = gcd(rate_hz, self.rate_hz)
            # Loaded when used
            from scipy.signal import resample_poly  # type: ignore[import-untyped]  # scipy has no stubs

            frames = resample_poly(
                frames, self.rate_hz // common, rate_hz // common, axis=0
            ).astype(np.float32)
        return frames.T

    def _inspect(self, file: Path | bytes, name: str) -> Any:
        """The header of a recording, by soundfile. Raises DataError as `check` does."""
        soundfile = _decoder()
        try:
            head = soundfile.info(_openable(file))
        except soundfile.SoundFileError as error:
            if (what := what_is(file, "sound")) is not None:
                raise DataError(f"{name}: not a supported sound file, but {what}") from error
            raise DataError(f"{name}: not a sound file: {error}. It may be truncated.") from error
        if head.format not in FORMATS:
            raise DataError(
                f"{name}: {head.format_info}: whether such a file is whole cannot be told. Convert "
                f"it to WAV or FLAC; read are {', '.join(FORMATS)}, M4A, MP4, WMA, WebM."
            )
        if is_cut(file):
            raise DataError(
                f"{name}: truncated: it ends before the length it declares. Download it again."
            )
        self._require(name, head.channels, head.samplerate)
        if head.frames == 0:
            raise _no_sound(name)
        return head

    def _require(self, name: str, channels: int, rate_hz: int) -> None:
        if self.channels not in ("mono", channels):
            raise DataError(
                f"{name}: {channels} channels, expected {self.channels}. Set channels, e.g. mono "
                "for their mean, or remove the file."
            )
        if rate_hz != self.rate_hz and not self._resample:
            raise DataError(
                f"{name}: {rate_hz} Hz, expected {self.rate_hz} Hz. Set resample: true, or "
                "change rate_hz."
            )

    def _warn_loud(self, name: str, frames: Wave, most: float) -> None:
        """Warn once of floats beyond [-1, 1]."""
        loudest = float(np.abs(frames).max())
        if loudest > most and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{name}: sound up to {loudest:.4g}, beyond [-1, 1]; it is kept unchanged, as "
                "in any further file. If it was stored without being scaled, scale it with "
                "harness.treatments.ToFloat: {key: wave, scale: ...}.",
                stacklevel=2,
            )


def _decode(file: Path | bytes, name: str, begin: int, count: int) -> NDArray[np.float32]:
    """(count, C) from `begin` on. Raises DataError if there are fewer."""
    soundfile = _decoder()
    try:
        with soundfile.SoundFile(_openable(file)) as opened:
            if begin:
                opened.seek(begin)
            frames: NDArray[np.float32] = opened.read(count, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(f"{name}: cannot be decoded: {error}. It may be truncated.") from error
    if len(frames) != count:
        raise DataError(
            f"{name}: {len(frames)} frames, but its header declares {count}. It may be truncated."
        )
    return frames


def _is_for_ffmpeg(file: Path | bytes) -> bool:
    """Whether libsndfile does not read a file, or not all of it."""
    try:
        return is_container(file) or is_unmeasured_mp3(file)
    except OSError:
        return False  # reported by soundfile


def _openable(file: Path | bytes) -> Path | BinaryIO:
    # In memory libsndfile takes MP3 for sound only behind such a header
    if isinstance(file, bytes) and is_mp3_frame(file):
        return BytesIO(_EMPTY_ID3 + file)
    return decodable(file)


def _no_sound(name: str) -> DataError:
    return DataError(
        f"{name}: it contains no sound by its header. Remove it, or where a recorder did not "
        "finish the header write it anew: ffmpeg -i IN OUT."
    )


def _decoder() -> Any:
    # Not kept by the source, which must be picklable for a worker; a module is not
    return need("soundfile", "audio", "sound")

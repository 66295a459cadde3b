"""Clips of video files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.sources.cells import Kind
from harness.sources.collection import Check, Collection, Keep, refuse_uncounted
from harness.sources.decoders import Choose, Frames, decoder, read_frames
from harness.sources.files import OnError
from harness.sources.held_files import Held
from harness.sources.source import span_columns
from harness.sources.split import Part, Rule

# ITU-R BT.601, thousandths of red, green and blue
_LUMA = np.array([299, 587, 114], dtype=np.uint32)


class Clips(Collection):
    """Clips of `frames` frames, every `stride`-th one, from video files (MP4, AVI, MKV, WebM, GIF
    and other formats that ffmpeg reads).

    A sample: `clip` (C, T, H, W) uint8, RGB, or one channel with `grey`, and `label` int64 if the
    path has a {label}. With `clips: every` a file gives a clip every `step` frames, by default
    frames x stride (no overlap); with `first` only the one at its start. Frames are counted in
    presentation order, and are exact wherever a clip begins. All have one size, or are resized by
    `size: [H, W]` (bilinear, antialiased).

    `files`, `columns`: see `Collection`; `split` divides whole files, so that overlapping clips are
    never in two parts. A file with fewer frames than a clip needs is treated as one that cannot be
    decoded: `on_error` decides. `keep`: "memory" decodes everything at start-up; "disk" counts
    frames and decodes a clip when it is read, from the start of its file: for many short files
    rather than a few long ones; with `check`: "first" (`clips: first` only) those of the first file
    only, and others when they are read. Raises ConfigError, and DataError that names the file.
    """

    version = 2  # by PyAV alone; mirrored films, and of several streams the best

    def __init__(
        self,
        files: str | Sequence[str],
        frames: int,
        stride: int = 1,
        clips: Literal["every", "first"] = "every",
        step: int | None = None,
        size: Sequence[int] | None = None,
        grey: bool = False,
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        columns: Mapping[str, Kind] | None = None,
        keep: Keep = "memory",
        on_error: OnError = "stop",
        check: Check = "all",
    ) -> None:
        if frames < 1 or stride < 1 or (step is not None and step < 1):
            raise ConfigError(
                f"frames, stride, step: {frames}, {stride}, {step}: each must be at least 1."
            )
        if clips not in ("every", "first") or (clips == "first" and step is not None):
            raise ConfigError(
                f"clips, step: {clips!r}, {step}: clips is every or first, and step is for every "
                "only."
            )
        if clips == "every":
            refuse_uncounted(check, "clips: every", "set clips: first")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ConfigError(f"size: {list(size)}: give [height, width].")
        self.frames, self.stride = frames, stride
        self._reach = np.arange(frames) * stride  # the frames of a clip, relative to its first
        self._first_only, self._step = clips == "first", step or frames * stride
        self._size, self._grey = size, grey
        self._alike: tuple[Path, tuple[int, ...]] | None = (
            None  # the file and size that all others must match
        )
        decoder()  # reports a missing decoder before any file is blamed
        sized = None if size is None else tuple(size)
        settings = (frames, stride, clips, step, sized, grey)
        super().__init__(
            "clip", files, part, split, classes, keep, on_error, columns, settings, check
        )

    def known(self) -> Mapping[str, Sequence[str]]:
        """{field: (N,) texts}: the fields of the paths, and recording, start, stop: the file and
        the frames [start, stop) that a clip spans.
        """
        known = super().known()
        stops = self._begins + self._reach[-1] + 1
        return {**known, **span_columns(known["path"], self._begins, stops)}

    def _begins_of(self, count: int) -> list[int]:
        """Where clips begin in a file of `count` frames."""
        begins = list(range(0, count - int(self._reach[-1]), self._step))
        return begins[:1] if self._first_only else begins

    def _clip_frames(self, count: int) -> NDArray[np.int64]:
        """The frames of all clips of a file, ascending."""
        return np.unique(
            np.add.outer(np.array(self._begins_of(count), dtype=np.int64), self._reach)
        )

    def _check(self, path: Path) -> tuple[int, None]:
        """How many frames there are; the first is decoded."""
        count, first = read_frames(path, lambda count: range(min(count, 1)))
        self._compare(path, count, first)
        return count, None

    def _read_rows(self, path: Path) -> Mapping[str, NDArray[Any]]:
        """The frames that are used, (N, C, H, W), each with how many the file has."""
        count, frames = self._decode(path, lambda count: self._clip_frames(count).tolist())
        values = self._prepare(frames).transpose(1, 0, 2, 3)
        return {"values": values, "count": np.full(len(values), count)}

    def _decode(self, path: Path, choose: Choose) -> tuple[int, Frames]:
        """As `read_frames`; raises DataError too for a file that is too short or unlike others."""
        count, frames = read_frames(
            path, lambda count: choose(count) if self._begins_of(count) else range(min(count, 1))
        )
        self._compare(path, count, frames)
        return count, frames

    def _compare(self, path: Path, count: int, frames: Frames) -> None:
        if not self._begins_of(count):
            raise DataError(
                f"{path}: {count} frames; a clip needs {self._reach[-1] + 1}. Remove the file, or "
                "set fewer frames or a smaller stride."
            )
        size = frames.shape[1:3]
        first, others = self._alike or (path, size)
        if size != others and self._size is None:
            raise DataError(
                f"{path}: {size[1]} x {size[0]}, but {first} has {others[1]} x {others[0]}. Set "
                "size, or give all files the same."
            )
        self._alike = (first, others)

    def _arrange_held(self, held: Held) -> NDArray[np.int64]:
        self._held: Held | None = held
        counts = held.columns["count"][held.begins].tolist()
        self._used = [self._clip_frames(count) for count in counts]
        return self._clips(counts)

    def _arrange_checked(self, checked: list[Any]) -> NDArray[np.int64]:
        self._held = None
        return self._clips([count for count, _ in checked])

    def _clips(self, counts: list[int]) -> NDArray[np.int64]:
        """How many frames each file has, which does not matter if each gives one clip -> the file
        (N,) of each clip.
        """
        if self._first_only:
            self._clip_of = np.arange(len(self.files.paths))
            self._begins = np.zeros_like(self._clip_of)
            return self._clip_of
        begins = [self._begins_of(count) for count in counts]
        self._begins = np.array([begin for of_file in begins for begin in of_file], dtype=np.int64)
        self._clip_of = np.repeat(np.arange(len(counts)), [len(of_file) for of_file in begins])
        return self._clip_of

    def _gather(self, indices: list[int]) -> Frames:
        """(B, C, T, H, W)"""
        return np.stack(
            [
                self._clip(int(self._clip_of[index]), self._begins[index] + self._reach)
                for index in indices
            ]
        )

    def _clip(self, number: int, wanted: NDArray[np.int64]) -> Frames:
        if self._held is None:
            path = self.files.paths[number]
            return self._prepare(self._decode(path, lambda count: wanted.tolist())[1])
        rows = self._held.begins[number] + np.searchsorted(self._used[number], wanted)
        clip: Frames = self._held.values[rows]
        return clip.transpose(1, 0, 2, 3)

    def _prepare(self, frames: Frames) -> Frames:
        """(N, H, W, 3) -> (C, N, H, W), of the requested size."""
        if self._grey:
            frames = ((frames @ _LUMA + 500) // 1000).astype(np.uint8)[..., None]
        channels = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        if self._size is not None and channels.shape[2:] != tuple(self._size):
            channels = torch.nn.functional.interpolate(
                channels,
                size=list(self._size),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        return np.ascontiguousarray(channels.numpy().transpose(1, 0, 2, 3))

"""Measuring devices: windows of recordings, several channels, one row a sample in time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.sources.files import Files, OnError, class_names, find_files, read_each
from harness.sources.frames import Layout, read_frame
from harness.sources.split import Part, Rule, rows_of

Bounds = NDArray[np.int64]


@dataclass(frozen=True)
class Recording:
    """One file: `values` (C, T) float32, `labels` T texts or None, `stretches` (S, 2) begin and end of what has no gap in it."""

    values: NDArray[np.float32]
    labels: NDArray[np.str_] | None
    stretches: Bounds


class Series:
    """Windows of `length` rows, one every `stride`, of .csv, .parquet, .jsonl, .xlsx or .npy files; each file is a recording of one device.

    A sample: `series` (C, length) float32, and `label` int64 where labels are known: from the column `label`, or from a {label} in the path. No
    window reaches from one recording into another, and `split` divides whole recordings by fields of their paths, e.g. `a/{label}/{subject}.csv`:
    windows that overlap are never in two parts. An .npy file is an array (T, C), or (T,); its `channels` are named in its order.

    `labels`: "pure" takes the windows with one label only, "majority" gives a window its most frequent one (of equals, the first class); an empty
    label is none. `time`: a column of seconds. More than `gap_s` from one row to the next is a gap, and so is a row with an empty cell; `gaps` says
    whether to refuse them or to split there. Classes are numbered as in `classes`, or else by name over all files. A file that cannot be read ends
    all, or is left out with `on_error: skip`. Raises DataError with file, row and column.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        channels: Sequence[str],
        length: int,
        stride: int,
        label: str | None = None,
        labels: Literal["pure", "majority"] = "pure",
        time: str | None = None,
        gap_s: float | None = None,
        gaps: Literal["refuse", "split"] = "refuse",
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        sheet: str | int = 1,
        header: int = 1,
        separator: str = ",",
        decimal: str = ".",
        on_error: OnError = "stop",
    ) -> None:
        if length < 1 or stride < 1 or not channels:
            raise ConfigError(f"length, stride, channels: {length}, {stride}, {list(channels)}: at least one of each.")
        if labels not in ("pure", "majority") or gaps not in ("refuse", "split"):
            raise ConfigError(f"labels, gaps: {labels!r}, {gaps!r}: labels is pure or majority, gaps is refuse or split.")
        if (gap_s is None) != (time is None):
            raise ConfigError("time, gap_s: give both, or neither.")
        self.channels, self.length = list(channels), length
        self._label, self._time, self._gap_s, self._gaps = label, time, gap_s, gaps
        layout = Layout(sheet, header, separator, decimal, missing="keep")
        found = find_files(files)
        # All files are read whatever the part: it is all of them that the classes are numbered by.
        found, recordings, self.skipped = read_each(found, lambda path: self._read(path, layout), on_error)
        self.classes = self._number_classes(found, recordings, classes)
        rows = rows_of(part, split, found.fields, len(found.paths)).tolist()
        self.files, self._recordings = found.chosen(rows), [recordings[row] for row in rows]
        self._windows, self._labels = self._cut(stride, labels)
        if len(self._windows) == 0:
            raise DataError(
                f"{files}: no window of {length} rows in {len(rows)} recordings. Set a smaller length, or another rule for labels or gaps."
            )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{series: (B, C, length), label: (B,)}"""
        cut = [self._recordings[number].values[:, begin : begin + self.length] for number, begin in self._windows[indices].tolist()]
        series = {"series": np.stack(cut)}
        return series if self._labels is None else {**series, "label": self._labels[indices]}

    def _read(self, path: Path, layout: Layout) -> Recording:
        rows: Sequence[int]
        if path.suffix == ".npy":
            values, labels, times = self._read_array(path), None, None
            rows = range(1, values.shape[1] + 1)
        else:
            frame = read_frame(path, layout, [*self.channels, *(name for name in (self._label, self._time) if name is not None)])
            values = np.stack([frame.numbers(name) for name in self.channels]).astype(np.float32)
            labels = None if self._label is None else np.array(frame.texts(self._label), dtype=np.str_)
            times = None if self._time is None else frame.numbers(self._time)
            rows = frame.rows
        if values.shape[1] == 0:
            raise DataError(f"{path}: no rows in it. Take it away.")
        if np.isinf(values).any():
            raise DataError(f"{path}: row {rows[int(np.isinf(values).any(axis=0).argmax())]}: a number that float32 cannot hold. Mend it.")
        return Recording(values, labels, self._stretches(path, values, times, rows))

    def _stretches(self, path: Path, values: NDArray[np.float32], times: NDArray[np.float64] | None, rows: Sequence[int]) -> Bounds:
        missing: NDArray[np.bool_] = np.asarray(np.isnan(values).any(axis=0))
        apart = missing[1:] | missing[:-1]  # (T - 1,): whether there is a gap between a row and the next
        if times is not None and self._gap_s is not None:
            steps = np.diff(times)
            if not (steps > 0).all() or np.isnan(times).any():
                row = rows[int((~(steps > 0)).argmax()) + 1] if len(steps) else rows[0]
                raise DataError(f"{path}: row {row}, column {self._time!r}: not after the time of the row before. Sort or mend it.")
            apart = apart | (steps > self._gap_s)
        if self._gaps == "refuse" and (apart.any() or missing.any()):
            row = rows[int(missing.argmax())] if missing.any() else rows[int(apart.argmax()) + 1]
            what = "an empty cell" if missing.any() else f"more than {self._gap_s} s after the row before"
            raise DataError(f"{path}: row {row}: {what}. Mend it, or set gaps: split.")
        edges = np.flatnonzero(np.concatenate([[True], apart, [True]]))
        return np.stack([edges[:-1], edges[1:]], axis=1)[~missing[edges[:-1]]]

    def _read_array(self, path: Path) -> NDArray[np.float32]:
        if self._label is not None or self._time is not None:
            raise DataError(f"{path}: an array has no columns of labels or times. Leave label and time out, and put {{label}} into the path.")
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}. It may be cut short, or no array of numbers.") from error
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != len(self.channels) or array.dtype.kind not in "iuf":
            raise DataError(f"{path}: {array.shape} of {array.dtype} where numbers (T, {len(self.channels)}) are needed, one column a channel.")
        return np.ascontiguousarray(array.T, dtype=np.float32)

    def _number_classes(self, found: Files, recordings: Sequence[Recording], classes: Sequence[Any] | None) -> list[str] | None:
        if self._label is not None:
            names = {str(name) for one in recordings if one.labels is not None for name in np.unique(one.labels)} - {""}
            return class_names(classes, sorted(names), self._label)
        return class_names(classes, found.fields["label"], "label") if "label" in found.fields else None

    def _cut(self, stride: int, rule: Literal["pure", "majority"]) -> tuple[Bounds, NDArray[np.int64] | None]:
        """(N, 2): recording and beginning of each window; (N,): their classes."""
        windows, classes = [], []
        for number, one in enumerate(self._recordings):
            begins = np.concatenate([np.arange(begin, end - self.length + 1, stride) for begin, end in one.stretches] or [np.empty(0, np.int64)])
            if self.classes is not None:
                if one.labels is None:
                    judged = np.full(len(begins), self.classes.index(self.files.fields["label"][number]))
                else:
                    judged = judge(np.stack([one.labels == name for name in self.classes]), begins, self.length, rule)
                begins, judged = begins[judged >= 0], judged[judged >= 0]
                classes.append(judged)
            windows.append(np.stack([np.full(len(begins), number), begins], axis=1))
        return np.concatenate(windows).astype(np.int64), np.concatenate(classes).astype(np.int64) if classes else None


def judge(is_class: NDArray[np.bool_], begins: Bounds, length: int, rule: Literal["pure", "majority"]) -> NDArray[np.int64]:
    """is_class (K, T): which rows are of which class; begins (N,) -> (N,) classes of the windows, -1 for one that has none.

    "pure": the class of all rows. "majority": the one of most rows, of equals the first; none if most rows have no class.
    """
    upto = np.concatenate([np.zeros((len(is_class), 1), dtype=np.int64), np.cumsum(is_class, axis=1)], axis=1)
    counts = upto[:, begins + length] - upto[:, begins]  # (K, N)
    best = counts.argmax(axis=0)
    most = counts.max(axis=0)
    enough = most == length if rule == "pure" else most > length - counts.sum(axis=0)
    return np.where(enough, best, -1)

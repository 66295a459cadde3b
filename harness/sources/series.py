"""Time series of measuring devices: windows of multichannel recordings, one row per time step."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.readings import Column, Columns, joined
from harness.data.shelf import report
from harness.data.written import plain_name
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.cells import MISSING, Layout, TimeUnit
from harness.sources.device_files import with_parts
from harness.sources.files import OnError, class_names, read_all, tell_skipped
from harness.sources.listing import Files, find_files
from harness.sources.narrowing import tell_narrowed
from harness.sources.recording import Bounds, Duplicates, Gaps, Reader, Track
from harness.sources.shared import read_shared
from harness.sources.source import BatchSource, select, span_columns
from harness.sources.split import Part, Rule, rows_of
from harness.sources.units import Units

Labels = Literal["pure", "majority"]


@dataclass
class _SeriesData:
    """The files that were read, their recordings, and messages about skipped ones."""

    paths: list[Path]
    tracks: list[list[Track]]
    skipped: list[str]


def _reads(files: Files, reader: Reader, on_error: OnError) -> Callable[[Columns], None]:
    """What fills columns with the recordings of all files, one after another; in the state, by
    path, a message for a skipped file, or of each recording what is no column.
    """

    def read(columns: Columns) -> None:
        state = columns.state or {"done": {}, "narrowed": {}, "first": None}
        done, first = state["done"], state["first"]
        reader.first = None if first is None else (Path(first[0]), first[1])

        def read_file(path: Path) -> None:
            report("reading files", len(done), len(files.paths))
            if str(path) in done:
                return
            tracks = reader.read(path)
            done[str(path)] = [
                [one.name, one.fields, one.values.shape[1], one.stretches.tolist()]
                for one in tracks
            ]
            state["narrowed"] |= reader.narrowed
            state["first"] = reader.first and [str(reader.first[0]), reader.first[1]]
            pieces = [
                {"values": np.ascontiguousarray(one.values.T), **one.of_rows()} for one in tracks
            ]
            if pieces:
                # All at once: the state after them says that the file is done
                columns.append(
                    {name: joined([of[name] for of in pieces]) for name in pieces[0]}, state
                )

        _, _, skipped = read_all(files.paths, read_file, on_error, "files", tell=False)
        left = (str(path) for path in files.paths if str(path) not in done)
        done.update(zip(left, skipped, strict=True))
        columns.state = state

    return read


def _formed(columns: Mapping[str, Column], state: Any) -> _SeriesData:
    """The recordings of these columns, which `_reads` filled."""
    tell_narrowed(state["narrowed"])
    tell_skipped([of for of in state["done"].values() if isinstance(of, str)], len(state["done"]))
    done = {path: of for path, of in state["done"].items() if not isinstance(of, str)}
    rows: dict[str, Any] = dict(columns)
    tracks: list[list[Track]] = []
    begin = 0
    for of_file in done.values():
        tracks.append([])
        for name, fields, length, stretches in of_file:
            cut = {of: column[begin : begin + length] for of, column in rows.items()}
            values, bounds = cut["values"].T, np.array(stretches, np.int64).reshape(-1, 2)
            about = cut.get("labels"), cut.get("times")
            tracks[-1].append(Track(name, fields, values, *about, bounds))
            begin += length
    skipped = [of for of in state["done"].values() if isinstance(of, str)]
    return _SeriesData(list(map(Path, done)), tracks, skipped)


class Series(BatchSource):
    """Windows of `length` rows, one every `stride` rows, of .npy files and those of `Table`.

    A sample: `series` (C, length) float32, and `label` int64 if labels are known, from the column
    `label` or from a {label} in the path. A file is one recording, or holds several, one after
    another, identified by columns: `recording: [subject, session]`. No window spans two
    recordings. An .npy file, or an .npz of one array, is (T, C) or (T,), or with
    `channels_first` (C, T); `channels` names its columns in order.

    `labels`: "pure" keeps the windows with one label only, "majority" gives a window its most
    frequent label (in a tie, the first class); an empty label counts as none. `units`:
    `{temperature: degC, acceleration: "g -> m/s2"}`, see units.py. `time`: a column of seconds
    (`time_unit`: ms, us, ns) or dates, in ISO 8601 or `time_format`, e.g. "%d/%m/%Y %H:%M:%S", or
    the columns of the date and the time of day; dates are in UTC, in `timezone` (Europe/Rome, with
    its daylight saving) or in the zone that they state. `sort` puts the rows of a recording
    together, where devices take turns, and in the order of time; `duplicates: drop` keeps one
    of several identical rows with the same time. `long_format`: [channel, value], the columns of a
    channel's name and of its value, where a file has a row for each value; those of one time and
    recording make a row, in which a channel without a value is empty. A
    step of more than `gap_s` (by default 1.5 / `rate_hz`) is a gap, and so is a row with an empty
    cell or one of the `missing_marks` (words, or numbers such as -200); `gaps` says whether to
    refuse gaps or to split there. By their times all recordings must have one rate, `rate_hz` if
    given. Classes are numbered in the order of `classes`, by default by name over all files. A file
    that cannot be read is an error, or is skipped with `on_error: skip`. Raises DataError with
    file, row and column.

    Known about each window, for splits, checks and balanced sampling: the fields of its path and
    of `recording`, its "label" and first "time", its "recording" (the path and those fields), and
    the rows it covers: "start" and "stop", from 0. Split by what recordings have in common, e.g. a
    subject, or by the fields that name a recording: overlapping windows are alike.
    """

    version = 2  # labels as harness.data.written.text_of writes values

    def __init__(
        self,
        files: str | Sequence[str],
        channels: Sequence[str],
        length: int,
        stride: int,
        label: str | None = None,
        labels: Labels = "pure",
        recording: Sequence[str] = (),
        units: Mapping[str, str] | None = None,
        time: str | Sequence[str] | None = None,
        gap_s: float | None = None,
        rate_hz: float | None = None,
        gaps: Gaps = "refuse",
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        sheet: str | int = 1,
        header: int = 1,
        separator: str | None = None,
        decimal: str = ".",
        encoding: str = "utf-8-sig",
        missing_marks: Collection[str] = MISSING,
        thousands: str | None = None,
        comment: str | None = None,
        skip_rows: int = 0,
        names: Sequence[str] | None = None,
        skip_footer: int = 0,
        escape: str | None = None,
        time_unit: TimeUnit = "s",
        time_format: str | None = None,
        timezone: str | None = None,
        sort: bool = False,
        duplicates: Duplicates = "refuse",
        channels_first: bool = False,
        long_format: Sequence[str] = (),
        on_error: OnError = "stop",
    ) -> None:
        require_choice("labels", labels, get_args(Labels))
        self.channels, self.length = list(map(plain_name, channels)), length
        if length < 1 or stride < 1 or not channels:
            given = f"{length}, {stride}, {self.channels}"
            raise ConfigError(f"length, stride, channels: {given}: give at least one of each.")
        marks = tuple(map(str, missing_marks))
        rows = (thousands, comment, skip_rows, names, skip_footer, escape)
        times = (time_unit, time_format, timezone)
        layout = Layout(sheet, header, separator, decimal, encoding, "keep", marks, *rows, *times)
        of_time = [time] if isinstance(time, str) else list(time or ())
        timing = (of_time, gap_s, rate_hz, gaps, layout, sort, duplicates, channels_first)
        long = tuple(map(plain_name, long_format))
        units_of = Units(units or {}, self.channels)
        reader = Reader(self.channels, label, recording, units_of, *timing, long)
        settings = (*timing[1:], long, tuple(of_time), tuple((units or {}).items()), on_error)
        names_of = (tuple(self.channels), label, tuple(recording))
        self._read(files, reader, on_error, (Series, *names_of, *settings))
        self.classes = self._number_classes(label, classes)
        self._choose(files, stride, labels, part, split)

    @staticmethod
    def paths_of(files: str | Sequence[str], **_: Any) -> list[Path]:
        """The files that a source with these arguments reads; at most headers are opened."""
        return with_parts(find_files(files, tell=False).present())

    def paths(self) -> list[Path]:
        """Every file that is read."""
        return with_parts(self._paths)

    def known(self) -> dict[str, list[str]]:
        """{column: (N,) texts}"""
        numbers, starts = self._windows.T
        known = {name: select(values, numbers) for name, values in self._fields.items()}
        recordings = select(self._recordings, numbers)
        names = [one.name for one in recordings]
        known |= span_columns(names, starts, starts + self.length)
        if self._labels is not None and self.classes is not None:
            known["label"] = select(self.classes, self._labels)
        times = [one.times for one in recordings]
        begins = [str(of[start]) for of, start in zip(times, starts, strict=True) if of is not None]
        return {**known, "time": begins} if begins else known

    def class_names(self) -> dict[str, list[str]]:
        """{label: names in the order of their numbers}, if there are labels."""
        return {} if self.classes is None else {"label": list(self.classes)}

    def __len__(self) -> int:
        return len(self._windows)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{series: (B, C, length), label: (B,)}"""
        cut = [
            self._recordings[number].values[:, begin : begin + self.length]
            for number, begin in self._windows[indices].tolist()
        ]
        series = {"series": np.stack(cut)}
        return series if self._labels is None else {**series, "label": self._labels[indices]}

    def _read(
        self, files: str | Sequence[str], reader: Reader, on_error: OnError, settings: Hashable
    ) -> None:
        """The recordings of all files, and the fields that are known of them."""
        found = find_files(files)
        if twice := set(found.fields) & set(reader.recording):
            raise ConfigError(
                f"recording: {min(twice)!r} is also a field of the path. Rename one of them."
            )

        # Kept as long as one of the parts is in use
        self._reading = read_shared(found, settings, _reads(found, reader, on_error), _formed)
        number_of = {path: number for number, path in enumerate(found.paths)}
        found = found.select_rows([number_of[path] for path in self._reading.paths])
        tracks, self.skipped = self._reading.tracks, self._reading.skipped
        self._paths = found.paths
        self._recordings = [one for of_file in tracks for one in of_file]
        file_of = np.repeat(np.arange(len(tracks)), [len(of_file) for of_file in tracks])
        self._fields = dict(found.fields_at(file_of))
        for name in reader.recording:
            self._fields[name] = [one.fields[name] for one in self._recordings]

    def _choose(
        self,
        files: str | Sequence[str],
        stride: int,
        labels: Labels,
        part: Part,
        split: Rule | None,
    ) -> None:
        """The windows of the part."""
        # All files are read whatever the part: classes are numbered and splits are made over all
        # of them.
        self._windows, self._labels = self._cut(stride, labels)
        if len(self._windows) == 0:
            count = len(self._recordings)
            raise DataError(
                f"{files}: no window of {self.length} rows in {count} recordings. "
                "Set a smaller length, or a different rule for labels or gaps."
            )
        rows = rows_of(part, split, self.known(), len(self._windows))
        self._windows = self._windows[rows]
        self._labels = None if self._labels is None else self._labels[rows]

    def _number_classes(self, label: str | None, classes: Sequence[Any] | None) -> list[str] | None:
        if label is not None:
            labels = [one.labels for one in self._recordings if one.labels is not None]
            names = {name for of in labels for name in of.compact().words} - {""}
            return class_names(classes, sorted(names), label)
        if "label" in self._fields:
            return class_names(classes, self._fields["label"], "label")
        return None

    def _cut(self, stride: int, rule: Labels) -> tuple[Bounds, NDArray[np.int64] | None]:
        """(N, 2): recording and first row of each window; (N,): their classes."""
        windows, classes = [], []
        for number, one in enumerate(self._recordings):
            begins = np.concatenate(
                [np.arange(begin, end - self.length + 1, stride) for begin, end in one.stretches]
                or [np.empty(0, np.int64)]
            )
            if self.classes is not None:
                if one.labels is None:
                    judged = np.full(len(begins), self.classes.index(self._fields["label"][number]))
                else:
                    judged = judge(
                        np.stack([one.labels.equal(name) for name in self.classes]),
                        begins,
                        self.length,
                        rule,
                    )
                begins, judged = begins[judged >= 0], judged[judged >= 0]
                classes.append(judged)
            windows.append(np.stack([np.full(len(begins), number), begins], axis=1))
        joined = np.concatenate(windows).astype(np.int64)
        return joined, np.concatenate(classes).astype(np.int64) if classes else None


def judge(
    is_class: NDArray[np.bool_], begins: Bounds, length: int, rule: Labels
) -> NDArray[np.int64]:
    """is_class (K, T): which rows have which class; begins (N,) -> (N,) classes of the windows,
    -1 for a window without one.

    "pure": the class of all rows. "majority": that of most rows, in a tie the first; none if most
    rows have no class.
    """
    upto = np.concatenate(
        [np.zeros((len(is_class), 1), dtype=np.int64), np.cumsum(is_class, axis=1)], axis=1
    )
    counts = upto[:, begins + length] - upto[:, begins]  # (K, N)
    first = counts.argmax(axis=0)
    most = counts.max(axis=0)
    enough = most == length if rule == "pure" else most > length - counts.sum(axis=0)
    return np.where(enough, first, -1)

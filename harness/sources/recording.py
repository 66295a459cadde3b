"""Reading a file of a measuring device: its recordings, their channels, labels, times and gaps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.data.texts import Texts
from harness.errors import ConfigError, DataError, require_choice
from harness.sources.arrays import is_array, load_array
from harness.sources.cells import Cells, Layout
from harness.sources.csv_files import ending_of
from harness.sources.excel_files import EXCEL
from harness.sources.long_format import widen
from harness.sources.narrowing import Narrowed
from harness.sources.source import Rows, select
from harness.sources.table_files import read_cells
from harness.sources.times import seconds_of
from harness.sources.units import Units

Bounds = NDArray[np.int64]
Gaps = Literal["refuse", "split"]
Duplicates = Literal["refuse", "drop"]
_RATES_DIFFER = 0.05  # relative difference from which two rates are not the same
# A step longer than this many periods means that a row is missing
_LONG_STEP = 1.5


@dataclass(frozen=True)
class Track:
    """`values` (C, T) float32; T `labels` and `times` in seconds, or None; `stretches` (S, 2):
    begin and end of each stretch without a gap.

    `name`: its path and the values of the columns that identify a recording (`fields`).
    """

    name: str
    fields: dict[str, str]
    values: NDArray[np.float32]
    labels: Texts | None
    times: NDArray[np.float64] | None
    stretches: Bounds

    def of_rows(self) -> dict[str, Texts | NDArray[np.float64]]:
        """Labels and times, if there are any."""
        found = {"labels": self.labels, "times": self.times}
        return {name: of for name, of in found.items() if of is not None}


@dataclass(frozen=True)
class Sheet:
    """Rows of a file that belong together: `values` (C, T), and for each of the T rows its row
    number in the file, a label, a time and a key.
    """

    path: Path
    rows: Rows
    values: NDArray[np.float64]
    labels: NDArray[np.str_] | None = None
    times: NDArray[np.float64] | None = None
    keys: list[tuple[str, ...]] | None = None

    def __getitem__(self, span: slice) -> "Sheet":
        labels, times = (None if of is None else of[span] for of in (self.labels, self.times))
        # Mypy joins both kinds of array
        return Sheet(self.path, self.rows[span], self.values[:, span], labels, times)  # type: ignore[arg-type] # see above

    def take(self, rows: NDArray[np.int64]) -> "Sheet":
        """The rows at these indices, in that order."""
        labels, times = (None if of is None else of[rows] for of in (self.labels, self.times))
        keys = None if self.keys is None else select(self.keys, rows)
        numbers = np.asarray(self.rows)[rows]
        return Sheet(self.path, numbers, self.values[:, rows], labels, times, keys)  # type: ignore[arg-type] # as above


@dataclass
class Reader:
    """Reads the recordings of files. Raises ConfigError for contradictory settings."""

    channels: Sequence[str]
    label: str | None
    recording: Sequence[str]
    units: Units
    time: Sequence[str]  # none, one column, or those of the date and the time of day
    gap_s: float | None
    rate_hz: float | None
    gaps: Gaps
    layout: Layout
    sort: bool = False
    duplicates: Duplicates = "refuse"
    channels_first: bool = False
    long_format: Sequence[str] = ()  # the columns of a channel's name and of its value
    # The file and rate that all others must match
    first: tuple[Path, float] | None = field(default=None, init=False)
    # Channels of files, and what float32 made of them
    narrowed: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if len(self.time) > 2:
            raise ConfigError(
                f"time: {list(self.time)}. Give one column, or those of the date and of the time."
            )
        if bool(self.time) == (self.gap_s is None and self.rate_hz is None):
            raise ConfigError(
                "time: set it together with gap_s, rate_hz or both, or set none of them."
            )
        if (self.sort and not self.time and not self.recording) or (
            self.duplicates == "drop" and not self.time
        ):
            raise ConfigError("sort, duplicates: without time, rows have no order. Set time.")
        if self.long_format and (len(self.long_format) != 2 or not self.time):
            raise ConfigError(
                f"long_format: {list(self.long_format)}. Give the columns of the channel's name "
                "and of its value, and set time, by which they belong together."
            )
        require_choice("gaps", self.gaps, get_args(Gaps))
        require_choice("duplicates", self.duplicates, get_args(Duplicates))
        if self.gap_s is None and self.rate_hz is not None:
            self.gap_s = _LONG_STEP / self.rate_hz

    @property
    def _time(self) -> str:
        return " and ".join(self.time)

    def read(self, path: Path) -> list[Track]:
        """The recordings of a file. Raises DataError with file, row and column."""
        is_plain = is_array(path)
        sheet = self._read_array(path) if is_plain else self._arrange(self._read_table(path))
        if sheet.values.shape[1] == 0:
            raise DataError(f"{path}: it has no rows. Remove it.")
        values = self.units.apply(sheet.values, self.channels, path, sheet.rows)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        lost = {
            f"{path}, channel {name!r}": what
            for name, wide in zip(self.channels, values, strict=True)
            if (what := Narrowed.of(wide).lost()) is not None
        }
        self.narrowed.update(lost)
        if np.isinf(narrow).any():
            raise DataError(
                f"{path}: row {sheet.rows[int(np.isinf(narrow).any(axis=0).argmax())]}: a number "
                "too large for float32. Rescale it."
            )
        recordings = []
        for key, begin, end in _runs(sheet):
            cut = sheet[begin:end]
            recordings.append(
                Track(
                    name=" ".join([str(path), *key]),
                    fields=dict(zip(self.recording, key, strict=True)),
                    values=narrow[:, begin:end],
                    labels=None if cut.labels is None else Texts.of(cut.labels.tolist()),
                    times=cut.times,
                    stretches=self._stretches(cut),
                )
            )
        return recordings

    def _read_table(self, path: Path) -> Sheet:
        named = [*(self.long_format or self.channels), *self.recording, self.label, *self.time]
        frame = read_cells(path, self.layout, [name for name in named if name is not None])
        labels = None if self.label is None else frame.texts(self.label).array()
        keys = list(zip(*(frame.texts(name) for name in self.recording), strict=True)) or None
        times = seconds_of(frame, self.time, keys) if self.time else None
        if times is not None and self.long_format:
            return self._widen(frame, labels, times, keys)
        values = np.stack([frame.numbers(name) for name in self.channels])
        return Sheet(path, frame.rows, values, labels, times, keys)

    def _widen(self, frame: Cells, labels: Any, times: NDArray[np.float64], keys: Any) -> Sheet:
        """A row for each moment of a recording, of a table in long format."""
        numbers = _number_of(keys, len(times)).astype(np.float64)
        _, found = np.unique(np.stack([numbers, times]), axis=1, return_inverse=True)
        moments, drop = found.ravel(), self.duplicates == "drop"
        values, rows = widen(frame, self.long_format, self.channels, moments, drop=drop)
        if labels is not None:
            of_moment = dict(zip(moments[rows].tolist(), labels[rows].tolist(), strict=True))
            for row, (moment, label) in enumerate(
                zip(moments.tolist(), labels.tolist(), strict=True)
            ):
                if of_moment.get(moment, label) != label:
                    what = f"{label!r}, but {of_moment[moment]!r} at the same time"
                    frame.refuse(str(self.label), row, f"{what}. Correct one of them.")
        empty = np.empty((0, len(times)))
        sheet = Sheet(frame.path, frame.rows, empty, labels, times, keys).take(rows)
        return replace(sheet, values=values)

    def _arrange(self, sheet: Sheet) -> Sheet:
        """The rows sorted and without repetitions, as requested."""
        rows = np.arange(sheet.values.shape[1])
        numbers = _number_of(sheet.keys, len(rows))
        times = np.zeros(len(rows)) if sheet.times is None else sheet.times
        if self.sort:
            rows = np.lexsort((times, numbers))  # stable
        if self.duplicates == "drop" and len(rows):
            before, after = rows[:-1], rows[1:]
            values = sheet.values
            same = (times[before] == times[after]) & (numbers[before] == numbers[after])
            one, other = values[:, before], values[:, after]
            same &= ((one == other) | (np.isnan(one) & np.isnan(other))).all(axis=0)
            if sheet.labels is not None:
                same &= sheet.labels[before] == sheet.labels[after]
            rows = rows[np.concatenate([[True], ~same])]
        if self.sort or self.duplicates == "drop":
            return sheet.take(rows)
        return sheet

    def _read_array(self, path: Path) -> Sheet:
        if self.label is not None or self.time or self.recording:  # long_format needs time
            raise DataError(
                f"{path}: an array has only channels. Remove label, time and recording, "
                f"and put {{label}} into the path."
            )
        array = load_array(path, str(path))
        array = array[:, None] if array.ndim == 1 else array
        if self.channels_first and array.ndim == 2:
            array = array.T
        if array.ndim != 2 or array.shape[1] != len(self.channels) or array.dtype.kind not in "iuf":
            raise DataError(
                f"{path}: {array.shape} of {array.dtype}, expected numbers "
                f"(T, {len(self.channels)}), one column per channel. If it is (C, T), set "
                f"channels_first: true."
            )
        return Sheet(
            path, range(1, len(array) + 1), np.ascontiguousarray(array.T, dtype=np.float64)
        )

    def _stretches(self, sheet: Sheet) -> Bounds:
        """(S, 2): the stretches between gaps.

        Raises DataError for a gap that is not allowed, for times that decrease, and for a
        different rate.
        """
        missing: NDArray[np.bool_] = np.asarray(np.isnan(sheet.values).any(axis=0))
        # (T - 1,): whether a gap separates a row from the next
        apart = missing[1:] | missing[:-1]
        if sheet.times is not None and self.gap_s is not None:
            if (empty := np.isnan(sheet.times)).any():
                raise DataError(
                    f"{sheet.path}: row {sheet.rows[int(empty.argmax())]}, column {self._time!r}: "
                    "empty, expected a time. Fill it in, or remove the row."
                )
            steps = np.diff(sheet.times)
            if not (steps > 0).all():
                at = int((~(steps > 0)).argmax())
                ways = (
                    "Set sort: true, or duplicates: drop if rows are repeated, or correct the time"
                )
                if steps[at] == 0 and ending_of(sheet.path) in EXCEL:
                    ways = (
                        "Times of spreadsheets are read to the millisecond: give closer rows their "
                        "time in seconds, as numbers. Or set duplicates: drop if rows are repeated"
                    )
                raise DataError(
                    f"{sheet.path}: row {sheet.rows[at + 1]}, column {self._time!r}: not later "
                    f"than the previous row. {ways}."
                )
            long = steps > self.gap_s
            self._refuse_unit(sheet.path, steps)
            apart = apart | long
            self._compare_rate(sheet.path, steps[~long])
        if self.gaps == "refuse" and (apart.any() or missing.any()):
            row, what = int(missing.argmax()), "an empty cell"
            if not missing.any():
                row, what = (
                    int(apart.argmax()) + 1,
                    f"more than {self.gap_s:g} s after the previous row",
                )
            raise DataError(
                f"{sheet.path}: row {sheet.rows[row]}: {what}. Fill the gap, or set gaps: split."
            )
        edges = np.flatnonzero(np.concatenate([[True], apart, [True]]))
        return np.stack([edges[:-1], edges[1:]], axis=1)[~missing[edges[:-1]]]

    def _refuse_unit(self, path: Path, steps: NDArray[np.float64]) -> None:
        """Refuse times that are numbers of another unit, by the requested rate."""
        if self.rate_hz is None or len(steps) == 0:
            return
        times = float(np.median(steps)) * self.rate_hz
        for factor, unit in ((1e3, "ms"), (1e6, "us"), (1e9, "ns")):
            if abs(times / factor - 1) < _RATES_DIFFER:
                raise DataError(
                    f"{path}: rows are {times / self.rate_hz:g} s apart by {self._time!r}, but "
                    f"rate_hz is {self.rate_hz:g}. If these are {unit}, set time_unit: {unit}."
                )

    def _compare_rate(self, path: Path, steps: NDArray[np.float64]) -> None:
        """steps: from row to row, in seconds, without gaps.

        Their mean is used, so that rounded timestamps do no harm.
        """
        if len(steps) == 0:
            return
        found = 1 / float(steps.mean())
        if self.rate_hz is not None:
            wanted, whose = self.rate_hz, f"but rate_hz is {self.rate_hz:g}"
        else:
            self.first = self.first or (path, found)
            wanted, whose = self.first[1], f"but {self.first[0]} has {self.first[1]:.4g}"
        if abs(found - wanted) > _RATES_DIFFER * wanted:
            raise DataError(
                f"{path}: {found:.4g} rows per second by {self._time!r}, {whose}. Resample it, or "
                "remove it."
            )


def _number_of(keys: list[tuple[str, ...]] | None, count: int) -> NDArray[np.int64]:
    """Numbers for the keys of rows, (N,), in the order in which they appear."""
    number_of: dict[tuple[str, ...], int] = {}
    found = (number_of.setdefault(key, len(number_of)) for key in keys or [()] * count)
    return np.fromiter(found, np.int64, count)


def _runs(sheet: Sheet) -> list[tuple[tuple[str, ...], int, int]]:
    """(key, begin, end) of each run of rows with one key.

    Raises DataError for a key that occurs in two runs.
    """
    length = sheet.values.shape[1]
    if sheet.keys is None:
        return [((), 0, length)]
    begins = [0, *(row for row in range(1, length) if sheet.keys[row] != sheet.keys[row - 1])]
    seen: dict[tuple[str, ...], int] = {}
    for begin, end in zip(begins, [*begins[1:], length], strict=True):
        key = sheet.keys[begin]
        if key in seen:
            raise DataError(
                f"{sheet.path}: row {sheet.rows[begin]}: the recording ({', '.join(key)}) "
                f"continues, but ended before row {sheet.rows[seen[key]]}. Set sort: true if "
                "several take turns, or add a column that distinguishes them."
            )
        seen[key] = end
    return [(key, begin, end) for begin, (key, end) in zip(begins, seen.items(), strict=True)]

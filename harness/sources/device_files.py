"""Recordings in medical and laboratory formats, as columns: EDF and BDF (pyedflib),
PhysioNet's WFDB (wfdb), HDF5 (h5py).
"""

import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.annotations import Annotation, annotations_of_edf, annotations_of_wfdb, hold
from harness.sources.cells import Cells, Layout
from harness.sources.files import need
from harness.sources.headed import select_names

_MARKS, _VALID = ("_FillValue", "missing_value"), ("valid_range", "valid_min", "valid_max")
_OF_CF = (*_MARKS, *_VALID, "scale_factor", "add_offset", "_Unsigned")
_OF_EDF, _OF_WFDB = ("annotation",), ("symbol", "aux_note")  # columns of annotations
TIME = "time"  # the column of seconds since the beginning, where a file states its rate


def read_edf(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """Signals by label, in their physical units, `time` and `annotation`. Raises DataError."""
    edf = need("pyedflib", "devices", f"{path}: EDF")
    try:
        with edf.EdfReader(str(path)) as file:
            _refuse_more(path, file.datarecords_in_file)
            labels = list(map(name_of, file.getSignalLabels()))
            wanted = _select(path, labels, columns, _OF_EDF)
            _refuse_unscaled(path, file, {name: labels.index(name) for name in wanted})
            notes = annotations_of_edf(file) if columns and "annotation" in columns else {}
            rates = {name: file.getSampleFrequency(labels.index(name)) for name in wanted}
            signals = {
                name: np.asarray(file.readSignal(labels.index(name)), np.float64) for name in wanted
            }
    except (OSError, ValueError, UnicodeError) as error:
        raise _read_error(path, error) from error
    return _add_time(path, layout, columns, signals, rates, notes)


def read_wfdb(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """Signals of a record (.hea and its files) by name, in their physical units, NaN where the
    record marks none, `time`, and of its annotations (.atr) `symbol` and `aux_note`. Raises
    DataError.
    """
    notes = {}
    with warnings.catch_warnings():  # of wfdb, about how it calls pandas
        warnings.simplefilter("ignore")
        wfdb = need("wfdb", "devices", f"{path}: WFDB")
        _parts_of(path)
        try:
            record = wfdb.rdrecord(
                str(path.with_suffix("")), smooth_frames=False, physical=False, m2s=False
            )
            segments = getattr(record, "segments", None)
            # Each with its own gains; None where there are no signals
            for one in [record] if segments is None else segments:
                if getattr(one, "e_d_signal", None) is not None:
                    _compare_checksums(path, one)
                    one.dac(expanded=True, inplace=True)
            if segments is not None:
                record = record.multi_to_single(physical=True, expanded=True)
            if columns and not set(_OF_WFDB).isdisjoint(columns):
                notes = annotations_of_wfdb(wfdb.rdann(str(path.with_suffix("")), "atr"), record.fs)
        except DataError:
            raise
        except Exception as error:
            raise _read_error(path, error) from error
    labels = [  # header(5): the default of a description
        name_of(name or f"record {record.record_name}, signal {number}")
        for number, name in enumerate(record.sig_name or ())
    ]
    wanted = _select(path, labels, columns, _OF_WFDB)
    at = {name: labels.index(name) for name in wanted}
    signals = {name: record.e_p_signal[number] for name, number in at.items()}
    rates = {name: record.fs * record.samps_per_frame[number] for name, number in at.items()}
    return _add_time(path, layout, columns, signals, rates, notes)


def read_hdf5(path: Path, layout: Layout, columns: Collection[str] | None) -> Cells:
    """Datasets by path (acc/x); those of (T, C) give columns acc/0, acc/1, ... Raises DataError."""
    hdf5 = need("h5py", "devices", f"{path}: HDF5")
    stored: dict[str, Any] = {}

    def add(name: str, node: Any) -> None:
        if isinstance(node, hdf5.Dataset) and node.ndim == 1:
            stored[name_of(name)] = node
        elif isinstance(node, hdf5.Dataset) and node.ndim == 2:
            stored.update({f"{name_of(name)}/{at}": node for at in range(node.shape[1])})

    try:
        with hdf5.File(path, "r") as file:
            file.visititems(add)
            for name in columns or ():  # links, and further names of a dataset
                within = name.rpartition("/")[0]
                for one in (name, within):
                    if name not in stored and one:
                        add(one, _follow(path, file, one))
            cells = {}
            for name in select_names(path, list(stored), columns):
                node = stored[name]
                if node.external or node.is_virtual:
                    raise _elsewhere(path, name)
                part = node if node.ndim == 1 else node[:, int(name.rpartition("/")[2])]
                cells[name] = _decoded(hdf5, node, _of_dataset(path, name, part))
    except (OSError, RuntimeError, ValueError) as error:
        raise _read_error(path, error) from error
    return Cells(path, cells, range(1, _length(path, cells) + 1), layout)


def with_parts(paths: Sequence[Path]) -> list[Path]:
    """The files, and those that headers of WFDB records name, if they exist."""
    found = dict.fromkeys(paths)
    for path in paths:
        if path.suffix.lower() == ".hea":
            with suppress(DataError, OSError):  # reported by the reader
                if (notes := path.with_suffix(".atr")).is_file():
                    found[notes] = None
                found |= {part: None for part in _parts_of(path) if part.is_file()}
    return list(found)


def _parts_of(path: Path, within: Sequence[Path] = ()) -> list[Path]:
    """The files of a record beside its header (WFDB Applications Guide, header(5)). Raises
    DataError for files that are not beside it.
    """
    if not path.is_file():
        return []
    lines = [line.split() for line in path.read_text("latin-1").splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("#")]
    names = [name for name in dict.fromkeys(line[0] for line in lines[1:]) if name != "~"]
    for name in names:
        if Path(name).name != name or name == "..":
            raise DataError(
                f"{path}: it names {name!r}. Put all files of a record into one folder."
            )
    if not lines or "/" not in lines[0][0]:
        return [path.with_name(name) for name in names]
    # Of several segments, each with a header
    headers = [path.with_name(f"{name}.hea") for name in names]
    if path in within:
        raise DataError(f"{path}: it is a segment of itself. Correct the header.")
    return [one for at in headers for one in (at, *_parts_of(at, (*within, path)))]


def _refuse_unscaled(path: Path, file: Any, signals: dict[str, int]) -> None:
    """Refuse signals whose header says no scale, as those of no electrode do; pyedflib gives their
    counts.
    """
    for name, at in signals.items():
        if file.getDigitalMinimum(at) == file.getDigitalMaximum(at):
            raise DataError(
                f"{path}: signal {name!r} has no scale: its digital minimum is its maximum. "
                "Choose other columns."
            )


def _refuse_more(path: Path, count: int) -> None:
    """Refuse an EDF file that holds more data records than its header declares; readers would leave
    them out. https://www.edfplus.info/specs/edf.html
    """
    with path.open("rb") as file:
        head = file.read(256)
        wide = 3 if head[:1] == b"\xff" else 2  # BDF, EDF
        num_signals = int(head[252:256])
        file.seek(256 + 216 * num_signals)
        samples = [int(file.read(8)) for _ in range(num_signals)]
    size = wide * sum(samples)
    more = (path.stat().st_size - int(head[184:192])) // size - count
    if more > 0:
        raise DataError(
            f"{path}: its header declares {count:,} data records, and {more:,} more follow. "
            "Correct the number in bytes 236 to 243 of its header."
        )


def _compare_checksums(path: Path, record: Any) -> None:
    """Raise DataError for signals other than those that were written, by the 16 bits of their sums
    in the header (header(5)); 0 is written by programs that compute none.
    """
    declared = getattr(record, "checksum", None) or ()
    if not any(getattr(record, "skew", None) or ()):
        signals = zip(record.sig_name, declared, record.e_d_signal, strict=False)
        for number, (name, sum_, signal) in enumerate(signals):
            if sum_ and (found := int(signal.sum())) % 2**16 != sum_ % 2**16:
                raise DataError(
                    f"{path}: signal {name or number!r} has the checksum {found % 2**16}, and its "
                    f"header declares {sum_ % 2**16}. Bring the files again, or correct the header."
                )


def _follow(path: Path, group: Any, name: str, links: int = 8) -> Any:
    """What an HDF5 file has under a name, behind links if need be, or None. Raises DataError for
    links into other files, which are not opened.
    """
    hdf5 = need("h5py", "devices", str(path))
    node = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        link = node.get(part, getlink=True) if isinstance(node, hdf5.Group) else None
        if isinstance(link, hdf5.ExternalLink):
            raise _elsewhere(path, name)
        soft = isinstance(link, hdf5.SoftLink)
        if link is None or (soft and not links):
            return None
        node = _follow(path, node, link.path, links - 1) if soft else node[part]
    return node


def _elsewhere(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: dataset {name!r} is stored in other files, which are not read. Copy it into one "
        "file (h5repack), or choose other datasets."
    )


def _decoded(hdf5: Any, node: Any, cells: Any) -> Any:
    """What the cells of an HDF5 dataset stand for: names of an enumeration; numbers by the
    conventions of CF, as in NetCDF (https://cfconventions.org, sections 2.5.1 and 8.1).
    """
    if not isinstance(cells, np.ndarray):
        return cells
    names = hdf5.check_enum_dtype(node.dtype)
    if names is not None:
        of = {number: text for text, number in names.items()}
        return [of.get(cell, cell) for cell in cells.tolist()]
    stored = {key: node.attrs[key] for key in _OF_CF if key in node.attrs}
    found = {key: one for key, one in stored.items() if not isinstance(one, hdf5.Empty)}
    is_unsigned = str(_plain(found.pop("_Unsigned", ""))).lower() == "true"
    if not (found or is_unsigned):
        return cells
    whole = np.dtype(f"u{cells.dtype.itemsize}") if is_unsigned else cells.dtype

    def numbers(key: str, *instead: float) -> NDArray[Any]:
        """The numbers of an attribute, those of packed values in their type."""
        of = np.ravel(found.get(key, instead))
        try:
            of = of.astype(np.float64) if of.dtype.kind in "SUO" else of
        except ValueError as error:
            raise _odd(node, f"its {key} is no number: {error}") from error
        is_packed = is_unsigned and key in (*_MARKS, *_VALID) and key in found
        return of.astype(cells.dtype).view(whole) if is_packed else of

    counts = cells.view(whole) if is_unsigned else cells
    gone = np.zeros(len(counts), np.bool_)
    for key in _MARKS:
        gone |= np.isin(counts, numbers(key)) if key in found else False
    lowest, highest = [numbers("valid_min"), numbers("valid_max")]
    if "valid_range" in found:
        lowest, highest = np.split(numbers("valid_range"), 2)
    for bound, is_out in ((lowest, np.less), (highest, np.greater)):
        if len(bound):
            gone |= is_out(counts, bound[0])
    scale, offset = numbers("scale_factor", 1), numbers("add_offset", 0)
    if len(scale) != 1 or len(offset) != 1:
        raise _odd(node, "its scale_factor or add_offset has several values")
    values = counts
    if (scale[0], offset[0]) != (1, 0):
        values = counts.astype(np.float64) * float(scale[0]) + float(offset[0])
    return np.where(gone, np.nan, values) if gone.any() else values


def _odd(node: Any, what: str) -> DataError:
    return DataError(f"{node.file.filename}: {node.name}: {what}. Correct the attribute.")


def _plain(text: Any) -> Any:
    return text.decode("latin-1") if isinstance(text, bytes) else text


def _of_dataset(path: Path, name: str, values: Any) -> Any:
    array = np.asarray(values)
    if array.dtype.kind in "iuf":
        return array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "b":
        return array.tolist()
    held = str(array.dtype)
    if array.dtype.kind in "SO":
        cells = array.tolist()
        try:
            texts = [cell.decode() if isinstance(cell, bytes) else cell for cell in cells]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: dataset {name!r} is not UTF-8 ({error}). Store it as UTF-8."
            ) from error
        others = [cell for cell in texts if not isinstance(cell, str)]
        if not others:
            return texts
        held = f"cells of type {type(others[0]).__name__}"
    raise DataError(
        f"{path}: dataset {name!r} holds {held}, neither numbers nor text. Choose another."
    )


def _select(
    path: Path, labels: list[str], columns: Collection[str] | None, notes: Sequence[str]
) -> list[str]:
    names = [*labels, *(name for name in (TIME, *notes) if name not in labels)]
    wanted = select_names(path, names, columns)
    for name in wanted:
        if labels.count(name) > 1:
            raise DataError(f"{path}: two signals are called {name!r}. Rename one of them.")
    signals = [name for name in wanted if name in labels]
    return signals or labels[:1]  # for the time alone


def _add_time(
    path: Path,
    layout: Layout,
    columns: Collection[str] | None,
    signals: dict[str, NDArray[np.float64]],
    rates: dict[str, float],
    notes: dict[str, list[Annotation]],
) -> Cells:
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        raise DataError(
            f"{path}: signals with different rates (Hz): {told}. Read those of one rate."
        )
    count = _length(path, signals)
    cells: dict[str, Any] = {
        name: of for name, of in signals.items() if columns is None or name in columns
    }
    if columns is not None and TIME in columns and TIME not in signals:
        cells[TIME] = np.arange(count) / next(iter(rates.values()))
    for name, found in notes.items():
        if columns is not None and name in columns and name not in signals:
            cells[name] = hold(path, found, count, next(iter(rates.values())))
    return Cells(path, cells, range(1, count + 1), layout)


def _length(path: Path, columns: dict[str, Any]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(
            f"{path}: columns with different lengths: {told}. Read those of one length."
        )
    return next(iter(lengths.values()), 0)


def _read_error(path: Path, error: BaseException) -> DataError:
    way = "It may be truncated, or in another format."
    if "compliant" in str(error) and "Filesize" not in str(error):  # of EDF, and what is not
        way = "Correct its header, e.g. with EDFbrowser."
    return DataError(f"{path}: cannot be read: {error}. {way}")


DEVICES = {
    ".edf": read_edf,
    ".bdf": read_edf,
    ".hea": read_wfdb,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}

"""Annotations of medical recordings as columns of labels, a text for each row."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of
from harness.errors import DataError

_ROUNDING_S = 1e-6  # by which times in a file may differ from those of rows


@dataclass(frozen=True)
class Annotation:
    """A text that holds from `onset_s` for `duration_s`, or if that is None until the next."""

    onset_s: float
    duration_s: float | None
    text: str


def annotations_of_edf(file: Any) -> dict[str, list[Annotation]]:
    """{annotation: the texts in an opened EDF+ or BDF+ file}"""
    onsets, durations, texts = file.readAnnotations()
    found = [
        Annotation(float(onset), float(duration) if duration > 0 else None, str(text))
        for onset, duration, text in zip(onsets, durations, texts, strict=True)
    ]
    return {"annotation": found}


def annotations_of_wfdb(read: Any, fs: float) -> dict[str, list[Annotation]]:
    """{symbol: those of all annotations of a WFDB record, aux_note: its notes, such as rhythms}"""
    onsets = np.asarray(read.sample) / fs
    notes = [note.rstrip("\0").strip() for note in read.aux_note or [""] * len(onsets)]
    columns = {"symbol": read.symbol, "aux_note": notes}
    return {
        name: [
            Annotation(float(onset), None, text)
            for onset, text in zip(onsets, texts, strict=True)
            if text
        ]
        for name, texts in columns.items()
    }


def hold(path: Path, found: Iterable[Annotation], count: int, rate_hz: float) -> list[str]:
    """The text that holds at each of `count` rows, "" where none does. Raises DataError for two
    that hold at once.
    """
    ordered = sorted(found, key=lambda one: one.onset_s)
    words = ["", *dict.fromkeys(name_of(one.text) for one in ordered)]
    code_of = {word: code for code, word in enumerate(words)}
    codes: NDArray[np.int32] = np.zeros(count, np.int32)
    onsets = [one.onset_s for one in ordered[1:]]
    for one, until in zip(ordered, [*onsets, count / rate_hz], strict=True):
        end = until if one.duration_s is None else one.onset_s + one.duration_s
        begin, stop = (int(np.ceil((at - _ROUNDING_S) * rate_hz)) for at in (one.onset_s, end))
        if one.duration_s is None:
            stop = max(stop, begin + 1)  # of two in one row none ends the other
        held = slice(max(0, begin), max(0, stop))
        before, code = codes[held], code_of[name_of(one.text)]
        if ((before != 0) & (before != code)).any():
            other = words[int(before[(before != 0) & (before != code)][0])]
            raise DataError(
                f"{path}: the annotations {other!r} and {one.text!r} hold at once, at "
                f"{one.onset_s:g} s. Give each row one label, in a column of a table."
            )
        codes[held] = code
    return [words[code] for code in codes.tolist()]

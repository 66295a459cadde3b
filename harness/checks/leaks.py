"""Leaks between splits: shared content, groups or rows of a recording, and times out of order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checks.report import Findings
from harness.checks.roles import Roles
from harness.checks.survey import Survey
from harness.components import TARGET, components_in
from harness.data.readings import distinct
from harness.errors import ConfigError


def number_repeated(surveys: Sequence[Survey]) -> list[NDArray[np.int64]]:
    """Of each survey (n,): for contents that occur more than once, in any split, their numbers from
    0, equal for equal contents; for others, and for blank ones, -1.
    """
    hashes = np.concatenate([one.hashes for one in surveys])
    rows = np.flatnonzero(~np.concatenate([one.is_blank for one in surveys]))
    ordered = np.sort(hashes[rows, 0])
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    rows = rows[np.isin(hashes[rows, 0], twice)] if len(twice) else rows[:0]
    _, which = distinct(hashes[rows])
    numbers = np.full(len(hashes), -1, np.int64)
    numbers[rows] = np.where(np.bincount(which, minlength=1)[which] > 1, which, -1)
    return np.split(numbers, np.cumsum([len(one.rows) for one in surveys])[:-1])


def check_duplicates(
    surveys: Sequence[Survey], repeated: Sequence[NDArray[np.int64]], findings: Findings
) -> None:
    """Content shared by two splits is a finding; within a split it is a note. `repeated`: as of
    `number_repeated`.
    """
    contents = [
        _rows_by_content(one, numbers) for one, numbers in zip(surveys, repeated, strict=True)
    ]
    for (one, of_one), (other, of_other) in combinations(zip(surveys, contents, strict=True), 2):
        shared = [number for number in of_other if number in of_one]
        count = sum(len(of_other[number]) for number in shared)
        examples = [
            f"{other.name(of_other[number][0])} = {one.name(of_one[number][0])}"
            for number in shared
        ]
        share = f"{count:,} of {len(other.rows):,} samples ({count / len(other.rows):.1%})"
        message = f"{other.where}: {share} have the same content as samples in {one.where}."
        advice = (
            "Remove them from one split, split by what they have in common, or set "
            "data.checks.duplicates: warn if the data contains repetitions by nature."
        )
        findings.add("duplicates", (one.split, other.split), f"{message} {advice}", count, examples)
    for one, of_one in zip(surveys, contents, strict=True):
        again = sum(len(rows) - 1 for rows in of_one.values())
        if again and findings.wants("duplicates"):
            findings.notes.append(
                f"{one.where}: {again:,} samples repeat the content of another one"
            )


def check_conflicts(
    surveys: Sequence[Survey],
    repeated: Sequence[NDArray[np.int64]],
    roles: Roles,
    findings: Findings,
) -> None:
    """Equal content with different classes, within a split or between two. `repeated`: as of
    `number_repeated`.
    """
    for role in roles.classes:
        # Content -> class -> its first sample
        seen: dict[int, dict[str, tuple[Survey, int]]] = defaultdict(dict)
        for one, numbers in zip(surveys, repeated, strict=True):
            at = np.flatnonzero(numbers >= 0)
            labels = one.labels(role.target)
            for row, number, label in zip(
                one.rows[at].tolist(),
                numbers[at].tolist(),
                () if labels is None else labels.take(at),
                strict=labels is not None,
            ):
                seen[number].setdefault(label, (one, row))
        found = [by_class for by_class in seen.values() if len(by_class) > 1]
        examples = [
            " but ".join(
                f"{one.name(row)} is {label!r}" for label, (one, row) in list(by_class.items())[:2]
            )
            for by_class in found
        ]
        message = (
            f"data: {len(found):,} contents occur with different classes in {role.target!r}. "
            "Check their labels: no network can distinguish them."
        )
        findings.add("conflicts", [one.split for one in surveys], message, len(found), examples)


def columns_of_rules(kind: str, sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The columns that rules of a kind, e.g. ByGroup, use in specs; one entry per rule."""
    columns = [
        spec.get("column")
        for source in sources
        for spec in components_in(source)
        if str(spec[TARGET]).endswith(kind)
    ]
    several = [[column] if isinstance(column, str) else column for column in columns if column]
    return list(dict.fromkeys(map(tuple, several)))


def check_groups(
    surveys: Sequence[Survey], groups: Sequence[tuple[str, ...]], findings: Findings
) -> None:
    """Groups, i.e. samples equal in some columns, that occur in two splits."""
    for columns in groups:
        column = columns[0] if len(columns) == 1 else list(columns)
        counts = {one.split: one.groups(columns).counts() for one in surveys}
        for one, other in combinations(surveys, 2):
            mine, theirs = counts[one.split], counts[other.split]
            shared = sorted((set(mine) & set(theirs)) - {""})
            examples = [f"{name!r}: {mine[name]:,} and {theirs[name]:,} samples" for name in shared]
            message = (
                f"{other.where}: {len(shared):,} of {len(theirs):,} values of {column!r} also "
                f"occur in {one.where}, so their samples are alike. "
                f"Split by it: {{_target_: harness.sources.split.ByGroup, column: {column}}}."
            )
            findings.add("shared_groups", (one.split, other.split), message, len(shared), examples)


def check_recordings(surveys: Sequence[Survey], findings: Findings) -> None:
    """Recordings whose windows are interleaved between two splits.

    One split before, the other after is a split by time, and a note.
    """
    if not all("recording" in one.known for one in surveys):
        return
    windows = {one.split: _windows(one) for one in surveys}
    for one, other in combinations(surveys, 2):
        mine, theirs = windows[one.split], windows[other.split]
        both = sorted((set(one.known["recording"]) & set(other.known["recording"])) - {""})
        apart = {
            name for name in mine.keys() & theirs if _are_apart(mine[name][0], theirs[name][0])
        }
        mixed = [name for name in both if name not in apart]
        message = (
            f"{other.where}: {len(mixed):,} of {len(set(other.known['recording'])):,} recordings "
            f"also occur in {one.where}, so their samples are alike."
        )
        advice = "Split by recording, by what recordings have in common, or by time."
        findings.add(
            "shared_groups", (one.split, other.split), f"{message} {advice}", len(mixed), mixed
        )
        if len(both) > len(mixed) and findings.wants("shared_groups"):
            findings.notes.append(
                f"{other.where}: {len(both) - len(mixed):,} recordings also occur in {one.where}, "
                "at other times"
            )


def check_overlaps(surveys: Sequence[Survey], findings: Findings) -> None:
    """Windows [start, stop) of a recording that share rows."""
    windows = {one.split: _windows(one) for one in surveys}
    for one, other in combinations(surveys, 2):
        pairs = [
            (row, windows[one.split][recording][1][at])
            for recording, (spans, rows) in windows[other.split].items()
            if recording in windows[one.split]
            for row, at in zip(
                rows.tolist(),
                _find_overlaps(spans, windows[one.split][recording][0]).tolist(),
                strict=True,
            )
            if at >= 0
        ]
        message = (
            f"{other.where}: {len(pairs):,} of {other.num_samples:,} windows share rows of their "
            f"recording with windows of {one.where}."
        )
        examples = [f"{other.name(row)} and {one.name(int(over))}" for row, over in pairs]
        findings.add(
            "overlaps",
            (one.split, other.split),
            f"{message} Split by whole recordings, or set a gap.",
            len(pairs),
            examples,
        )


def check_time(surveys: Sequence[Survey], column: str, findings: Findings) -> None:
    """Samples that are not later than the split before theirs.

    Raises ConfigError for a value that is not a time.
    """
    times = {one.split: _times(one, column) for one in surveys}
    for one, other in combinations(surveys, 2):
        (rows, mine), (_, before) = times[other.split], times[one.split]
        early = np.flatnonzero(mine <= before.max())
        texts = other.texts(column)[1]
        examples = [f"{other.name(int(rows[at]))}: {texts[int(at)]}" for at in early[:8]]
        last = one.texts(column)[1][int(before.argmax())]
        message = (
            f"{other.where}: {len(early):,} of {len(mine):,} samples are not later than the last "
            f"of {one.where} ({last}). Split by time."
        )
        findings.add("time_order", (one.split, other.split), message, len(early), examples)


def _rows_by_content(one: Survey, numbers: NDArray[np.int64]) -> dict[int, list[int]]:
    at = np.flatnonzero(numbers >= 0)
    rows: dict[int, list[int]] = defaultdict(list)
    for row, number in zip(one.rows[at].tolist(), numbers[at].tolist(), strict=True):
        rows[number].append(row)
    return rows


def _windows(one: Survey) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """By recording: (N, 2) starts and stops, in the order of starts, and (N,) rows."""
    if not {"recording", "start", "stop"} <= set(one.known):
        return {}
    # Of several sources some may have no recordings
    texts = [[text or "nan" for text in one.known[name]] for name in ("start", "stop")]
    spans = np.array(texts).astype(np.float64).T
    rows: dict[str, list[int]] = defaultdict(list)
    for row, recording in enumerate(one.known["recording"]):
        if recording:
            rows[recording].append(row)
    ordered = {
        recording: np.array(of)[np.argsort(spans[of, 0], kind="stable")]
        for recording, of in rows.items()
    }
    return {recording: (spans[of], of) for recording, of in ordered.items()}


def _are_apart(spans: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether all windows of one begin before those of the other; both sorted by start."""
    return bool(spans[-1, 0] < others[0, 0] or others[-1, 0] < spans[0, 0])


def _find_overlaps(spans: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.int64]:
    """spans (N, 2), others (M, 2) sorted by start -> (N,): one of the others that overlaps each,
    -1 if none does.
    """
    # The last one that starts before the span stops
    before = np.searchsorted(others[:, 0], spans[:, 1]) - 1
    furthest = np.maximum.accumulate(others[:, 1])
    # Of those up to here, the one that stops last
    reaching = np.maximum.accumulate(np.where(others[:, 1] == furthest, np.arange(len(others)), 0))
    at = np.where(before >= 0, reaching[before], -1)
    return np.where((at >= 0) & (others[at, 1] > spans[:, 0]), at, -1)


def _times(one: Survey, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows, and their times: numbers unchanged, dates in seconds."""
    rows, texts = one.texts(column)
    # Loaded when used
    import pandas as pd

    values = pd.Series(list(texts), dtype="str")
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
        if dates.isna().any():
            at = int(dates.isna().to_numpy().argmax())
            where = f"data.checks.time: {one.name(int(rows[at]))}"
            raise ConfigError(
                f"{where}: {texts[at]!r} in {column!r} is neither a number nor a date such as "
                "2026-01-31. Choose another column."
            )
        numbers = (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return rows, numbers.to_numpy(dtype=np.float64)

"""Tables in long format, as devices write that send one value at a time: a column of the names of
channels and one of their values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.written import name_of
from harness.errors import DataError
from harness.sources.cells import Cells
from harness.wording import did_you_mean, some


def widen(
    cells: Cells,
    columns: Sequence[str],
    channels: Sequence[str],
    moments: NDArray[np.int64],
    *,
    drop: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The values of each channel at each moment, NaN where there is none, (C, M), and the first
    row (M,) of each moment; rows of other channels are left out.

    columns: those of the name and of the value; moments: which rows (N,) belong together, by
    numbers. drop: whether a value may be repeated. Raises DataError for a channel without values,
    and for two values of a channel at one moment.
    """
    name, value = columns
    texts = cells.texts(name)
    order = {name_of(channel): number for number, channel in enumerate(channels)}
    for channel in order:
        if channel not in texts.words:
            raise DataError(
                f"{cells.path}: column {name!r}: no row of the channel {channel!r}, only of "
                f"{some(texts.words, 20)}.{did_you_mean(channel, texts.words, quoted=True)}"
            )
    channel_of = np.array([order.get(word, -1) for word in texts.words])[texts.codes]
    rows = np.flatnonzero(channel_of >= 0)
    _, first, place = np.unique(moments[rows], return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(first))  # moments in the order of the file
    place, first = ranks[place], np.sort(first)
    # Other channels may have values that are no numbers
    numbers = cells.take(value, rows).numbers(value)
    slots = place * len(channels) + channel_of[rows]
    _, before, again = np.unique(slots, return_index=True, return_inverse=True)
    before = before[again]  # the first row with the same moment and channel
    second = before != np.arange(len(rows))
    if drop:
        same = (numbers == numbers[before]) | (np.isnan(numbers) & np.isnan(numbers[before]))
        second &= ~same
    if second.any():
        row = rows[int(second.argmax())]
        what = "another" if drop else "a second"
        ways = "Correct it" if drop else "Set duplicates: drop if rows are repeated, or correct it"
        cells.refuse(
            value, int(row), f"{what} value of {texts[int(row)]!r} at the same time. {ways}."
        )
    values = np.full((len(channels), len(first)), np.nan)
    values[channel_of[rows], place] = numbers
    return values, rows[first]

"""Streams drawn by weights."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from harness.data.mixing import Mixing, shares_of
from harness.data.sampling import turns
from harness.data.source import has_length
from harness.data.streams import StreamSource
from harness.errors import ConfigError
from harness.sources.mixtures import Named, named_parts, weights_of

_AT_ONCE = 1024
_ENDLESS = 2**62


class MixedStream:
    """An endless stream of samples of several sources, streams or not, by weights: after any number
    of samples, each source has given its share of them to within one sample.

    sources and weights: two lists, or two mappings with the same names. A stream begins again when
    it ends; a source with a length gives all of its samples before any comes again, in an order
    that `seed` decides. `seek` finds the position in each of them; one without `seek` is read on
    from its state in the checkpoint if it has a `state_dict`, else from its beginning.
    Raises ConfigError and DataError.
    """

    def __init__(
        self,
        sources: Named,
        weights: Mapping[str, float] | Sequence[float],
        seed: int = 0,
    ) -> None:
        self.sources = named_parts(sources, "sources")
        shares = shares_of(weights_of(sources, weights))
        self._mixing = Mixing((1,) * len(shares), shares)
        self._seed = seed
        self._parts = [
            source
            if has_length(source)
            else StreamSource(source, _ENDLESS, name, repeats=True, inner=True)
            for name, source in ((f"sources.{one}", of) for one, of in self.sources.items())
        ]
        for name, part in zip(self.sources, self._parts, strict=True):
            if len(part) == 0:
                raise ConfigError(f"sources.{name}: it is empty. Leave it out.")
        # A stream counts as one sample that is drawn again and again
        self._sizes = np.array(
            [1 if isinstance(part, StreamSource) else len(part) for part in self._parts]
        )
        self._begin = 0

    def seek(self, position: int) -> None:
        """Make the next `__iter__` begin with the sample at `position`."""
        self._begin = position

    def inner_marks(self) -> dict[str, Any]:
        """{name: where a stream among the sources can be read on from, as JSON values}"""
        marks = {name: part.settled_mark() for name, part in self._streams()}
        return {name: mark.to_json() for name, mark in marks.items() if mark is not None}

    def restore(self, marks: Mapping[str, Any]) -> None:
        """Let the streams go on from marks of an earlier launch."""
        for name, part in self._streams():
            if name in marks:
                part.restore(marks[name])

    def _streams(self) -> Iterator[tuple[str, StreamSource]]:
        for name, part in zip(self.sources, self._parts, strict=True):
            if isinstance(part, StreamSource):
                yield name, part

    def __iter__(self) -> Iterator[Any]:
        begin, self._begin = self._begin, 0
        for first in count(begin, _AT_ONCE):
            groups, turn = self._mixing.groups(np.arange(first, first + _AT_ONCE))
            sizes = self._sizes[groups]
            rows = turns("mixed stream", self._seed, groups, turn, sizes)
            for group, draw, row in zip(groups.tolist(), turn.tolist(), rows.tolist(), strict=True):
                part = self._parts[group]
                yield part[draw if isinstance(part, StreamSource) else row]

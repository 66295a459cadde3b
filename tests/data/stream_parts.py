"""Streams, for configs in tests; sample i is point i of `Blobs`."""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from harness.sources.streams import MixedStream
from tests.resume.parts import Blobs


class Plain:
    """`count` samples, then the end."""

    def __init__(self, count: int = 1000, seed: int = 0) -> None:
        self.blobs = Blobs(count, seed)
        self.begun = self.read = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self.begun += 1
        for index in range(len(self.blobs)):
            self.read += 1
            yield self.blobs[index]


class Seeking(Plain):
    """Endless, with `seek`."""

    position = 0

    def seek(self, position: int) -> None:
        self.position = position

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        position, self.position = self.position, 0
        while True:
            self.read += 1
            yield self.blobs[position % len(self.blobs)]
            position += 1


class Stateful(Plain):
    """With a state, or with one that lacks half of what it needs."""

    def __init__(self, count: int = 1000, seed: int = 0, wrong: bool = False) -> None:
        super().__init__(count, seed)
        self.wrong, self.place = wrong, 0
        self.start = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self.begun += 1
        self.place, self.start = self.start, 0
        while self.place < len(self.blobs):
            self.place += 1
            self.read += 1
            yield self.blobs[self.place - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place // 2 * 2 if self.wrong else self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["place"]


def hugging_face(count: int = 1000, shuffled: bool = False) -> Any:
    """A stream of `datasets` in four shards."""
    blobs = Blobs(count)
    rows = {"x": blobs.points.tolist(), "label": blobs.labels.tolist()}
    stream = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=4)
    stream = stream.with_format("numpy")
    return stream.shuffle(seed=3, buffer_size=20) if shuffled else stream


def mixed(count: int = 1000) -> MixedStream:
    """Of streams of all kinds, one of them a mixture itself, and a source with a length."""
    inner = MixedStream([Stateful(count // 3, 4), Seeking(count, 5)], [2, 1])
    parts = {
        "stateful": Stateful(count // 2, 1),
        "seeking": Seeking(count, 2),
        "blobs": Blobs(12, 3),
        "inner": inner,
    }
    return MixedStream(parts, {"stateful": 0.4, "seeking": 0.2, "blobs": 0.1, "inner": 0.3})

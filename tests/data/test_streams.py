"""Sources without a length."""

import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.feed import Feed, evaluation_batches
from harness.data.preparing import Sources
from harness.data.sampling import Sampling, fitting_world_sizes
from harness.data.settings import DataConfig
from harness.data.split import Split
from harness.data.streams import InOrder, StreamSource, digest_of
from harness.errors import ConfigError, DataError
from harness.sources.streams import MixedStream
from tests.data.stream_parts import Plain, Seeking, Stateful, hugging_face, mixed
from tests.pool import train_on_ranks
from tests.resume.parts import Blobs
from tests.sources.test_mixtures import Counted

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
CPU = torch.device("cpu")


def source(stream: Any, num_samples: int = 10**6, *, repeats: bool = True) -> StreamSource:
    return StreamSource(stream, num_samples, "data.train.source", repeats=repeats)


def points(samples: list[Any]) -> list[list[float]]:
    return [np.asarray(sample["x"]).tolist() for sample in samples]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([Plain, Seeking, Stateful, Stateful]),
    st.integers(1, 15),
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), min_size=1, max_size=6),
)
def test_any_position_holds_its_sample_however_one_comes_to_it(
    make: Any, count: int, asked: list[list[int]]
) -> None:
    stream, blobs = source(make(count)), Blobs(count)
    for positions in asked:
        expected = [blobs.points[position % count].tolist() for position in positions]
        assert points(stream.__getitems__(positions)) == expected
    if stream.mark is not None:
        went_on = source(make(count))
        went_on.restore(json.loads(json.dumps(stream.mark.to_json())))
        position = stream.mark.position
        assert points([went_on[position]]) == [blobs.points[position % count].tolist()]
    assert points([pickle.loads(pickle.dumps(stream))[3]]) == [blobs.points[3 % count].tolist()]


@given(
    st.sampled_from([Plain, Seeking, Stateful]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_ranks_share_a_stream_without_overlap_from_any_step_on(
    make: Any, num_slots: int, micro_size: int, step: int
) -> None:
    sampling = Sampling(100, num_slots * micro_size, micro_size, 3, order=InOrder())
    blobs, begin = Blobs(100), step * num_slots * micro_size
    for ranks in fitting_world_sizes(num_slots):
        got: list[list[float]] = []
        feeds = []
        for rank in range(ranks):
            split = Split(source(make(100)), (), "data.train", lambda batch: None)
            feeds.append(Feed(split, sampling, sampling.slots_of(rank, ranks), CPU, 0, step))
        for _ in range(2):
            for feed in feeds:
                got += [row for batch in feed.next_step() for row in batch["x"].tolist()]
        expected = [blobs.points[(begin + at) % 100].tolist() for at in range(len(got))]
        assert got == expected


@pytest.mark.parametrize("make", [Plain, Seeking, Stateful, hugging_face])
def test_workers_give_what_one_process_gives(make: Any) -> None:
    sampling = Sampling(100, 8, 2, 3, order=InOrder())
    split = Split(source(make()), (), "data.train", lambda batch: None)
    feed = Feed(split, sampling, range(1, 3), CPU, 2, 5)
    blobs = Blobs(1000)
    for step in range(5, 8):
        rows = np.concatenate([batch["x"].numpy() for batch in feed.next_step()])
        assert (rows == blobs.points[step * 8 + 2 : step * 8 + 6]).all()
    if make in (Stateful, hugging_face):
        assert feed.mark is not None
        digests = [digest_of(split.source[position]) for position in (60, 61)]
        assert (feed.mark["position"], feed.mark["digests"]) == (60, digests)


def test_samples_of_any_values_are_told_apart() -> None:
    narrow = torch.ones(3, dtype=torch.bfloat16)
    samples: list[Any] = [
        {"x": narrow},
        {"x": narrow + 1},
        {"x": [narrow, narrow + 1]},
        {"x": [[1, 2], [3]]},
        {"x": [[1], [2, 3]]},
        {"x": [{"y": [[1, 2], [3]]}]},
        {"x": np.ones(3)},
    ]
    assert len({digest_of(sample) for sample in samples}) == len(samples)
    assert digest_of({"x": torch.ones(2, 3)}) == digest_of({"x": np.ones((2, 3), np.float32)})


def test_how_much_of_a_stream_is_read() -> None:
    seeking = Seeking(10**5)
    assert points([source(seeking)[9 * 10**4]]) == [seeking.blobs.points[9 * 10**4].tolist()]
    assert seeking.read == 1
    first = source(Stateful())
    first.__getitems__([500, 501])
    assert first.mark is not None
    stateful = Stateful()
    second = source(stateful)
    second.restore(first.mark.to_json())
    second.__getitems__([504, 505])
    assert stateful.read == 6
    second.__getitems__([504, 505])  # fetched again, from the mark of the time before
    assert stateful.read == 8
    second.__getitems__([503, 506])  # from the mark that was restored
    assert stateful.read == 15


@pytest.mark.parametrize("make", [lambda: Stateful(wrong=True), lambda: hugging_face(100, True)])
def test_an_incomplete_state_is_found_out_and_the_stream_read_again(make: Any) -> None:
    first, second = source(make()), source(make())
    first.__getitems__(list(range(37)))
    wanted = first.__getitems__([37, 38, 39])
    assert first.mark is not None
    with pytest.warns(UserWarning, match="other samples than it gave from position 37"):
        second.restore(first.mark.to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert points(second.__getitems__([37, 38, 39])) == points(wanted)


class Broken(Plain):
    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        yield self.blobs[0]
        raise ValueError("torn shard")


class Unsaved(Stateful):
    def state_dict(self) -> dict[str, Any]:
        return {"place": (1, 2)}


class Ending(Seeking):
    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter([self.blobs[0]] if self.position == 0 else [])


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (
            lambda: source(iter([1])),
            "a list_iterator has no length, and no __iter__ that begins",
        ),
        (lambda: source(object()), "a object has no length, and no __iter__"),
        (lambda: source(Plain(0))[0], "the stream ends after 0 samples of a pass"),
        (
            lambda: source(Plain(5), 9, repeats=False)[5],
            "ends after 5 samples, and samples asks for 9",
        ),
        (lambda: source(Broken())[1], "ValueError while reading sample 1 of the stream: torn"),
        (lambda: source(Ending())[1], "one with `seek` must go on"),
        (
            lambda: source(Unsaved()),
            r"state_dict\(\) of a Unsaved returns what JSON cannot hold",
        ),
    ],
)
def test_what_is_wrong_with_a_stream_is_named(read: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"^data.train.source: .*{words}"):
        read()


def test_an_evaluation_reads_a_stream_once_on_any_number_of_ranks() -> None:
    split = Split(source(Plain(50), 50, repeats=False), (), "data.val", lambda batch: None)
    for ranks in (1, 3):
        rows = [
            batch["x"]
            for rank in range(ranks)
            for _, batch in evaluation_batches(split, 7, rank, ranks, CPU, 0)
        ]
        assert (torch.cat(rows).numpy() == Blobs(50).points).all()


def test_streams_are_mixed_by_weights_and_sought() -> None:
    def mixed() -> MixedStream:
        parts = {"a": Plain(7), "b": Seeking(1000, 1), "c": Blobs(12, 2)}
        return MixedStream(parts, {"a": 0.5, "b": 0.3, "c": 0.2})

    samples = points(source(mixed()).__getitems__(list(range(120))))
    where = {
        tuple(row.tolist()): name
        for name, blobs in (("a", Blobs(7)), ("b", Blobs(1000, 1)), ("c", Blobs(12, 2)))
        for row in blobs.points
    }
    names = [where[tuple(sample)] for sample in samples]
    for length in range(1, 121):
        for name, weight in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
            assert abs(names[:length].count(name) - weight * length) < 1
    in_order = [sample for sample, name in zip(samples, names, strict=True) if name == "b"]
    assert in_order == Blobs(1000, 1).points[: len(in_order)].tolist()
    sized = [tuple(sample) for sample, name in zip(samples, names, strict=True) if name == "c"]
    assert len(set(sized[:12])) == len(set(sized[12:24])) == 12
    assert sized[:12] != sized[12:24]
    sought = source(mixed())
    assert points(sought.__getitems__([77, 119, 5])) == [samples[at] for at in (77, 119, 5)]
    with pytest.raises(ConfigError, match="weights: 0, and the sources are 0, 1"):
        MixedStream([Counted(2), Counted(3)], [1])


def stateful_parts(stream: MixedStream) -> list[Stateful]:
    """Those within a mixture of streams, and within the mixtures in it."""
    parts: list[Stateful] = []
    for part in stream.sources.values():
        if isinstance(part, MixedStream):
            parts += stateful_parts(part)
        elif isinstance(part, Stateful):
            parts.append(part)
    return parts


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 9)), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_mixed_streams_resume_on_any_ranks_without_reading_from_the_start(
    launches: list[tuple[int, int]], ends: bool
) -> None:
    """Each launch: its ranks, and after how many steps it is interrupted."""
    count = 30 if ends else 1000  # whether streams end within a launch
    sampling = Sampling(10**6, 12, 2, 3, order=InOrder())
    whole, mark = source(mixed(count)), None
    wanted, got, begin = [], [], 0
    for ranks, steps in launches:
        feeds, streams = [], []
        for rank in range(ranks):
            streams.append(mixed(count))
            split = Split(source(streams[-1]), (), "data.train", lambda batch: None)
            if mark is not None:
                split.source.restore(json.loads(json.dumps(mark)))  # type: ignore[attr-defined] # of streams
            slots = sampling.slots_of(rank, ranks)
            feeds.append(Feed(split, sampling, slots, CPU, 0, begin))
        for _ in range(steps):
            for feed in feeds:
                got += [row for batch in feed.next_step() for row in batch["x"].tolist()]
        mark = feeds[0].mark
        wanted += points(whole.__getitems__(list(range(12 * begin, 12 * (begin + steps)))))
        begin += steps
        for stream in () if ends else streams:
            for part in stateful_parts(stream):
                # What it gives, what marks are compared with, and two steps that precede
                assert part.read <= 12 * (steps + 2) + 8
    assert got == wanted


def launch(directory: Path, ranks: int, source: str, *more: str, die_at: str = "") -> Any:
    """The trace, and the passes through the stream that the launch says."""
    options = [
        f"data.train.source={{_target_: tests.data.stream_parts.{source}}}",
        "data.train.samples=60",
        "data.val.source={_target_: tests.data.stream_parts.Plain, count: 20, seed: 5}",
        "data.val.samples=20",
        "optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}",
    ]
    ends = train_on_ranks(
        ranks, SMALL, [f"run.dir={directory}", *options, *more], env={"DIE_AT": die_at}
    )
    codes = [end.exit_code for end in ends]
    assert -9 in codes if die_at else codes == [0] * ranks
    path = directory / "trace.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("source", ["Stateful", pytest.param("mixed", marks=pytest.mark.torture)])
def test_a_killed_training_of_a_stream_goes_on_exactly(tmp_path: Path, source: str) -> None:
    whole = launch(tmp_path / "whole", 2, source)
    assert len(whole) == 12
    launch(tmp_path / "cut", 2, source, die_at="1:7")
    assert launch(tmp_path / "cut", 2, source) == whole


@pytest.mark.torture
@pytest.mark.parametrize("source", ["Stateful", "hugging_face"])
def test_a_stream_goes_on_with_other_ranks_and_workers(tmp_path: Path, source: str) -> None:
    def losses(*more: str, ranks: int = 1, die_at: str = "") -> list[float]:
        rows = launch(tmp_path / source, ranks, source, *more, die_at=die_at)
        return [float.fromhex(row["loss"]) for row in rows]

    losses(ranks=2, die_at="0:7")
    plain = [float.fromhex(row["loss"]) for row in launch(tmp_path / "plain", 1, "Plain")]
    assert losses("data.num_workers=2") == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    ("train", "more", "words"),
    [
        ({}, {}, "a Stateful has no length, so it is a stream. Set data.train.samples, how many"),
        ({"samples": 9}, {"store": {"dir": "store"}}, "data.store: data.train.source is a stream"),
        (
            {"samples": 9, "source": {"_target_": "tests.resume.parts.Blobs", "count": 9}},
            {},
            "data.train.samples: has no effect: the source has 9 samples",
        ),
    ],
)
def test_settings_that_do_not_go_with_a_stream_are_named(
    train: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    source = {"_target_": "tests.data.stream_parts.Stateful"}
    config = DataConfig.model_validate({"train": {"source": source, **train}, **more})
    with pytest.raises(ConfigError, match=words):
        Sources(config)["train"]

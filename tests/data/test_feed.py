"""From a source to micro-batches."""

import fcntl
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from harness.data.columns import column_of
from harness.data.delivery import one_ahead, to_device
from harness.data.feed import EvaluationFeed, Feed, evaluation_batches
from harness.data.sampling import Sampling
from harness.data.source import Batch
from harness.data.split import Split
from harness.errors import DataError
from harness.sources.paired import Paired

CPU = torch.device("cpu")


class Numbers:
    """Sample i is the number i; `bad` raises."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        self.count = count
        self.bad = bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index == self.bad:
            raise OSError("disk on fire")
        return {"x": np.float32(index), "name": f"n{index}"}


class Together(Numbers):
    """The same, fetched whole."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {
            "x": np.array(indices, dtype=np.float32),
            "name": [f"n{index}" for index in indices],
        }


class Halves(Numbers):
    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"x": torch.ones(2, dtype=torch.bfloat16), "name": f"n{index}"}


def add_noise(batch: Batch, seeds: np.ndarray[Any, Any]) -> Batch:
    return {**batch, "noise": torch.from_numpy((seeds % np.uint64(1000)).astype(np.int64))}


def add_ambient_noise(batch: Batch) -> Batch:
    return {**batch, "noise": torch.rand(len(batch["x"])) + float(np.random.rand())}


def split(source: Any, *treatments: Any, check: Any = lambda batch: None) -> Split:
    return Split(source, treatments, "data.train", check)


def steps_of(
    source: Any,
    *treatments: Any,
    workers: int = 0,
    first: int = 0,
    count: int = 6,
    rank: int = 0,
    ranks: int = 1,
    size: int = 12,
) -> list[list[Batch]]:
    sampling = Sampling(num_samples=len(source), size=size, micro_size=3, seed=3)
    feed = Feed(
        split(source, *treatments), sampling, sampling.slots_of(rank, ranks), CPU, workers, first
    )
    return [feed.next_step() for _ in range(count)]


def flat(steps: list[list[Batch]], name: str = "x") -> list[list[float]]:
    return [torch.cat([batch[name] for batch in step]).tolist() for step in steps]


def test_two_epochs_hold_each_sample_twice() -> None:
    seen = sorted(value for step in flat(steps_of(Numbers(36))) for value in step)
    assert seen == sorted([float(index) for index in range(36)] * 2)


@pytest.mark.parametrize("treatment", [add_noise, add_ambient_noise])
def test_workers_seeking_and_ranks_change_nothing(treatment: Any) -> None:
    source = Together(29)
    whole = steps_of(source, treatment)
    for name in ("x", "noise"):
        assert flat(steps_of(source, treatment, workers=2), name) == flat(whole, name)
        assert flat(steps_of(source, treatment, first=2, count=4), name) == flat(whole, name)[2:]
        shares = [flat(steps_of(source, treatment, rank=rank, ranks=2), name) for rank in range(2)]
        assert [first + second for first, second in zip(*shares, strict=True)] == flat(whole, name)


def test_a_source_read_whole_gives_what_it_gives_row_by_row() -> None:
    assert flat(steps_of(Numbers(29))) == flat(steps_of(Together(29)))


def test_what_has_no_numbers_stays_a_list() -> None:
    assert steps_of(Numbers(29))[0][0]["name"][0].startswith("n")


def look_ahead() -> None:
    plan = Sampling(num_samples=29, size=12, micro_size=3, seed=3)
    Feed(split(Numbers(29), add_ambient_noise), plan, range(4), CPU, 0, 0).sample_batch(2)


def evaluate_all() -> None:
    list(evaluation_batches(split(Numbers(29), add_ambient_noise), 4, 0, 1, CPU, 0))


def test_types_that_numpy_lacks_are_refused_in_one_message() -> None:
    source = Halves(8)
    what = r"x: samples hold bfloat16, .* Convert them to float32 in the source; train\.precision"
    with pytest.raises(DataError, match=rf"data\.train: {what}"):
        split(source).fingerprint()
    with pytest.raises(DataError, match=rf"data\.train: {what}"):
        column_of(source, "name", "data.train")
    as_floats = split(source, lambda batch: {"x": batch["x"].float()})
    assert as_floats.fingerprint() == as_floats.fingerprint()


def take_fingerprint() -> None:
    split(Numbers(29), add_ambient_noise).fingerprint()


# In a training's own steps the forward passes seed them: tests/resume draws from them everywhere
@pytest.mark.parametrize("load", [look_ahead, evaluate_all, take_fingerprint])
def test_loading_out_of_turn_leaves_the_ambient_generators_alone(load: Callable[[], None]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    load()
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_named_with_its_split(workers: int) -> None:
    with pytest.raises(
        DataError, match=r"data\.train: OSError while reading samples .*: disk on fire"
    ):
        steps_of(Numbers(29, bad=7), workers=workers, count=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failed_check_is_named_with_its_split(workers: int) -> None:
    def check(batch: Batch) -> None:
        raise DataError("label 10 is outside of 0..9")

    sampling = Sampling(num_samples=29, size=12, micro_size=3, seed=3)
    feed = Feed(split(Numbers(29), check=check), sampling, range(4), CPU, workers, 0)
    with pytest.raises(DataError, match=r"^data\.train: label 10 is outside of 0\.\.9$"):
        feed.next_step()


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.train\.source: the split is empty"):
        split(Numbers(0))


@pytest.mark.parametrize(("count", "size", "ranks"), [(10, 3, 1), (10, 3, 3), (2, 3, 4), (9, 3, 2)])
def test_an_evaluation_sees_each_sample_once_over_all_ranks(
    count: int, size: int, ranks: int
) -> None:
    seen = []
    for rank in range(ranks):
        for block, batch in evaluation_batches(split(Numbers(count)), size, rank, ranks, CPU, 0):
            assert batch["x"][0] == block * size
            seen += batch["x"].tolist()
    assert seen == list(range(count))


class Told(Together):
    """Says which process made a sample."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {**super().__getitems__(indices), "process": np.full(len(indices), os.getpid())}


class SameArray(Together):
    """Gives one array again and again."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.kept = np.zeros(4, np.float32)

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        self.kept[: len(indices)] = indices
        return {"x": self.kept[: len(indices)]}


@pytest.mark.parametrize(("kind", "grouped"), [(Together, True), (SameArray, False)])
def test_micro_batches_come_in_groups_unless_they_share_memory(
    kind: type[Together], grouped: bool
) -> None:
    feed = EvaluationFeed(split(kind(1001), add_ambient_noise), 4, 0, 1, CPU, 0)
    single = [batch for _, batch in evaluation_batches(split(Together(1001)), 4, 0, 1, CPU, 0)]
    longest = 0
    for _ in range(3):
        seen = []
        for group in feed.groups():
            longest = max(longest, len(group))
            seen += [(block, batch["x"].clone()) for block, batch in group]
        assert [block for block, _ in seen] == list(range(251))
        assert all(x.equal(one["x"]) for (_, x), one in zip(seen, single, strict=True))
    assert (longest > 1) == grouped


def test_workers_live_on_between_evaluations_also_after_one_that_was_left() -> None:
    feed = EvaluationFeed(split(Told(29), add_ambient_noise), 4, 0, 1, CPU, 2)
    seen = [[batch for _, batch in feed] for _ in range(2)]
    next(iter(feed))
    seen.append([batch for _, batch in feed])
    results = feed._loading._loader._iterator._worker_result_queue._reader
    assert fcntl.fcntl(results.fileno(), fcntl.F_GETPIPE_SZ) >= 2**20  # several wait in it
    processes = {int(batch["process"][0]) for each in seen for batch in each}
    assert len(processes) == 2
    assert os.getpid() not in processes
    alone = [b for _, b in EvaluationFeed(split(Told(29), add_ambient_noise), 4, 0, 1, CPU, 0)]
    for each in seen:
        for name in ("x", "noise"):
            assert torch.equal(
                torch.cat([b[name] for b in each]), torch.cat([b[name] for b in alone])
            )
            assert [b[name].dtype for b in each] == [b[name].dtype for b in alone]


def test_workers_that_do_not_answer_between_evaluations_are_replaced() -> None:
    """They are told of the next pass and have to answer, which torch waits for once."""
    feed = EvaluationFeed(split(Told(9)), 4, 0, 1, CPU, 1)
    (first,) = {int(batch["process"][0]) for _, batch in feed}
    os.kill(first, signal.SIGSTOP)
    again = [batch for _, batch in feed]
    assert torch.cat([batch["x"] for batch in again]).tolist() == list(range(9))
    assert first not in {int(batch["process"][0]) for batch in again}


KINDS = {
    "small": torch.arange(6).reshape(2, 3),
    "large": torch.zeros(2, 2**17),
    "odd": torch.ones(2, 2, dtype=torch.bfloat16),
    "complex": torch.ones(2, dtype=torch.complex64),
    "channels": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "expanded": torch.ones(1, 3).expand(2, 3),
    "none": torch.zeros(2, 0),
    "nested": [{"boxes": torch.rand(3, 4)}, {"boxes": torch.rand(1, 4)}],
    "pair": (torch.ones(2), "c"),
    "text": ["a", "b"],
}


def give_kinds(batch: Batch) -> Batch:
    return dict(KINDS)


def test_what_a_worker_sends_is_what_it_made() -> None:
    ((here,),) = steps_of(Numbers(3), give_kinds, count=1, size=3)
    ((sent,),) = steps_of(Numbers(3), give_kinds, count=1, size=3, workers=1)
    for name, value in here.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(sent[name], value)
            assert (sent[name].dtype, sent[name].stride()) == (value.dtype, value.stride()), name
    sent["small"].add_(1)  # by a network, as it may
    assert sent["text"] == ["a", "b"]
    assert (sent["pair"][0].tolist(), sent["pair"][1]) == ([1, 1], "c")
    pairs = zip(sent["nested"], here["nested"], strict=True)
    assert all(torch.equal(one["boxes"], other["boxes"]) for one, other in pairs)


class Boxes(NamedTuple):
    corners: torch.Tensor
    count: int


def test_tensors_in_tuples_go_to_the_device_as_well() -> None:
    """torch's own look for them made lists of tuples, and dicts of dicts of another class."""
    two = torch.ones(2)
    batch = {"pair": (two, "text"), "boxes": [Boxes(two, 1)], "more": OrderedDict(one=two)}
    moved = to_device(batch, torch.device("meta"))
    assert (moved["pair"][0].device.type, moved["pair"][1]) == ("meta", "text")
    assert isinstance(moved["boxes"][0], Boxes)
    assert moved["boxes"][0].corners.device.type == "meta"
    assert moved["more"]["one"].device.type == "meta"
    assert isinstance(moved["more"], OrderedDict)


def give_large(batch: Batch) -> Batch:
    return {**batch, "large": torch.zeros(2**18), "labels": torch.ones(1)}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_what_is_kept_of_many_micro_batches_holds_no_files_open() -> None:
    """As metrics keep targets: by shared memory, each would be an open file of this process."""
    open_before = len(os.listdir("/proc/self/fd"))
    kept = [
        batch["labels"]
        for step in steps_of(Numbers(29), give_large, workers=1, count=20)
        for batch in step
    ]
    assert len(os.listdir("/proc/self/fd")) < open_before + 30
    assert torch.cat(kept).sum() == 80


def test_a_step_is_made_ready_while_the_one_before_is_worked_on(tmp_path: Path) -> None:
    """All of its micro-batches, of which torch's own look-ahead covers two a worker."""
    made = tmp_path / "made"

    def note(batch: Batch) -> Batch:
        with made.open("a") as file:
            file.write("one\n")
        return batch

    sampling = Sampling(num_samples=29, size=24, micro_size=3, seed=3)
    feed = Feed(split(Numbers(29), note), sampling, range(8), CPU, 1, 0)
    feed.next_step()
    deadline = time.monotonic() + 30
    while len(made.read_text().split()) < 16:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_next_copy_begins_before_the_one_before_it_is_used_and_no_other_does() -> None:
    events: list[str] = []

    def start(number: int) -> Callable[[], int]:
        events.append(f"copy {number}")
        return lambda: number

    for number in one_ahead(range(3), start):
        events.append(f"use {number}")
    assert events == ["copy 0", "copy 1", "use 0", "copy 2", "use 1", "use 2"]
    assert list(one_ahead([], start)) == []


def test_treatments_for_training_only_are_left_out_of_an_evaluation() -> None:
    def blur(batch: Batch) -> Batch:
        raise AssertionError("not in an evaluation")

    blur.training_only = True  # type: ignore[attr-defined]
    batches = evaluation_batches(split(Numbers(4), blur), 4, 0, 1, CPU, 0)
    assert next(iter(batches))[1]["x"].tolist() == [0, 1, 2, 3]


class Drawing(Together):
    """Draws from an ambient generator, as somebody's own source may."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any]:
        return {"x": np.random.rand(len(indices)), "label": np.zeros(len(indices), dtype=np.int64)}


class Labelled(Numbers):
    """All of one class."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"y": np.float32(index), "label": 0}


def test_a_source_that_draws_is_seeded_inside_of_one_of_ours_too() -> None:
    def steps(**kwargs: Any) -> list[list[float]]:
        return flat(steps_of(Paired({"x": Drawing(29), "y": Labelled(5)}), **kwargs))

    assert steps(first=2, count=2) == steps()[2:4]

"""Sources made of other sources."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import Config
from harness.data.mixing import Mixing, shares_of
from harness.data.preparing import Preparation, Sources
from harness.data.sampling import Sampling, fitting_world_sizes
from harness.data.source import class_names_of, known_of, order_of, paths_of, skipped_of, sources_of
from harness.errors import ConfigError, DataError
from harness.sources.mixtures import Concat, Mixture, Subset
from harness.sources.split import ByGroup
from harness.training.data import training_order
from tests.checks.planted import Rows, clean, looked_at
from tests.pool import train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
BLOBS = "_target_: tests.resume.parts.Blobs"


class Counted:
    """Sample i is the number `begin` + i."""

    def __init__(self, count: int, begin: int = 0, told: tuple[str, ...] = ()) -> None:
        self.count, self.begin, self.skipped = count, begin, list(told)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {"x": np.float32(self.begin + index), "text": str(self.begin + index)}


class Named(Counted):
    def known(self) -> dict[str, list[str]]:
        return {"subject": [f"s{index % 3}" for index in range(self.count)]}

    def paths(self) -> list[Path]:
        return [Path(f"{self.begin}.csv")]


class Gathered(Counted):
    def gather(self, indices: np.ndarray[Any, Any]) -> dict[str, Any]:
        assert indices.dtype == np.int64
        texts = [str(self.begin + index) for index in indices.tolist()]
        return {"x": torch.from_numpy(indices).float() + self.begin, "text": texts}


WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SIZES = st.integers(1, 30)


@settings(max_examples=60)
@given(WEIGHTS, st.data())
def test_after_any_number_of_draws_each_source_has_its_share_to_within_one(
    weights: list[int], data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(SIZES, min_size=len(weights), max_size=len(weights)))
    begin = data.draw(st.sampled_from([0, 1, 997, 10**12]))
    mixing = Mixing(tuple(sizes), shares_of(weights))
    groups, counts = mixing.groups(np.arange(begin, begin + 2 * sum(weights) + 3))
    for number, weight in enumerate(weights):
        mine = groups == number
        if begin == 0:
            had = np.cumsum(mine)
            for draws, has in enumerate(had.tolist(), start=1):
                assert abs(has - Fraction(draws * weight, sum(weights))) < 1
        # No draw of a source is left out or comes twice, wherever one begins to look
        assert (np.diff(counts[mine]) == 1).all()
        if mine.any():
            before = Fraction((begin + int(mine.argmax())) * weight, sum(weights))
            assert abs(int(counts[mine][0]) - before) < 1


@settings(max_examples=40)
@given(WEIGHTS, st.data(), st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 4))
def test_a_source_gives_all_its_samples_before_any_again_on_any_number_of_ranks(
    weights: list[int], data: st.DataObject, seed: int, num_slots: int, micro_size: int
) -> None:
    sizes = data.draw(st.lists(SIZES, min_size=len(weights), max_size=len(weights)))
    mixing = Mixing(tuple(sizes), shares_of(weights))
    length = 3 * (sum(weights) + num_slots * micro_size)
    positions = np.arange(length)
    samples, (groups, _) = mixing.samples(positions, seed), mixing.groups(positions)
    begins = np.cumsum(sizes) - sizes
    for number, size in enumerate(sizes):
        mine = samples[groups == number] - begins[number]
        for begin in range(0, len(mine), size):
            turn = mine[begin : begin + size].tolist()
            assert len(set(turn)) == len(turn)
            assert set(turn) <= set(range(size))
    places = data.draw(st.permutations(range(0, length, 7)))
    assert mixing.samples(np.array(places), seed).tolist() == samples[places].tolist()
    plan = Sampling(sum(sizes), num_slots * micro_size, micro_size, seed, order=mixing)
    for step in range(3):
        for ranks in fitting_world_sizes(num_slots):
            slots = [slot for rank in range(ranks) for slot in plan.slots_of(rank, ranks)]
            drawn = np.concatenate([plan.samples(step, slot) for slot in slots])
            begin = step * plan.size
            assert drawn.tolist() == samples[begin : begin + plan.size].tolist()


def test_weights_count_as_they_are_written() -> None:
    assert shares_of([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert shares_of([3, 1.5]) == (2, 1)
    assert shares_of([1e-3, 1]) == (1, 1000)


def test_orders_differ_by_seed_and_each_time_and_sources_of_equal_size_too() -> None:
    mixing = Mixing((50, 50), (1, 1))
    drawn = mixing.samples(np.arange(300), 3)
    turns = [tuple(drawn[first::2][begin : begin + 50] - 50 * first) for first in (0, 1)
             for begin in (0, 50, 100)]  # fmt: skip
    assert len(set(turns)) == 6
    assert (mixing.samples(np.arange(300), 4) != drawn).any()


def test_a_mixture_within_a_mixture_keeps_its_own_weights() -> None:
    inner = Mixture([Counted(10), Counted(1000, 10)], [1, 1])
    outer = Mixture({"both": inner, "other": Counted(500, 2000)}, {"other": 0.5, "both": 0.5})
    order = order_of(outer)
    assert order is not None
    drawn = np.array([outer[index]["x"] for index in order.samples(np.arange(400), 1).tolist()])
    for length in (1, 7, 100, 399, 400):
        counts = [
            (drawn[:length] < 10).sum(),
            ((drawn[:length] >= 10) & (drawn[:length] < 2000)).sum(),
            (drawn[:length] >= 2000).sum(),
        ]
        assert abs(counts[2] - length / 2) < 1
        assert abs(counts[0] - length / 4) < 1.5
        assert abs(counts[1] - length / 4) < 1.5


def test_all_that_sources_offer_reaches_through() -> None:
    named, plain = Named(6, told=("a.wav: broken",)), Gathered(4, 100)
    both = Concat({"a": named, "b": plain})
    assert len(both) == 10
    batch = both.__getitems__([9, 0, 5, 6, 0])
    assert np.asarray(batch["x"]).tolist() == [103, 0, 5, 100, 0]
    assert batch["text"] == ["103", "0", "5", "100", "0"]
    assert [both[index]["x"] for index in (3, 7)] == [3, 101]
    known = known_of(both)
    assert known["source"] == ["a"] * 6 + ["b"] * 4
    assert known["subject"] == ["s0", "s1", "s2"] * 2 + [""] * 4
    assert paths_of(both) is None
    assert paths_of(Concat([named, Named(2, 7)])) == [Path("0.csv"), Path("7.csv")]
    assert skipped_of(both) == ["a.wav: broken"]
    assert dict(sources_of(both)) == {"a": named, "b": plain}
    assert order_of(both) is None
    assert class_names_of(both) == {}
    assert class_names_of(Subset(Concat([plain, Classes("a", "b")]))) == {"label": ["a", "b"]}

    some = Subset(both, start=1, step=4)
    assert [some[index]["x"] for index in range(len(some))] == [1, 5, 103]
    assert known_of(some)["source"] == ["a", "a", "b"]
    assert np.asarray(Subset(plain, [3, 1]).__getitems__([0, 1])["x"]).tolist() == [103, 101]
    assert skipped_of(some) == ["a.wav: broken"]
    assert paths_of(Subset(named)) == [Path("0.csv")]
    parts = [Subset(named, part=part, split=ByGroup("subject", val=0.5, test=0))
             for part in ("train", "val")]  # fmt: skip
    assert sorted(float(one[at]["x"]) for one in parts for at in range(len(one))) == [*range(6)]
    assert not {*known_of(parts[0])["subject"]} & {*known_of(parts[1])["subject"]}


class Other(Counted):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.float64(index), "text": str(index)}


class More(Counted):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "label": 1}


class Classes(Counted):
    def __init__(self, *names: str) -> None:
        super().__init__(2)
        self.names = list(names)

    def class_names(self) -> dict[str, list[str]]:
        return {"label": self.names}


class NoLength:
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Mixture([Counted(2)] * 2, [1, 0]), ConfigError, "weights: 0: must be a number ab"),
        (lambda: Mixture([Counted(2)] * 2, [1, float("nan")]), ConfigError, "weights: nan: must"),
        (lambda: Mixture([Counted(2)] * 2, [1, True]), ConfigError, "weights: True: must be"),
        (lambda: Mixture([Counted(2)] * 2, [1]), ConfigError, "weights: 0, and the sources are 0"),
        (lambda: Mixture({"a": Counted(2)}, {"b": 1}), ConfigError, "weights: b, and the sources"),
        (lambda: Mixture({"0": Counted(2)}, [1]), ConfigError, "both as lists or both with names"),
        (
            lambda: Mixture([Counted(2)] * 2, [0.123456789, 1]),
            ConfigError,
            "add up to 1,123,456,789, and 100,000 is the most. Round them, e.g. to 110, 890",
        ),
        (lambda: Concat([]), ConfigError, "sources: none"),
        (lambda: Concat("a.csv"), ConfigError, "sources: 'a.csv' is neither a list nor"),
        (lambda: Concat([Counted(2), Counted(0)]), DataError, "sources.1: it is empty"),
        (
            lambda: Concat([Subset(Classes("cat", "dog")), Counted(2), Classes("car", "dog")]),
            DataError,
            "sources.2: the classes in 'label' are car, dog, and those of sources.0 cat, dog, so",
        ),
        (lambda: Concat([NoLength()]), DataError, "sources.0: a NoLength has no length"),
        (lambda: Concat([Counted(2), Other(2)]), DataError, "sources.1: 'x' is float64 with 0 a"),
        (lambda: Concat([Counted(2), More(2)]), DataError, "sources.1: samples have x, text, la"),
        (lambda: Concat([Mixture([Counted(2)], [1])]), ConfigError, "a Mixture draws by weights"),
        (lambda: Subset(Mixture([Counted(2)], [1])), ConfigError, "source: a Mixture draws by w"),
        (lambda: Subset(Counted(3), stop=4), ConfigError, "stop: 4: the source has 3 samples"),
        (lambda: Subset(Counted(3), step=0), ConfigError, "start, stop, step: 0, None, 0: give"),
        (lambda: Subset(Counted(3), [3]), ConfigError, "indices: 3: the source has 3 samples, 0"),
        (lambda: Subset(Counted(3), [1], start=1), ConfigError, "indices: start, stop and step"),
        (lambda: Subset(Counted(3), [0.9, 2]), ConfigError, "indices: 0.9: must be an integer"),  # type: ignore[list-item] # refused
        (lambda: Subset(Counted(3), [False, True]), ConfigError, "indices: False: must be an int"),
        (lambda: Subset(Counted(3), stop=2.5), ConfigError, "stop: 2.5: must be an integer"),  # type: ignore[arg-type] # refused
        (lambda: Subset(Counted(3), start=3), DataError, "no samples of the source are left"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_its_reason(
    make: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        make()


def test_recordings_of_one_source_are_compared_and_samples_of_the_others_are_not(
    tmp_path: Path,
) -> None:
    def part(seed: int, begin: int) -> Concat:
        spans = {
            "recording": ["walk.csv"] * 60,
            "start": [*range(begin, begin + 60)],
            "stop": [*range(begin + 1, begin + 61)],
        }
        return Concat([Rows(clean(seed), spans), Rows(clean(seed + 1))])

    assert not looked_at(tmp_path, {"train": part(1, 0), "val": part(3, 60)}).findings
    found = looked_at(tmp_path, {"train": part(1, 0), "val": part(3, 50)}).findings
    assert {one.check for one in found} == {"shared_groups", "overlaps"}
    assert "10 of 120 windows" in str(found)


def overrides(directory: Path, *more: str) -> list[str]:
    sources = f"a: {{{BLOBS}, count: 20}}, b: {{{BLOBS}, count: 90, seed: 9}}"
    source = f"_target_: harness.sources.mixtures.Mixture, sources: {{{sources}}}"
    return [
        f"run.dir={directory}",
        f"data.train.source={{{source}, weights: {{a: 3, b: 1}}}}",
        "stop.budget={steps: 25}",
        "optimizer={_target_: tests.resume.parts.Mortal, lr: 0.01}",
        *more,
    ]


def launch(directory: Path, ranks: int, *more: str, die_at: str = "") -> list[dict[str, Any]]:
    ends = train_on_ranks(ranks, SMALL, overrides(directory, *more), env={"DIE_AT": die_at})
    codes = [end.exit_code for end in ends]
    assert -9 in codes if die_at else codes == [0] * ranks
    return [json.loads(line) for line in (directory / "trace.jsonl").read_text().splitlines()]


def assert_same_samples(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> None:
    assert [step["samples"] for step in one] == [step["samples"] for step in other]
    losses = [[float.fromhex(step["loss"]) for step in steps] for steps in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def mixed() -> Mixture:
    """An order that the function's result has, not the function."""
    return Mixture([Counted(3), Counted(90)], [3, 1])


class Ordered(Counted):
    """An order that the instance has, not the class."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.order = Unhashable(count)


@dataclass
class Unhashable:
    count: int

    def samples(self, positions: Any, seed: int) -> Any:
        return self.count - 1 - positions % self.count


def test_an_order_of_its_own_is_found_though_the_samples_are_stored() -> None:
    stored = Preparation({}, {"train": "entry"}, ())
    for target, arguments in (("mixed", {}), ("Ordered", {"count": 5})):
        values = yaml.safe_load(SMALL.read_text())
        values["run"]["dir"] = "run"
        spec = {"_target_": f"tests.sources.test_mixtures.{target}", **arguments}
        values["data"]["train"]["source"] = spec
        config = Config.model_validate(values)
        assert training_order(config, Sources(config.data), stored) is not None


def test_an_order_within_a_mixture_needs_no_hash() -> None:
    order = order_of(Mixture([Ordered(5)], [1]))
    assert order is not None
    assert order.samples(np.arange(7), 1).tolist() == [4, 3, 2, 1, 0, 4, 3]


@pytest.mark.torture
def test_a_mixture_from_the_store_and_one_that_was_killed_are_the_same(tmp_path: Path) -> None:
    whole = launch(tmp_path / "whole", 2)
    launch(tmp_path / "cut", 2, die_at="0:5")
    assert launch(tmp_path / "cut", 2) == whole
    assert_same_samples(launch(tmp_path / "kept", 1, f"data.store.dir={tmp_path}/store"), whole)


def test_a_killed_training_goes_on_with_the_same_mixture_on_another_number_of_ranks(
    tmp_path: Path,
) -> None:
    whole = launch(tmp_path / "whole", 1)
    launch(tmp_path / "cut", 2, die_at="1:11")
    assert_same_samples(launch(tmp_path / "cut", 1), whole)
    order = order_of(Mixture([Counted(20), Counted(90)], [3, 1]))
    assert order is not None
    samples = order.samples(np.arange(200), 3).reshape(25, 8)
    digests = [hashlib.sha256(step.tobytes()).hexdigest()[:16] for step in samples]
    assert digests == [step["samples"] for step in whole]
    for length in range(1, 201):
        assert abs((samples.reshape(-1)[:length] < 20).sum() - 0.75 * length) < 1
    counts = Counter(samples.reshape(-1).tolist())
    assert {counts[sample] for sample in range(20)} == {7, 8}  # 150 draws of 20
    assert max(counts[sample] for sample in range(20, 110)) == 1  # 50 draws of 90


def test_a_mixture_with_balance_is_refused(tmp_path: Path) -> None:
    [end] = train_on_ranks(1, SMALL, overrides(tmp_path, "data.train.balance=label"))
    assert end.exit_code == 2
    assert "data.train.balance: the source is a mixture or a stream" in end.stderr

"""Two evaluations of the same samples compared in pairs, against the textbook's paired test."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from harness.checkpoint.retention import KeptCheckpoint, Ranking, best_first, ranking_of
from harness.data.split import Split
from harness.metrics.groups import MOST_GROUPS, GroupSums, deviations
from harness.networks import Mlp
from harness.ranks.ranks import Ranks
from harness.stopping.controller import StopController
from harness.stopping.pairs import Deviations, paired_error
from harness.stopping.record import evaluation_of, row_of
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo, Verdict
from harness.tasks import Classification, Joint
from harness.training.evaluation import EvaluationPlan, evaluate
from tests.pool import on_ranks
from tests.resume.parts import Blobs

NAME = "val/accuracy"
INFOS = {
    NAME: MetricInfo("max", 0.0, 1.0, has_error=True),
    "val/f1": MetricInfo("max", 0.0, 1.0),
    "val/loss": MetricInfo("min", 0.0, has_error=True),
}


def known(right: NDArray[Any]) -> Deviations | None:
    """Of an evaluation in micro-batches of 7."""
    sums = GroupSums()
    for first in range(0, len(right), 7):
        hits = torch.from_numpy(right[first : first + 7].astype(np.int64))
        sums.add(first, {"accuracy": (hits, torch.ones_like(hits))})
    hits, items = sums.totals()["accuracy"]
    return deviations(hits, items, len(right))


@given(st.integers(8, MOST_GROUPS), st.integers(0, 2**32 - 1))
def test_a_paired_error_is_that_of_the_paired_t_test(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = (draw.random(count) < share for share in (0.6, 0.7))
    expected = stats.sem(one.astype(float) - other.astype(float))
    assert paired_error(known(one), known(other)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_with_more_samples_than_groups_it_is_known_to_a_few_percent() -> None:
    draw = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(60):
        easy = draw.random(4000) < 0.7
        one, other = (easy ^ (draw.random(4000) < 0.1) for _ in range(2))
        found.append(paired_error(known(one), known(other)))
        expected.append(stats.sem(one.astype(float) - other.astype(float)))
    ratios = np.array(found) / np.array(expected)
    assert abs(ratios.mean() - 1) < 0.03
    assert ratios.std() < 0.1


def test_sums_of_losses_are_compared_in_pairs_too() -> None:
    draw = np.random.default_rng(1)
    counts = draw.integers(1, 9, 40).tolist()
    sums = [draw.normal(count, 1.0) for count in counts]
    better = [total - 0.1 * count for total, count in zip(sums, counts, strict=True)]
    # The same gain everywhere has no error, however noisy each value is
    error = paired_error(deviations(sums, counts, 99), deviations(better, counts, 99))
    assert error == pytest.approx(0.0, abs=1e-6)


def test_there_are_no_pairs_of_few_or_other_samples() -> None:
    assert known(np.ones(7, dtype=bool)) is None
    assert deviations([math.inf] * 9, [1] * 9, 9) is None
    all_right = known(np.ones(9, dtype=bool))
    assert all_right is not None
    assert set(all_right.groups) == {0}
    assert paired_error(all_right, all_right) == 0.0
    assert paired_error(all_right, None) is None
    assert paired_error(all_right, known(np.ones(10, dtype=bool))) is None


def evaluate_blobs(step: int) -> dict[str, Any]:
    """Values and deviations of a network as it is at some step, on this rank among others."""
    torch.manual_seed(step)
    task, network = Classification("x", "label"), Mlp([6, 8, 3])
    task.fit_to(torch.zeros(1, 3))
    split = Split(Blobs(301), (), "blobs", task.check)
    plan = EvaluationPlan(split, 4, errors=frozenset(["loss", "accuracy"]))
    found = evaluate(network, task, plan, Ranks.join(), torch.device("cpu"))
    return {**found.values, "deviations": {name: [*one] for name, one in found.deviations.items()}}


def test_pairs_have_the_same_bits_on_any_number_of_ranks() -> None:
    (first,), (second,) = (on_ranks(1, evaluate_blobs, step) for step in (1, 2))
    for ranks in (2, 3):
        assert on_ranks(ranks, evaluate_blobs, 1) == [first] * ranks
    assert first["loss_se"] > 0
    for name in ("loss", "accuracy"):
        one, other = (Deviations(*found["deviations"][name]) for found in (first, second))
        assert one.samples == 301
        error = paired_error(one, other)
        assert error is not None
        assert 0 < error < 0.2


def judged(stop: dict[str, Any], evaluations: Sequence[NDArray[Any]]) -> list[Verdict]:
    settings = StopSettings.model_validate({"budget": {"steps": 10**6}, **stop})
    controller = StopController(settings, INFOS)
    verdicts = []
    for n, right in enumerate(evaluations, 1):
        found = known(right)
        assert found is not None
        share = float(right.mean())
        error = math.sqrt(share * (1 - share) / len(right))
        metrics = {NAME: share, f"{NAME}_se": error}
        row = Evaluation(n, float(n), n, 0.1, metrics, deviations={NAME: found})
        assert evaluation_of(row_of(row, Verdict("go_on"))) == row
        verdicts.append(controller.judge(row))
    # Refolded, nothing is judged in another way
    again = StopController(settings, INFOS)
    assert again.restore(controller.state(), controller.history()) == verdicts[-1]
    assert again.best() == controller.best()
    return verdicts


def test_a_gain_within_the_noise_of_one_evaluation_counts_where_pairs_show_it() -> None:
    first = np.random.default_rng(0).permutation(10_000) < 7000  # 0.7
    better = first.copy()
    better[np.flatnonzero(~first)[:40]] = True  # 40 more are right, none is lost
    _, second = judged(
        {"improvement": {"metric": NAME, "at_least": "2 se", "patience": 1}}, [first, better]
    )
    assert not second.stops
    assert second.improved
    assert "gained 0.004 on its best 0.7 (step 1) +- 0.000" in second.detail
    assert "(paired, 10,000 samples)" in second.detail
    criterion = second.criteria[0]
    assert criterion.error == pytest.approx(math.sqrt(40) / 10_000, rel=0.2)
    assert criterion.pairs == 10_000
    assert Verdict.from_json(second.to_json()) == second
    # As many lost as won but for 40: noise, also in pairs
    mixed = better.copy()
    mixed[np.flatnonzero(first)[:1000]] = False
    mixed[np.flatnonzero(~first)[40:1040]] = True
    _, second = judged(
        {"improvement": {"metric": NAME, "at_least": "2 se", "patience": 1}}, [first, mixed]
    )
    assert second.stops


def test_the_best_checkpoint_may_ask_for_a_gain_beyond_noise() -> None:
    first = np.arange(200) % 10 < 7
    lucky, better = first.copy(), first.copy()
    lucky[np.flatnonzero(~first)[:1]] = True
    better[np.flatnonzero(~first)[:9]] = True
    stop = {"best": {"metric": NAME, "at_least": "2 se"}}
    assert [one.new_best for one in judged(stop, [first, lucky, better])] == [True, False, True]
    stop = {"best": {"metric": NAME}}
    assert [one.new_best for one in judged(stop, [first, lucky, better])] == [True, True, True]
    stop = {"best": {"metric": NAME, "at_least": 0.02}}
    assert [one.new_best for one in judged(stop, [first, lucky, better])] == [True, False, True]


def test_a_best_of_unknown_noise_is_told() -> None:
    """Any gain is a new best then."""
    stop = {"best": {"metric": NAME, "at_least": "2 se"}, "budget": {"steps": 999}}
    controller = StopController(StopSettings.model_validate(stop), INFOS)
    for n, value in enumerate([0.5, 0.5001], 1):
        row = {NAME: value, f"{NAME}_se": math.nan}
        verdict = controller.judge(Evaluation(n, float(n), n, 0.0, row))
        assert verdict.new_best
        (said,) = verdict.warnings
        assert f"standard error is not known at step {n}," in said
        assert said.endswith("or give best.at_least as a number.")


def test_the_best_that_noise_had_a_say_in_is_kept_and_linked() -> None:
    ranking = ranking_of({"ranked_by": [NAME, "max", 200]})
    assert ranking == Ranking(NAME, "max", 200)
    kept = [KeptCheckpoint(100 * n, n, {NAME: 0.5 + 0.01 * n}) for n in range(1, 5)]
    assert best_first(kept, ranking) == [200, 400, 300, 100]
    assert best_first(kept, Ranking(NAME, "max")) == [400, 300, 200, 100]


@pytest.mark.parametrize(
    ("best", "message"),
    [
        (
            {"metric": "val/f1", "at_least": "1 se"},
            "stop.best.at_least: the standard error of val/f1",
        ),
        ({"metric": "train/accuracy", "at_least": "1 se"}, "best.at_least: there is no standard"),
        ({"metric": NAME, "at_least": 5}, "stop.best.at_least: val/accuracy is bounded by"),
        ({"metric": NAME, "at_least": "-1 se"}, "nor a number of standard errors"),
    ],
)
def test_a_best_that_cannot_be_is_refused(best: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        StopController(StopSettings.model_validate({"best": best, "budget": {"steps": 9}}), INFOS)


def test_hits_are_those_of_items_and_of_each_head() -> None:
    task = Classification("x", "y", ignore_index=-1)
    outputs = torch.eye(3)[torch.tensor([[0, 1], [2, 2], [1, 0]])].movedim(-1, 1)
    targets = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    hits, items = task.hits(outputs, {"y": targets})["accuracy"]
    assert (hits.tolist(), items.tolist()) == ([2, 1, 0], [2, 1, 0])
    joint = Joint({"kind": Classification("x", "y")})
    outputs = torch.eye(3)[[0, 1, 2]]
    found = joint.hits({"kind": outputs}, {"y": torch.tensor([0, 1, 0])})
    assert [one.tolist() for one in found["kind_accuracy"]] == [[1, 1, 0], [1, 1, 1]]

"""What holds of every history and all settings: judging is a fold, and it does not depend on what
it should not depend on.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from harness.checkpoint import exact_json
from harness.stopping.controller import StopController
from harness.stopping.pairs import Deviations
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, LoggedSteps, MetricInfo, Verdict

INFOS = {
    "train/accuracy": MetricInfo("max", 0.0, 1.0),
    "val/accuracy": MetricInfo("max", 0.0, 1.0),
    "train/loss": MetricInfo("min"),
    "val/loss": MetricInfo("min"),
    "val/gain": MetricInfo("max"),
}
NEVER = {"steps": 10**12}

any_float = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf])
near = st.integers(-8, 8).map(lambda number: number / 8)  # ties and returns happen
units = st.integers(1, 5).flatmap(
    lambda count: st.sampled_from([count, {"steps": count * 7}, {"samples": count * 50}])
)
gains = st.sampled_from([0.0, 0.125, 0.3, "0%", "5%", "12.5%", "100%"])


@st.composite
def improvements(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "metric": draw(st.sampled_from(sorted(INFOS))),
        "at_least": draw(gains),
        "from": draw(st.sampled_from(["best", "previous"])),
        "patience": draw(units),
        "cooldown": draw(st.integers(0, 2)),
    }


@st.composite
def all_settings(draw: st.DrawFn) -> StopSettings:
    """Any settings but what cannot be combined."""
    chosen: dict[str, Any] = {
        "budget": draw(st.sampled_from([NEVER, {"steps": 120}, {"hours": 1.5, "epochs": 9}]))
    }
    if draw(st.booleans()):
        chosen["improvement"] = draw(st.lists(improvements(), min_size=1, max_size=3))
        chosen["improvement_needs"] = draw(st.sampled_from(["all", "any"]))
        chosen["warmup"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        chosen["targets"] = {"accuracy": {"at_least": 0.5}, "val/loss": {"at_most": 0.25}}
        chosen["targets_need"] = draw(st.sampled_from(["all", "any"]))
        chosen["hold"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        chosen["divergence"] = [
            {"metric": "val/loss", "ratio_to_best": 3.0},
            {"metric": "val/gain", "below": -0.9},
        ]
    if draw(st.booleans()):
        chosen["gap"] = {"metric": "loss", "above": 0.25, "for": draw(st.integers(1, 3))}
        chosen["train_metrics"] = "full"
        chosen["plateau"] = [
            {"metric": "val/gain", "over": draw(st.integers(4, 6))},
            {"metric": "val/loss", "over": 4, "confidence": 0.5},
        ]
    if draw(st.booleans()):
        chosen["milestones"] = [
            {"metric": "val/accuracy", "at_least": 0.5, "by": {"steps": 60}},
            {"metric": "val/loss", "at_most": 0.25, "by": {"samples": 200}},
        ]
    if draw(st.booleans()):
        chosen["spike"] = {
            "z": draw(st.sampled_from([2.0, 6.0])),
            "steps": 10,
            "action": draw(st.sampled_from(["warn", "stop"])),
        }
    return StopSettings.model_validate(chosen)


@st.composite
def evaluations(
    draw: st.DrawFn, values: st.SearchStrategy[float] = near | any_float, max_size: int = 12
) -> list[Evaluation]:
    """Evaluations at increasing steps, with values missing here and there, and a learning rate that
    drops now and then.
    """
    found = []
    step, lr = 0, 1.0
    for _ in range(draw(st.integers(0, max_size))):
        step += draw(st.integers(1, 30))
        lr *= draw(st.sampled_from([1.0, 1.0, 0.5]))
        metrics = draw(st.fixed_dictionaries({}, optional=dict.fromkeys(INFOS, values)))
        found.append(Evaluation(step, step * 50 / 700, step * 50, step / 100, metrics, lr))
    return found


@st.composite
def windows(draw: st.DrawFn, first: int = 1) -> LoggedSteps:
    losses = draw(st.lists(near | any_float, max_size=8))
    norms = [draw(st.sampled_from([1.0, 1.0, math.inf])) for _ in losses]
    return LoggedSteps(first, losses, norms, [draw(st.booleans()) for _ in losses], {})


def judge(
    settings: StopSettings, history: Sequence[Evaluation], infos: dict[str, MetricInfo] = INFOS
) -> list[Verdict]:
    controller = StopController(settings, infos)
    return [controller.judge(evaluation) for evaluation in history]


def stop_of(verdicts: Sequence[Verdict]) -> int | None:
    return next((index for index, verdict in enumerate(verdicts) if verdict.stops), None)


def decisions(verdicts: Sequence[Verdict]) -> list[Any]:
    """All but the words and the numbers."""
    return [
        (
            one.action,
            one.reason,
            one.improved,
            one.new_best,
            [(c.improved, c.stale, c.out) for c in one.criteria],
        )
        for one in verdicts
    ]


def kept(controller: StopController) -> bytes:
    """What a checkpoint holds of a controller."""
    return exact_json.dumps([controller.state(), list(controller.history())])


@given(all_settings(), evaluations(), st.lists(windows(), max_size=12), st.data())
def test_judging_is_a_fold(
    settings: StopSettings, history: list[Evaluation], seen: list[LoggedSteps], data: st.DataObject
) -> None:
    """Interrupted after any event and gone on in another process, the same verdicts follow: between
    evaluations too.
    """
    unordered: list[Evaluation | LoggedSteps] = [*history, *seen]
    events = in_order(data.draw(st.permutations(unordered)), history)
    whole = StopController(settings, INFOS)
    expected = [str(take(whole, event)) for event in events]
    controller = StopController(settings, INFOS)
    given_verdicts = []
    interruptions = data.draw(st.sets(st.integers(0, len(events))))
    for index, event in enumerate(events):
        if index in interruptions:
            state, rows = exact_json.loads(kept(controller), "state")
            controller = StopController(settings, INFOS)
            controller.restore(state, rows)
        given_verdicts.append(str(take(controller, event)))
    assert given_verdicts == expected
    assert kept(controller) == kept(whole)
    assert controller.best() == whole.best()


def in_order(
    mixed: Sequence[Evaluation | LoggedSteps], history: list[Evaluation]
) -> list[Evaluation | LoggedSteps]:
    """The same mixture, with the evaluations in the order of their steps."""
    ordered = iter(history)
    return [next(ordered) if isinstance(event, Evaluation) else event for event in mixed]


def take(controller: StopController, event: Evaluation | LoggedSteps) -> Verdict:
    return controller.judge(event) if isinstance(event, Evaluation) else controller.watch(event)


@given(all_settings(), evaluations(), evaluations())
def test_what_comes_later_changes_nothing_before(
    settings: StopSettings, history: list[Evaluation], later: list[Evaluation]
) -> None:
    last = history[-1].step if history else 0
    shifted = [
        Evaluation(
            last + one.step, one.epoch, last * 50 + one.samples, one.hours, one.metrics, one.lr
        )
        for one in later
    ]
    assert str(judge(settings, [*history, *shifted])[: len(history)]) == str(
        judge(settings, history)
    )


@given(all_settings(), evaluations())
def test_verdicts_survive_json(settings: StopSettings, history: list[Evaluation]) -> None:
    for verdict in judge(settings, history):
        assert str(Verdict.from_json(verdict.to_json())) == str(verdict)


@given(all_settings(), evaluations(), st.data())
def test_noise_free_repeats_change_nothing(
    settings: StopSettings, history: list[Evaluation], data: st.DataObject
) -> None:
    """An evaluation that is made again outside of the intervals, with the same numbers."""
    repeats = [data.draw(st.integers(0, 2)) for _ in history]
    repeated = [
        dataclasses.replace(one, extra=number > 0)
        for one, count in zip(history, repeats, strict=True)
        for number in range(count + 1)
    ]
    told = judge(settings, repeated)
    firsts = [verdict for one, verdict in zip(repeated, told, strict=True) if not one.extra]
    assert list(map(str, firsts)) == list(map(str, judge(settings, history)))
    assert not any(v.new_best for one, v in zip(repeated, told, strict=True) if one.extra)


@given(evaluations(), improvements(), st.sampled_from(["", "2 se"]), st.integers(0, 3))
def test_an_interval_that_only_repeats_its_numbers_is_no_gain_and_moves_no_reference(
    history: list[Evaluation], improvement: dict[str, Any], errors: str, place: int
) -> None:
    improvement |= {"metric": "val/loss", "cooldown": 0, "patience": 99}
    improvement |= {"at_least": errors} if errors else {}
    settings = StopSettings.model_validate({"improvement": improvement})
    pairs = {"val/loss": Deviations(9, 0.01, [3, -1, -2, place])}
    infos = {**INFOS, "val/loss": MetricInfo("min", has_error=True)}
    history = [dataclasses.replace(one, deviations=pairs) for one in history]
    twice = judge(settings, [one for one in history for _ in range(2)], infos)
    plain = judge(settings, history, infos)
    gains_of = [[(one.improved, one.new_best) for one in each] for each in (twice[::2], plain)]
    assert gains_of[0] == gains_of[1]
    assert not any(one.new_best for one in twice[1::2])
    assert not any(one.criteria[0].improved for one in twice[1::2])


@given(
    evaluations(),
    gains,
    st.sampled_from(["best", "previous"]),
    st.sampled_from(["intervals", "steps", "samples", "epochs"]),
    st.integers(1, 6),
    st.integers(0, 40),
)
def test_more_patience_never_stops_earlier(
    history: list[Evaluation],
    at_least: float | str,
    start: str,
    unit: str,
    patience: int,
    more: int,
) -> None:
    stops = []
    for count in (patience, patience + more):
        improvement = {
            "metric": "val/gain",
            "at_least": at_least,
            "from": start,
            "patience": {unit: count},
        }
        settings = StopSettings.model_validate(
            {"every": {"steps": 1}, "improvement": improvement}
            if unit != "steps"
            else {"improvement": improvement}
        )
        stops.append(stop_of(judge(settings, history)))
    assert stops[1] is None or (stops[0] is not None and stops[0] <= stops[1])


def with_gain(history: Sequence[Evaluation], values: Sequence[float]) -> list[Evaluation]:
    return [
        Evaluation(one.step, one.epoch, one.samples, one.hours, {"val/gain": value}, one.lr)
        for one, value in zip(history, values, strict=True)
    ]


@given(
    st.lists(
        st.floats(-1e60, 1e60).filter(lambda value: value == 0 or abs(value) > 1e-60), max_size=12
    ),
    improvements(),
    st.integers(-300, 300),
)
def test_scaling_by_a_power_of_two_changes_no_verdict_on_shares(
    values: list[float], improvement: dict[str, Any], power: int
) -> None:
    """A power of two scales every float exactly: no bit of any comparison changes."""
    improvement |= {"metric": "val/gain", "at_least": "5%", "cooldown": 0}
    settings = StopSettings.model_validate({"improvement": improvement})
    history = [Evaluation(step, 0.0, step * 50, 0.0, {}) for step in range(1, len(values) + 1)]
    scaled = [math.ldexp(value, power) for value in values]
    assert decisions(judge(settings, with_gain(history, scaled))) == decisions(
        judge(settings, with_gain(history, values))
    )


@given(
    st.lists(st.integers(-(10**6), 10**6), max_size=12),
    improvements(),
    st.integers(0, 150),
    st.integers(-12, 12),
)
def test_scaling_by_a_power_of_ten_changes_no_verdict_on_shares(
    values: list[int], improvement: dict[str, Any], percent: int, power: int
) -> None:
    """A power of ten does not scale floats exactly: a gain that is exactly the share asked for may
    then fall on either side, and is left out here.
    """
    improvement |= {"metric": "val/gain", "at_least": f"{percent}%", "cooldown": 0}
    settings = StopSettings.model_validate({"improvement": improvement})
    history = [Evaluation(step, 0.0, step * 50, 0.0, {}) for step in range(1, len(values) + 1)]
    plain = judge(settings, with_gain(history, [float(value) for value in values]))
    on_the_edge = [
        one
        for verdict in plain
        for one in verdict.criteria
        if one.gain and one.reference and 100 * one.gain == percent * abs(one.reference)
    ]
    assume(not on_the_edge)
    scaled = [value * 10.0**power if power >= 0 else value / 10.0**-power for value in values]
    assert decisions(judge(settings, with_gain(history, scaled))) == decisions(plain)


@given(evaluations(), improvements(), st.floats(-1, 1), st.integers(1, 3))
def test_negating_a_metric_and_its_mode_changes_no_verdict(
    history: list[Evaluation], improvement: dict[str, Any], bound: float, hold: int
) -> None:
    improvement |= {"metric": "val/gain"}
    watch = {"metric": "val/gain"}
    common = {"improvement": improvement, "hold": hold}
    up = StopSettings.model_validate(
        {
            **common,
            "targets": {"val/gain": {"at_least": bound}},
            "divergence": {**watch, "below": -0.9},
        }
    )
    down = StopSettings.model_validate(
        {
            **common,
            "targets": {"val/gain": {"at_most": -bound}},
            "divergence": {**watch, "above": 0.9},
        }
    )
    negated = [
        Evaluation(
            one.step,
            one.epoch,
            one.samples,
            one.hours,
            {name: -value if name == "val/gain" else value for name, value in one.metrics.items()},
            one.lr,
        )
        for one in history
    ]
    assert decisions(judge(down, negated, {**INFOS, "val/gain": MetricInfo("min")})) == decisions(
        judge(up, history)
    )


@given(all_settings(), evaluations(max_size=20))
def test_counts_are_what_they_say(settings: StopSettings, history: list[Evaluation]) -> None:
    """Best is the best of the history; nothing is out without being stale, nothing improved is
    stale.
    """
    controller = StopController(settings, INFOS)
    for evaluation in history:
        verdict = controller.judge(evaluation)
        for one in verdict.criteria:
            assert not (one.improved and one.stale)
            assert one.stale or not one.out
    ranked = controller.best_metric()
    assert ranked is not None
    name, mode = ranked
    values = [
        one.metrics[name] for one in history if not math.isnan(one.metrics.get(name, math.nan))
    ]
    best = controller.best()
    assert (best.value if best else None) == (
        (max if mode == "max" else min)(values) if values else None
    )
    if best:
        assert best.step == next(one.step for one in history if one.metrics.get(name) == best.value)

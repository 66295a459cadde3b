"""Forecasts: right about curves that are known, silent about those that are not of their kind, the
same whatever the units, and verdicts on both sides of each boundary.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli import app
from harness.errors import ConfigError
from harness.stopping import forecast
from harness.stopping.controller import StopController
from harness.stopping.forecast import End, Outlook, Point, end_of, look_ahead
from harness.stopping.history import read_history
from harness.stopping.replay import replay
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

SHARE, LOSS = MetricInfo("max", 0.0, 1.0), MetricInfo("min", 0.0)
INFOS = {"val/accuracy": SHARE, "val/loss": LOSS, "val/gain": MetricInfo("max")}
TARGET = {"val/accuracy": {"at_least": 0.9}}
STOP = {"target": "val/accuracy", "for": 2, "action": "stop"}


def curve(
    shape: Callable[[float], float], count: int, noise: float = 0.003, seed: int = 0
) -> list[Point]:
    draw = np.random.default_rng(seed)
    return [
        Point(100 * n, shape(n) + float(draw.normal(0, noise)), 0.1) for n in range(1, count + 1)
    ]


def rising(n: float) -> float:
    return 0.8 - 0.6 * math.exp(-n / 8)


def look(points: Sequence[Point], by: int = 6000, value: float | None = None) -> Outlook:
    return look_ahead("val/gain", INFOS["val/gain"], points, End(by), value)


@pytest.mark.parametrize(
    "shape",
    [
        rising,
        lambda n: 0.9 - 0.7 * (1 + n) ** -0.7,
        lambda n: 0.9 - 0.7 / (1 + (n / 6) ** 2),
        lambda n: 0.5,
    ],
)
def test_bands_hold_what_becomes_of_curves_of_the_families(
    shape: Callable[[float], float],
) -> None:
    held = []
    for seed in range(30):
        low, high = look(curve(shape, 20, seed=seed)).band
        draw = np.random.default_rng(1000 + seed)
        held.append(low <= shape(60) + draw.normal(0, 0.003) <= high)
        assert high - low < 0.45
    assert np.mean(held) >= 0.85


def test_the_chance_falls_with_the_value_from_one_to_none() -> None:
    points = curve(rising, 20)
    chances = [look(points, value=value).chance for value in (0.75, 0.79, 0.81, 0.85, 0.95)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == pytest.approx(0.99, abs=0.01)
    assert chances[-1] is not None
    assert chances[-1] < 0.2
    above = look_ahead("val/accuracy", SHARE, points, End(6000), 1.5)
    # Neither is ever certain
    assert above.chance == pytest.approx(0.01, abs=1e-6)
    assert "chance to reach 1.5: 1 %" in above.words()
    sure = look(points, value=0.1)
    assert sure.chance == pytest.approx(0.99, abs=1e-6)


def test_a_budget_that_just_has_the_evaluations_for_a_forecast_is_taken() -> None:
    """One after the sixth evaluation, before the seventh, at which the budget is spent."""
    given = {"forecast": {**STOP, "for": 1}, "targets": {"val/accuracy": {"at_least": 1}}}
    _, verdicts = controller(LOW[:7], budget={"epochs": 7}, **given)
    assert [one.reason for one in verdicts] == [None] * 5 + ["hopeless", "budget"]


def test_units_change_nothing_and_neither_does_the_side_that_is_better() -> None:
    points = curve(rising, 20)
    known = look(points, value=0.81)
    scaled = [Point(7 * p.step, 100 * p.value - 3, 5 * p.rate) for p in points]
    other = look(scaled, by=42_000, value=78.0)
    assert other.chance == pytest.approx(known.chance, abs=1e-6)
    assert other.band == pytest.approx([100 * edge - 3 for edge in known.band])
    falls = [Point(p.step, -p.value, p.rate) for p in points]
    down = look_ahead("val/loss", MetricInfo("min"), falls, End(6000), -0.81)
    assert down.chance == pytest.approx(known.chance, abs=1e-9)
    assert down.band == pytest.approx([-edge for edge in reversed(known.band)])
    assert look(points, value=0.81) == known


def test_a_plateau_may_end_by_a_new_rise() -> None:
    """The byte models of benchmarks/curves/text_curves.parquet that reached this after all."""
    for metric, target, values in (
        ("val/accuracy", 0.168, [0.12, 0.152, 0.152, 0.152, 0.152, 0.152, 0.151, 0.151]),
        ("val/loss", 3.09, [4.242, 3.709, 3.512, 3.448, 3.404, 3.364, 3.334, 3.313, 3.301]),
    ):
        points = [Point(6 * n, value, 0.1) for n, value in enumerate(values, 1)]
        chance = look_ahead(metric, INFOS[metric], points, End(192), target).chance
        assert chance is not None
        assert chance > 0.1


def test_a_rate_that_runs_out_ends_the_rise() -> None:
    def slow(n: float) -> float:
        return 0.9 - 0.8 * math.exp(-n / 40)

    steady = curve(slow, 20)
    decayed = [point._replace(rate=0.1 * (1 - n / 25)) for n, point in enumerate(steady)]
    assert look(decayed).band[1] < look(steady).band[1]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (curve(rising, 5), "5 of at least 6 evaluations"),
        (curve(rising, 60), "the budget is spent"),
        (
            [p._replace(rate=0.1 if p.step % 500 else 0.05) for p in curve(rising, 20)],
            "as with warm restarts",
        ),
        (curve(lambda n: 0.5 + 0.2 * math.sin(n / 3), 20), "got worse for a time"),
        ([p._replace(rate=0.0) for p in curve(rising, 20)], "the learning rate is 0"),
        (
            [Point(0, 0.1, 0.1), *(p._replace(rate=0.0) for p in curve(rising, 20))],
            "the learning rate is 0",
        ),
        *(
            (
                [*curve(rising, 19), Point(2000, 0.8, rate)],
                "the learning rate is not known at each",
            )
            for rate in (math.nan, math.inf, -0.1, None)
        ),
        ([p._replace(value=1e200 * p.value) for p in curve(rising, 20)], "values too large"),
    ],
)
def test_it_abstains_and_says_why(points: list[Point], words: str) -> None:
    found = look(points, value=0.9)
    assert found.chance is None
    assert words in found.words()


def test_a_rate_that_no_evaluation_knows_is_taken_to_be_steady() -> None:
    points = curve(rising, 20)
    unknown = [point._replace(rate=None) for point in points]
    assert look(unknown, value=0.9) == look([p._replace(rate=0.7) for p in points], value=0.9)


def test_a_band_stays_within_what_the_metric_can_be() -> None:
    low, high = look_ahead("val/accuracy", SHARE, curve(lambda n: 1 - 0.5 / n, 12), End(6000)).band
    assert 0 <= low < high <= 1


def test_warm_up_and_noise_are_no_reason_to_abstain() -> None:
    warm = [p._replace(rate=min(0.1, 1e-4 * p.step)) for p in curve(rising, 20, noise=0.03)]
    assert not look(warm).abstains


def test_the_budget_met_first_at_the_pace_so_far_ends_it() -> None:
    now = Evaluation(step=100, epoch=2.0, samples=3200, hours=0.5, metrics={})
    for budget, end in (
        ({"steps": 900}, End(900)),
        ({"epochs": 10}, End(500, 10)),
        ({"epochs": 10, "steps": 400}, End(400)),
        ({"samples": 9600}, End(300)),
        ({"hours": 2.0, "steps": 900}, End(400)),
    ):
        given = StopSettings.model_validate({"budget": budget}).budget
        assert given is not None
        assert end_of(given, now) == end


def controller(values: Sequence[float], **settings: Any) -> tuple[StopController, list[Any]]:
    stop = StopSettings.model_validate(
        {"targets": TARGET, "budget": {"epochs": 60}, "forecast": STOP, **settings}
    )
    judge = StopController(stop, INFOS)
    verdicts = [
        judge.judge(Evaluation(100 * n, float(n), 9 * n, 0.1 * n, {"val/accuracy": value}, 0.1))
        for n, value in enumerate(values, 1)
    ]
    return judge, verdicts


LOW = [point.value for point in curve(lambda n: 0.3 - 0.1 * math.exp(-n / 2), 12, noise=0.002)]
HIGH = [point.value for point in curve(rising, 12, noise=0.002)]


def test_a_target_out_of_sight_ends_the_run_and_one_in_sight_does_not() -> None:
    _, verdicts = controller(LOW)
    stops = [one.stops for one in verdicts]
    first = stops.index(True)
    assert 6 <= first < 12  # two forecasts in a row, the first at the sixth evaluation
    assert verdicts[first].reason == "hopeless"
    assert "chance to reach 0.9: " in verdicts[first].detail
    assert "below 5 % at 2 forecasts in a row" in verdicts[first].detail
    _, good = controller(HIGH, targets={"val/accuracy": {"at_least": 0.75}})
    assert not any(one.reason == "hopeless" for one in good)


def test_more_in_a_row_a_smaller_chance_and_a_later_begin_never_stop_earlier() -> None:
    def first(**changes: Any) -> int:
        _, verdicts = controller(LOW, forecast={**STOP, **changes})
        return next((n for n, one in enumerate(verdicts, 1) if one.stops), 99)

    base = first()
    assert first(**{"for": 4}) == base + 2
    assert base <= first(chance_below=0.02) < 99
    assert first(**{"from": {"epochs": base + 1}}) == base + 2
    assert first(**{"from": {"epochs": 3}}) == base


def test_warn_says_so_once_and_the_run_goes_on() -> None:
    _, verdicts = controller(LOW, forecast={**STOP, "action": "warn"})
    assert not any(one.stops for one in verdicts)
    told = [warning for one in verdicts for warning in one.warnings]
    assert len(told) == 1
    assert told[0].startswith("val/accuracy, 95%: ")


def test_the_best_may_be_asked_to_improve() -> None:
    flat = [0.5 + 0.001 * (n % 2) for n in range(12)]
    ask = {"metric": "val/accuracy", "gain": "10%", "for": 1, "action": "stop"}
    _, verdicts = controller(flat, forecast=ask, targets={})
    assert any(one.reason == "hopeless" for one in verdicts)
    _, verdicts = controller(HIGH[:8], forecast={**ask, "gain": 0.01}, targets={})
    assert not any(one.stops for one in verdicts)


def test_judging_again_after_a_resume_gives_the_same() -> None:
    whole, verdicts = controller(LOW)
    for cut in (3, 7, 11):
        part, _ = controller(LOW[:cut])
        again, _ = controller([])
        assert again.restore(part.state(), part.history()) == verdicts[cut - 1]
        rest = [
            again.judge(Evaluation(100 * n, float(n), 9 * n, 0.1 * n, {"val/accuracy": v}, 0.1))
            for n, v in enumerate(LOW[cut:], cut + 1)
        ]
        assert rest == verdicts[cut:]
    assert whole.history()


def test_a_thousand_evaluations_are_fitted_two_hundred_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[End] = []
    monkeypatch.setattr(
        forecast,
        "look_ahead",
        lambda metric, info, points, end, value: asked.append(end) or Outlook(metric, end.step),
    )
    controller([0.5] * 1000, budget={"epochs": 2000})
    assert 100 < len(asked) < 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": None, "targets": TARGET}, "stop.forecast: needs a budget"),
        ({"targets": {}}, "stop.targets has no target for val/accuracy, but for nothing"),
        (
            {"budget": {"epochs": 6}},
            "there are 6 evaluations in stop.budget, by stop.every, and it",
        ),
        (
            {"every": {"steps": 100}, "budget": {"steps": 550}},
            "nothing can be forecast: there are 6 evaluations in stop.budget, by stop.every",
        ),
        ({"forecast": {**STOP, "target": "val/acuracy"}}, "Did you mean val/accuracy?"),
        ({"forecast": {**STOP, "metric": "val/loss", "gain": 0.1}}, "exactly one of target"),
        ({"forecast": {"metric": "val/loss"}}, "metric and gain belong together"),
        ({"forecast": {"metric": "val/loss", "gain": "2 se"}}, "not a gain like 0.01"),
        ({"forecast": {**STOP, "chance_below": 5}}, "not a chance from 0.02"),
        ({"forecast": {**STOP, "chance_below": "1%"}}, "knows no smaller ones"),
        ({"forecast": {**STOP, "from": {"epochs": 1, "steps": 2}}}, "exactly one of epochs"),
        ({"forecast": {**STOP, "from": {"epochs": 61}}}, "forecast.from: 61 epochs are beyond the"),
    ],
)
def test_what_cannot_take_effect_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        controller([], **given)
    assert message in str(raised.value)


def test_the_command_forecasts_what_the_config_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"kind": "eval", "step": 100 * n, "epoch": n, "val/accuracy": value, "lr": 0.1}
        for n, value in enumerate(LOW, 1)
    ]
    run = tmp_path / "run.jsonl"
    run.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    stop = {"targets": TARGET, "budget": {"epochs": 60}, "forecast": STOP}
    config.write_text(json.dumps({"stop": stop}))
    asked = ["forecast", str(run), "--config", str(config)]
    assert app(asked, standalone_mode=False) == 0
    said = capsys.readouterr().out
    assert said.startswith("val/accuracy, 95%: ")
    assert "by epoch 60 (step 6,000); chance to reach 0.9: " in said
    bare = [*asked, "stop.targets=null", "stop.forecast=null", "--metric", "val/accuracy"]
    assert app([*bare, "--json"], standalone_mode=False) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["metric"], told["chance"], told["by"]) == ("val/accuracy", None, 6000)
    # What cannot be told in steps is no end
    run.write_text(run.read_text().replace('"epoch": 12,', '"epoch": 1e-320,'))
    with pytest.raises(ConfigError, match=r"its end is not known"):
        app(asked, standalone_mode=False)
    run.write_text(run.read_text().replace('"epoch": 1e-320,', '"epoch": 12,'))
    other = [*asked, "stop.targets=null", "stop.forecast=null"]
    with pytest.raises(ConfigError, match=r"stop\.best\.metric: there is no metric val/f1"):
        app([*other, "stop.best.metric=val/f1"], standalone_mode=False)
    with pytest.raises(ConfigError, match=r"no metric val/acuracy\. Did you mean val/accuracy"):
        app([*other, "--metric", "val/acuracy"], standalone_mode=False)
    with pytest.raises(ConfigError, match=r"stop\.budget is not set"):
        app([*asked, "stop.budget=null", "stop.forecast=null"], standalone_mode=False)
    found = replay(read_history(run), StopSettings.model_validate(stop))
    _, verdicts = controller(LOW)
    assert [one.detail for one in found.verdicts] == [
        one.detail for one in verdicts[: len(found.verdicts)]
    ]

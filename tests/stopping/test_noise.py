"""Noise that must not decide: smoothed values, and gains beyond their standard errors."""

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.read import read_section
from harness.errors import ConfigError
from harness.metrics.errors import mean_error, share_error
from harness.stopping.controller import StopController
from harness.stopping.history import read_history
from harness.stopping.replay import replay
from harness.stopping.settings import StopSettings
from harness.stopping.smoothing import RunningSmooth, Smooth
from harness.stopping.verdict import Evaluation, MetricInfo, Verdict
from harness.tasks import Classification, Joint, Regression
from harness.tasks.task import known_metrics
from tests.pool import train_on_ranks

INFOS = {
    "val/accuracy": MetricInfo("max", 0.0, 1.0, has_error=True),
    "train/accuracy": MetricInfo("max", 0.0, 1.0, has_error=True),
    "val/f1": MetricInfo("max", 0.0, 1.0),
    "val/loss": MetricInfo("min", 0.0, has_error=True),
}
NAN, INF = math.nan, math.inf
STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"


def settings(**improvement: Any) -> StopSettings:
    given = {"metric": "val/accuracy", "patience": 2, **improvement}
    return StopSettings.model_validate({"improvement": given, "budget": {"steps": 10**6}})


def judge(stop: StopSettings, values: Sequence[float], *errors: float) -> list[Verdict]:
    controller = StopController(stop, INFOS)
    rows = [{"val/accuracy": value} for value in values]
    for row, error in zip(rows, errors, strict=False):
        row["val/accuracy_se"] = error
    return [
        controller.judge(Evaluation(100 * n, float(n), 3200 * n, 0.1 * n, row))
        for n, row in enumerate(rows, 1)
    ]


def smoothed(values: Sequence[float], **how: Any) -> list[float]:
    running = RunningSmooth(Smooth.model_validate(how))
    return [running.take(value) for value in values]


def test_smoothed_values_are_those_of_their_definitions() -> None:
    values = [0.3, 0.9, 0.1, 0.5]
    assert smoothed(values, window=3) == [0.3, statistics.median([0.3, 0.9]), 0.3, 0.5]
    assert smoothed(values, window=2, of="mean") == [0.3, 0.6, 0.5, 0.3]
    assert smoothed(values, ema=0.6) == pytest.approx([0.3, 0.54, 0.364, 0.4184])
    # What is not finite does not spread
    assert smoothed([0.5, NAN, INF, 0.5], window=2)[3] == 0.5
    assert smoothed([0.5, NAN, 0.5], ema=0.6)[2] == 0.5
    # Values that repeat stay, to the bit, and large ones end nothing
    for value in (0.1, 0.7, 1 / 3, 1.7e308):
        for how in ({"ema": 0.7}, {"window": 3, "of": "mean"}):
            assert smoothed([value] * 9, **how) == [value] * 9


def test_patience_takes_the_smoothed_value_and_best_and_targets_the_raw_one() -> None:
    spiky = [0.5, 0.5, 0.9, 0.5, 0.5]
    median = judge(settings(smooth={"window": 3}), spiky)
    assert [one.stops for one in median] == [False, False, True, True, True]
    assert [one.new_best for one in median] == [True, False, True, False, False]
    assert median[2].reason == "no_improvement"
    assert "(0.5, the median of the last 3, where 0.9 was measured)" in median[2].detail
    (criterion,) = median[2].criteria
    assert (criterion.value, criterion.raw) == (0.5, 0.9)
    assert Verdict.from_json(json.loads(json.dumps(median[2].to_json()))) == median[2]
    # A dip that a criterion from the previous value would count
    dip = {"from": "previous", "patience": 1}
    assert judge(settings(**dip), [0.5, 0.6, 0.1, 0.7])[2].stops
    rising = judge(settings(**dip, smooth={"ema": 0.9}), [0.5, 0.6, 0.55, 0.7])
    assert not any(one.stops for one in rising)
    reached = StopSettings.model_validate(
        {
            "targets": {"val/accuracy": {"at_least": 0.9}},
            "improvement": {"metric": "val/accuracy", "patience": 9, "smooth": {"window": 3}},
        }
    )
    assert judge(reached, spiky)[2].reason == "targets_reached"


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.integers(1, 3),
    st.sampled_from([{"window": 3}, {"window": 4, "of": "mean"}, {"ema": 0.5}]),
)
def test_more_patience_never_stops_earlier_and_judging_again_changes_nothing(
    values: list[float], patience: int, how: dict[str, Any]
) -> None:
    stops = [
        [one.stops for one in judge(settings(patience=count, smooth=how), values)]
        for count in (patience, patience + 1)
    ]
    assert all(more <= less for less, more in zip(*stops, strict=True))
    stop = settings(patience=patience, smooth=how)
    whole, cut = StopController(stop, INFOS), StopController(stop, INFOS)
    for number, value in enumerate(values, 1):
        evaluation = Evaluation(number, float(number), number, 0.0, {"val/accuracy": value})
        again = StopController(stop, INFOS)
        again.restore(cut.state(), cut.history())
        cut = again
        assert whole.judge(evaluation) == cut.judge(evaluation)


def test_a_gain_counts_from_its_standard_errors_on() -> None:
    stop = settings(at_least="2 se", patience=1)
    needed = 2 * math.hypot(0.03, 0.04)
    for value, stops in ((needed, False), (math.nextafter(needed, 0), True)):
        verdict = judge(stop, [0.0, value], 0.03, 0.04)[1]
        assert verdict.stops == stops
        assert verdict.criteria[0].needed == needed
    assert "where 0.1 was asked, 2 standard errors of the gain" in verdict.detail
    # From the best that counted: small gains add up
    creeping = judge(settings(at_least="1 se"), [0.5, 0.51, 0.52], 0.01, 0.01, 0.01)
    assert [one.improved for one in creeping] == [True, False, True]
    # An undefined error is none that is known
    assert "its standard error is not known" in judge(stop, [0.0, 0.5], 0.0, NAN)[1].warnings[0]
    # Without noise any gain counts, and no gain does not
    assert not judge(stop, [0.5, 0.5 + 1e-12], 0.0, 0.0)[1].stops
    assert judge(stop, [0.5, 0.5], 0.0, 0.0)[1].stops


@pytest.mark.parametrize(
    ("improvement", "message"),
    [
        ({"at_least": "-2 se"}, "nor a number of standard errors like 2 se"),
        ({"at_least": "se"}, "nor a number of standard errors like 2 se"),
        ({"at_least": "2 se", "metric": "val/f1"}, "standard error of val/f1 is not known"),
        ({"at_least": "2 se", "metric": "train/accuracy"}, "set train_metrics, or name a val/"),
        ({"at_least": "2 se", "smooth": {"window": 3}}, "standard error of a smoothed value"),
        ({"smooth": {}}, "exactly one of window, ema"),
        ({"smooth": {"window": 3, "ema": 0.5}}, "exactly one of window, ema"),
        ({"smooth": {"ema": 0.5, "of": "mean"}}, "of has no effect without window"),
        ({"smooth": {"window": 1}}, "greater than or equal to 2"),
        ({"smooth": {"ema": 1.0}}, "less than 1"),
    ],
)
def test_what_cannot_take_effect_is_refused(improvement: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        StopController(settings(**improvement), INFOS)
    assert message in str(raised.value)


def test_an_error_that_an_evaluation_does_not_know_is_told() -> None:
    """It ended the launch: also one resumed with this setting, and in place of divergence."""
    first, second = judge(settings(at_least="2 se"), [0.5, 0.6])
    assert "its standard error is not known at step 100," in first.warnings[0]
    assert "in fewer than 8 micro-batches" in second.warnings[0]
    assert second.improved
    controller = StopController(settings(at_least="2 se", metric="val/loss"), INFOS)
    infinite = controller.judge(Evaluation(100, 1.0, 3200, 0.1, {"val/loss": INF}))
    assert infinite.reason == "diverged"


def test_standard_errors_are_those_of_repeated_draws() -> None:
    draw = random.Random(3)
    shares, means, errors = [], [], []
    for _ in range(2000):
        shares.append(sum(draw.random() < 0.3 for _ in range(200)) / 200)
        counts = [draw.choice([20, 30]) for _ in range(12)]
        sums = [sum(draw.gauss(1, 2) for _ in range(count)) for count in counts]
        means.append(sum(sums) / sum(counts))
        errors.append(mean_error(sums, counts) or 0.0)
    assert share_error(60, 200) == pytest.approx(statistics.stdev(shares), rel=0.05)
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(means), rel=0.06)
    assert share_error(200, 200) > 0 < share_error(0, 200)
    assert mean_error(sums[::-1], counts[::-1]) == mean_error(sums, counts)
    assert mean_error(sums[:7], counts[:7]) is None
    assert mean_error([*sums[:7], 0.0], [*counts[:7], 0]) is None


def test_tasks_say_whose_standard_errors_are_known() -> None:
    heads = {"kind": Classification("x", "y"), "size": Regression("x", "z")}
    heads["kind"].fit_to(torch.zeros(1, 2))
    infos = known_metrics(Joint(heads), ["val"])
    assert {name for name, info in infos.items() if info.has_error} == {
        "val/loss",
        "val/kind_accuracy",
    }
    table = torch.tensor([[3, 1], [2, 4]])
    assert Joint(heads).standard_errors({"kind_confusion": table}) == {
        "kind_accuracy": share_error(7, 10)
    }


def test_runs_on_any_number_of_ranks_judge_the_same_pairs_are_resumed_and_replayed(
    tmp_path: Path,
) -> None:
    criteria = [
        {"metric": f"val/{name}", "at_least": "2 se", "patience": 3}
        for name in ("loss", "accuracy")
    ]
    plain = "network={_target_: harness.networks.Mlp, dims: [6, 8, 3]}"
    settings_of_all = [
        plain,
        *("log.trace=false", "checkpoint.every=null", "run.paranoid=true", "optimizer.lr=0.03"),
        f"stop.improvement={json.dumps(criteria)}",
        "stop.best={metric: val/loss, at_least: 1 se}",
    ]
    recorded, verdicts = [], []
    for name, ranks, die_at in (
        ("one", 1, ""),
        ("two", 2, ""),
        ("three", 3, ""),
        ("cut", 1, "0:27"),
    ):
        run = tmp_path / name
        for death in filter(None, (die_at, "none")):
            ended = train_on_ranks(
                ranks,
                STORM,
                [f"run.dir={run}", *settings_of_all],
                env={} if death == "none" else {"DIE_AT": death},
            )
        assert [one.exit_code for one in ended] == [0] * ranks, ended[0].stderr
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        recorded.append([one for one in lines if one["kind"] == "eval"])
        verdicts.append([one["verdict"] for one in lines if one.get("event") == "verdict"])
    said = [
        [{n: row[n] for n in row if n.endswith("_se") or n == "deviations"} for row in one]
        for one in recorded
    ]
    assert said[0] == said[3]
    assert all(row.keys() == {"val/loss_se", "val/accuracy_se", "deviations"} for row in said[0])
    assert said[0][0]["deviations"].keys() == {"val/loss", "val/accuracy"}
    assert verdicts[0] == verdicts[3]
    # The weights of other numbers of ranks differ in their last bits, what follows from them not
    decided = [
        [(one["action"], one["reason"], one["improved"]) for one in each] for each in verdicts
    ]
    assert decided[0] == decided[1] == decided[2]
    assert sum("(paired, 50 samples)" in one["detail"] for one in verdicts[0]) > 1
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["launches"] == 2
    found = replay(
        read_history(run), read_section(run / "config.yaml", StopSettings, [], stored=True)
    )
    assert [one.detail for one in found.verdicts] == [one["detail"] for one in verdicts[0]]
    assert found.best is not None
    best = (run / "checkpoints" / "best").resolve().name
    assert best == f"step-{found.best.step:08}"
    assert outcome["best"]["step"] == found.best.step

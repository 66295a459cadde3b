"""How far forecasts of learning curves can be trusted, and what they save, on recorded curves of
our own runs (benchmarks/curves/forecast_curves.py made them).

Run: python benchmarks/forecast.py [network=FILE] [text|held_out] [coverage] [targets] [savings]
         [choice] [cost]

text: the curves of language models, by which nothing but the new rises was chosen (among equals),
in place of the others. held_out: those of held_out_curves.py, by which nothing was chosen.

network: what prior_fitted.py wrote, in place of the mixture.

Aims: 90 % bands hold 85 to 95 % of the last values at 25 and 50 % of the budget (10 % of it are
three evaluations, of which nothing is forecast); of the runs that a forecast stops, at most the
stated chance would have reached their target; 30 % of the epochs saved at 1 % of regret; a verdict
below 5 ms over 1,000 evaluations. The constants of harness/stopping/curves.py were chosen on all
families but fashion and hastie, those of new rises on all six.

Peers: patience, and Optuna's median and Hyperband pruners, asked as `fermarsi sweep --prune` does,
one run of a family after the other.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.stopping.controller import StopController
from harness.stopping.curves import effective_times, extrapolate, is_monotone
from harness.stopping.forecast import End, Point, look_ahead
from harness.stopping.pairs import Deviations
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

CURVES = Path(__file__).parent / "curves" / "forecast_curves.parquet"
TEXT_CURVES = CURVES.with_name("text_curves.parquet")
HELD_OUT_CURVES = CURVES.with_name("held_out_curves.parquet")
SHARE = MetricInfo("max", 0.0, 1.0)
LOSS = MetricInfo("min", 0.0)
GOOD = 0.6  # the target of a family: what this share of its runs does not reach


@dataclass(frozen=True)
class Curve:
    """A metric of a run by evaluation; `ups`: where more is better."""

    family: str
    metric: str
    info: MetricInfo
    values: list[float]
    rates: list[float]

    @property
    def ups(self) -> np.ndarray:
        return np.array(self.values) * (1 if self.info.mode == "max" else -1)


def curves(path: Path = CURVES) -> list[Curve]:
    import pyarrow.parquet as pq

    found = []
    for row in pq.read_table(path).to_pylist():
        for name, info in (("accuracy", SHARE), ("loss", LOSS)):
            if row[name] is not None and np.isfinite(row[name]).all():
                found.append(Curve(row["family"], f"val/{name}", info, row[name], row["lr"]))
    return found


def stops_at(curve: Curve, **stop: Any) -> int | None:
    """After how many evaluations the settings end the run, before its budget; None if not."""
    count = len(curve.values)
    settings = StopSettings.model_validate({"budget": {"steps": 100 * count}, **stop})
    controller = StopController(settings, {curve.metric: curve.info})
    for n, (value, rate) in enumerate(zip(curve.values, curve.rates, strict=True), 1):
        row = {curve.metric: value}
        verdict = controller.judge(Evaluation(100 * n, float(n), 100 * n, 0.0, row, rate))
        if verdict.stops:
            return None if verdict.reason in ("budget", "targets_reached") else n
    return None


def held_by_band(curve: Curve, part: int) -> bool | None:
    """Whether the 90 % band at one `part`-th of the budget holds the last value; None without."""
    ups, rates = curve.ups, np.array(curve.rates)
    bounds = (0.0, 1.0) if curve.info.mode == "max" else (-np.inf, 0.0)
    cut = len(ups) // part
    if not is_monotone(ups[:cut]):
        return None
    steps = np.arange(1.0, len(ups) + 1)
    past, ahead = effective_times(steps[:cut], rates[:cut], steps[cut:])
    low, high = extrapolate(past, ups[:cut], ahead, np.ones(len(ups) - cut), bounds).band(0.9)
    return bool(low <= ups[-1] <= high)


def coverage(all_curves: Sequence[Curve]) -> None:
    print("\n90 % bands of the last value: share that hold it, and share without a forecast\n")
    print("| curves | at 25 % | none | at 50 % | none |\n| --- | --- | --- | --- | --- |")
    held: dict[str, dict[int, list[bool | None]]] = defaultdict(lambda: defaultdict(list))
    for curve in all_curves:
        for part in (4, 2):
            inside = held_by_band(curve, part)
            falls = min(curve.rates) < 0.9 * max(curve.rates)
            kind = "falling rate" if falls else "steady rate"
            for name in (curve.family, curve.metric, kind, "all"):
                held[name][part].append(inside)
    for name, parts in held.items():
        cells = []
        for part in (4, 2):
            known = [one for one in parts[part] if one is not None]
            cells += [share_of(sum(known), len(known)), f"{1 - len(known) / len(parts[part]):.0%}"]
        print(f"| {name} ({len(parts[2])}) | {' | '.join(cells)} |")


def share_of(count: int, among: int) -> str:
    """A share with its 95 % interval (Clopper & Pearson, 1934), as if curves were independent."""
    from scipy.stats import binomtest

    if not among:
        return "-"
    interval = binomtest(count, among).proportion_ci()
    return f"{count / among:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def wrongly_stopped(all_curves: Sequence[Curve]) -> None:
    print("\nRuns that a forecast stops, and how many would have reached their target\n")
    print("| chance below | stopped | of those would have reached | evaluations saved |")
    print("| --- | --- | --- | --- |")
    for chance in (0.02, 0.05, 0.1):
        stopped, wrong, saved = 0, 0, []
        wrongs: dict[str, int] = defaultdict(int)
        for own in by_family(all_curves).values():
            target = float(np.quantile([curve.ups.max() for curve in own], GOOD))
            for curve in own:
                side = {"at_least": target} if curve.info.mode == "max" else {"at_most": -target}
                end = stops_at(
                    curve,
                    targets={curve.metric: side},
                    forecast={"target": curve.metric, "chance_below": chance, "action": "stop"},
                )
                reaches = bool(curve.ups.max() >= target)
                stopped += end is not None
                wrong += end is not None and reaches
                wrongs[curve.family] += end is not None and reaches
                if not reaches:
                    saved.append(1 - (end or len(curve.values)) / len(curve.values))
        print(
            f"| {chance:.0%} | {stopped} of {len(all_curves)} | {share_of(wrong, stopped)} | "
            f"{np.mean(saved):.0%} of those of runs that do not reach it | "
            f"{dict(wrongs)} |"
        )


def by_family(all_curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = defaultdict(list)
    for curve in all_curves:
        found[f"{curve.family} {curve.metric}"].append(curve)
    return found


def pruned_by(name: str) -> Callable[[Sequence[Curve]], list[int | None]]:
    """One run after the other, each asked about at each evaluation, as `fermarsi sweep --prune`."""

    def rule(own: Sequence[Curve]) -> list[int | None]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruners: dict[str, Callable[[], Any]] = {
            "median": lambda: optuna.pruners.MedianPruner(5, n_min_trials=5),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(1, len(own[0].values), 3),
        }
        study = optuna.create_study(
            study_name="sweep", direction="maximize", pruner=pruners[name]()
        )
        ends: list[int | None] = []
        for curve in own:
            trial, end = study.ask(), None
            for n, value in enumerate(curve.ups, 1):
                trial.report(float(value), n)
                if n < len(curve.ups) and trial.should_prune():
                    end = n
                    break
            if end is None:
                study.tell(trial, float(curve.ups.max()))
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            ends.append(end)
        return ends

    return rule


def gain(chance: float, in_a_row: int) -> dict[str, Any]:
    return {"gain": "1%", "chance_below": chance, "for": in_a_row, "action": "stop"}


def by_itself(**stop: dict[str, Any]) -> Callable[[Sequence[Curve]], list[int | None]]:
    """The rule of settings about a curve's metric."""

    def rule(own: Sequence[Curve]) -> list[int | None]:
        return [
            stops_at(one, **{name: {"metric": one.metric, **to} for name, to in stop.items()})
            for one in own
        ]

    return rule


def savings(all_curves: Sequence[Curve]) -> None:
    print("\nEvaluations saved, and what the best loses: of itself, and of the curve's range\n")
    print("| rule | saved | of itself | runs above 1 % | of the range | runs above 1 % | best |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rules: dict[str, Callable[[Sequence[Curve]], list[int | None]]] = {
        f"patience {patience}": by_itself(improvement={"patience": patience})
        for patience in (3, 5, 6, 10)
    }
    for chance in (0.05, 0.2, 0.4):
        rules[f"forecast of 1 % below {chance:.0%}"] = by_itself(forecast=gain(chance, 2))
    rules["forecast of 1 % below 20%, three in a row, or patience 8"] = by_itself(
        forecast=gain(0.2, 3), improvement={"patience": 8}
    )
    rules |= {f"Optuna's {name}": pruned_by(name) for name in ("median", "hyperband")}
    for name, rule in rules.items():
        saved, own_regrets, range_regrets, families = [], [], [], []
        for own in by_family(all_curves).values():
            ends = [end or len(one.values) for end, one in zip(rule(own), own, strict=True)]
            kept = [one.ups[:end].max() for one, end in zip(own, ends, strict=True)]
            whole = [one.ups.max() for one in own]
            saved += [1 - end / len(one.values) for one, end in zip(own, ends, strict=True)]
            for one, w, k in zip(own, whole, kept, strict=True):
                own_regrets.append((w - k) / (abs(w) or 1.0))
                range_regrets.append((w - k) / (float(np.ptp(one.ups)) or 1.0))
            families.append((max(whole) - max(kept)) / (max(whole) - min(whole)))
        cells = [f"{np.mean(saved):.0%}"]
        for regrets in (own_regrets, range_regrets):
            cells += [f"{np.mean(regrets):.2%}", f"{np.mean(np.array(regrets) > 0.01):.0%}"]
        print(f"| {name} | {' | '.join(cells)} | {np.mean(families):.1%} |")


def chances_of_gain(curve: Curve) -> list[float | None]:
    """After each evaluation but the last, that the best improves by 1 % of itself."""
    count, points, chances = len(curve.values), list[Point](), list[float | None]()
    for n, (value, rate) in enumerate(zip(curve.values, curve.rates, strict=True), 1):
        points.append(Point(100 * n, value, rate))
        if n < count:
            best = float(curve.ups[:n].max())
            goal = (best + 0.01 * abs(best)) * (1 if curve.info.mode == "max" else -1)
            outlook = look_ahead(curve.metric, curve.info, points, End(100 * count), goal)
            chances.append(outlook.chance)
    return chances


def ends_by_gain(chances: Sequence[float | None], below: float, in_a_row: int) -> int | None:
    small = 0
    for n, chance in enumerate(chances, 1):
        if chance is not None:
            small = small + 1 if chance < below else 0
        if small >= in_a_row:
            return n
    return None


def choice(all_curves: Sequence[Curve]) -> None:
    """The setting that saves most on the other families at 1 % of mean regret of the best itself,
    tried on each family: as they are, and with the margin of conformal risk control, by which n
    curves may lose (n + 1) / n of 1 % less 1 / n (a curve loses 1 at most; Angelopoulos et al.).
    """
    every = [(curve, chances_of_gain(curve)) for curve in all_curves]
    families = np.array([curve.family for curve in all_curves])
    patience = {p: by_itself(improvement={"patience": p})(all_curves) for p in range(2, 16)}
    forecasts = {
        (below / 100, row): [ends_by_gain(chances, below / 100, row) for _, chances in every]
        for below in range(5, 75, 5)
        for row in (1, 2, 3, 4)
    }
    both = {
        (*one, p): [
            min((e for e in pair if e), default=None) for pair in zip(ends, other, strict=True)
        ]
        for one, ends in forecasts.items()
        for p, other in patience.items()
    }
    print("\nThe setting chosen on the other families, tried on each: mean over all curves\n")
    print("| rules | margin | saved | regret | of families | chosen |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rules in (("patience", patience), ("forecast", forecasts), ("first of both", both)):
        tried = {rule: tried_on(all_curves, ends) for rule, ends in rules.items()}
        for margin in (False, True):
            saved, regrets, chosen = [], [], []
            for family in sorted(set(families)):
                others, own = families != family, families == family
                count = others.sum()
                most = 0.01 if not margin else ((count + 1) * 0.01 - 1) / count
                allowed = [rule for rule, (_, lost) in tried.items() if lost[others].mean() <= most]
                best = max(allowed, key=lambda rule: tried[rule][0][others].mean())
                saved.append(tried[best][0][own])
                regrets.append(tried[best][1][own])
                chosen.append(f"{family} {best}: {regrets[-1].mean():.2%}")
            whole = f"{np.concatenate(saved).mean():.1%} | {np.concatenate(regrets).mean():.2%}"
            print(f"| {name} | {margin} | {whole} | {', '.join(chosen)} |")


def tried_on(all_curves: Sequence[Curve], ends: Sequence[int | None]) -> tuple[Any, Any]:
    """The shares of evaluations saved and of the best value lost, an array each."""
    saved, lost = [], []
    for one, end in zip(all_curves, ends, strict=True):
        best = one.ups.max()
        saved.append(1 - (end or len(one.values)) / len(one.values))
        lost.append((best - one.ups[:end].max()) / (abs(best) or 1.0))
    return np.array(saved), np.array(lost)


def cost(count: int = 1000) -> None:
    draw = np.random.default_rng(1)
    stop = {
        "targets": {"val/accuracy": {"at_least": 0.99}},
        "improvement": [
            {"metric": "val/accuracy", "patience": 10**6, "smooth": {"window": 3}},
            {"metric": "val/loss", "patience": 10**6, "at_least": "2 se"},
        ],
        "gap": {"metric": "loss", "above": 9.0, "for": 3},
        "train_metrics": "full",
        "milestones": {"metric": "val/accuracy", "at_least": 0.2, "by": {"steps": 100}},
        "plateau": [
            {"metric": name, "over": 50, "confidence": 0.5} for name in ("val/loss", "val/accuracy")
        ],
        "forecast": {"target": "val/accuracy"},
        "budget": {"steps": 10**6},
    }
    loss = replace(LOSS, has_error=True)
    both = {"val/accuracy": SHARE, "val/loss": loss, "train/loss": loss}
    controller = StopController(StopSettings.model_validate(stop), both)
    began = time.process_time()
    for n in range(1, count + 1):
        accuracy = 0.9 - 0.6 * (1 + n / 10) ** -0.5 + float(draw.normal(0, 0.002))
        row = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "train/loss": 1 - accuracy}
        pairs = {"val/loss": Deviations(9999, 1e-9, draw.integers(-(10**6), 10**6, 128).tolist())}
        controller.judge(Evaluation(100 * n, float(n), n, 0.0, row, 0.1, deviations=pairs))
    each = 1e3 * (time.process_time() - began) / count
    alone = cost_of_patience(count)
    print(f"\na verdict of {count:,}: {each:.2f} ms; of patience alone {1e3 * alone:.1f} us")


def cost_of_patience(count: int, repeats: int = 15) -> float:
    """Milliseconds a verdict of patience and a budget, all else off: the fastest of repeats."""
    settings = {
        "improvement": {"metric": "val/loss", "patience": 10**6},
        "budget": {"steps": 10**6},
    }
    costs = []
    for _ in range(repeats):
        controller = StopController(StopSettings.model_validate(settings), {"val/loss": LOSS})
        began = time.process_time()
        for n in range(1, count + 1):
            controller.judge(Evaluation(n, float(n), n, 0.0, {"val/loss": 1 / n}, 0.1))
        costs.append(1e3 * (time.process_time() - began) / count)
    return min(costs)


if __name__ == "__main__":
    files = {"text": TEXT_CURVES, "held_out": HELD_OUT_CURVES}
    every = curves(next((path for name, path in files.items() if name in sys.argv), CURVES))
    print(f"{len(every)} curves")
    parts = {"coverage": coverage, "targets": wrongly_stopped, "savings": savings, "choice": choice}
    networks = [one for one in sys.argv[1:] if one.startswith("network=")]
    if networks:
        from prior_fitted import PriorFitted

        import harness.stopping.curves

        extrapolate = PriorFitted(Path(networks[0].partition("=")[2]))  # type: ignore[assignment]
        harness.stopping.curves.extrapolate = extrapolate
    asked = [one for one in sys.argv[1:] if one not in (*networks, *files)] or [*parts, "cost"]
    for part in asked:
        if part == "cost":
            cost()
        else:
            parts[part](every)

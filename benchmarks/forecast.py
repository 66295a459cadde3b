"""How far forecasts of learning curves can be trusted, and what they save, on recorded curves of
our own runs (benchmarks/curves/forecast_curves.py made them).

Run: python benchmarks/forecast.py [network=FILE] [coverage] [targets] [savings] [cost]

network: what prior_fitted.py wrote, in place of the mixture.

Aims: 90 % bands hold 85 to 95 % of the last values at 25 and 50 % of the budget (10 % of it are
three evaluations, of which nothing is forecast); of the runs that a forecast stops, at most the
stated chance would have reached their target; 30 % of the epochs saved at 1 % of regret; a verdict
below 5 ms over 1,000 evaluations. The constants of harness/stopping/curves.py were chosen on all
families but fashion.

Peers: patience, and two rules that compare the runs of a family at the same step, written out:
Optuna's median pruner (MedianPruner: after 5 runs and 5 evaluations, best so far below the median
of the others at that step) and successive halving, the bracket of its Hyperband pruner that prunes
most (at 4, 8 and 16 evaluations only the best third so far goes on).
"""

import statistics
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
from harness.stopping.pairs import Deviations
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo

CURVES = Path(__file__).parent / "curves" / "forecast_curves.parquet"
SHARE = MetricInfo("max", 0.0, 1.0)
LOSS = MetricInfo("min", 0.0)
GOOD = 0.6  # the target of a family: what this share of its runs does not reach
STARTUP, WARMUP = 5, 5


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


def curves() -> list[Curve]:
    import pyarrow.parquet as pq

    found = []
    for row in pq.read_table(CURVES).to_pylist():
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


def coverage(all_curves: Sequence[Curve]) -> None:
    print("\n90 % bands of the last value: share that hold it, and share without a forecast\n")
    print("| curves | at 25 % | none | at 50 % | none |\n| --- | --- | --- | --- | --- |")
    held: dict[str, dict[int, list[bool | None]]] = defaultdict(lambda: defaultdict(list))
    for curve in all_curves:
        ups, rates = curve.ups, np.array(curve.rates)
        bounds = (0.0, 1.0) if curve.info.mode == "max" else (-np.inf, 0.0)
        for part in (4, 2):
            cut = len(ups) // part
            inside = None
            if is_monotone(ups[:cut]):
                steps = np.arange(1.0, len(ups) + 1)
                past, ahead = effective_times(steps[:cut], rates[:cut], steps[cut:])
                low, high = extrapolate(
                    past, ups[:cut], ahead, np.ones(len(ups) - cut), bounds
                ).band(0.9)
                inside = bool(low <= ups[-1] <= high)
            falls = min(curve.rates) < 0.9 * max(curve.rates)
            kind = "falling rate" if falls else "steady rate"
            for name in (curve.family, curve.metric, kind, "all"):
                held[name][part].append(inside)
    for name, parts in held.items():
        cells = []
        for part in (4, 2):
            known = [one for one in parts[part] if one is not None]
            cells += [f"{np.mean(known):.0%}", f"{1 - len(known) / len(parts[part]):.0%}"]
        print(f"| {name} ({len(parts[2])}) | {' | '.join(cells)} |")


def wrongly_stopped(all_curves: Sequence[Curve]) -> None:
    print("\nRuns that a forecast stops, and how many would have reached their target\n")
    print("| chance below | stopped | of those would have reached | evaluations saved |")
    print("| --- | --- | --- | --- |")
    for chance in (0.02, 0.05, 0.1):
        stopped, wrong, saved = 0, 0, []
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
                if not reaches:
                    saved.append(1 - (end or len(curve.values)) / len(curve.values))
        print(
            f"| {chance:.0%} | {stopped} of {len(all_curves)} | {wrong / max(1, stopped):.1%} | "
            f"{np.mean(saved):.0%} of those of runs that do not reach it |"
        )


def by_family(all_curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = defaultdict(list)
    for curve in all_curves:
        found[f"{curve.family} {curve.metric}"].append(curve)
    return found


def median_rule(own: Sequence[Curve]) -> list[int | None]:
    """One run after the other, as in a sweep; each pruned one is known up to its end."""
    ends: list[int | None] = []
    for index, curve in enumerate(own):
        best = np.maximum.accumulate(curve.ups)
        end = None
        for n in range(WARMUP, len(best)):
            others = [
                np.maximum.accumulate(other.ups)[n - 1]
                for other, stop in zip(own[:index], ends, strict=True)
                if stop is None or stop >= n
            ]
            if len(others) >= STARTUP and best[n - 1] < statistics.median(others):
                end = n
                break
        ends.append(end)
    return ends


def halving(own: Sequence[Curve]) -> list[int | None]:
    ends: list[int | None] = [None] * len(own)
    for rung in (4, 8, 16):
        alive = [i for i, end in enumerate(ends) if end is None and len(own[i].values) > rung]
        alive.sort(key=lambda i: own[i].ups[:rung].max())
        for i in alive[: len(alive) * 2 // 3]:
            ends[i] = rung
    return ends


def savings(all_curves: Sequence[Curve]) -> None:
    print("\nEvaluations saved, and what the best loses, in shares of the curve's range\n")
    print("| rule | saved | mean regret | runs above 1 % | regret of a family's best |")
    print("| --- | --- | --- | --- | --- |")
    rules: dict[str, Callable[[Sequence[Curve]], list[int | None]]] = {}
    for patience in (3, 5, 10):
        rules[f"patience {patience}"] = lambda own, p=patience: [
            stops_at(one, improvement={"metric": one.metric, "patience": p}) for one in own
        ]
    for gain, chance in (("1%", 0.05), ("1%", 0.2), ("1%", 0.4), ("5%", 0.2)):
        rules[f"forecast: {gain} at {chance:.0%}"] = lambda own, g=gain, c=chance: [
            stops_at(
                one,
                forecast={
                    "metric": one.metric,
                    "gain": g,
                    "chance_below": c,
                    "for": 2,
                    "action": "stop",
                },
            )
            for one in own
        ]
    rules |= {"median of the others": median_rule, "successive halving": halving}
    for name, rule in rules.items():
        saved, regrets, families = [], [], []
        for own in by_family(all_curves).values():
            ends = [end or len(one.values) for end, one in zip(rule(own), own, strict=True)]
            kept = [one.ups[:end].max() for one, end in zip(own, ends, strict=True)]
            whole = [one.ups.max() for one in own]
            span = [float(np.ptp(one.ups)) or 1.0 for one in own]
            saved += [1 - end / len(one.values) for one, end in zip(own, ends, strict=True)]
            regrets += [(w - k) / s for w, k, s in zip(whole, kept, span, strict=True)]
            families.append((max(whole) - max(kept)) / (max(whole) - min(whole)))
        above = np.mean(np.array(regrets) > 0.01)
        print(
            f"| {name} | {np.mean(saved):.0%} | {np.mean(regrets):.1%} | {above:.0%} | "
            f"{np.mean(families):.1%} |"
        )


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
    every = curves()
    print(f"{len(every)} curves")
    parts = {"coverage": coverage, "targets": wrongly_stopped, "savings": savings}
    networks = [one for one in sys.argv[1:] if one.startswith("network=")]
    if networks:
        from prior_fitted import PriorFitted

        import harness.stopping.curves

        extrapolate = PriorFitted(Path(networks[0].partition("=")[2]))  # type: ignore[assignment]
        harness.stopping.curves.extrapolate = extrapolate
    asked = [one for one in sys.argv[1:] if one not in networks] or [*parts, "cost"]
    for part in asked:
        if part == "cost":
            cost()
        else:
            parts[part](every)

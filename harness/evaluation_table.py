"""The table of evaluations on the console: one aligned row each, of the metrics that matter."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from harness.stopping.judge import unknown_metric
from harness.stopping.judges import best_metric, metrics_of, refuse
from harness.stopping.settings import StopSettings
from harness.stopping.targets import Target, expand
from harness.stopping.verdict import Best, Metrics, Verdict, show
from harness.wording import clock, some

REPEAT_HEADER = 20  # rows
_GAP = "  "
_NARROWEST = 9  # of a value, e.g. 1.234e-05


@dataclass(frozen=True)
class Shown:
    """What the table has: metrics by `split/name`, those that matter most first; targets by metric;
    the metric that checkpoints are ranked by; patience by the metric that it is for.
    """

    metrics: Sequence[str] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    best: str | None = None
    patience: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stop: StopSettings, metrics: Metrics, wanted: Sequence[str]) -> Self:
        """wanted: `log.show`, which comes first. Raises ConfigError for what is no metric."""
        asked = [(name, expand(name, metrics)) for name in wanted]
        refuse(
            [
                problem
                for name, meant in asked
                for problem in unknown_metric("log.show", name, metrics, meant)
            ]
        )
        targets = {
            metric: target
            for name, target in stop.targets.items()
            for metric in expand(name, metrics)
        }
        ranked_by = best_metric(stop, metrics)
        names = [
            *(metric for _, meant in asked for metric in meant),
            *targets,
            *(one.metric for one in stop.improvement),
            *(ranked_by or ())[:1],
            *sorted(metrics_of(stop, metrics)),
            *(name for name in metrics if name.endswith("/loss")),
        ]
        return cls(
            list(dict.fromkeys(names)),
            targets,
            None if ranked_by is None else ranked_by[0],
            {one.metric: one.patience.count for one in stop.improvement},
        )


@dataclass(frozen=True)
class Row:
    """A line of the table; `new_best`: the evaluation is the best so far."""

    text: str
    is_header: bool = False
    new_best: bool = False


class EvaluationTable:
    """Rows with a header above the first and every 20th."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._num_rows = 0
        self._metrics: list[str] = []
        self._widths: list[int] = []
        self._told = False

    def rows(
        self, record: Mapping[str, Any], verdict: Verdict | None, best: Best | None, width: int
    ) -> Iterator[Row]:
        """The lines for an evaluation, of `width` characters at most. `best`: of the run so far;
        `verdict`: None where there is none.
        """
        if self._num_rows % REPEAT_HEADER == 0:
            yield from self._header(record, width)
        self._num_rows += 1
        texts = [
            f"{record['step']:,}",
            f"{record['epoch']:.2f}",
            clock(record["elapsed_s"]),
            *(self._value(metric, record.get(metric)) for metric in self._metrics),
        ]
        if self._shown.best is not None:
            texts.append("" if best is None else self._value(best.metric, best.value))
        spent = {one.metric: one for one in verdict.criteria} if verdict is not None else {}
        texts += [
            f"{show(spent[metric].spent)}/{spent[metric].patience:,}" if metric in spent else ""
            for metric in self._shown.patience
        ]
        new_best = verdict is not None and verdict.new_best
        yield Row(_line(texts, self._widths), new_best=new_best)

    def _header(self, record: Mapping[str, Any], width: int) -> Iterator[Row]:
        """Chooses the columns that fit."""
        shown = self._shown
        before, after = [["step"], ["epoch"], ["time"]], []
        fixed, ends = [max(7, len(f"{record['step']:,}")), 7, 7], []
        if shown.best is not None:
            after.append(["best", *_pieces(shown.best)])
            ends.append(max(_NARROWEST, *map(len, after[-1])))
        for metric, count in shown.patience.items():
            after.append(["stale", *(() if [*shown.patience] == [shown.best] else _pieces(metric))])
            ends.append(max(2 * len(f"{count:,}") + 1, *map(len, after[-1])))
        free = width + len(_GAP) - sum(one + len(_GAP) for one in [*fixed, *ends])
        heads: list[list[str]] = []
        widths: list[int] = []
        for metric in self._shown.metrics:
            head = [*_pieces(metric), *_goal(self._shown.targets.get(metric))]
            wide = max(_NARROWEST, *map(len, head))
            if free < wide + len(_GAP):
                break
            free -= wide + len(_GAP)
            heads.append(head)
            widths.append(wide)
        self._metrics = list(self._shown.metrics[: len(heads)])
        self._widths = [*fixed, *widths, *ends]
        columns = [*before, *heads, *after]
        deepest = max(map(len, columns))
        lines = [[""] * (deepest - len(one)) + one for one in columns]  # words end at the bottom
        if not self._told:
            self._told = True
            others = [name for name in record if "/" in name and name not in self._metrics]
            if others:
                note = f"in metrics.jsonl, but not in this table (log.show): {some(others, 6)}"
                yield from map(Row, textwrap.wrap(note, max(width, 20), subsequent_indent="  "))
        for depth in range(deepest):
            yield Row(_line([one[depth] for one in lines], self._widths), is_header=True)

    def _value(self, metric: str, value: Any) -> str:
        if not isinstance(value, float):
            return "-"
        target = self._shown.targets.get(metric)
        return show(value, None if target is None or math.isnan(value) else target.bound)


def _pieces(metric: str) -> list[str]:
    """A name over several lines: val/balanced_accuracy -> val/, balanced_, accuracy."""
    split, slash, name = metric.partition("/")
    if not slash:
        return [metric]
    pieces = [split + slash]
    for word in name.replace("_", "_ ").split():
        if len(pieces) > 1 and len(pieces[-1]) + len(word) <= _NARROWEST + 2:
            pieces[-1] += word
        else:
            pieces.append(word)
    return pieces


def _goal(target: Target | None) -> list[str]:
    if target is None:
        return []
    return [f"{'>=' if target.mode == 'max' else '<='} {show(target.bound, digits=15)}"]


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

"""What is stored of an evaluation and its verdict: a row of plain values."""

from collections.abc import Mapping
from typing import Any

from harness.stopping.pairs import Deviations
from harness.stopping.verdict import Evaluation, Verdict

Row = Mapping[str, Any]

_VERDICT = ("action", "reason", "detail", "improved", "new_best")


def row_of(evaluation: Evaluation, verdict: Verdict) -> Row:
    """The fields of the evaluation, and under `verdict` those of its verdict except criteria and
    warnings.
    """
    given = {name: getattr(verdict, name) for name in _VERDICT}
    row = {**vars(evaluation), "metrics": dict(evaluation.metrics), "verdict": given}
    del row["deviations"]
    if evaluation.deviations:
        row["deviations"] = {name: list(one) for name, one in evaluation.deviations.items()}
    return row


def evaluation_of(row: Row) -> Evaluation:
    """The evaluation of a row. Raises KeyError and TypeError for anything else."""
    if sorted(row["verdict"]) != sorted(_VERDICT):
        raise KeyError("verdict")
    given = {name: value for name, value in row.items() if name != "verdict"}
    deviations = {name: Deviations(*one) for name, one in row.get("deviations", {}).items()}
    return Evaluation(**{**given, "deviations": deviations})


def rows_by_column(state: Mapping[str, Any]) -> list[Row]:
    """The rows of a history as 0.1.0 stored it: the names of the metrics once, their values by
    column, None for one that was not measured. Raises KeyError, TypeError and ValueError.
    """
    extra = set(state.get("extra", ()))
    rows = []
    for (step, epoch, samples, hours, lr, values), given in zip(
        state["evaluations"], state["verdicts"], strict=True
    ):
        columns = zip(state["metrics"], values, strict=True)
        metrics = {name: value for name, value in columns if value is not None}
        evaluation = Evaluation(step, epoch, samples, hours, metrics, lr, step in extra)
        action, reason, improved, new_best, detail = given
        rows.append(row_of(evaluation, Verdict(action, reason, detail, improved, new_best)))
    return rows

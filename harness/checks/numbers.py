"""Invalid and uninformative numbers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from harness import components
from harness.checks.report import Findings
from harness.checks.survey import Survey
from harness.components import TARGET, target_of
from harness.wording import some

_IMPUTE = "Impute"  # treatments whose names begin like this fill in missing values


def check_numbers(one: Survey, treatments: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """NaN, infinity, numbers outside data.checks.ranges and clipping in any column; in the training
    split also constant channels.
    """
    imputed = _imputed_keys(treatments)
    for name, of in one.channels.items():
        what = f"{one.where}: {{}} of {of.num_samples:,} samples have {{}} in {name!r}."
        if of.is_nan and name in imputed:
            findings.notes.append(
                f"{what.format(f'{len(of.is_nan):,}', 'missing numbers (NaN)')} {imputed[name]} "
                "fills them in"
            )
        for rows, bad in (
            (of.is_nan if name not in imputed else [], "NaN"),
            (of.is_infinite, "infinite numbers"),
        ):
            message = (
                f"{what.format(f'{len(rows):,}', bad)} Fix the data, remove the samples, or "
                "fill the values in with harness.treatments.Impute."
            )
            findings.add(
                "not_finite", [one.split], message, len(rows), [one.name(row) for row in rows]
            )
        if of.limits is not None:
            message = what.format(
                f"{len(of.outside):,}", f"numbers outside {of.limits[0]:g} to {of.limits[1]:g}"
            )
            cause = "a defective device" if of.is_signal else "a mistyped entry"
            advice = f"A wrong unit, or {cause}? Fix the data, or data.checks.ranges."
            findings.add(
                "out_of_range",
                [one.split],
                f"{message} {advice}",
                len(of.outside),
                [one.name(row) for row in of.outside],
            )
        clipped = of.find_clipped(findings.settings.max_clipped)
        kind = "channel" if of.is_signal else "column"
        ends = [f"{kind} {channel}: {share:.1%} are {end:g}" for channel, end, share in clipped]
        cause = "Were they capped, or missing ones filled in with it?"
        if of.is_signal:
            cause = "Was the device overdriven, or are they cut off?"
        message = f"{one.where}: numbers in {name!r} pile up at the end of their range. {cause}"
        findings.add("clipped", [one.split], message, len(clipped), ends)
        if one.split == "train":
            constant = of.constant()
            message = (
                f"{one.where}: {len(constant):,} of {len(of.low):,} {kind}s of {name!r} are "
                f"constant: {some(list(map(str, constant)))}."
            )
            findings.add(
                "constant",
                [one.split],
                f"{message} They carry no information: "
                f"{'a defective sensor' if of.is_signal else 'one value everywhere'}, or an empty "
                "column?",
                len(constant),
            )


def _imputed_keys(treatments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The keys in which treatments fill in missing values, and the names of those treatments."""
    found = {}
    for spec in treatments:
        name = target_of(spec).rpartition(".")[2]
        if name.startswith(_IMPUTE):
            parameter = inspect.signature(components.find(spec[TARGET])).parameters.get("key")
            found[str(spec.get("key", None if parameter is None else parameter.default))] = name
    return found

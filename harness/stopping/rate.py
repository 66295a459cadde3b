"""A gain that is asked for: absolute, a share of the reference, or a number of standard errors."""

import re
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import Field, PlainValidator

from harness.settings import Section
from harness.stopping.verdict import SIGNS, MetricInfo, Mode, show

_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")
_ERRORS = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*se\s*")


def error_of(metric: str) -> str:
    """The name under which evaluations hold the standard error of a metric."""
    return f"{metric}_se"


def unknown_error(setting: str, metric: str, step: int) -> str:
    """The warning of an evaluation without the standard error that a setting asks for."""
    return (
        f"{metric}: its standard error is not known at step {step:,}, which was evaluated without "
        "`se`, or in fewer than 8 micro-batches, and taken as 0 there. If it stays so, lower "
        f"evaluation.micro_size, or give {setting}.at_least as a number."
    )


def _rate(value: object) -> float | str:
    """A number (an absolute gain), a text like "5%" (a share of the reference), or one like "2 se"
    (standard errors of the gain).
    """
    if (
        isinstance(value, str)
        and (found := _PERCENT.fullmatch(value) or _ERRORS.fullmatch(value))
        and float(found[1]) < float("inf")
    ):
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise ValueError(
            f"{value!r} is neither a gain like 0.05 nor a share like 5% nor a number of standard "
            "errors like 2 se; none can be negative"
        )
    return float(value)


def share_of(rate: object) -> float:
    """The share that a rate like "5%" asks for; 0 for another."""
    share = _PERCENT.fullmatch(rate) if isinstance(rate, str) else None
    return float(share[1]) / 100 if share else 0.0


Rate = Annotated[float | str, PlainValidator(_rate, json_schema_input_type=float | str)]


class Gain(NamedTuple):
    """The gain of a value over its reference. `needed`: the required gain; `enough`: whether it was
    reached; `meaningful`: whether a relative gain is defined between the two values.
    """

    amount: float
    needed: float
    enough: bool
    meaningful: bool


class AskedGain(Section):
    """The gain that counts."""

    at_least: Rate = Field(
        0.0,
        description=(
            "The gain asked for: 0.05 in the metric's own unit, 5% of the reference, or 2 se, two "
            "standard errors of the gain; 0: any."
        ),
    )

    @property
    def errors(self) -> float:
        """How many standard errors of the gain are asked for; 0 if something else is."""
        errors = _ERRORS.fullmatch(self.at_least) if isinstance(self.at_least, str) else None
        return float(errors[1]) if errors else 0.0

    @property
    def absolute(self) -> float:
        """The gain asked for as it is; 0 if a share is asked for."""
        return self.at_least if isinstance(self.at_least, float) else 0.0

    @property
    def share(self) -> float:
        """The gain asked for as a share of the reference; 0 if an absolute gain is asked for."""
        return share_of(self.at_least)

    def gain(self, value: float, reference: float, mode: Mode, error: float = 0.0) -> Gain:
        """What a value gained on a reference; `error`: the standard error of that.

        (value - reference) * sign is enough when it is positive and at least max(absolute,
        share * |reference|, errors * error); nothing is divided. A share of zero, or of a value
        of the other sign, means nothing: any strict gain is enough then.
        """
        share = self.share
        amount = (value - reference) * SIGNS[mode]
        meaningful = not share or reference > 0 <= value or reference < 0 >= value
        asked = max(self.absolute, share * abs(reference), self.errors * error)
        needed = asked if meaningful else 0.0
        return Gain(amount, needed, amount >= needed and amount > 0, meaningful)

    def gain_problems(self, where: str, metric: str, info: MetricInfo) -> Iterator[str]:
        """What contradicts the declaration of a metric."""
        if self.errors and not info.has_error:
            yield (
                f"{where}.at_least: the standard error of {metric} is not known. Give a gain "
                "like 0.05 or a share like 5%."
            )
        largest = _largest_gain(info)
        if info.upper is not None and largest is not None and self.absolute > largest:
            gain = show(self.absolute)
            lower = "" if info.lower is None else f"{show(info.lower)} and "
            yield (
                f"{where}.at_least: {metric} is bounded by {lower}{show(info.upper)} and can "
                f"hardly gain {gain}. Write {gain}% for a share of the reference or "
                f"{show(self.absolute / 100)} for an absolute gain."
            )


def _largest_gain(info: MetricInfo) -> float | None:
    """No more than its bound for a metric bounded by 1 (a correlation too), else the width of its
    range.
    """
    if info.upper is None or 0 < info.upper <= 1:
        return info.upper
    return None if info.lower is None else info.upper - info.lower

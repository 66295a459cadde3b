"""The results of the checks, for people and for programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.data.settings import ChecksConfig
from harness.errors import DataError

Level = Literal["error", "warn"]
SHOWN = 5  # examples of a finding


@dataclass(frozen=True)
class Finding:
    """One problem.

    `check`: its setting in data.checks; `count`: the number of samples, groups, channels or
    classes; `examples`: some of them; `pairs`: (split, row, split, row) of samples to be seen side
    by side.
    """

    check: str
    level: Level
    splits: Sequence[str]
    message: str
    count: int
    examples: Sequence[str] = ()
    pairs: Sequence[tuple[str, int, str, int]] = ()

    def __str__(self) -> str:
        shown = f" E.g. {'; '.join(self.examples)}." if self.examples else ""
        return f"{self.message}{shown}"


@dataclass(frozen=True)
class SplitSummary:
    """How much of a split was checked, the number of samples of each class in it, and the rows of
    some of them, by class.
    """

    split: str
    num_samples: int
    looked_at: int
    classes: Mapping[str, int]
    some: Mapping[str, Sequence[int]]

    def __str__(self) -> str:
        share = (
            "all"
            if self.looked_at == self.num_samples
            else f"{self.looked_at:,} ({self.looked_at / self.num_samples:.1%})"
        )
        return f"data.{self.split}: {self.num_samples:,} samples, {share} checked"


@dataclass(frozen=True)
class Report:
    """The findings, worst first, what was checked, and `notes`: facts worth knowing that are not
    problems.
    """

    findings: Sequence[Finding]
    summaries: Sequence[SplitSummary]
    notes: Sequence[str]

    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def enforce(self, say: Callable[[str], None]) -> None:
        """Print each warning; raise one DataError with all errors, if there are any."""
        for finding in self.findings:
            if finding.level == "warn":
                say(f"warning: {finding}")
        errors = self.errors()
        if errors:
            lines = "\n  ".join(f"{finding.check}: {finding}" for finding in errors)
            raise DataError(
                f"the data does not pass data.checks:\n  {lines}\nFor more run `fermarsi data "
                "check CONFIG --html FILE`."
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [asdict(one) for one in self.findings],
            "looked": [asdict(one) for one in self.summaries],
            "notes": list(self.notes),
        }


class Findings:
    """Collects findings, each at the level that data.checks sets for its check."""

    def __init__(self, settings: ChecksConfig) -> None:
        self.settings = settings
        self.found: list[Finding] = []
        self.notes: list[str] = []

    def wants(self, check: str) -> bool:
        """Whether a check is on."""
        return bool(getattr(self.settings, check) != "off")

    def add(
        self,
        check: str,
        splits: Sequence[str],
        message: str,
        count: int,
        examples: Sequence[str] = (),
        *,
        at_most: Level = "error",
        pairs: Sequence[tuple[str, int, str, int]] = (),
    ) -> None:
        """Add a finding if `count` is not 0 and the check is on."""
        level = getattr(self.settings, check)
        if count and level != "off":
            self.found.append(
                Finding(
                    check,
                    "warn" if at_most == "warn" else level,
                    tuple(splits),
                    message,
                    count,
                    tuple(examples[:SHOWN]),
                    tuple(pairs[:SHOWN]),
                )
            )

    def sorted(self) -> list[Finding]:
        """Errors first."""
        return sorted(self.found, key=lambda finding: finding.level != "error")

"""What a user sees of a run, on rank 0: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.status import Status
from rich.text import Text

from harness.rundir.outcome import Outcome
from harness.stopping.budget import Budget, time_left_s
from harness.wording import printable

# Between two lines about training steps where nothing can be redrawn, e.g. in a log file
PLAIN_EVERY_S = 10.0


class Console:
    """Prints if `enabled`; does nothing otherwise."""

    def __init__(self, enabled: bool) -> None:
        self._rich = RichConsole(highlight=False, soft_wrap=True) if enabled else None
        self._last_step: int | None = None
        self._budget: Budget | None = None
        self._live: Status | None = None
        # Time, step, samples at the first record: the rate counts from there
        self._begun: tuple[float, int, int] | None = None
        self._plain_at = float("-inf")
        self._progress_at = time.monotonic()

    def expect(self, last_step: int | None, budget: Budget | None) -> None:
        """The budget, and the step at which it is spent unless it is in hours: the end of the
        displayed time left.
        """
        self._last_step, self._budget = last_step, budget

    def say(self, text: str) -> None:
        """One line as it is."""
        if self._rich is not None:
            self._rich.print(printable(text), markup=False)

    def training(self, record: Mapping[str, Any]) -> None:
        """The state at a log point, with rate and time left."""
        if self._rich is None:
            return
        now = time.monotonic()
        line = (
            f"{_position(record)}  {_numbers(record, ('train/loss_step', 'lr', 'grad_norm'))}  "
            f"{self._rate(record, now)}"
        )
        if self._rich.is_terminal:
            self._show(line)
        elif now - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = now
            self.say(line)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """The metrics of an evaluation."""
        if self._rich is not None:
            metrics = [name for name in record if "/" in name]
            self.say(
                f"{_position(record)}  {_numbers(record, metrics)}  {_seconds(record['elapsed_s'])}"
            )

    def progress(self, what: str, done: int, of: int) -> None:
        """The progress of a preparation, e.g. of a store."""
        if self._rich is None:
            return
        now = time.monotonic()
        if self._rich.is_terminal:
            self._show(f"{what}: {done:,} of {of:,} samples")
        elif now - self._progress_at >= PLAIN_EVERY_S:  # what is done sooner is not worth a line
            self._progress_at = now
            self.say(f"{what}: {done:,} of {of:,} samples")
        if done == of:
            self.close()

    def _show(self, line: str) -> None:
        if self._live is None and self._rich is not None:
            self._live = self._rich.status("")
            self._live.start()
        if self._live is not None:
            self._live.update(Text(printable(line)))

    def outcome(self, outcome: Outcome) -> None:
        """The end: the best model, where it is, and where the time went."""
        if not outcome.is_finished:
            self.say(f"interrupted: {outcome.detail}")
        best, time = outcome.best, outcome.time
        if best is not None:
            self.say(
                f"best: {best['metric']} {best['value']:.6g} at step {best['step']:,}: "
                f"{best['checkpoint'] or 'its checkpoint was deleted'}"
            )
        spent_s = sum(
            seconds
            for name, seconds in time.items()
            if name.endswith("_s") and name not in ("idle_s", "saved_s")
        )
        saved = (
            f"; about {_seconds(time['saved_s'])} of training saved before the budget's end"
            if time["saved_s"] and outcome.is_finished
            else ""
        )
        self.say(
            f"time: {_seconds(spent_s)}, of which {_seconds(time['compute_s'])} computing steps "
            f"that count{saved}"
        )

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rate(self, record: Mapping[str, Any], now: float) -> str:
        if self._begun is None:
            self._begun = (now, record["step"], record["samples"])
            return ""
        began, step, samples = self._begun
        passed = now - began
        if passed <= 0:
            return ""
        rate = f"{(record['samples'] - samples) / passed:,.0f} samples/s"
        if record["step"] == step:
            return rate
        per_step_s = passed / (record["step"] - step)
        elapsed_s = record["elapsed_s"]
        left_s = time_left_s(self._budget, self._last_step, record["step"], per_step_s, elapsed_s)
        return rate if left_s is None else f"{rate}, at most {_seconds(left_s)} left"


def _position(record: Mapping[str, Any]) -> str:
    return f"step {record['step']:>6,}  epoch {record['epoch']:.2f}"


def _numbers(record: Mapping[str, Any], names: Any) -> str:
    return "  ".join(
        f"{name} {record[name]:.4g}" for name in names if isinstance(record.get(name), float)
    )


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

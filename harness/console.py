"""What a user sees of a run, on rank 0: on a terminal or in a notebook one live line below a table
of evaluations, elsewhere plain lines.

The live line is one line, so that what other processes write to the same terminal is never erased,
and the cursor is never hidden, so that a process that is killed leaves it as it was. It is redrawn
by time, by the thread that trains: four times a second at most, and for 1 % of the time.
"""

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from harness.evaluation_table import EvaluationTable, Shown
from harness.interrupt import GROWS
from harness.rundir.outcome import Outcome
from harness.stopping.budget import Budget, time_left_s
from harness.stopping.verdict import Best, Verdict
from harness.wording import clock, printable

# Between two lines about training steps where nothing can be redrawn, e.g. in a log file
PLAIN_EVERY_S = 10.0
PLAIN_WIDTH = 119
DRAW_EVERY_S = 0.25
DRAW_SHARE = 0.01
_SHORTEST_BAR, _LONGEST_BAR = 6, 30  # characters
WARNING = "warning: "


class _Screen(RichConsole):
    """Leaves the cursor alone, and the process as well when nobody reads its output any more."""

    def show_cursor(self, show: bool = True) -> bool:
        return False

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Console:
    """Prints if `enabled`; does nothing otherwise."""

    def __init__(self, enabled: bool, *, quiet: bool = False) -> None:
        """quiet: only warnings, and how the launch ended."""
        self._rich: RichConsole | None = None
        self.is_live = False
        if enabled:
            self.is_live = not quiet and _can_redraw()
            self._rich = _Screen(
                highlight=False, soft_wrap=True, force_terminal=None if self.is_live else False
            )
        self.again = ""  # the command that launches again
        self._quiet = quiet
        self._last_step: int | None = None
        self._budget: Budget | None = None
        self._table = EvaluationTable(Shown())
        self._live: Live | None = None
        self._draw_at = self._plain_at = float("-inf")
        self._progress = ("", 0.0)  # of what, and when it was last told
        self._trains = False
        self._loss: float | None = None
        self._evaluated: Mapping[str, Any] | None = None  # a row whose verdict is still to come
        # Time, step, samples at the first look: the rate counts from there
        self._begun: tuple[float, int, int] | None = None

    def of_rank(self, rank: int) -> "Console":
        """As this one would be on that rank."""
        other = Console(rank == 0, quiet=self._quiet)
        other.again = self.again
        return other

    def expect(self, last_step: int | None, budget: Budget | None, shown: Shown) -> None:
        """Training begins. last_step: at which the budget is spent, unless it is in hours."""
        self._last_step, self._budget = last_step, budget
        self._table = EvaluationTable(shown)
        self._trains = True

    def say(self, text: str) -> None:
        """Lines as they are; on a terminal broken between words."""
        if not self._quiet or text.startswith(WARNING):
            self.tell(text)

    def phase(self, what: str) -> None:
        """What begins now and may take long: a line of its own until training begins."""
        if self.is_live:
            self._draw(Text(printable(f"{what} ...")))
        elif not self._trains:
            self.say(f"{what} ...")

    def tick(self, position: Callable[[], Mapping[str, Any]]) -> None:
        """Called at each step; looks at the position, as a record has it, if it is time to draw."""
        if self._live is not None and time.monotonic() >= self._draw_at:
            self._draw(self._training_line(position()))

    def training(self, record: Mapping[str, Any]) -> None:
        """The state at a log point, with rate and time left."""
        if self._rich is None:
            return
        self._loss = record.get("train/loss_step")
        if self.is_live:
            return
        now = time.monotonic()
        rate = "  ".join(self._rate(record, now)[:2])
        if now - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = now
            names = {"train/loss_step": "loss", "lr": "lr", "grad_norm": "grad_norm"}
            numbers = [f"{names[key]} {record[key]:.4g}" for key in names if key in record]
            where = f"step {record['step']:>6,}  epoch {record['epoch']:.2f}"
            self.say("  ".join([where, *numbers, rate]).rstrip())

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """The metrics of an evaluation; shown with its verdict."""
        if self._rich is not None:
            self._evaluated = record

    def verdict(self, verdict: Verdict, best: Best | None) -> None:
        """What an evaluation, or the losses, led to. best: of the run so far."""
        self._show_evaluation(verdict, best)
        for warning in verdict.warnings:
            self.say(f"{WARNING}{warning}")
        if verdict.stops:
            self.close()
            self.tell(f"stop: {verdict.reason}: {verdict.detail}")

    def _show_evaluation(self, verdict: Verdict | None, best: Best | None) -> None:
        record, self._evaluated = self._evaluated, None
        if self._rich is None or record is None or self._quiet:
            return
        width = self._rich.width - 1 if self.is_live else PLAIN_WIDTH
        for row in self._table.rows(record, verdict, best, width):
            style = "bold" if row.is_header or row.new_best else ""
            self._print(Text(printable(row.text.rstrip()), style=style))

    def progress(self, what: str, done: int, of: int, unit: str = "samples") -> None:
        """The progress of something long, e.g. of building a store."""
        if self._rich is None:
            return
        now = time.monotonic()
        told, at = self._progress
        # What is done sooner is not worth a line
        due = now >= self._draw_at if self.is_live else told != what or now - at >= PLAIN_EVERY_S
        if not due:
            return
        words = f"{what}: {done:,} of {of:,} {unit}"
        if self.is_live:
            self._draw(self._with_bar(done / max(of, 1), [words]))
        else:
            self._progress = (what, now)
            if told == what:
                self.say(words)

    def outcome(self, outcome: Outcome, directory: Path) -> None:
        """The end: the best model, where it is, where the time went, and what to do next."""
        self.close()
        if not outcome.is_finished:
            self.tell(f"interrupted: {outcome.detail}")
            if GROWS in outcome.detail:  # this process goes on, with others
                return
        best, time = outcome.best, outcome.time
        if best is not None:
            self.tell(
                f"best: {best['metric']} {best['value']:.6g} at step {best['step']:,}: "
                f"{best['checkpoint'] or 'its checkpoint was deleted'}"
            )
        spent_s = sum(
            seconds
            for name, seconds in time.items()
            if name.endswith("_s") and name not in ("idle_s", "saved_s")
        )
        saved = (
            f"; about {clock(time['saved_s'])} of training saved before the budget's end"
            if time["saved_s"] and outcome.is_finished
            else ""
        )
        self.tell(
            f"time: {clock(spent_s)}, of which {clock(time['compute_s'])} computing steps "
            f"that count{saved}"
        )
        self.tell(f"run: {directory}", breaks=False)
        if outcome.is_finished:
            self.tell(f"next: fermarsi report {quote(str(directory))}", breaks=False)
        else:
            self.tell(f"next: {self.again or 'launch again'}", breaks=False)

    def close(self) -> None:
        """Remove the live line."""
        self._show_evaluation(None, None)
        live, self._live = self._live, None
        if live is not None:
            with self._while_read():
                live.stop()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def tell(self, text: str, *, breaks: bool = True) -> None:
        """Also if quiet. breaks: between words; commands are to be copied."""
        if self._rich is None:
            return
        text = printable(text)
        if self.is_live and breaks:
            text = "\n".join(_wrapped(line, self._rich.width) for line in text.split("\n"))
        cut = len(WARNING) if text.startswith(WARNING) else 0
        self._print(Text.assemble((text[:cut], "bold red"), text[cut:]))

    def _print(self, text: Text) -> None:
        with self._while_read():
            if self._rich is not None:
                self._rich.print(text)

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        """A terminal that was closed, or a full disk under a log, ends no training: what cannot be
        written is dropped.
        """
        try:
            yield
        except OSError:
            if self._rich is not None:
                before, self._rich.quiet = self._rich.quiet, True
                self._rich.print()
                self._rich.quiet = before

    def _draw(self, line: Text) -> None:
        assert self._rich is not None
        begun = time.monotonic()
        line.truncate(self._rich.width - 1)
        with self._while_read():
            if self._live is None:
                self._live = Live(line, console=self._rich, auto_refresh=False, transient=True)
                self._live.start(refresh=True)
            else:
                self._live.update(line, refresh=True)
        now = time.monotonic()
        self._draw_at = now + max(DRAW_EVERY_S, (now - begun) / DRAW_SHARE)

    def _training_line(self, position: Mapping[str, Any]) -> Text:
        rate, left, done = self._rate(position, time.monotonic())
        step, epoch = f"step {position['step']:,}", f"epoch {position['epoch']:.1f}"
        if self._last_step and position["step"]:
            last_epoch = position["epoch"] * self._last_step / position["step"]
            digits = 0 if last_epoch >= 10 else 1
            step, epoch = f"{step}/{self._last_step:,}", f"{epoch}/{last_epoch:,.{digits}f}"
        loss = "" if self._loss is None else f"loss {self._loss:.3g}"
        return self._with_bar(done, [step, epoch, left, rate, loss])

    def _with_bar(self, done: float | None, words: list[str]) -> Text:
        """A bar of what is done, as long as the words leave room."""
        assert self._rich is not None
        text, room = "  ".join(filter(None, words)), self._rich.width - 3
        if room - len(text) < _SHORTEST_BAR:
            text = text.replace(" samples/s", "/s")
        if done is None or room - len(text) < _SHORTEST_BAR:
            return Text(text)
        length = min(_LONGEST_BAR, room - len(text))
        full, empty = "\u2501\u2500" if "utf" in self._rich.encoding else "=-"
        filled = round(min(done, 1.0) * length)
        return Text.assemble((full * filled, "green"), empty * (length - filled), "  ", text)

    def _rate(self, position: Mapping[str, Any], now: float) -> tuple[str, str, float | None]:
        """Samples a second, the time left at most, and the share of the budget that is spent."""
        step, elapsed_s = position["step"], position["elapsed_s"]
        done = step / self._last_step if self._last_step else None
        if self._budget is not None and self._budget.hours is not None:
            done = max(done or 0.0, elapsed_s / (self._budget.hours * 3600))
        if self._begun is None:
            self._begun = (now, step, position["samples"])
        began, first_step, samples = self._begun
        passed = now - began
        if passed <= 0 or step == first_step:
            return "", "", done
        per_second = (position["samples"] - samples) / passed
        per_step_s = passed / (step - first_step)
        left_s = time_left_s(self._budget, self._last_step, step, per_step_s, elapsed_s)
        left = "" if left_s is None else f"{clock(left_s)} left"
        return f"{per_second:,.{0 if per_second >= 10 else 2}f} samples/s", left, done


def is_first_process() -> bool:
    """Whether this process will be rank 0, by its launcher; where that is not known yet, no."""
    return os.environ.get("RANK", "0") == "0" and "FERMARSI_MEMBER" not in os.environ


def _can_redraw() -> bool:
    """Whether standard output is a terminal, or a notebook, whose last line can be written anew."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if RichConsole().is_jupyter:
        return find_spec("ipywidgets") is not None  # which rich draws with
    return sys.stdout.isatty() and (os.environ.get("TERM") or "dumb") not in ("dumb", "unknown")


def _wrapped(line: str, width: int) -> str:
    """Broken between words; what is longer than a line, e.g. a path, stays whole."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        max(width - 1, 20),
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )

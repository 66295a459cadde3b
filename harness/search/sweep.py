"""A sweep: trials are begun, followed, paused, pruned and gone on with until all are told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RankError
from harness.interrupt import Interruption
from harness.rundir.outcome import read_outcome
from harness.search.follow import Prospect, Tail
from harness.search.process import (
    POLL_S,
    Launched,
    Place,
    await_leaving,
    is_cut_off,
    newest_step,
    no_further,
)
from harness.search.space import override
from harness.search.study import Study
from harness.stopping.budget import Budget
from harness.tracking.records import METRICS

if TYPE_CHECKING:
    import optuna

MOST_FAILURES = 3  # in a row: what fails so often fails always


@dataclass(frozen=True)
class Plan:
    """What is run where: `places`: one a trial at a time."""

    config: Path
    overrides: Sequence[str]
    directory: Path
    name: str
    trials: int
    places: Sequence[Place]
    budget: Budget | None


@dataclass
class Course:
    """A trial that runs. `decision`: pruned or paused, "" as long as it goes on."""

    trial: optuna.Trial
    launched: Launched
    tail: Tail
    place: Place
    reported: Mapping[int, float]
    prospect: Prospect | None
    begin: int  # the step
    evaluations: int = 0
    last: float = math.nan
    decision: str = ""


@dataclass
class Sweep:
    """The trials of a study on the places of a plan. `say`: how progress is told."""

    plan: Plan
    study: Study
    say: Callable[[str], None]
    _courses: list[Course] = field(default_factory=list)
    _failures: int = 0

    def run(self, interruption: Interruption) -> bool:
        """Whether all trials are told; False if it was interrupted: then all that ran have saved.

        Raises RankError if several trials fail in a row.
        """
        try:
            while interruption.cause is None:
                for course in list(self._courses):
                    self._follow(course)
                if self._failures >= MOST_FAILURES:
                    raise RankError(
                        f"{self.plan.directory}: {self._failures} trials failed in a row, for the "
                        f"reasons above and in {self.plan.directory / 'logs'}. Mend them; the same "
                        "command goes on with further trials."
                    )
                while self._begin_next(interruption):
                    pass
                if not self._courses:
                    self._prune_paused()
                    return True
                time.sleep(POLL_S)
            return False
        finally:
            for course in self._courses:
                course.launched.ask_to_leave()
            for course in self._courses:
                course.launched.wait()

    def directory_of(self, trial: int) -> Path:
        """A trial's run directory."""
        return self.plan.directory / f"trial-{trial:04}"

    def _log_of(self, trial: int) -> Path:
        return self.plan.directory / "logs" / f"trial-{trial:04}.txt"

    # -- beginning

    def _begin_next(self, interruption: Interruption) -> bool:
        """Begin what comes next, if there is a place for it and something to begin."""
        used = [course.place for course in self._courses]
        place = next((one for one in self.plan.places if one not in used), None)
        trial = None if place is None else self._next()
        if place is None or trial is None:
            return False
        values = self.study.values(trial)
        directory = self.directory_of(trial.number)
        await_leaving(directory, interruption.check)
        where = [
            override("run.dir", str(directory)),
            override("run.name", f"{self.plan.name}-{trial.number:04}"),
        ]
        given = [f"{key}={text}" for key, text in values.items()]
        begin, log = newest_step(directory), self._log_of(trial.number)
        launched = Launched(self.plan.config, [*self.plan.overrides, *where, *given], log, place)
        prospect = None
        design = self.study.design
        if design.prune == "forecast" and self.plan.budget is not None:
            prospect = Prospect(design.metric, design.info, self.plan.budget)
        tail, reported = Tail(directory / METRICS), dict(self.study.reported(trial))
        self._courses.append(Course(trial, launched, tail, place, reported, prospect, begin))
        until = self.study.until(trial)
        how = "goes on" if reported else "begins"
        end = f", up to evaluation {until}" if until else ""
        self.say(f"trial {trial.number} {how}{end}: {', '.join(given)}")
        return True

    def _next(self) -> optuna.Trial | None:
        """What was cut off, what may go on from its pause, or what is new."""
        running = {course.trial.number for course in self._courses}
        left = [one for one in self.study.unfinished() if one.number not in running]
        paused = [one for one in left if self._is_paused(one)]
        for trial in left:
            if trial not in paused:
                return trial
        if (promoted := self.study.promoted(paused, last=False)) is not None:
            return promoted
        if self.study.num_begun() < self.plan.trials:
            return self.study.ask()
        return None if self._courses else self.study.promoted(paused, last=True)

    def _is_paused(self, trial: optuna.Trial) -> bool:
        return self.study.until(trial) in self.study.reported(trial)

    # -- following

    def _follow(self, course: Course) -> None:
        # Before the records are read: then none comes after
        ended = course.launched.exit_code() is not None
        for record in course.tail.read():
            if not course.decision:
                course.decision = self._decide(course, record)
        if course.decision and not course.launched.asked:
            course.launched.ask_to_leave()
        if ended:
            course.launched.wait()
            self._courses.remove(course)
            self._end(course)

    def _decide(self, course: Course, record: Mapping[str, Any]) -> str:
        """What an evaluation means for its trial; the same if it is seen again after a kill."""
        course.evaluations += 1
        count, design, trial = course.evaluations, self.study.design, course.trial
        value = record.get(design.metric)
        course.last = math.nan if value is None else float(value)
        hopeless = course.prospect is not None and course.prospect.take(
            dict(record), self.study.best_value()
        )
        if count not in course.reported:
            trial.report(course.last, count)
        elif count < max(course.reported):
            return ""
        if design.prune == "asha":
            return "paused" if self.study.until(trial) == count else ""
        return "pruned" if hopeless or self.study.should_prune(trial) else ""

    def _end(self, course: Course) -> None:
        """Tell the study what became of a trial whose process has ended."""
        number, code = course.trial.number, course.launched.exit_code()
        outcome = read_outcome(self.directory_of(number))
        if course.decision == "paused":
            self.say(f"trial {number} pauses at {self._value(course.last)}")
        elif course.decision == "pruned":
            self.study.tell(course.trial, "pruned")
            self.say(f"trial {number} pruned at {self._value(course.last)}")
        elif outcome is not None and outcome.is_finished and code in (0, 3):
            self._failures = 0
            if outcome.best is None:
                self.study.tell(course.trial, "fail")
                self.say(f"trial {number} without a best value: {outcome.detail}")
                return
            value = outcome.best["value"]
            self.study.tell(course.trial, "complete", value)
            self.say(f"trial {number} ended ({outcome.reason}): {self._value(value)}")
        elif not course.launched.asked:
            step, why = newest_step(self.directory_of(number)), ""
            if is_cut_off(code) and step > course.begin:
                self.say(f"trial {number} was cut off at step {step:,}; it goes on")
                return
            if is_cut_off(code):
                why = no_further(code, step, self._log_of(number))
            self._failures += 1
            self.study.tell(course.trial, "fail")
            why = why or course.launched.error() or f"exit code {code}"
            self.say(f"trial {number} failed: {why}")

    def _prune_paused(self) -> None:
        """All that may go on have ended: the others stay where they are."""
        for trial in self.study.unfinished():
            self.study.tell(trial, "pruned")

    def _value(self, value: float) -> str:
        return f"{self.study.design.metric} {value:.6g}"

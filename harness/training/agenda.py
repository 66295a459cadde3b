"""What happens when: pure functions of the step and of what the ranks agreed on."""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from harness.data.sampling import Sampling
from harness.stopping.budget import Budget, Every


class Request(IntEnum):
    """What a rank asks of all ranks between two steps; the highest request wins."""

    NONE = 0
    COPY = 1
    SAVE = 2
    TIME_UP = 3
    STOP_REQUESTED = 4
    INTERRUPTED = 5


@dataclass(frozen=True)
class Due:
    """What is to be done after a step.

    `read`: the host waits for the losses so far, before anything that relies on them. `compare`:
    whether all ranks hold the same state; each save does so anyway. `copy`: into memory, where
    nothing is saved.
    """

    read: bool
    log: bool
    evaluate: bool
    save: bool
    compare: bool
    copy: bool = False


_NOTHING = Due(read=False, log=False, evaluate=False, save=False, compare=False)


@dataclass(frozen=True)
class Agenda:
    """The calendar of a run.

    `save_every`: None to save at each evaluation; `saves_on_request`: to save at neither, because
    rank 0 requests saves by the clock. `copy_every`: into memory, None: never, or on request.
    """

    sampling: Sampling
    log_every: Every
    evaluate_every: Every
    save_every: Every | None
    budget: Budget | None
    trace: bool = False
    compare_every: Every | None = None
    saves_on_request: bool = False
    copy_every: Every | None = None

    def due(self, step: int, request: Request, *, owed: bool = False) -> Due:
        """What follows step `step`.

        The budget's last step is evaluated and saved wherever it falls.

        `owed`: the previous launch left during this step's evaluation, after everything
        that comes before it.
        """
        last = self._last
        if request == Request.NONE and not owed and not self.trace:
            since, until = self._quiet
            if not since <= step < until:
                since, until = self._quiet[:] = [step, self.next_due(step)]
            if step < until:
                return _NOTHING
        ends = request in (Request.TIME_UP, Request.STOP_REQUESTED) or (
            last is not None and step >= last
        )
        evaluate = ends or owed or self.falls(self.evaluate_every, step)
        save = ends or request in (Request.SAVE, Request.INTERRUPTED)
        if not self.saves_on_request:
            save = save or (
                evaluate if self.save_every is None else self.falls(self.save_every, step)
            )
        log = self.falls(self.log_every, step) and not owed
        copy = request == Request.COPY or (
            self.copy_every is not None and self.falls(self.copy_every, step)
        )
        copy = copy and not save and not owed
        return Due(
            read=(log or evaluate or save or copy or self.trace) and not owed,
            log=log,
            evaluate=evaluate,
            save=save,
            compare=self.compare_every is not None and self.falls(self.compare_every, step),
            copy=copy,
        )

    def falls(self, every: Every, step: int) -> bool:
        """Whether a stretch of `every` ends with this step: an epoch ends on the first step that
        completes it.
        """
        if every.steps is not None:
            return step % every.steps == 0
        assert every.epochs is not None
        return (
            self.sampling.epochs_done(step) // every.epochs
            > self.sampling.epochs_done(step - 1) // every.epochs
        )

    def next_due(self, step: int) -> int:
        """The first step from `step` on after which something is due by the calendar."""
        ends = [self._end(every, step) for every in self._stretches]
        return min(ends if self._last is None else [*ends, max(step, self._last)])

    def _end(self, every: Every, step: int) -> int:
        """The first step from `step` on with which a stretch ends."""
        if every.steps is not None:
            return -(-step // every.steps) * every.steps
        assert every.epochs is not None
        whole = self.sampling.epochs_done(step - 1) // every.epochs + 1
        return self.sampling.step_of_epoch(whole * every.epochs)

    def last_step(self) -> int | None:
        """The step at which the budget of epochs, steps or samples is spent; None without one."""
        return self._last

    @cached_property
    def _quiet(self) -> list[int]:
        """The steps [since, until) after which nothing is due, as found last."""
        return [0, 0]

    @cached_property
    def _stretches(self) -> list[Every]:
        every = (self.log_every, self.evaluate_every, self.save_every, self.compare_every)
        return [one for one in (*every, self.copy_every) if one is not None]

    @cached_property
    def _last(self) -> int | None:
        if self.budget is None:
            return None
        limits = [
            None if self.budget.steps is None else self.budget.steps,
            None if self.budget.epochs is None else self.sampling.step_of_epoch(self.budget.epochs),
            None
            if self.budget.samples is None
            else self.sampling.steps_for_samples(self.budget.samples),
        ]
        return min((limit for limit in limits if limit is not None), default=None)

"""A training from wherever it stands to its end, on ranks that have met."""

from collections.abc import Callable
from contextlib import suppress

from accelerate import Accelerator

from harness.config.schema import Config
from harness.console import Console
from harness.errors import AbandonedError, HarnessError, LeavingError
from harness.interrupt import Interruption
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import slowly
from harness.rundir.lease import Lease
from harness.rundir.ledger import Ledger
from harness.rundir.outcome import Outcome
from harness.tracking.tracker import Tracker
from harness.training.build import build
from harness.training.ending import leave_early
from harness.training.loop import fit, leave_between_steps
from harness.training.resume import (
    agree_on_checkpoint,
    finished_outcome,
    prepare_directory,
    say_finished,
    take,
)
from harness.training.run import Launch, Run

LEAVING_S = 2.0  # for a save in flight when this rank fails: the others may wait for it to be gone


def train(
    config: Config,
    accelerator: Accelerator,
    ranks: Ranks,
    interruption: Interruption,
    age_s: float,
    console: Console | None = None,
    *,
    begun: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a training to its end, from wherever it stands. Called by every rank. Raises
    HarnessError.

    age_s: how long the launch has taken so far; begun: called once the run directory is this
    launch's.
    """
    directory = config.run.dir
    ledger = Ledger(directory / "ledger.json" if ranks.is_first() else None, age_s=age_s)
    lease = Lease(directory)
    tracker: Tracker | None = None
    run: Run | None = None
    with console or Console(ranks.is_first()) as console:
        launches = slowly(ranks, lambda: take(lease, console, directory, interruption))
        try:
            finished = ranks.decide(lambda: finished_outcome(config), Outcome)
            if finished is not None:
                console.tell(ranks.decide(lambda: say_finished(config, finished)))
                return finished
            with ledger.account("resume"):
                start = agree_on_checkpoint(config, ranks)
                ranks.decide(lambda: prepare_directory(config, start, console))
                begun()
            launch = Launch(start.run_id, launches, start.path, start.saved_path)
            tracker = Tracker(directory, console, enabled=ranks.is_first())
            run = build(config, accelerator, ranks, launch, interruption, ledger, lease, tracker)
            return _fit_watched(run)
        except AbandonedError:
            raise
        except LeavingError as leaving:
            cause = str(leaving)
            ledger.ended = True
            outcome = ranks.decide(
                lambda: leave_early(config, launches, ranks.size, cause, ledger), Outcome
            )
            console.outcome(outcome, directory)
            return outcome
        finally:
            if tracker is not None:
                tracker.close()
            # What the end took belongs to this launch, and to the budget of hours; but not where
            # another launch has taken the run over.
            if ranks.is_first() and run is not None:
                with suppress(HarnessError):
                    lease.check()
                    ledger.save()
            lease.release()


def _fit_watched(run: Run) -> Outcome:
    run.watch.finish_save = run.store.wait
    try:
        with run.note, run.watch:
            try:
                return fit(run)
            except LeavingError:
                if run.ranks.size > 1 or not run.progress.agreed:
                    raise
                return leave_between_steps(run)
    finally:
        run.store.close(LEAVING_S)  # no save is in flight where `fit` returned
        if run.copies is not None:
            run.copies.store.close(LEAVING_S)

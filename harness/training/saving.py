"""What a run leaves: checkpoints, the reports of their saving, and at the end its outcome."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from harness.checkpoint.manifest import SaveReason
from harness.checkpoint.read import step_name
from harness.checkpoint.retention import RANKED_BY, ranking_of
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.state import optimizer_tensors
from harness.checkpoint.write import CheckpointStore
from harness.interrupt import granted_s
from harness.randomness import capture_random
from harness.ranks.heartbeat import SAVE, STAGE
from harness.stopping.verdict import Verdict
from harness.tasks.learning import learner_states
from harness.training.agenda import Request
from harness.training.agreement import check_agreement
from harness.training.average import AVERAGED
from harness.training.exactness import exactness
from harness.training.optimizer import TRAINED, parameter_names
from harness.training.pacing import Pace
from harness.training.run import Run
from harness.wording import duration


def save(run: Run, verdict: Verdict | None, request: Request) -> None:
    """Begin a checkpoint of the present step, unless the launch must leave sooner.

    Called by every rank; the host waits for the copy alone.
    """
    run.ranks.heartbeat.enter(SAVE)
    if request == Request.INTERRUPTED and not is_worth_saving(run):
        return
    run.ranks.heartbeat.enter(STAGE)
    if run.pace is not None:
        run.pace.begin(run.step)
    with run.ledger.account("checkpoint_stall"):
        check_agreement(run)
        with snapshot_of(run, reason_to_save(verdict, request)) as snapshot:
            run.store.save(snapshot, ranking_of(snapshot.facts))


def copy_into_memory(run: Run) -> None:
    """Begin a copy of the present step for those that a lost process leaves. Called by every rank;
    the host waits for the copy of what is not stable.
    """
    assert run.copies is not None
    run.ranks.heartbeat.enter(STAGE)
    if run.copies.pace is not None:
        run.copies.pace.begin(run.step)
    with run.ledger.account("checkpoint_stall"):
        check_agreement(run)
        with snapshot_of(run, "schedule") as snapshot:
            run.copies.store.save(snapshot, None)


def finish_copy(run: Run) -> None:
    """Before an optimizer step: until the copy of a save that began after the last one is made. No
    collective.
    """
    for store in stores_of(run):
        if store.is_copying():
            with run.ledger.account("checkpoint_stall"):
                store.finish_copy()


def stores_of(run: Run) -> list[CheckpointStore]:
    """On the disk, and in memory."""
    return [run.store] if run.copies is None else [run.store, run.copies.store]


def check_saving(run: Run) -> None:
    """Whether a checkpoint could hold the present state, so that it is not the first save that
    fails, hours later. Called by every rank; nothing is copied. Raises CheckpointError.
    """
    with snapshot_of(run, "schedule") as snapshot:
        run.ranks.together(lambda: run.store.check(snapshot))


@contextmanager
def snapshot_of(run: Run, reason: SaveReason) -> Iterator[Snapshot]:
    """The state after the present step. Inside, the weights are those that are evaluated.

    Called by every rank. Raises CheckpointError.
    """
    optimizer, optimizer_rest = optimizer_tensors(
        run.engine.optimizer, parameter_names(run.engine.network)
    )
    interval = run.train_metrics.state(run.ranks)
    exact, exact_reason = exactness(run)
    with run.engine.stepper.evaluation_weights() as trained:
        yield Snapshot(
            step=run.step,
            epoch=run.sampling.epochs_done(run.step),
            samples=run.samples,
            reason=reason,
            exact=exact,
            exact_reason=exact_reason,
            model=run.engine.sharing.state_dict(),
            optimizer=optimizer | trained_weights(run, trained) | average_tensors(run),
            rng=capture_random(run.engine.generators),
            trainer=trainer_state(run, optimizer_rest, interval) if run.ranks.is_first() else {},
            metrics=dict(run.controller.latest_metrics(run.step)),
            facts={**run.facts, RANKED_BY: ranked_by(run)},
            config_yaml=run.config_yaml,
            extra_files=run.extra_files,
            history=run.controller.history(),
            stable=run.engine.stable_tensors(optimizer),
        )


def ranked_by(run: Run) -> tuple[Any, ...] | None:
    """How checkpoints are ranked, as manifests have it."""
    best, chosen = run.controller.best_metric(), run.controller.chosen_best()
    return best if best is None or chosen is None else (*best, chosen)


def trained_weights(run: Run, trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trained weights where others are evaluated, by their key next to the optimizer's
    state.
    """
    names = parameter_names(run.engine.network)
    parameters = run.engine.stepper.parameters()
    return {
        f"{TRAINED}{names[parameter]}": weight
        for parameter, weight in zip(parameters, trained, strict=False)
    }


def average_tensors(run: Run) -> dict[str, Tensor]:
    """The averages of weights that the model's tensors do not hold to the bit, by their key next to
    the optimizer's state.
    """
    stepper = run.engine.stepper
    average = stepper.average
    if average is None:
        return {}
    names = parameter_names(run.engine.network)
    return {
        f"{AVERAGED}{names[parameter]}": tensor
        for parameter, tensor in zip(stepper.parameters(), average.tensors, strict=False)
        if not average.is_evaluated or tensor.dtype != parameter.dtype
    }


def reason_to_save(verdict: Verdict | None, request: Request) -> SaveReason:
    """Why a checkpoint is written, for its manifest."""
    if verdict is not None and verdict.stops:
        return "final"
    if request == Request.INTERRUPTED:
        return "interrupted"
    return "best" if verdict is not None and verdict.new_best else "schedule"


def trainer_state(
    run: Run, optimizer_rest: dict[str, Any], interval: dict[str, Any]
) -> dict[str, Any]:
    """Everything but tensors that a run needs to go on."""
    engine = run.engine
    average = engine.stepper.average
    return {
        "run_id": run.launch.run_id,
        "step": run.step,
        "stop": run.controller.state(),
        "optimizer": optimizer_rest,
        "schedule": None if engine.schedule is None else engine.schedule.state_dict(),
        "scaler": engine.scaler_state(),
        "ema_updates": 0 if average is None else average.num_updates,
        "losses": run.losses.state(),
        "train_metrics": interval,
        "ledger": run.ledger.totals(),
        "learned": list(run.learned),
        "stream": run.feed.mark,
        "task": dict(learner_states(run.task)),
        "evaluation_due": run.progress.evaluation_due,
        "save_s": run.progress.save_s,
        "seams": run.progress.seams,
        "pace": None if run.pace is None else run.pace.state(),
    }


def is_worth_saving(run: Run) -> bool:
    """Whether an interrupted launch has something to save and the time for it, once the save in
    flight has ended. Called by every rank.
    """
    with run.ledger.account("checkpoint_stall"):
        run.store.wait()
    report_saves(run)
    reports: list[Any] = run.ranks.gather([run.interruption.age_s(), run.interruption.cause or ""])
    age_s, cause = max(reports)
    run.interruption.ask(cause)  # where the request had not arrived yet
    present, found = run.directory / "checkpoints" / step_name(run.step), run.launch.checkpoint
    if found is not None and found.resolve() == present.resolve():
        return False  # asked again before the first step of this launch
    limit_s = granted_s(run.config.interrupt.grace_s, cause, os.environ)
    needed_s = run.ranks.decide(lambda: run.progress.save_s)
    if limit_s is None or needed_s is None or needed_s <= limit_s - age_s:
        return True
    run.progress.unsaved = (
        f"of the {limit_s:.1f} s granted {max(0.0, limit_s - age_s):.1f} s were left, and a save "
        f"takes {needed_s:.1f} s"
    )
    run.tracker.warn(
        f"step {run.step:,} is not saved: {run.progress.unsaved}; the next launch repeats the "
        "steps since the last checkpoint"
    )
    return False


def is_save_due(run: Run, store: CheckpointStore, pace: Pace | None) -> bool:
    """Whether the clock asks for a save after this step; not while one is in flight. Rank 0's word
    counts; no collective.
    """
    if pace is None:
        return False
    if store.is_saving():
        return pace.is_due(saving=True)
    last = store.last_report
    ended = last is not None and last.error is None and not last.skipped
    pace.end(run.step, last.total_s if last is not None and ended else None)
    return pace.is_due()


def report_saves(run: Run) -> None:
    """Report the saves that ended since the last call; too many failures in a row end the run on
    every rank. Called by every rank.
    """
    for report in run.store.reports():
        run.tracker.save(report, run.position())
        if report.error is None and not report.skipped:
            run.progress.save_s = report.total_s
    for report in () if run.copies is None else run.copies.store.reports():
        if report.error is not None:
            run.tracker.warn(f"step {report.step:,} is not copied into memory: {report.error}")
    if run.pace is not None and (period := run.pace.news()) is not None:
        every, why = duration(period.seconds), period.reason
        run.tracker.event("save_interval", run.position(), seconds=period.seconds, reason=why)
        run.tracker.console.say(f"{run.directory}: saved every {every}: {why}")
    run.ranks.decide(run.store.raise_if_failing)

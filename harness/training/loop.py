"""The training: `fit` and `train_step`. Read this file first.

Every event of a training happens in `fit`, in order: step, read the losses, log, evaluate, judge,
save, stop. All ranks take the same branches.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping

from harness.data.source import Batch
from harness.errors import LeavingError, RankError
from harness.interrupt import GROWS
from harness.randomness import seed_for
from harness.ranks.heartbeat import AGREEMENT, LOG, LOSSES, METRICS, VERDICT
from harness.rundir.outcome import Outcome
from harness.stopping.history import DEVIATIONS, EXTRA
from harness.stopping.pairs import Deviations
from harness.stopping.verdict import Evaluation, Verdict
from harness.training.agenda import Request
from harness.training.agreement import check_agreement
from harness.training.companions import companions
from harness.training.ending import conclude
from harness.training.evaluation import EvaluationPlan, evaluate, undefined_in
from harness.training.losses import mean_loss
from harness.training.run import Run
from harness.training.saving import (
    check_saving,
    copy_into_memory,
    finish_copy,
    is_save_due,
    report_saves,
    save,
)
from harness.training.trace import digest

REQUESTS_POLL_S = 1.0


def fit(run: Run) -> Outcome:
    """Train until targets, a lack of improvement, divergence, the budget, a request or an
    interruption ends it. Called by every rank.
    """
    # The run had ended here, but was cut off before it could record that
    if run.progress.verdict is not None and run.progress.verdict.stops:
        return conclude(run, run.progress.verdict, Request.NONE)
    run.engine.warm_up(run.ranks, *warm_up_batches(run))
    check_saving(run)
    # Asked to leave before the first step: nothing to save
    run.ranks.together(run.interruption.check)
    run.ledger.begin_training()
    while True:
        # The previous launch left during this step's evaluation: it comes first
        owed = run.progress.evaluation_due
        if not owed:
            train_step(run)
        request = Request(run.pulse.beat(wish(run)))
        due = run.agenda.due(run.step, request, owed=owed)
        # The first step of a launch makes the optimizer's state
        if not owed and (due.compare or not run.progress.agreed):
            first = not run.progress.agreed
            check_agreement(run)
            if first:
                check_saving(run)
        verdict = read_losses(run) if due.read else None  # the host waits here and in what follows
        if due.log:
            log_training(run)
        if due.evaluate and not has_diverged(verdict):
            measured = evaluate_splits(run, request)
            if measured is None:  # left during it: the next launch begins with it
                request = Request.INTERRUPTED
            else:
                verdict = judge(run, measured, request)
                request = after_interval(run, verdict, request)
        ends = verdict is not None and verdict.stops
        leaves = ends or request == Request.INTERRUPTED
        if has_diverged(verdict):
            pass  # the last good checkpoint stays the last
        elif due.save or leaves or (verdict is not None and verdict.new_best):
            save(run, verdict, request)
        elif due.copy:
            copy_into_memory(run)
        if leaves:
            return conclude(run, verdict, request)


def warm_up_batches(run: Run) -> tuple[Batch, Batch]:
    """This rank's, and one for a trial: the same on all ranks where passes are of all."""
    batch = run.feed.sample_batch(run.step)
    return batch, run.feed.sample_batch(run.step + 1, of_all=run.engine.shards is not None)


def train_step(run: Run) -> None:
    """One optimizer step, by the gradient of the mean loss over the batch's items, however they are
    spread over slots and ranks.

    Called by every rank; no host wait on a GPU.
    """
    run.begin_step()
    with run.ledger.account("data_wait"):
        batches = run.feed.next_step()
    with run.ledger.account("compute"):
        items = run.engine.items.of(batches)
        loss_sums = []
        for slot, batch in zip(run.slots, run.feed.deliver(batches), strict=True):
            run.engine.seed_forward(seed_for(run.sampling.seed, "forward", run.step, slot))
            with run.engine.accumulate(last=slot == run.slots[-1]):
                outputs, loss_sum = run.engine.forward_backward(batch, items)
            loss_sums.append(loss_sum)
            run.train_metrics.update(
                run.task, outputs, batch, run.step * run.sampling.num_slots + slot
            )
        run.engine.boundary.reach(run.sampling.seed, run.step)
        finish_copy(run)
        grad_norm, skipped = run.engine.update()
        run.losses.add(loss_sums, items.number(), grad_norm, skipped)
    run.progress.step += 1
    run.ranks.heartbeat.enter(AGREEMENT)


def after_interval(run: Run, verdict: Verdict, request: Request) -> Request:
    """What is asked of the launch: to leave as well if more processes could train than do. Called
    by every rank.
    """
    asked = run.interruption.at_interval
    if asked is None or verdict.stops or request != Request.NONE or not run.ranks.decide(asked):
        return request
    run.interruption.ask(GROWS)
    return Request.INTERRUPTED


def leave_between_steps(run: Run) -> Outcome:
    """Save and leave where the samples of the next step do not come. One rank alone."""
    verdict = read_losses(run) if run.losses.has_unread() else None
    if not has_diverged(verdict):
        save(run, verdict, Request.INTERRUPTED)
    return conclude(run, verdict, Request.INTERRUPTED)


def has_diverged(verdict: Verdict | None) -> bool:
    """Whether the state is no longer worth keeping: the last good checkpoint stays the last."""
    return verdict is not None and verdict.reason == "diverged"


def wish(run: Run) -> Request:
    """What this rank asks of all: to save and leave; rank 0 also looks for a file STOP in the run
    directory, at the budget of hours, and at the clock of saves.
    """
    if run.interruption.cause is not None:
        return Request.INTERRUPTED
    now = time.monotonic()
    if run.ranks.rank == 0 and now - run.progress.polled_s >= REQUESTS_POLL_S:
        run.progress.polled_s = now
        if (run.directory / "STOP").exists():
            return Request.STOP_REQUESTED
        budget = run.config.stop.budget
        if budget is not None and budget.hours is not None and run.ledger.hours() >= budget.hours:
            return Request.TIME_UP
    if is_save_due(run, run.store, run.pace):
        return Request.SAVE
    copies = run.copies
    due = copies is not None and is_save_due(run, copies.store, copies.pace)
    return Request.COPY if due else Request.NONE


def read_losses(run: Run) -> Verdict:
    """The losses since the last read, judged for divergence by rank 0.

    Called by every rank; the host waits.
    """
    run.engine.boundary.settle()  # for all that may follow
    run.ranks.heartbeat.enter(LOSSES)
    with run.ledger.account("compute"):
        window = run.losses.read(run.step)
    verdict = run.ranks.decide(lambda: run.controller.watch(window), Verdict)
    if run.config.log.trace and (run.trace is not None or run.engine.sharing.in_step is not None):
        parameters = digest(run.engine.network)
        if run.trace is not None:
            run.trace.write(run.step, window.losses, run.sampling, parameters)
    if verdict.stops or verdict.warnings:
        run.tracker.verdict(verdict, run.position())
    return verdict


def log_training(run: Run) -> None:
    """A training record of the steps since the last one.

    `train/loss_step` is their mean loss; `train/loss`, in records of evaluations, the interval's.
    """
    run.ranks.heartbeat.enter(LOG)
    steps = run.losses.take_pending()
    norm = steps[-1].grad_norm if steps else math.nan
    rate = run.engine.learning_rate()
    progress = {"train/loss_step": mean_loss(steps), "grad_norm": norm, "lr": rate}
    operations = run.engine.operations
    of_step = None if operations is None else operations * run.sampling.num_slots
    progress |= run.speed.measure(run.step, run.ledger.stepped_s(), of_step)
    if run.engine.scaler_state() is not None:
        progress["skipped_steps"] = run.losses.num_skipped
    run.tracker.train({**run.position(), **progress})
    run.ledger.save(period_s=1.0)
    report_saves(run)
    for warning in run.watch.take_warnings():
        run.tracker.warn(warning)


Measured = tuple[Mapping[str, float], Mapping[str, Deviations]]


def evaluate_splits(run: Run, request: Request) -> Measured | None:
    """Metrics of the interval's training batches and of each evaluated split, by `split/name`, and
    what compares some of them in pairs; tracked. Called by every rank.

    None if the launch is to leave, or is asked to meanwhile: then all is as it was before, and
    `evaluation_due` says what is still to be done.
    """
    run.progress.evaluation_due = True
    if request == Request.INTERRUPTED:
        return None
    engine = run.engine
    try:
        with run.ledger.account("evaluation"), engine.stepper.evaluation_weights():
            results = {
                split: evaluate(
                    engine.network,
                    run.task,
                    plan,
                    run.ranks,
                    engine.device,
                    look(run, split, plan),
                    in_step=engine.sharing.in_step,
                )
                for split, plan in run.plans.items()
            }
    except LeavingError:
        return None
    run.progress.evaluation_due = False
    run.ranks.heartbeat.enter(METRICS)
    with run.ledger.account("evaluation"):
        computed = run.train_metrics.compute(run.ranks, or_nan=True)
        # An extra evaluation ends no interval: the next one's metrics are of all its steps
        extra = is_extra(run)
        loss = run.losses.take_interval(reset=not extra)
        own = without_undefined(run, run.task.values(computed), loss)
        values = {} if loss is None else {"train/loss": loss}
        values |= {f"train/{name}": value for name, value in own.items()}
        tables = {f"train/{name}": value for name, value in computed.items()}
        if not extra:
            run.train_metrics.reset()
        for split, result in results.items():
            values |= {f"{split}/{name}": value for name, value in result.values.items()}
            tables |= {f"{split}/{name}": value for name, value in result.computed.items()}
        seen = {"train": computed} | {split: one.computed for split, one in results.items()}
        values |= companions(run.config.stop, run.task, seen)
    record = {**run.position(), **values, "lr": run.engine.learning_rate()}
    if extra:
        record[EXTRA] = True
    deviations = {
        f"{split}/{name}": one
        for split, result in results.items()
        for name, one in result.deviations.items()
    }
    if deviations:
        record[DEVIATIONS] = deviations
    run.tracker.evaluation(
        record, {name: table.numpy() for name, table in tables.items() if table.dim() == 2}
    )
    return values, deviations


def look(run: Run, split: str, plan: EvaluationPlan) -> Callable[[], None]:
    """What is called before each micro-batch of an evaluation on this rank."""
    number, of = itertools.count(), plan.num_rounds(run.ranks.size)

    def look_at_next() -> None:
        run.interruption.check()
        run.tracker.console.progress(f"evaluating {split}", next(number), of, "micro-batches")

    return look_at_next


def without_undefined(
    run: Run, values: Mapping[str, float], loss: float | None
) -> Mapping[str, float]:
    """The training metrics of an interval, without those that have no meaning on its samples, e.g.
    for want of a class; a warning says so, and the run goes on.
    """
    undefined = undefined_in(values, math.nan if loss is None else loss)
    if undefined:
        names = ", ".join(f"train/{name}" for name in undefined)
        run.tracker.warn(
            f"step {run.step:,}: {names}: undefined on this interval's training samples, and "
            "left out. For more samples set a longer stop.every, or stop.train_metrics: full."
        )
    return {name: value for name, value in values.items() if name not in undefined}


def judge(run: Run, measured: Measured, request: Request) -> Verdict:
    """Rank 0's verdict on an evaluation, on every rank.

    With run.paranoid every rank judges too, and they compare. Called by every rank.
    """
    run.ranks.heartbeat.enter(VERDICT)
    hours = run.ranks.decide(run.ledger.hours)
    extra = is_extra(run)
    rate = run.engine.learning_rate()
    position = run.step, run.epoch, run.samples, hours
    metrics, deviations = measured
    evaluation = Evaluation(*position, metrics, rate, extra, deviations)
    requested = request == Request.STOP_REQUESTED
    if run.config.run.paranoid:
        verdicts = run.ranks.gather(
            run.ranks.together(
                lambda: run.controller.judge(evaluation, requested=requested).to_json()
            )
        )
        differing = [rank for rank, verdict in enumerate(verdicts) if verdict != verdicts[0]]
        if differing:
            raise RankError(
                f"step {run.step}: ranks {differing} reached another verdict than rank 0: "
                f"{verdicts[differing[0]]} against {verdicts[0]}. Tell us: it is a bug."
            )
        verdict = Verdict.from_json(verdicts[0])
    else:
        verdict = run.ranks.decide(
            lambda: run.controller.judge(evaluation, requested=requested), Verdict
        )
    run.tracker.verdict(verdict, run.position(), run.controller.best())
    if not extra:
        run.engine.observe(metrics)
    return verdict


def is_extra(run: Run) -> bool:
    """Whether the evaluation of this step is due only because a budget or a request ends here: a
    run that resumes from it is to end as one that never had it.
    """
    return not run.agenda.falls(run.agenda.evaluate_every, run.step)

"""How a launch ends: the last save, and the outcome."""

from dataclasses import asdict

from harness.checkpoint.read import choose, read_manifest, step_name
from harness.config.schema import Config
from harness.errors import CheckpointError
from harness.interrupt import PREEMPT
from harness.ranks.heartbeat import END
from harness.rundir.ledger import TRAINING, Ledger
from harness.rundir.outcome import Outcome, write_outcome
from harness.stopping.budget import time_left_s
from harness.stopping.verdict import Verdict
from harness.training.agenda import Request
from harness.training.exactness import exactness
from harness.training.run import Run
from harness.training.saving import report_saves


def leave_early(
    config: Config, launches: int, world_size: int, cause: str, ledger: Ledger
) -> Outcome:
    """The outcome, written, of a launch that was asked to leave before its first step.

    Rank 0 only. Raises HarnessError.
    """
    directory = config.run.dir
    found = choose(directory / "checkpoints", "auto", verify="size").path
    manifest = None if found is None else read_manifest(found)
    outcome = Outcome(
        reason="interrupted",
        detail=(
            f"{cause} before the first step of launch {launches}; to be resumed from "
            f"{found or 'the beginning'}."
        ),
        step=0 if manifest is None else manifest.step,
        epoch=0.0 if manifest is None else float(manifest.epoch),
        samples=0 if manifest is None else manifest.samples,
        world_size=world_size,
        launches=launches,
        best=None,
        checkpoint=None if found is None else str(found),
        exact=config.run.exactness != "none",
        exact_reason="nothing was done in this launch",
        time={**ledger.summary(), "saved_s": 0.0},
    )
    write_outcome(directory, outcome)
    (directory / PREEMPT).unlink(missing_ok=True)
    return outcome


def conclude(run: Run, verdict: Verdict | None, request: Request) -> Outcome:
    """Wait for the last save and leave the outcome. Called by every rank.

    Raises CheckpointError if the run is over and its last state could not be saved: it is then not
    finished, and another launch goes on.
    """
    run.ranks.heartbeat.enter(END)
    run.tracker.console.phase("waiting for the last save")
    with run.ledger.account("checkpoint_stall"):
        run.store.wait()
    report_saves(run)
    outcome = run.ranks.decide(lambda: outcome_of(run, verdict), Outcome)
    run.tracker.finish(outcome, run.position())
    return outcome


def time_saved_s(run: Run) -> float:
    """What the rest of the budget would have taken, at the pace of the steps done; 0 without a
    budget, or before the first step.
    """
    if run.step == 0:
        return 0.0
    totals, budget = run.ledger.totals(), run.config.stop.budget
    per_step_s = sum(totals[name] for name in TRAINING) / run.step
    last_step, elapsed_s = run.agenda.last_step(), run.ledger.elapsed_s()
    return time_left_s(budget, last_step, run.step, per_step_s, elapsed_s) or 0.0


def outcome_of(run: Run, verdict: Verdict | None) -> Outcome:
    """Why and where the run ended, written to outcome.json. Rank 0 only."""
    checkpoint = run.store.last_checkpoint() or run.launch.saved
    is_saved = checkpoint is not None and checkpoint.name == step_name(run.step)
    if verdict is not None and verdict.stops:
        reason, detail = str(verdict.reason), verdict.detail
        if reason != "diverged" and not is_saved:
            raise CheckpointError(
                f"{run.directory}: the training is over ({reason}: {detail}) and the checkpoint of "
                f"its last step {run.step} could not be saved: "
                "see the warnings above. Fix the disk and launch again: the run resumes from its "
                "last checkpoint."
            )
    else:
        kept = "saved"
        if not is_saved:
            why = run.progress.unsaved or "see the warnings above"
            kept = f"NOT saved ({why}), the last checkpoint is {checkpoint}"
        reason, detail = (
            "interrupted",
            f"{run.interruption.cause} at step {run.step:,}: {kept}; to be resumed.",
        )
    best = run.controller.best()
    path = None if best is None else run.directory / "checkpoints" / step_name(best.step)
    exact, exact_reason = exactness(run)
    outcome = Outcome(
        reason=reason,
        detail=detail,
        step=run.step,
        epoch=run.epoch,
        samples=run.samples,
        world_size=run.ranks.size,
        launches=run.launch.number,
        best=None
        if best is None or path is None
        else {**asdict(best), "checkpoint": str(path) if path.exists() else None},
        checkpoint=None if checkpoint is None else str(checkpoint),
        exact=exact,
        exact_reason=exact_reason,
        time={**run.ledger.summary(), "saved_s": round(time_saved_s(run), 3)},
    )
    run.ledger.ended = is_saved or reason == "diverged"
    run.ledger.save()
    write_outcome(run.directory, outcome)
    (run.directory / PREEMPT).unlink(missing_ok=True)  # obeyed, or too late
    return outcome

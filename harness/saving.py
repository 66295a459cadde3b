"""What a run leaves: checkpoints, the reports of their saving, and at the end its outcome."""

from typing import Any

from harness.agenda import Call
from harness.checkpoint import Snapshot, optimizer_tensors
from harness.outcome import Outcome
from harness.parts import Run
from harness.randomness import capture_ambient
from harness.stopping import Verdict


def save(run: Run, verdict: Verdict | None, call: Call) -> None:
    """Begin a checkpoint of the present step. Called by every rank; the host waits for the copy, not for the disk."""
    with run.ledger.account("checkpoint_stall"):
        optimizer, optimizer_rest = optimizer_tensors(run.engine.optimizer, run.engine.parameter_names())
        interval = run.train_metrics.gathered(run.ranks)
        trainer = trainer_state(run, optimizer_rest, interval) if run.ranks.rank == 0 else {}
        best = run.controller.best()
        snapshot = Snapshot(
            step=run.step,
            epoch=run.sampling.epochs_done(run.step),
            samples=run.samples,
            reason=reason_to_save(verdict, call),
            exact=run.exactness[0],
            exact_reason=run.exactness[1],
            model=run.engine.network.state_dict(),
            optimizer=optimizer,
            rng=capture_ambient(),
            trainer=trainer,
            metrics=dict(run.controller.latest_metrics()),
            facts=run.facts,
            config_yaml=run.config_yaml,
            beside={},
        )
        run.store.save(snapshot, best=best)


def reason_to_save(verdict: Verdict | None, call: Call) -> Any:
    """Why a checkpoint is written, for its manifest."""
    if call == Call.INTERRUPTED:
        return "interrupted"
    if verdict is not None and verdict.stops:
        return "final"
    return "best" if verdict is not None and verdict.new_best else "schedule"


def trainer_state(run: Run, optimizer_rest: dict[str, Any], interval: dict[str, Any]) -> dict[str, Any]:
    """Everything but tensors that a run needs to go on."""
    engine = run.engine
    return {
        "run_id": run.run_id,
        "step": run.step,
        "epoch": run.epoch,
        "samples": run.samples,
        "num_ranks": run.ranks.size,
        "sampling": {"num_samples": run.sampling.num_samples, "size": run.sampling.size, "seed": run.sampling.seed},
        "stop": run.controller.state(),
        "optimizer": optimizer_rest,
        "schedule": None if engine.schedule is None else engine.schedule.state_dict(),
        "scaler": engine.scaler_state(),
        "losses": run.losses.state(),
        "train_metrics": interval,
        "ledger": run.ledger.totals(),
    }


def report_saves(run: Run) -> None:
    """Tell of the saves that ended since the last call; too many failures in a row end the run on every rank. Called by every rank."""
    for report in run.store.reports():
        run.tracker.save(report)
    run.ranks.decide(run.store.raise_if_failing)


def conclude(run: Run, verdict: Verdict | None, call: Call) -> Outcome:
    """Wait for the last save and leave the outcome. Called by every rank."""
    with run.ledger.account("checkpoint_stall"):
        run.store.wait()
    report_saves(run)
    outcome = Outcome.from_json(run.ranks.decide(lambda: outcome_of(run, verdict, call).to_json()))
    run.tracker.finish(outcome)
    return outcome


def outcome_of(run: Run, verdict: Verdict | None, call: Call) -> Outcome:
    """Why and where the run ended. Rank 0 only."""
    stops = verdict is not None and verdict.stops
    ...

"""From a config to a run: the only composition root."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from harness import components
from harness.agenda import Agenda
from harness.checkpoint import CheckpointStore, Loaded, Retention, load, restore_network, restore_optimizer
from harness.config import Config, config_hashes, read_config
from harness.console import Console
from harness.crashes import StepNote
from harness.data import open_data
from harness.engine import Engine
from harness.errors import CheckpointError, LeavingError
from harness.evaluation import EvaluationPlan, fixed_sample
from harness.interrupt import Interruption
from harness.lease import Lease
from harness.ledger import Ledger, process_age_s
from harness.loading import Batch, Feed, Split
from harness.loop import fit
from harness.metrics import IntervalMetrics
from harness.outcome import Outcome
from harness.parts import Run
from harness.place import Place, find_place, finished_outcome, known_metrics, leave_early, take
from harness.randomness import restore_random, seed_ambient, seed_for
from harness.ranks import Pulse, Ranks
from harness.sampling import Sampling
from harness.step_trace import Trace
from harness.stop_settings import TrainSample
from harness.stopping import StopController
from harness.tasks import Task
from harness.tracking import Tracker
from harness.warm_start import start_weights
from harness.window import LossWindow

LEAVING_S = 2.0  # for a save in flight when this rank fails: the others may wait for it to be gone


def train(config: Config, accelerator: Accelerator, ranks: Ranks, interruption: Interruption) -> Outcome:
    """Run a training to its end, from wherever it stands. Called by every rank. Raises HarnessError."""
    directory = config.run.dir
    ledger = Ledger(directory / "ledger.json" if ranks.is_first() else None, age_s=process_age_s())
    lease = Lease(directory)
    tracker: Tracker | None = None
    with Console(ranks.is_first()) as console:
        launches = ranks.decide(lambda: take(lease, console, directory, interruption))
        try:
            finished = ranks.decide(lambda: finished_outcome(config))
            if finished is not None:
                outcome = Outcome.from_json(finished)
                console.say(f"{directory}: this run is finished: {outcome.detail} Ask for more (stop.*) to go on.")
                return outcome
            with ledger.account("resume"):
                found = ranks.decide(lambda: find_place(config, console))
            place = Place(found["run_id"], launches, None if found["checkpoint"] is None else Path(found["checkpoint"]))
            tracker = Tracker(directory, console, enabled=ranks.is_first())
            run = build(config, accelerator, ranks, place, interruption, ledger, lease, tracker)
            try:
                with run.note:
                    return fit(run)
            finally:
                run.store.close(LEAVING_S)  # no save is in flight where `fit` returned
        except LeavingError as leaving:
            cause = str(leaving)
            outcome = Outcome.from_json(ranks.decide(lambda: leave_early(config, launches, ranks.size, cause, ledger).to_json()))
            console.outcome(outcome)
            return outcome
        finally:
            if tracker is not None:
                tracker.close()
            lease.release()


def build(
    config: Config, accelerator: Accelerator, ranks: Ranks, place: Place, interruption: Interruption, ledger: Ledger, lease: Lease, tracker: Tracker
) -> Run:
    """All parts of a run, with the state of its checkpoint if there is one. Called by every rank. Raises HarnessError."""
    task: Task = ranks.together(lambda: components.build(config.task, "task"))
    splits, keys, learned, balance = open_data(config, ranks, place, task, tracker.console, interruption)
    sampling = Sampling(len(splits["train"]), config.batch.size, config.batch.micro_size, config.run.seed, balance)
    slots = ranks.together(lambda: sampling.slots_of(ranks.rank, ranks.size))
    engine = ranks.together(lambda: Engine(config, accelerator, ranks.size, task, first_batch(splits["train"], sampling)))
    controller = ranks.together(lambda: StopController(config.stop, known_metrics(config, task)))
    agenda = Agenda(sampling, config.log.every, config.stop.every, config.checkpoint.every, config.stop.budget, config.log.trace)
    with ledger.account("resume"):
        loaded = ranks.together(lambda: load_state(config, place, engine, keys, ranks))
    for told in [] if loaded is not None else ranks.together(lambda: start_weights(engine.network, config)):
        tracker.console.say(told)
    trainer = None if loaded is None else loaded.trainer
    step = 0 if loaded is None else loaded.manifest.step
    if ranks.is_first():
        ledger.resume(None if trainer is None else trainer["ledger"])
    tracker.console.expect(agenda.last_step())
    ranks.decide(lambda: tracker.begin(config, place.run_id, step))
    engine.wrap(ranks)
    losses, train_metrics, verdict = LossWindow(ranks), IntervalMetrics(task.metrics()), None
    if trainer is not None:
        verdict = ranks.together(lambda: controller.restore(trainer["stop"]))
        losses.restore(trainer["losses"])
        train_metrics.restore(trainer["train_metrics"], ranks.rank)
    run = Run(
        config=config,
        directory=config.run.dir,
        run_id=place.run_id,
        ranks=ranks,
        pulse=Pulse(ranks),
        interruption=interruption,
        sampling=sampling,
        slots=slots,
        agenda=agenda,
        engine=engine,
        task=task,
        feed=Feed(splits["train"], sampling, slots, accelerator.device, config.data.num_workers, step),
        losses=losses,
        train_metrics=train_metrics,
        plans=evaluation_plans(config, splits),
        controller=controller,
        store=open_store(config, ranks, place, lease),
        tracker=tracker,
        trace=Trace(config.run.dir / "trace.jsonl", step) if config.log.trace and ranks.is_first() else None,
        ledger=ledger,
        step=step,
        found=place.checkpoint,
        verdict=verdict,
        launches=place.launches,
        learned=[asdict(one) for one in learned],
        note=StepNote(config.run.dir if ranks.is_first() else None),
        facts={"data": keys, "num_samples": {name: len(split) for name, split in splits.items()}, "config": config_hashes(config)},
    )
    restore_place(loaded, run)
    introduce(run)
    return run


def introduce(run: Run) -> None:
    """Record the launch, and tell a person what begins, how its training metrics are to be read, and what the stop settings say of the run so far."""
    wanted = run.config.stop.train_metrics
    kinds = {"interval": "of the interval's own batches, while the network changes", "full": "a true evaluation of the training split"}
    metrics = f"a true evaluation of {wanted.samples:,} fixed training samples" if isinstance(wanted, TrainSample) else kinds[wanted]
    place = {"launch": run.launches, "world_size": run.ranks.size, "run_id": run.run_id}
    run.tracker.event("launch", run.position(), **place, train_metrics=metrics)
    run.tracker.console.say(
        f"{run.directory}: launch {run.launches} on {run.ranks.size} x {len(run.slots)} slots of {run.sampling.micro_size} samples, "
        f"{run.sampling.num_samples:,} an epoch; train/ metrics: {metrics}"
    )
    if run.verdict is not None:
        run.tracker.console.say(f"on the history so far the stop settings say: {run.verdict.action}: {run.verdict.detail}")


def open_store(config: Config, ranks: Ranks, place: Place, lease: Lease) -> CheckpointStore:
    """The run's checkpoints, written by this launch. Called by every rank."""
    settings = config.checkpoint
    return CheckpointStore(
        config.run.dir / "checkpoints",
        ranks,
        Retention(settings.keep_last, settings.keep_best, settings.keep_every),
        run_id=place.run_id,
        attempt=f"{place.run_id}-{place.launches}",
        fence=lease.check,
        max_failures=settings.max_failures,
        timeout_s=settings.timeout_s,
        found=place.checkpoint,
    )


def first_batch(split: Split, sampling: Sampling) -> Batch:
    """A micro-batch to find out what the network makes of one: as in training, but without its augmentation."""
    indices = np.arange(min(len(split), sampling.micro_size), dtype=np.int64)
    return split.fetch(indices, indices.astype(np.uint64), 0, training=False)


def evaluation_plans(config: Config, splits: dict[str, Split]) -> dict[str, EvaluationPlan]:
    """What is evaluated at each interval: the validation split, and the training split if its metrics are to be true ones."""
    size = config.evaluation.micro_size or config.batch.micro_size
    plans = {}
    wanted = config.stop.train_metrics
    if wanted != "interval":
        train = splits["train"]
        chosen = fixed_sample(len(train), wanted.samples, config.run.seed) if isinstance(wanted, TrainSample) else None
        plans["train"] = EvaluationPlan(train, size, config.data.num_workers, chosen)
    if "val" in splits:
        plans["val"] = EvaluationPlan(splits["val"], size, config.data.num_workers)
    return plans


def load_state(config: Config, place: Place, engine: Engine, data: Mapping[str, str], ranks: Ranks) -> Loaded | None:
    """Read the chosen checkpoint and put its weights and moments in. Raises CheckpointError, also if `data` (fingerprints by split) has changed."""
    if place.checkpoint is None:
        return None
    loaded = load(place.checkpoint, rank=ranks.rank, num_ranks=ranks.size, device=torch.device("cpu"))
    had = loaded.manifest.facts["data"]
    changed = [f"data.{name}" for name in sorted({*had, *data}) if had.get(name) != data.get(name)]
    if changed and config.run.exactness != "none":
        raise CheckpointError(
            f"{place.checkpoint}: {', '.join(changed)} no longer gives the samples that the run began with, so it cannot go on exactly. "
            "Bring the data back, choose another run.dir, or set run.exactness: none from the start of a run."
        )
    restore_network(engine.network, loaded)
    fresh = [dict(group) for group in engine.optimizer.param_groups]
    before = read_config(place.checkpoint / "config.yaml")
    restore_optimizer(engine.optimizer, engine.parameter_names(), loaded.optimizer, engine.regrouped(loaded.trainer["optimizer"]))
    engine.adopt_changes(before.optimizer, fresh, before.parts)
    engine.restore_rest(loaded.trainer["schedule"], loaded.trainer["scaler"])
    return loaded


def restore_place(loaded: Loaded | None, run: Run) -> None:
    """Where the launch before left: what it still had to do, and the ambient generators as they were; last, so that nothing draws after it.

    On another number of ranks the generators are those of the step's boundary.
    """
    if loaded is not None:
        run.evaluation_due, run.save_s = loaded.trainer.get("evaluation_due", False), loaded.trainer.get("save_s")
    seed_ambient(seed_for(run.sampling.seed, "update", run.step - 1))
    if loaded is not None and loaded.rng is not None:
        rng = loaded.rng
        run.ranks.together(lambda: restore_random(rng, run.engine.generators))

"""From a config to a run: the only composition root."""

from dataclasses import asdict

import numpy as np
from accelerate import Accelerator

from harness import components
from harness.checkpoint.retention import Retention
from harness.checkpoint.write import CheckpointStore
from harness.config.document import to_yaml
from harness.config.identity import config_hashes
from harness.config.schema import Config
from harness.data.feed import Feed
from harness.data.sampling import Sampling
from harness.data.source import Batch
from harness.data.split import Split
from harness.interrupt import Interruption
from harness.metrics.interval import IntervalMetrics
from harness.ranks.pulse import Pulse
from harness.ranks.ranks import Ranks
from harness.rundir.crashes import StepNote
from harness.rundir.lease import Lease
from harness.rundir.ledger import Ledger
from harness.stopping.controller import StopController
from harness.stopping.settings import TrainSample
from harness.tasks.task import Task, known_metrics
from harness.tracking.courier import RunInfo
from harness.tracking.tracker import Tracker
from harness.training.agenda import Agenda
from harness.training.data import open_data
from harness.training.engine import Engine
from harness.training.evaluation import evaluation_plans
from harness.training.losses import LossWindow
from harness.training.resume import Place, load_state, restore_place
from harness.training.run import Run
from harness.training.trace import Trace
from harness.training.warm_start import start_weights


def build(
    config: Config,
    accelerator: Accelerator,
    ranks: Ranks,
    place: Place,
    interruption: Interruption,
    ledger: Ledger,
    lease: Lease,
    tracker: Tracker,
) -> Run:
    """All parts of a run, with the state of its checkpoint if there is one.

    Called by every rank. Raises HarnessError.
    """
    task: Task = ranks.together(lambda: components.build(config.task, "task"))
    splits, keys, learned, balance = open_data(
        config, ranks, place, task, tracker.console, interruption
    )
    sampling = Sampling(
        len(splits["train"]), config.batch.size, config.batch.micro_size, config.run.seed, balance
    )
    slots = ranks.together(lambda: sampling.slots_of(ranks.rank, ranks.size))
    engine = ranks.together(
        lambda: Engine(
            config, accelerator, ranks.size, task, first_batch(splits["train"], sampling)
        )
    )
    controller = ranks.together(
        lambda: StopController(config.stop, known_metrics(task, config.data.evaluated))
    )
    agenda = Agenda(
        sampling,
        config.log.every,
        config.stop.every,
        config.checkpoint.every,
        config.stop.budget,
        config.log.trace,
    )
    with ledger.account("resume"):
        loaded = ranks.together(lambda: load_state(config, place, engine, keys, ranks))
    for told in (
        [] if loaded is not None else ranks.together(lambda: start_weights(engine.network, config))
    ):
        tracker.console.say(told)
    trainer = None if loaded is None else loaded.trainer
    step = 0 if loaded is None else loaded.manifest.step
    if ranks.is_first():
        ledger.resume(None if trainer is None else trainer["ledger"])
    tracker.console.expect(agenda.last_step())
    values = config.to_json()
    run_info = RunInfo(config.run.name, place.run_id, config.run.dir, values, to_yaml(values))
    ranks.decide(lambda: tracker.begin(config.tracking, run_info, step))
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
        feed=Feed(
            splits["train"], sampling, slots, accelerator.device, config.data.num_workers, step
        ),
        losses=losses,
        train_metrics=train_metrics,
        plans=evaluation_plans(config, splits),
        controller=controller,
        store=open_store(config, ranks, place, lease),
        tracker=tracker,
        trace=Trace(config.run.dir / "trace.jsonl", step)
        if config.log.trace and ranks.is_first()
        else None,
        ledger=ledger,
        step=step,
        found=place.checkpoint,
        verdict=verdict,
        launches=place.launches,
        learned=[asdict(one) for one in learned],
        note=StepNote(config.run.dir if ranks.is_first() else None),
        facts={
            "data": keys,
            "num_samples": {name: len(split) for name, split in splits.items()},
            "config": config_hashes(config),
        },
    )
    restore_place(loaded, run)
    introduce(run)
    return run


def introduce(run: Run) -> None:
    """Record the launch, and tell a person what begins, how its training metrics are to be read,
    and what the stop settings say of the run so far.
    """
    wanted = run.config.stop.train_metrics
    kinds = {
        "interval": "of the interval's own batches, while the network changes",
        "full": "a true evaluation of the training split",
    }
    metrics = (
        f"a true evaluation of {wanted.samples:,} fixed training samples"
        if isinstance(wanted, TrainSample)
        else kinds[wanted]
    )
    place = {"launch": run.launches, "world_size": run.ranks.size, "run_id": run.run_id}
    run.tracker.event("launch", run.position(), **place, train_metrics=metrics)
    run.tracker.console.say(
        f"{run.directory}: launch {run.launches} on {run.ranks.size} x {len(run.slots)} slots of "
        f"{run.sampling.micro_size} samples, "
        f"{run.sampling.num_samples:,} an epoch; train/ metrics: {metrics}"
    )
    if run.verdict is not None:
        run.tracker.console.say(
            f"on the history so far the stop settings say: {run.verdict.action}: "
            f"{run.verdict.detail}"
        )


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
    """A micro-batch to find out what the network makes of one: as in training, but without its
    augmentation.
    """
    indices = np.arange(min(len(split), sampling.micro_size), dtype=np.int64)
    return split.fetch(indices, indices.astype(np.uint64), 0, training=False)

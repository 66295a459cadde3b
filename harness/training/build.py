"""From a config to a run: the only composition root."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from harness import components
from harness.checkpoint.in_memory import copies_directory, forget_others
from harness.checkpoint.manifest import CLASSES
from harness.checkpoint.mirror import Machines, Mirror
from harness.checkpoint.read import LoadedState
from harness.checkpoint.retention import Retention
from harness.checkpoint.settings import CheckpointConfig, SaveEvery
from harness.checkpoint.state import extra_files_of
from harness.checkpoint.write import CheckpointStore
from harness.config.document import to_yaml
from harness.config.identity import config_hashes
from harness.config.schedules import check_schedule_length
from harness.config.schema import Config
from harness.console import Console
from harness.data.code import code_of
from harness.data.feed import Feed, Patience, data_limit_s
from harness.data.sampling import Sampling
from harness.data.source import Batch, files_beside_of
from harness.data.split import Split
from harness.errors import AbandonedError, LeavingError
from harness.evaluation_table import Shown
from harness.interrupt import Interruption
from harness.metrics.interval import IntervalMetrics
from harness.randomness import generators_of
from harness.ranks.pulse import Pulse
from harness.ranks.ranks import Ranks
from harness.ranks.watch import Watch
from harness.rundir.crashes import StepNote
from harness.rundir.lease import Lease
from harness.rundir.ledger import Ledger
from harness.stopping.controller import StopController
from harness.stopping.settings import TrainSample
from harness.tasks.task import Task, known_metrics, targets_of
from harness.tracking.courier import RunInfo
from harness.tracking.tracker import Tracker
from harness.training.agenda import Agenda
from harness.training.birth import build_shared
from harness.training.data import RunData, open_data
from harness.training.engine import Engine
from harness.training.environment import environments
from harness.training.evaluation import evaluation_plans
from harness.training.exactness import reasons_against_elastic
from harness.training.fetching import built_for_a_checkpoint
from harness.training.loading import load_state
from harness.training.losses import LossWindow
from harness.training.network_state import find_changes
from harness.training.pacing import Pace, pace_of
from harness.training.pretrained import dump_parts, resumed_parts
from harness.training.resume import restore_rest
from harness.training.run import Copies, Launch, Progress, Run
from harness.training.speed import Speed, peak_of
from harness.training.trace import Trace
from harness.training.warm_start import start_weights
from harness.wording import some


def build(
    config: Config,
    accelerator: Accelerator,
    ranks: Ranks,
    launch: Launch,
    interruption: Interruption,
    ledger: Ledger,
    lease: Lease,
    tracker: Tracker,
) -> Run:
    """A run with the state of its checkpoint, if any. Called by every rank. Raises HarnessError."""
    task: Task = ranks.together(lambda: components.build(config.task, "task"))
    controller = ranks.together(lambda: controller_of(config, task))
    shown = ranks.together(lambda: shown_of(config, task))
    data = open_data(config, ranks, launch, task, tracker.console, interruption)
    sampling = sampling_of(config, data)
    slots = ranks.together(lambda: sampling.slots_of(ranks.rank, ranks.size))
    probe = ranks.together(lambda: first_batch(data.splits["train"], sampling))
    engine = open_engine(config, accelerator, task, probe, launch, ranks, tracker)
    with ledger.account("resume"):
        loaded = restore_weights(config, launch, engine, data, ranks, tracker.console)
    engine.probe(ranks, probe)
    progress = Progress(0 if loaded is None else loaded.manifest.step)
    agenda = ranks.together(lambda: agenda_of(config, sampling))
    patience = training_patience(config, ranks, interruption)
    ranks.decide(lambda: tracker.begin(config.tracking, run_info(config, launch), progress.step))
    run = Run(
        config=config,
        launch=launch,
        ranks=ranks,
        pulse=Pulse(ranks),
        watch=Watch(ranks, config.run.watch, config.run.dir, launch.number),
        interruption=interruption,
        sampling=sampling,
        slots=slots,
        agenda=agenda,
        engine=engine,
        task=task,
        feed=open_feed(config, data, sampling, slots, engine.device, progress.step, patience),
        losses=LossWindow(ranks),
        train_metrics=IntervalMetrics(task.metrics()),
        plans=evaluation_plans(config, data.splits, data.num_workers, interruption),
        controller=controller,
        store=open_store(config, ranks, launch, lease),
        pace=open_pace(config.checkpoint, engine, ranks, ledger),
        copies=open_copies(config, engine, ranks, launch, lease, ledger),
        tracker=tracker,
        trace=open_trace(config, ranks, progress.step),
        ledger=ledger,
        speed=Speed(progress.step, sampling.size, peak_of(config, engine.device, ranks.size)),
        note=StepNote(config.run.dir if ranks.is_first() else None),
        facts=facts_of(config, data, environments(ranks, engine.device)),
        extra_files=ranks.together(lambda: files_beside(engine, data, task, tracker.console.say)),
        learned=[asdict(one) for one in data.learned],
        progress=progress,
    )
    engine.note_inexact(ranks, ranks.together(lambda: doubts(run, data)))
    restore_rest(loaded, run)
    introduce(run, shown)
    return run


def open_engine(
    config: Config,
    accelerator: Accelerator,
    task: Task,
    probe: Batch,
    launch: Launch,
    ranks: Ranks,
    tracker: Tracker,
) -> Engine:
    """The network to be trained, without what it once began from. Called by every rank. Raises
    HarnessError.
    """
    tracker.console.phase("building the network")
    kept = ranks.together(lambda: resumed_parts(launch.checkpoint, config.network))
    watched = (
        nullcontext()
        if launch.checkpoint is None
        else built_for_a_checkpoint(lambda text: tracker.console.say(f"warning: {text}"))
    )
    with watched:
        birth = build_shared(config, kept, ranks)
        return ranks.together(lambda: Engine(config, accelerator, task, probe, birth))


def controller_of(config: Config, task: Task) -> StopController:
    """What ends the run; made before the data is prepared, which may take long. Raises
    ConfigError.
    """
    return StopController(config.stop, known_metrics(task, config.data.evaluated_splits))


def shown_of(config: Config, task: Task) -> Shown:
    """What the console shows of evaluations. Raises ConfigError."""
    metrics = known_metrics(task, config.data.evaluated_splits)
    return Shown.of(config.stop, metrics, config.log.show)


def restore_weights(
    config: Config, launch: Launch, engine: Engine, data: RunData, ranks: Ranks, console: Console
) -> LoadedState | None:
    """Those of the checkpoint, with the rest of its state; without one, those that the config
    names; and an optimizer for them. Called by every rank. Raises HarnessError.
    """
    engine.shard(ranks)
    if launch.checkpoint is None:
        for line in start_weights(engine.network, config, ranks):
            console.say(line)
    ranks.together(engine.open)
    if launch.checkpoint is None:
        return None
    console.phase(f"reading {launch.checkpoint.name}")
    return load_state(config, launch, engine, data.keys, ranks)


def run_info(config: Config, launch: Launch) -> RunInfo:
    """What trackers receive about the run."""
    values = config.to_json()
    return RunInfo(config.run.name, launch.run_id, config.run.dir, values, to_yaml(values))


def sampling_of(config: Config, data: RunData) -> Sampling:
    """Which samples each slot of each step holds."""
    batch = config.batch
    num_samples = len(data.splits["train"])
    seed, order = config.run.seed, data.order
    return Sampling(num_samples, batch.size, batch.micro_size, seed, data.balance, order)


def agenda_of(config: Config, sampling: Sampling) -> Agenda:
    """What is due after which step. Raises ConfigError for a schedule that ends before the
    budget.
    """
    stop, save, copy = config.stop, config.checkpoint.every, config.checkpoint.in_memory
    save_every = save.by_step() if isinstance(save, SaveEvery) else None
    agenda = Agenda(
        sampling,
        config.log.every,
        stop.every,
        save_every,
        stop.budget,
        config.log.trace,
        config.run.compare_every,
        saves_on_request=save is not None and save_every is None,
        copy_every=copy.by_step() if isinstance(copy, SaveEvery) else None,
    )
    check_schedule_length(config.schedule, agenda.last_step())
    return agenda


SLOW_S = 8.0  # what samples may take without costing a step that could be saved


def training_patience(config: Config, ranks: Ranks, interruption: Interruption) -> Patience:
    """How a step waits for its samples: a worker that is only slow is waited for, so that the step
    is done and saved. One of several ranks cannot ask the others to leave.
    """

    def check() -> None:
        try:
            interruption.check()
        except LeavingError as leaving:
            if ranks.size == 1:
                raise
            raise AbandonedError(
                f"{leaving}, while rank {ranks.rank} waits for its samples: the next launch goes "
                "on from the last checkpoint."
            ) from None

    return Patience(data_limit_s(config.run.timeout_s), check, SLOW_S)


def open_feed(
    config: Config,
    data: RunData,
    sampling: Sampling,
    slots: range,
    device: torch.device,
    step: int,
    patience: Patience,
) -> Feed:
    """This rank's training micro-batches, from the step after `step` on."""
    return Feed(data.splits["train"], sampling, slots, device, data.num_workers, step, patience)


def open_trace(config: Config, ranks: Ranks, step: int) -> Trace | None:
    """With `log.trace`, the trace of the run on rank 0, cut back to `step`."""
    asked = config.log.trace and ranks.is_first()
    return Trace(config.run.dir / "trace.jsonl", step) if asked else None


def doubts(run: Run, data: RunData) -> list[str]:
    """Why the run may not be exact, as far as this rank knows at its start. No collectives."""
    return [*unsteady(run.feed, data, run.step), *reasons_against_elastic(run)]


def unsteady(feed: Feed, data: RunData, step: int) -> list[str]:
    """Why a micro-batch that is fetched twice may differ: something keeps a random state of its
    own, which depends on everything fetched before. No collectives. Raises DataError.
    """
    names = find_changes(feed.sample_batch(step), feed.sample_batch(step))
    if not names:
        return []
    split = data.splits["train"]
    owners = {"source": split.source, "treatments": split.treatments}
    kept = list(generators_of(**owners)) or ["something"]
    return [
        f"{some(names)} of data.train differs when it is fetched again ({some(kept)} keeps "
        "a random state of its own): draw from `seeds`"
    ]


def facts_of(config: Config, data: RunData, machines: list[dict[str, str]]) -> dict[str, Any]:
    """What a manifest says of the run: digests of its data and of its config, and the machines."""
    return {
        "data": data.keys,
        "num_samples": {name: len(split) for name, split in data.splits.items()},
        "config": config_hashes(config),
        "environment": machines,
        "code": code_of(config.specs()),
        CLASSES: data.class_names,
    }


def introduce(run: Run, shown: Shown) -> None:
    """Record the launch, and print what begins, how to read its training metrics,
    and what the stop settings say of the run so far.
    """
    config, console = run.config, run.tracker.console
    wanted = config.stop.train_metrics
    kinds = {
        "interval": "of the interval's own batches, while the network changes",
        "full": "a true evaluation of the training split",
    }
    metrics = (
        f"a true evaluation of {wanted.samples:,} fixed training samples"
        if isinstance(wanted, TrainSample)
        else kinds[wanted]
    )
    launch = run.launch
    facts = {"launch": launch.number, "world_size": run.ranks.size, "run_id": launch.run_id}
    names = run.facts[CLASSES]
    known = {name: names[of] for name, of in targets_of(run.task).items() if of in names}
    facts |= {CLASSES: known} if known else {}
    run.tracker.event("launch", run.position(), **facts, train_metrics=metrics)
    console.say(
        f"{run.directory}: launch {launch.number} on {run.ranks.size} x {len(run.slots)} slots of "
        f"{run.sampling.micro_size} samples, {run.sampling.num_samples:,} an epoch"
    )
    console.say(f"train/ metrics: {metrics}")
    if run.engine.recomputed:
        names = some(run.engine.recomputed)
        console.say(f"{run.directory}: the backward pass runs {names} again")
    if run.engine.shards is not None:
        console.say(f"{run.directory}: {run.engine.shards.description()}")
    verdict = run.progress.verdict
    if verdict is not None:
        console.say(
            f"for the history so far, the stop settings say: {verdict.action}: {verdict.detail}"
        )
    console.phase("warm-up: the first pass through the network")
    console.expect(run.agenda.last_step(), config.stop.budget, shown)


def open_store(config: Config, ranks: Ranks, launch: Launch, lease: Lease) -> CheckpointStore:
    """The run's checkpoints, written by this launch. Called by every rank."""
    settings = config.checkpoint
    kept = Retention(settings.keep_last, settings.keep_best, settings.keep_every)
    return store_in(config.run.dir / "checkpoints", kept, settings, ranks, launch, lease)


def open_copies(
    config: Config, engine: Engine, ranks: Ranks, launch: Launch, lease: Lease, ledger: Ledger
) -> Copies | None:
    """What is kept in memory, if the config asks for it. Called by every rank. Raises
    ConfigError.
    """
    settings = config.checkpoint
    if settings.in_memory is None:
        return None
    directory, machines = ranks.together(copies_directory), Machines.of(ranks)
    if machines.is_first:
        forget_others(directory, launch.checkpoint)
    mirror = Mirror(directory, machines) if machines.number > 1 else None
    store = store_in(directory, Retention(1, 0), settings, ranks, launch, lease, mirror)
    by_clock = settings.model_copy(update={"every": settings.in_memory})
    return Copies(store, open_pace(by_clock, engine, ranks, ledger))


def store_in(
    directory: Path,
    kept: Retention,
    settings: CheckpointConfig,
    ranks: Ranks,
    launch: Launch,
    lease: Lease,
    mirror: Mirror | None = None,
) -> CheckpointStore:
    """Called by every rank."""
    return CheckpointStore(
        directory,
        ranks,
        kept,
        run_id=launch.run_id,
        attempt=f"{launch.run_id}-{launch.number}",
        fence=lease.check,
        max_failures=settings.max_failures,
        timeout_s=settings.timeout_s,
        model_layout=settings.model_layout,
        mirror=mirror,
        found=launch.checkpoint,
    )


def open_pace(
    settings: CheckpointConfig, engine: Engine, ranks: Ranks, ledger: Ledger
) -> Pace | None:
    """On rank 0 the clock that times saves, if one does."""
    # About what each rank copies for one: weights and, as most optimizers have, two moments
    share_bytes = 3 * sum(one.nbytes for one in engine.network.parameters()) // ranks.size
    return pace_of(settings, ledger, share_bytes) if ranks.is_first() else None


def files_beside(
    engine: Engine, data: RunData, task: Task, say: Callable[[str], None]
) -> dict[str, str]:
    """Texts by name that lie beside the weights of each checkpoint, so that it can be used without
    what the run began from.
    """
    names = data.class_names.get(str(getattr(task, "target", None)), ())
    files = {**extra_files_of(engine.network, names), **dump_parts(engine.birth.kept_parts)}
    for number, owner in enumerate([*data.treatments, task]):
        for name, text in files_beside_of(owner).items():
            if files.setdefault(name, text) != text:
                other = f"{type(owner).__name__}-{number}.{name}"
                files[other] = text
                say(f"another {name} lies beside checkpoints already: this one is called {other}")
    return files


def first_batch(split: Split, sampling: Sampling) -> Batch:
    """A micro-batch for finding out what the network does with one: as in training, but without
    augmentation.
    """
    indices = np.arange(min(len(split), sampling.micro_size), dtype=np.int64)
    return split.fetch(indices, indices.astype(np.uint64), 0, training=False)

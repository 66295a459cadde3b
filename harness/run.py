"""From a config to a run: the only composition root."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from harness import components
from harness.agenda import Agenda
from harness.checkpoint import CheckpointStore, Loaded, Retention, choose, load, load_trainer, restore_network, restore_optimizer, set_aside_newer
from harness.checkpoint.read import read_manifest
from harness.config import Config, SplitConfig, identity_changes, read_config, resolved_yaml
from harness.console import Console
from harness.engine import Engine
from harness.errors import CheckpointError, ConfigError
from harness.evaluation import EvaluationPlan, fixed_sample
from harness.interrupt import Interruption
from harness.lease import Lease
from harness.ledger import Ledger
from harness.loading import Batch, Feed, Split
from harness.loop import fit
from harness.metrics import IntervalMetrics
from harness.outcome import Outcome, read_outcome
from harness.parts import Run
from harness.randomness import restore_ambient, seed_ambient, seed_for
from harness.ranks import Pulse, Ranks
from harness.sampling import Sampling
from harness.stop_settings import TrainSample
from harness.stopping import MetricInfo, StopController
from harness.tasks import Task
from harness.trace import Trace
from harness.tracking import Tracker
from harness.warm_start import read_weights, warm_start
from harness.window import LossWindow

SUPERSEDED = ("checkpoints", "config.yaml", "metrics.jsonl", "outcome.json", "ledger.json", "trace.jsonl")


@dataclass(frozen=True)
class Place:
    """Where a launch goes on: rank 0's choice. `checkpoint` is None at the beginning of a run."""

    run_id: str
    launches: int
    checkpoint: Path | None


def train(config: Config, accelerator: Accelerator, ranks: Ranks) -> Outcome:
    """Run a training to its end, from wherever it stands. Called by every rank. Raises HarnessError."""
    directory = config.run.dir
    ledger = Ledger(directory / "ledger.json" if ranks.is_first() else None)
    lease = Lease(directory)
    tracker: Tracker | None = None
    with Console(ranks.is_first()) as console, Interruption() as interruption:
        launches = ranks.decide(lambda: take(lease, console))
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
                return fit(run)
            finally:
                run.store.close()
        finally:
            if tracker is not None:
                tracker.close()
            lease.release()


def take(lease: Lease, console: Console) -> int:
    """Hold the run directory against other launches; returns the number of launches so far. Rank 0 only. Raises HarnessError."""
    launches = lease.take()
    if lease.message:
        console.say(lease.message)
    return launches


def finished_outcome(config: Config) -> dict[str, Any] | None:
    """The outcome of a run that the present settings would end where it ended; None if it goes on or has not begun. Rank 0 only."""
    outcome = read_outcome(config.run.dir)
    if outcome is None or not outcome.finished or config.run.resume not in ("auto", "must"):
        return None
    if outcome.reason == "stop_requested":
        return outcome.to_json() if (config.run.dir / "STOP").exists() else None
    if outcome.reason == "diverged":
        same = (config.run.dir / "config.yaml").read_text() == resolved_yaml(config)
        return outcome.to_json() if same else None
    chosen = choose(config.run.dir / "checkpoints", config.run.resume, verify="size")
    if chosen.path is None:
        return None
    task: Task = components.build(config.task, "task")
    verdict = StopController(config.stop, known_metrics(config, task)).restore(load_trainer(chosen.path)["stop"])
    return outcome.to_json() if verdict is not None and verdict.stops else None


def find_place(config: Config, console: Console) -> dict[str, Any]:
    """Choose the checkpoint to go on from, and leave the resolved config in the run directory. Rank 0 only. Raises HarnessError."""
    directory = config.run.dir
    if config.run.resume == "never" and config.run.overwrite:
        set_aside(directory, console)
    choice = choose(directory / "checkpoints", config.run.resume, verify=config.checkpoint.verify)
    for reason in choice.skipped:
        console.say(f"warning: {reason}")
    run_id = secrets.token_hex(4)
    if choice.path is not None:
        changes = identity_changes(read_config(choice.path / "config.yaml"), config)
        if changes:
            raise ConfigError(
                f"{directory}: {choice.path.name} belongs to another training. What identifies a run has changed:\n  "
                + "\n  ".join(changes)
                + "\nTake the changes back, or choose another run.dir."
            )
        run_id = load_trainer(choice.path)["run_id"]
        console.say(f"{directory}: going on from {choice.path.name}")
        if choice.path.resolve().parent == (directory / "checkpoints").resolve():
            for name in set_aside_newer(directory / "checkpoints", read_manifest(choice.path).step):
                console.say(f"warning: {name} is newer and was set aside")
    try:
        (directory / "config.yaml").write_text(resolved_yaml(config))
        (directory / "outcome.json").unlink(missing_ok=True)  # it was of an earlier launch
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror}. Make the run directory writable or choose another run.dir.") from error
    return {"run_id": run_id, "checkpoint": None if choice.path is None else str(choice.path)}


def set_aside(directory: Path, console: Console) -> None:
    """Move what an earlier run left into a directory of its own inside the run directory; nothing is deleted. Rank 0 only."""
    present = [name for name in SUPERSEDED if (directory / name).exists()]
    if not (directory / "checkpoints").exists():
        return
    number = 1 + sum(1 for _ in directory.glob("superseded-*"))
    target = directory / f"superseded-{number}"
    target.mkdir()
    for name in present:
        os.rename(directory / name, target / name)
    console.say(f"{directory}: the earlier run was moved to {target.name}/")


def build(
    config: Config, accelerator: Accelerator, ranks: Ranks, place: Place, interruption: Interruption, ledger: Ledger, lease: Lease, tracker: Tracker
) -> Run:
    """All parts of a run, with the state of its checkpoint if there is one. Called by every rank. Raises HarnessError."""
    names = ("train", "val") if config.data.val is not None else ("train",)
    task: Task = ranks.together(lambda: components.build(config.task, "task"))
    splits = ranks.together(lambda: build_splits(config, task, names))
    sampling = Sampling(len(splits["train"]), config.batch.size, config.batch.micro_size, config.run.seed)
    slots = ranks.together(lambda: sampling.slots_of(ranks.rank, ranks.size))
    engine = ranks.together(lambda: Engine(config, accelerator, ranks.size, task, first_batch(splits["train"], sampling)))
    controller = ranks.together(lambda: StopController(config.stop, known_metrics(config, task)))
    agenda = Agenda(sampling, config.log.every, config.stop.every, config.checkpoint.every, config.stop.budget, config.log.trace)
    with ledger.account("resume"):
        loaded = ranks.together(lambda: load_state(place, engine, sampling, ranks))
    origin = config.run.init_from
    if loaded is None and origin is not None:
        tracker.console.say(ranks.together(lambda: warm_start(engine.network, read_weights(origin), f"run.init_from: {origin}")))
    trainer = None if loaded is None else loaded.trainer
    step = 0 if loaded is None else loaded.manifest.step
    if ranks.is_first():
        ledger.resume(None if trainer is None else trainer["ledger"])
    tracker.console.expect(agenda.last_step())
    ranks.decide(lambda: tracker.begin(config, place.run_id, step))
    engine.wrap(ranks)
    losses = LossWindow(ranks)
    train_metrics = IntervalMetrics(task.metrics())
    verdict = None
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
        store=CheckpointStore(
            config.run.dir / "checkpoints",
            ranks,
            Retention(config.checkpoint.keep_last, config.checkpoint.keep_best, config.checkpoint.keep_every),
            run_id=place.run_id,
            attempt=f"{place.run_id}-{place.launches}",
            fence=lease.check,
            max_failures=config.checkpoint.max_failures,
            timeout_s=config.checkpoint.timeout_s,
        ),
        tracker=tracker,
        trace=Trace(config.run.dir / "trace.jsonl", step) if config.log.trace and ranks.is_first() else None,
        ledger=ledger,
        step=step,
        verdict=verdict,
        launches=place.launches,
        facts={"num_samples": {name: len(split) for name, split in splits.items()}},
    )
    restore_randomness(loaded, run)
    tracker.event("launch", run.position(), launch=place.launches, world_size=ranks.size, run_id=place.run_id)
    return run


def build_splits(config: Config, task: Task, names: tuple[str, ...]) -> dict[str, Split]:
    """The named splits of a config's data. Raises ConfigError and DataError."""
    built = {}
    for name in names:
        split: SplitConfig | None = getattr(config.data, name)
        where = f"data.{name}"
        if split is None:
            raise ConfigError(f"{where}: the config has no such split. Give {where}.source.")
        source = components.build(split.source, f"{where}.source")
        treatments = [components.build(spec, f"{where}.treatments[{index}]") for index, spec in enumerate(split.treatments)]
        built[name] = Split(source, treatments, where, task.check)
    return built


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


def known_metrics(config: Config, task: Task) -> dict[str, MetricInfo]:
    """What the stop settings may name: the task's metrics on each split that is evaluated."""
    names = ("train", "val") if config.data.val is not None else ("train",)
    return {f"{split}/{name}": info for split in names for name, info in task.infos().items()}


def load_state(place: Place, engine: Engine, sampling: Sampling, ranks: Ranks) -> Loaded | None:
    """Read the chosen checkpoint and put its weights and moments in. Raises CheckpointError."""
    if place.checkpoint is None:
        return None
    loaded = load(place.checkpoint, rank=ranks.rank, num_ranks=ranks.size, device=torch.device("cpu"))
    if loaded.trainer["num_samples"] != sampling.num_samples:
        raise CheckpointError(
            f"{place.checkpoint}: data.train had {loaded.trainer['num_samples']} samples and has {sampling.num_samples}: "
            "the run cannot go on exactly. Bring the data back, or choose another run.dir."
        )
    restore_network(engine.network, loaded)
    restore_optimizer(engine.optimizer, engine.parameter_names(), loaded.optimizer, loaded.trainer["optimizer"])
    engine.restore_rest(loaded.trainer["schedule"], loaded.trainer["scaler"])
    return loaded


def restore_randomness(loaded: Loaded | None, run: Run) -> None:
    """The ambient generators as they were; last, so that nothing draws after it. On another number of ranks they are those of the step's boundary."""
    seed_ambient(seed_for(run.sampling.seed, "update", run.step - 1))
    if loaded is not None and loaded.rng is not None:
        rng = loaded.rng
        run.ranks.together(lambda: restore_ambient(rng))

"""The data of a run, opened on every rank; rank 0 prepares and checks it, however long it takes."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness import components
from harness.checkpoint.manifest import CLASSES
from harness.checkpoint.read import load_trainer, read_manifest
from harness.checks.check import check_data
from harness.components import TARGET
from harness.config.schema import Config
from harness.console import Console
from harness.data.columns import column_of
from harness.data.content import digest
from harness.data.feed import Patience, evaluation_batches
from harness.data.preparing import (
    FIT_SAMPLES,
    Feedback,
    Preparation,
    Sources,
    TreatmentState,
    build_treatments,
    open_splits,
    prepare,
    store_shelf,
)
from harness.data.sampling import Balance, Order
from harness.data.settings import DataConfig
from harness.data.shelf import Shelf, temporary_readings, temporary_shelf
from harness.data.source import Treatment, class_names_of, may_have_order, order_of, skipped_of
from harness.data.split import Split
from harness.data.streams import StreamSource
from harness.durable import write_json
from harness.errors import ConfigError
from harness.interrupt import Interruption
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import slowly, together_slowly
from harness.tasks.learning import learn, restore_learners
from harness.tasks.task import Task
from harness.training.run import Launch
from harness.training.workers import settle_workers


@dataclass(frozen=True)
class RunData:
    """The splits for training, a digest of each, what treatments learned, all treatments of the
    training split (the store may have done some), what is drawn evenly, the order that the source
    of the training split gives, the names of classes by column, how many workers prepare
    micro-batches.
    """

    splits: Mapping[str, Split]
    keys: Mapping[str, str]
    learned: Sequence[TreatmentState]
    treatments: Sequence[Treatment]
    balance: Balance | None
    order: Order | None
    class_names: Mapping[str, Sequence[str]]
    num_workers: int


def open_data(
    config: Config,
    ranks: Ranks,
    launch: Launch,
    task: Task,
    console: Console,
    interruption: Interruption,
) -> RunData:
    """The data of a run.

    Called by every rank. Raises HarnessError.
    """
    console.phase("preparing the data")
    feedback = Feedback(console.say, interruption.check, console.progress)
    with shelf_of(config.data, ranks, feedback) as (shelf, is_leader):
        return _open_data(config, ranks, launch, task, console, feedback, shelf, is_leader)


@contextmanager
def shelf_of(
    config: DataConfig, ranks: Ranks, feedback: Feedback
) -> Iterator[tuple[Shelf | None, bool]]:
    """Where readings of files are kept for all ranks: in the store, else in a temporary directory
    of each machine; and whether this rank reads for the others of its machine.

    Called by every rank. Raises ConfigError.
    """
    is_local_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if config.store is not None:
        store = config.store
        yield ranks.together(lambda: store_shelf(store, feedback)), is_local_first
        return
    with temporary_readings(wanted=ranks.size > 1 and is_local_first) as made:
        offered = ranks.gather("" if made is None else str(made))
        # The first that this machine has
        chosen = next((path for path in offered if path and Path(path).is_dir()), None)
        is_leader = made is not None and str(made) == chosen
        yield None if chosen is None else temporary_shelf(Path(chosen)), is_leader


def _open_data(
    config: Config,
    ranks: Ranks,
    launch: Launch,
    task: Task,
    console: Console,
    feedback: Feedback,
    shelf: Shelf | None,
    is_leader: bool,
) -> RunData:
    names = ("train", "val") if config.data.val is not None else ("train",)
    sources = Sources(config.data, shelf)
    prepared = slowly(
        ranks, lambda: prepare_data(config, names, sources, launch, feedback), Preparation
    )
    if launch.checkpoint is None:
        slowly(ranks, lambda: check_splits(config, names, sources, console))
    opening = partial(open_splits, config.data, names, sources, prepared, task.check)
    # What one reads, the others of its machine map
    read = together_slowly(ranks, lambda: opening() if is_leader else None)
    splits = ranks.together(lambda: opening() if read is None else read)
    ranks.decide(lambda: list_left_out(config, splits))
    train, check_leave = splits["train"], feedback.check_leave
    learned = slowly(ranks, lambda: learn_task(config, task, train, launch, check_leave))
    restore_learners(task, learned)
    keys = ranks.decide(
        lambda: {
            name: digest([prepared.keys[name], split.fingerprint()])
            for name, split in splits.items()
        }
    )
    ranks.together(lambda: restore_stream(splits["train"], launch))
    balance = balance_of(config, sources, ranks)
    order = ranks.together(lambda: training_order(config, sources, prepared))
    treatments = ranks.together(lambda: build_treatments(config.data, "train", prepared.learned))
    names_of = ranks.decide(lambda: class_names(sources, treatments, launch))
    workers = settle_workers(config.data, config.batch.micro_size, train, ranks, console)
    learned_by = prepared.learned
    return RunData(splits, keys, learned_by, treatments, balance, order, names_of, workers)


def class_names(
    sources: Sources, treatments: Sequence[Treatment], launch: Launch
) -> Mapping[str, Sequence[str]]:
    """The names of classes by column, in the order of their numbers: as the source of the training
    split and its treatments give them when the run begins, and as its checkpoints keep them then.

    Rank 0 only.
    """
    if launch.checkpoint is not None:
        kept: Mapping[str, Sequence[str]] = read_manifest(launch.checkpoint).facts.get(CLASSES, {})
        return kept
    found = class_names_of(sources["train"])
    for treatment in treatments:
        found |= class_names_of(treatment)
    return found


def prepare_data(
    config: Config,
    names: tuple[str, ...],
    sources: Sources,
    launch: Launch,
    feedback: Feedback,
) -> Preparation:
    """What the run's treatments learned, or learn now, and what the store holds ready.

    Rank 0 only. Raises ConfigError and DataError.
    """
    learned = (
        None
        if launch.checkpoint is None
        else [TreatmentState(**one) for one in load_trainer(launch.checkpoint).get("learned", ())]
    )
    prepared = prepare(
        config.data,
        names,
        sources,
        learned,
        config.run.dir,
        feedback,
    )
    if learned is None and prepared.learned:
        write_json(
            config.run.dir / "treatments.json", [asdict(one) for one in prepared.learned], sync=True
        )
    return prepared


def list_left_out(config: Config, splits: Mapping[str, Split]) -> None:
    """Keep the whole list of what sources left out (`on_error: skip`) with the run; the warning
    names the first few. Rank 0 only.
    """
    left_out = {
        split.where: list(skipped)
        for split in splits.values()
        if (skipped := skipped_of(split.source))
    }
    path = config.run.dir / "left_out.json"
    if left_out:
        write_json(path, left_out, sync=True)
    else:
        path.unlink(missing_ok=True)


def check_splits(
    config: Config, names: tuple[str, ...], sources: Sources, console: Console
) -> None:
    """Look at the samples of a new run before its first step.

    Rank 0 only. Raises ConfigError and DataError.
    """
    check_data(
        config.data,
        config.task,
        config.stop.targets,
        {name: Split(sources[name], (), f"data.{name}", lambda batch: None) for name in names},
    ).enforce(console.say)


def learn_task(
    config: Config, task: Task, train: Split, launch: Launch, check_leave: Callable[[], None]
) -> Mapping[str, Any]:
    """What the task learned from the training split, or learns now.

    Rank 0 only. Raises DataError.
    """
    if launch.checkpoint is not None:
        states: Mapping[str, Any] = load_trainer(launch.checkpoint).get("task", {})
        return states
    blocks = evaluation_batches(
        train,
        FIT_SAMPLES,
        0,
        1,
        torch.device("cpu"),
        config.data.few_workers,
        patience=Patience(check=check_leave),
    )
    return learn(task, (batch for _, batch in blocks))


def balance_of(config: Config, sources: Sources, ranks: Ranks) -> Balance | None:
    """How samples are drawn, where all classes are to be equally frequent.

    Called by every rank. Raises ConfigError and DataError.
    """
    column = config.data.train.balance
    if column is None:
        return None
    return Balance.of(
        slowly(ranks, lambda: column_of(sources["train"], column, "data.train.balance"))
    )


def restore_stream(train: Split, launch: Launch) -> None:
    """Let a stream resume from where the checkpoint was, not from its beginning."""
    if isinstance(train.source, StreamSource) and launch.checkpoint is not None:
        mark = load_trainer(launch.checkpoint).get("stream")
        if mark is not None:
            train.source.restore(mark)


def training_order(config: Config, sources: Sources, prepared: Preparation) -> Order | None:
    """The order that the source of the training split gives to its samples, which one that is in
    the store is built for if it may have one. No collectives. Raises ConfigError.
    """
    target = components.find(config.data.train.source[TARGET])
    if "train" in prepared.stored and not may_have_order(target):
        return None
    order = order_of(sources["train"])
    if order is not None and config.data.train.balance is not None:
        raise ConfigError(
            "data.train.balance: the source is a mixture or a stream, which has an order of its "
            "own. Remove balance."
        )
    return order

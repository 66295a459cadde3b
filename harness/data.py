"""The data of a run, opened on every rank: prepared and checked by rank 0, however long that takes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from harness.checkpoint import load_trainer
from harness.checks import check_data
from harness.config import Config
from harness.console import Console
from harness.content import digest
from harness.interrupt import Interruption
from harness.known import column_of
from harness.loading import Split, evaluation_batches
from harness.place import Place
from harness.preparing import FIT_SAMPLES, Learned, Prepared, Prospect, Sources, open_splits, prepare
from harness.ranks import Ranks
from harness.sampling import Balance
from harness.store import write_json
from harness.tasks import Task, learn, restore_learners

HEARD_S = 10.0

T = TypeVar("T")


def slowly(ranks: Ranks, work: Callable[[], T], heard_s: float = HEARD_S) -> T:
    """As `ranks.decide`, for work that may last longer than a rank waits for another: it goes on in a thread, and the others hear that it does."""
    if ranks.size == 1:
        return ranks.decide(work)
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised on every rank below
            result.set_exception(error)

    if ranks.is_first():
        # A daemon: if a peer is lost meanwhile, this rank leaves at once, and nothing waits for the work to end.
        threading.Thread(target=run, name="fermarsi-slowly", daemon=True).start()
    while not ranks.decide(lambda: bool(wait([result], heard_s).done)):
        pass
    return ranks.decide(result.result)


def open_data(
    config: Config, ranks: Ranks, place: Place, task: Task, console: Console, interruption: Interruption
) -> tuple[dict[str, Split], dict[str, str], Sequence[Learned], Balance | None]:
    """The splits for training, a digest of each, what treatments learned, and what is drawn evenly. Called by every rank. Raises HarnessError."""
    names = ("train", "val") if config.data.val is not None else ("train",)
    sources = Sources(config)
    prepared = Prepared.from_json(slowly(ranks, lambda: prepare_data(config, names, sources, place, console, interruption.check).to_json()))
    if place.checkpoint is None:
        slowly(ranks, lambda: check_splits(config, names, sources, console))
    splits = ranks.together(lambda: open_splits(config, names, sources, prepared, task.check))
    ranks.decide(lambda: list_left_out(config, splits))
    restore_learners(task, slowly(ranks, lambda: taught(config, task, splits["train"], place)))
    keys = ranks.decide(lambda: {name: digest([prepared.keys[name], split.fingerprint()]) for name, split in splits.items()})
    return splits, keys, prepared.learned, balance_of(config, sources, ranks)


def prepare_data(config: Config, names: tuple[str, ...], sources: Sources, place: Place, console: Console, pause: Callable[[], None]) -> Prepared:
    """What the run's treatments learned, or learn now, and what the store holds ready. Rank 0 only. Raises ConfigError and DataError."""
    learned = None if place.checkpoint is None else [Learned(**one) for one in load_trainer(place.checkpoint).get("learned", ())]
    prepared = prepare(config, names, sources, learned, config.run.dir, Prospect(console.say, pause, console.progress))
    if learned is None and prepared.learned:
        write_json(config.run.dir / "treatments.json", [asdict(one) for one in prepared.learned])
    return prepared


def list_left_out(config: Config, splits: Mapping[str, Split]) -> None:
    """Keep the whole list of what sources left out (`on_error: skip`) with the run; the warning names the first few. Rank 0 only."""
    left_out = {split.where: list(skipped) for split in splits.values() if (skipped := getattr(split.source, "skipped", ()))}
    path = config.run.dir / "left_out.json"
    if left_out:
        write_json(path, left_out)
    else:
        path.unlink(missing_ok=True)


def check_splits(config: Config, names: tuple[str, ...], sources: Sources, console: Console) -> None:
    """Look at the samples of a new run before its first step. Rank 0 only. Raises ConfigError and DataError."""
    check_data(config, {name: Split(sources[name], (), f"data.{name}", lambda batch: None) for name in names}).enforce(console.say)


def taught(config: Config, task: Task, train: Split, place: Place) -> Mapping[str, Any]:
    """What the task learned from the training split, or learns now. Rank 0 only. Raises DataError."""
    if place.checkpoint is not None:
        states: Mapping[str, Any] = load_trainer(place.checkpoint).get("task", {})
        return states
    blocks = evaluation_batches(train, FIT_SAMPLES, 0, 1, torch.device("cpu"), config.data.num_workers)
    return learn(task, (batch for _, batch in blocks))


def balance_of(config: Config, sources: Sources, ranks: Ranks) -> Balance | None:
    """What samples are drawn by, where classes are to come equally often. Called by every rank. Raises ConfigError and DataError."""
    column = config.data.train.balance
    if column is None:
        return None
    return Balance.of(slowly(ranks, lambda: column_of(sources["train"], column, "data.train.balance")))

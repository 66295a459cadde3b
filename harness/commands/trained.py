"""The network of a checkpoint, and the splits of the config it was trained with."""

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from harness import components
from harness.checkpoint.manifest import CLASSES
from harness.checkpoint.read import document_errors, find_checkpoint, load, load_trainer
from harness.checkpoint.state import check_network, restore_network
from harness.components import TARGET
from harness.config import trust
from harness.config.read import read_config
from harness.config.schema import Config
from harness.data.feed import evaluation_batches
from harness.data.preparing import (
    Feedback,
    Sources,
    TreatmentState,
    build_treatments,
    count_once,
    open_source,
    prepare,
    store_shelf,
)
from harness.data.settings import SPLITS, SplitConfig
from harness.data.shelf import Shelf, current_shelf, shelved
from harness.data.source import as_columns, key_of, read_together
from harness.data.split import Split
from harness.data.store import EntrySource
from harness.errors import ConfigError, DataError
from harness.tasks.learning import restore_learners
from harness.tasks.task import Task, targets_of
from harness.training.birth import outline
from harness.training.fetching import built_for_a_checkpoint
from harness.training.network_state import to_channels_last
from harness.training.parallel import products_in
from harness.training.pretrained import load_parts

# Of a task, what an evaluation calls
_TASK_METHODS = ("forward", "loss_sum", "num_items", "fit_to", "metrics", "update", "values")


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of a checkpoint, with the config and the task it was trained with."""

    path: Path
    config: Config
    network: nn.Module
    task: Task
    device: torch.device
    learned: Sequence[TreatmentState]
    allow: Sequence[str]
    class_names: Sequence[str] = ()  # of the task's target, in the order of their numbers
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the same by column

    @property
    def num_workers(self) -> int:
        """Processes that prepare micro-batches: no more than this machine has processors, whatever
        the checkpoint's config says.
        """
        return min(self.config.data.few_workers, os.cpu_count() or 1)

    @property
    def micro_size(self) -> int:
        """Samples of a forward pass, as in the training's evaluations."""
        return self.config.evaluation.micro_size or self.config.batch.micro_size


def load_trained(
    path: Path,
    allow: Sequence[str] = (),
    device: torch.device | None = None,
    *,
    weights: bool = True,
) -> TrainedNetwork:
    """Build the network of a run or checkpoint and put its weights in; `device`: by default a GPU
    if there is one; weights: else its parameters have no memory. Raises HarnessError.

    A checkpoint is data: the components that its config may name are limited, see trust.py;
    `allow` adds prefixes of components and directories of files.
    """
    found = find_checkpoint(path)
    config = read_config(found / "config.yaml", allow=allow, network=load_parts(found))
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with built_for_a_checkpoint(lambda text: warnings.warn(text, stacklevel=5)):
        network = _network(config) if weights else outline(config).network
    loaded = load(found, rank=0, num_ranks=0)
    if weights:
        restore_network(network, loaded)
    else:
        check_network(network.state_dict(), loaded.model)
    with document_errors(found):
        trainer = load_trainer(found)
        learned = [TreatmentState(**one) for one in trainer.get("learned", ())]
        learners = trainer.get("task", {})
    task = _task(config)
    with document_errors(found):
        restore_learners(task, learners)
    if weights:
        network = _as_evaluated(network, config, device)
    with document_errors(found):
        classes = class_names(loaded.manifest.facts)
    names = classes.get(str(getattr(task, "target", None)), ())
    return TrainedNetwork(found, config, network, task, device, learned, allow, names, classes)


def _as_evaluated(network: nn.Module, config: Config, device: torch.device) -> nn.Module:
    network = network.to(device).eval()
    if config.train.channels_last:
        to_channels_last(network)
    network = in_precision(network, config.train.precision, device)
    products = products_in(config.train.matmul_precision, config.run.exactness)
    network.forward = with_products(network.forward, products)
    return network


def class_names(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """{column: names of its classes} by a manifest. Raises TypeError."""
    classes: dict[str, list[str]] = facts.get(CLASSES, {})
    for names in classes.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{CLASSES}: {names!r} are no names")
    return classes


def _network(config: Config) -> nn.Module:
    found = components.build(config.network, "network")
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"network: {config.network[TARGET]} builds a {type(found).__name__}, which is not "
            "a torch.nn.Module. The checkpoint is not from a training of this version."
        )
    return found


def _task(config: Config) -> Task:
    found: Task = components.build(config.task, "task")
    lacks = [name for name in _TASK_METHODS if not callable(getattr(found, name, None))]
    if lacks:
        raise ConfigError(
            f"task: {config.task[TARGET]} has no {', '.join(lacks)}, so it is not a task. "
            "The checkpoint is not from a training of this version."
        )
    return found


def in_precision(network: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """The network with forward passes in the precision of its training and evaluations, as
    Accelerate makes them: under autocast, outputs in float32.

    Raises ConfigError for fp16 without a GPU.
    """
    if precision == "no":
        return network
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision: the run was evaluated in fp16, which needs a CUDA device, but none "
            "is available. Use a machine with a GPU."
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    forward = torch.autocast(device.type, dtype=dtype)(network.forward)
    network.forward = convert_outputs_to_fp32(forward)
    return network


def with_products(forward: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """The same with this precision of float32 products (torch.set_float32_matmul_precision), which
    afterwards is as it was.
    """

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return forward(*args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def open_split(
    trained: TrainedNetwork,
    name: str,
    source: Mapping[str, Any] | None = None,
    option: str = "--source",
) -> Split:
    """A split of the trained config, with another source if one is given, by an option; the split's
    treatments are used.
    """
    if name not in SPLITS:
        raise ConfigError(f"split: no such split: {name}. There are train, val and test.")
    data = trained.config.data
    if name not in data.names:
        raise ConfigError(
            f"split: {trained.path}/config.yaml has no data.{name}. It has {', '.join(data.names)}."
        )
    spec = getattr(data, name)
    where = f"data.{name}" if source is None else option
    if source is None:
        trust.check_files(spec.source, f"{where}.source", trained.allow)
    with document_errors(trained.path):
        treatments = build_treatments(data, name, trained.learned)
    if source is not None:
        opened = components.build(source, where)
        found = as_columns(read_together(opened, [0])).keys() if len(opened) else ()
        lacks = {*targets_of(trained.task).values()} - {*found}
        # Nothing is to be done to targets that new samples do not have
        treatments = [one for one in treatments if key_of(one) not in lacks]
        return Split(opened, treatments, where, trained.task.check_input)
    entry = _stored(trained, name)
    if entry is not None:
        done = count_once(spec.treatments, treatments)
        stored = EntrySource(entry)
        if hasattr(components.find(spec.source[TARGET]), "own_numbers"):
            stored.open = functools.partial(_open, trained, spec, name)
        return Split(stored, treatments[done:], where, trained.task.check)
    return Split(_open(trained, spec, name), treatments, where, trained.task.check)


def _open(trained: TrainedNetwork, spec: SplitConfig, name: str) -> Any:
    with shelved(_shelf(trained)):
        return open_source(spec, name)


def _shelf(trained: TrainedNetwork) -> Shelf | None:
    """The readings in the config's store, if there is one here that may be read; what is not there
    is read for the current shelf.
    """
    store, current = trained.config.data.store, current_shelf()
    if store is None or not _may_read_store(trained):
        return current
    return store_shelf(store.dir, Feedback(), make=False, otherwise=current)


def _may_read_store(trained: TrainedNetwork) -> bool:
    store = trained.config.data.store
    if store is None or not store.dir.is_dir():
        return False
    try:
        trust.check_files({"dir": f"{store.dir}/"}, "data.store", trained.allow)
    except ConfigError:
        return False  # samples are the same without it
    return True


def _stored(trained: TrainedNetwork, name: str) -> Path | None:
    """The entry of the config's store that holds a split ready, if there is a store here that may
    be read, with one for the files as they are.
    """
    data = trained.config.data
    if data.store is None or not _may_read_store(trained):
        return None
    memo, sources = data.store.dir, Sources(data, _shelf(trained))
    found = prepare(data, [name], sources, trained.learned, memo, Feedback(), build=False)
    return Path(found.stored[name]) if name in found.stored else None


def fit_task(trained: TrainedNetwork, split: Split) -> None:
    """Let the task learn the shape of the outputs.

    Raises DataError if the network cannot take the split's samples.
    """
    for _, batch in evaluation_batches(
        split, 1, 0, 1, trained.device, 0, np.zeros(1, dtype=np.int64)
    ):
        with torch.no_grad():
            try:
                trained.task.fit_to(trained.task.forward(trained.network, batch))
            except Exception as error:
                raise DataError(
                    f"{split.where}: the network rejects its samples: {type(error).__name__}: "
                    f"{error}. Give samples of the shape and type that it was trained with."
                ) from error

"""A checkpoint's weights, moments and options in the objects of a launch."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness import components
from harness.checkpoint.read import LoadedState, document_errors, load
from harness.checkpoint.state import restore_network, restore_optimizer
from harness.config import trust
from harness.config.read import read_stored
from harness.config.schema import Config
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.training.agreement import state_of
from harness.training.average import AVERAGED
from harness.training.engine import Engine
from harness.training.optimizer import (
    TRAINED,
    adopt_changes,
    parameter_names,
    regroup,
)
from harness.training.parallel import find_differing
from harness.training.resume import compare_data, schedule_name
from harness.training.run import Launch
from harness.training.schedule import cycled_options
from harness.wording import some

# Of an optimizer in the checkpoint that a launch resumes from
_HOW_TO_TRUST = "name it in your own config and begin another run with run.init_from"


def load_state(
    config: Config, launch: Launch, engine: Engine, data: Mapping[str, str], ranks: Ranks
) -> LoadedState | None:
    """Read the chosen checkpoint and put its weights and moments in.

    Called by every rank. Raises CheckpointError, also if `data` (fingerprints by split) has
    changed.
    """
    checkpoint = launch.checkpoint
    if checkpoint is None:
        return None

    def open_checkpoint() -> tuple[LoadedState, dict[str, Any]]:
        loaded = load(checkpoint, rank=ranks.rank, num_ranks=ranks.size)
        with document_errors(checkpoint):
            if config.run.exactness != "none":
                compare_data(config, checkpoint, loaded.manifest.facts, data)
            return loaded, regroup(loaded.trainer["optimizer"], engine.optimizer, names)

    names = parameter_names(engine.network)
    loaded, groups = ranks.together(open_checkpoint)
    restore_network(engine.network, loaded, ranks)
    with document_errors(checkpoint):
        moments = loaded.optimizer.without(TRAINED).without(AVERAGED)
        restore_optimizer(engine.optimizer, names, moments, groups, ranks)
        restore_weights(engine, loaded, ranks)
    _require_alike(checkpoint, engine, ranks)
    ranks.together(lambda: _restore_options(config, checkpoint, loaded, engine))
    return loaded


def restore_weights(engine: Engine, loaded: LoadedState, ranks: Ranks) -> None:
    """The trained weights and their averages, where the network was given others or only one of
    them as the checkpoint's model. Called by every rank.
    """
    stored, average = loaded.optimizer, engine.stepper.average
    names, parameters = parameter_names(engine.network), engine.stepper.parameters()
    if average is not None and loaded.trainer["ema_updates"]:
        kept = {key: one for one in parameters if (key := AVERAGED + names[one]) in stored}
        room = {
            key: torch.empty_like(one, dtype=stored.kind(key)[0], requires_grad=False)
            for key, one in kept.items()
        }
        stored.fill(room, ranks)
        averages = [room.get(AVERAGED + names[one], one) for one in parameters]
        average.restore(averages, loaded.trainer["ema_updates"])
    if any(key.startswith(TRAINED) for key in stored):
        stored.fill({TRAINED + names[one]: one for one in parameters}, ranks)


def _require_alike(checkpoint: Path, engine: Engine, ranks: Ranks) -> None:
    """Raise CheckpointError if machines read different bytes; each verified some of the files."""
    if len(set(ranks.gather(platform.node()))) == 1:
        return
    names = find_differing(dict(state_of(engine)), ranks, engine.device)
    if names:
        raise CheckpointError(
            f"{checkpoint}: {some(names)}: not the same on all ranks once read: the machines "
            "see different files there, or one of them reads wrongly. Make run.dir a directory "
            "that they share, and check its disk."
        )


def _restore_options(config: Config, checkpoint: Path, loaded: LoadedState, engine: Engine) -> None:
    before = read_stored(checkpoint / "config.yaml")
    own = components.targets_in(config.optimizer)
    trust.check_code(before.optimizer, f"{checkpoint}: optimizer", own, _HOW_TO_TRUST)
    built_before = engine.optimizer_of(before.optimizer, before.parts)
    cycled = cycled_options(engine.schedule)
    adopt_changes(engine.optimizer, built_before, engine.fresh_groups, cycled)
    same = schedule_name(before) == schedule_name(config)
    with document_errors(checkpoint):
        schedule = loaded.trainer["schedule"] if same else None
        engine.restore_rest(schedule, loaded.trainer["scaler"], loaded.manifest.step)

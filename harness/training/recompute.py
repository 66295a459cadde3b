"""Activations that a backward pass computes again instead of keeping them, with the same bits."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.errors import ConfigError
from harness.randomness import Generator, capture_random, generators_of, restore_random
from harness.wording import did_you_mean, some


def recompute(network: nn.Module, setting: Literal["auto"] | Sequence[str]) -> list[str]:
    """Let modules of a network keep nothing but their inputs from forward to backward pass, where
    they run again; gives their names (Chen et al., "Training deep nets with sublinear memory cost",
    2016).

    setting: patterns of names, such as `blocks.*`; "auto": the blocks that repeat. Of modules
    inside of each other the outermost is taken. Raises ConfigError.
    """
    where = "train.recompute"
    names = (
        repeated_blocks(network, where) if setting == "auto" else matching(network, setting, where)
    )
    theirs = sys.modules.get("transformers.modeling_layers")  # else no module is of its classes
    for name in names:
        module = network.get_submodule(name)
        run = partial(_run, module, cache(partial(generators_of, network=module)))
        if theirs is not None and isinstance(module, theirs.GradientCheckpointingLayer):
            # Without their caches
            vars(module).update(gradient_checkpointing=True, _gradient_checkpointing_func=run)
        else:
            # As an attribute: names of parameters stay as they are
            module.forward = partial(run, module.forward)
    return names


def matching(
    network: nn.Module, patterns: Sequence[str], where: str = "train.recompute"
) -> list[str]:
    """The outermost modules whose names match a pattern; `where`: the setting that has them. Raises
    ConfigError for one that matches none.
    """
    known = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(
                f"{where}: no module of the network matches {pattern!r}: it has "
                f"{some(known)}.{did_you_mean(pattern, known)}"
            )
    found: list[str] = []
    for name in known:  # outer ones come first
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            found.append(name)
    return found


def repeated_blocks(network: nn.Module, where: str = "train.recompute") -> list[str]:
    """The modules that a network repeats: those that transformers says are not to be split, or else
    neighbours of one class that have modules of their own; `where`: the setting that asks. Raises
    ConfigError if there are none.
    """
    whole = set(getattr(network, "_no_split_modules", None) or ())
    found: list[str] = []
    for name, module in network.named_modules():
        if any(name == outer or name.startswith(f"{outer}.") for outer in found):
            continue
        children = [(key, one) for key, one in module.named_children() if any(one.children())]
        kinds = [type(one) for _, one in children]
        found += [
            f"{name}.{key}".lstrip(".")
            for key, one in children
            if (type(one).__name__ in whole if whole else kinds.count(type(one)) > 1)
        ]
    if not found:
        raise ConfigError(
            f"{where}: auto finds no blocks that repeat in this network. Name modules by "
            "patterns, e.g. [encoder.*]."
        )
    return found


def _run(
    module: nn.Module,
    own: Callable[[], Mapping[str, Generator]],
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        kept = [
            (one, key, None if tensor is None else tensor.detach().clone())
            for one in module.modules()
            for key, tensor in one._buffers.items()
        ]
        return nullcontext(), _as_before(kept, capture_random(own()), own())

    # All generators are put back here: torch knows only its own
    return checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs
    )


@contextmanager
def _as_before(
    kept: Sequence[tuple[nn.Module, str, Tensor | None]],
    random: Mapping[str, Tensor],
    own: Mapping[str, Generator],
) -> Iterator[None]:
    """Inside, generators and buffers are as they were at the forward pass; the buffers in other
    memory, because the backward pass may need what they hold then.
    """
    buffers = [(one, key, one._buffers[key]) for one, key, _ in kept]
    now = capture_random(own)
    restore_random(random, own)
    for one, key, tensor in kept:
        one._buffers[key] = tensor
    try:
        yield
    finally:
        for one, key, tensor in buffers:
            one._buffers[key] = tensor
        restore_random(now, own)

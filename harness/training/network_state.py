"""All of a network's state, not only what a checkpoint holds: to put it back as it was, and to find
what a forward pass changes that no checkpoint holds.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy

from harness.checkpoint.state import same_bits
from harness.errors import ConfigError
from harness.wording import some

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OWN = frozenset(vars(nn.Module()))  # what every module has
_MISSING = object()


@dataclass(frozen=True)
class _Buffer:
    module: nn.Module
    key: str
    tensor: Tensor | None
    values: Tensor | None


class BufferState:
    """A network's buffers at one time."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.kept = {
            name: _Buffer(module, key, tensor, None if tensor is None else tensor.detach().clone())
            for name, module, key, tensor in _buffers(network)
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back, each into its own memory."""
        for name, module, key, _ in [*_buffers(self._network)]:
            if name not in self.kept:
                del module._buffers[key]
        for one in self.kept.values():
            if one.tensor is None or one.values is None or _is_expanded(one.tensor):
                one.module._buffers[one.key] = one.values  # nothing can be put into its memory
                continue
            one.module._buffers[one.key] = one.tensor
            if not one.tensor.numel():
                continue
            if one.tensor.is_inference():  # torch counts no writes
                one.tensor.copy_(one.values)
                continue
            # No write to what it was: several ranks would take it for changed
            with _unsafe_preserve_version_counter(one.tensor):
                one.tensor.copy_(one.values)


class NetworkState:
    """A network's parameters, buffers, extra state and plain attributes at one time."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._parameters = {
            name: parameter.detach().clone() for name, parameter in network.named_parameters()
        }
        self._buffers = BufferState(network)
        self._extra = {name: copy.deepcopy(extra) for name, _, extra in _extra_states(network)}
        self._attributes = attributes_of(network)

    def check_buffers(self) -> None:
        """Raise ConfigError for a buffer that is of another shape or type by now: a checkpoint of
        it could not be loaded.
        """
        for name, _, _, tensor in _buffers(self._network):
            kept = self._buffers.kept.get(name)
            before = None if kept is None else kept.values
            if _kind(tensor) != _kind(before):
                raise ConfigError(
                    f"network: a forward pass turns the buffer {name} from {_kind(before)} into "
                    f"{_kind(tensor)}: no checkpoint of it could be loaded. Register it with "
                    "the shape and type that it keeps."
                )

    def changed_parameters(self) -> list[str]:
        """The names of those that hold other bits by now."""
        return [
            name
            for name, one in self._network.named_parameters()
            if not same_bits(one.detach(), self._parameters[name])
        ]

    def restore(self) -> None:
        """Put everything back, each tensor into its own memory."""
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                parameter.copy_(self._parameters[name])
        self._buffers.restore()
        now = attributes_of(self._network)
        modules = dict(self._network.named_modules())
        for key in {*now, *self._attributes}:
            value = self._attributes.get(key, _MISSING)
            if _equal(now.get(key, _MISSING), value):
                continue
            module = modules[key[0]]
            if value is _MISSING:
                delattr(module, key[1])
            else:
                setattr(module, key[1], copy.deepcopy(value))
        for name, module, _ in _extra_states(self._network):
            module.set_extra_state(copy.deepcopy(self._extra[name]))


def give_buffers_memory(network: nn.Module) -> None:
    """Expanded buffers, several of whose elements share memory, as plain ones: nothing could be
    put back into them.
    """
    for _, module, key, tensor in [*_buffers(network)]:
        if tensor is not None and not is_lazy(tensor) and _is_expanded(tensor):
            module._buffers[key] = tensor.contiguous()


def to_channels_last(network: nn.Module) -> None:
    """Keep what has four axes, such as the weights of convolutions over pictures, with the channels
    last in memory; what has others stays as it is.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def check_extra_states(network: nn.Module) -> None:
    """Raise ConfigError for extra state that a checkpoint cannot hold."""
    wrong = [name for name, _, extra in _extra_states(network) if not isinstance(extra, Tensor)]
    if wrong:
        raise ConfigError(
            f"network: get_extra_state of {some([name or 'the network' for name in wrong])} gives "
            "no tensor, and a checkpoint holds nothing else (no pickle). Return a tensor."
        )


def unsaved_state(network: nn.Module) -> dict[str, Any]:
    """{name: value} of what a checkpoint does not hold and a forward pass may change: attributes of
    plain values, and buffers with persistent=False. Modules with extra state say for themselves
    what is to be kept.
    """
    own = {name for name, _, _ in _extra_states(network)}
    found = {
        f"{name}.{attribute}".lstrip("."): value
        for (name, attribute), value in attributes_of(network).items()
        if name not in own
    }
    for name, module, key, tensor in _buffers(network):
        if key in module._non_persistent_buffers_set and tensor is not None:
            found[name] = tensor.detach().clone()
    return found


def buffers_in(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """{name: value} of all buffers and plain attributes of modules that no checkpoint holds."""
    found: dict[str, Any] = {}
    for owner, module in modules.items():
        for name, _, _, tensor in _buffers(module):
            found[f"{owner}.{name}"] = None if tensor is None else tensor.detach().clone()
        for (name, attribute), value in attributes_of(module).items():
            found[".".join(filter(None, (owner, name, attribute)))] = value
    return found


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose values differ."""
    names = {**before, **now}
    return [
        name for name in names if not _equal(before.get(name, _MISSING), now.get(name, _MISSING))
    ]


def attributes_of(network: nn.Module) -> dict[tuple[str, str], Any]:
    """{(module, attribute): a copy} of the attributes that are plain values, tensors or arrays, or
    collections of these.
    """
    found = {}
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in _OWN:
                copied = _copy(value)
                if copied is not _MISSING:
                    found[name, attribute] = copied
    return found


def _copy(value: Any) -> Any:
    """A copy of a value of plain things; _MISSING for any other."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _MISSING if isinstance(value, nn.Parameter) else value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple, set, deque):
        items = [_copy(item) for item in value]
        return _MISSING if any(item is _MISSING for item in items) else type(value)(items)
    if type(value) is dict:
        kept = {key: _copy(item) for key, item in value.items()}
        return _MISSING if any(item is _MISSING for item in kept.values()) else kept
    return _MISSING


def _equal(one: Any, other: Any) -> bool:
    if one is _MISSING or other is _MISSING or type(one) is not type(other):
        return one is other
    if isinstance(one, Tensor):
        same = (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        return same and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(one == other) or one != one  # NaN is as it was


def _buffers(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor | None]]:
    for name, module in network.named_modules():
        for key, tensor in module._buffers.items():
            yield f"{name}.{key}".lstrip("."), module, key, tensor


def _extra_states(network: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    for name, module in network.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield name, module, module.get_extra_state()


def _is_expanded(tensor: Tensor) -> bool:
    return any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _kind(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"

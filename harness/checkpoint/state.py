"""Between live objects and the tensors of a checkpoint: an optimizer's state by parameter name, and
putting everything back as it was.

`Optimizer.load_state_dict` is not used: it casts the moments to their parameter's dtype, goes by
position, and takes whatever it is given.
"""

import copy
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from harness.checkpoint.layout import find_aliases
from harness.checkpoint.read import LoadedState
from harness.checkpoint.stored import StoredTensors
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.ranks.rows import class_of, empty_beside, is_sharded, local_of
from harness.wording import some

_TENSOR = "__tensor__"  # {_TENSOR: key} stands in the JSON for a tensor of that key
# What torch's schedulers add to the parameter groups
_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


def optimizer_tensors(
    optimizer: Optimizer, names: Mapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors by "<state>/<parameter name>" and the rest, which exact_json can hold.

    Nothing is copied.

    `names`: of the network's parameters. Raises CheckpointError for a parameter without a name, or
    an optimizer that keeps more than torch's protocol says.
    """
    extra = optimizer.state_dict().keys() - {"state", "param_groups"}
    if extra:
        raise CheckpointError(
            f"optimizer: {type(optimizer).__name__} also keeps {sorted(extra)}, which cannot be "
            "stored. Use another optimizer."
        )
    tensors: dict[str, Tensor] = {}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        values = {
            key: _take(value, f"param_groups.{key}", str(index), tensors)
            for key, value in group.items()
            if key != "params"
        }
        groups.append(
            {
                "params": [_name(parameter, names, index) for parameter in group["params"]],
                "values": values,
            }
        )
    state: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    on_host: list[str] = []
    owners: Mapping[Any, dict[Any, Any]] = optimizer.state
    for owner, values in owners.items():
        if isinstance(owner, str):  # what no parameter owns
            shared[owner] = _take(values, "shared", owner, tensors)
            continue
        if owner not in names:
            raise CheckpointError(
                f"optimizer: it keeps a state for a {type(owner).__name__} that is not a parameter "
                "of the network's. Use another optimizer."
            )
        name = names[owner]
        before = len(tensors)
        state[name] = {key: _take(value, str(key), name, tensors) for key, value in values.items()}
        made = list(tensors)[before:]
        _check_rows(owner, {key: tensors[key] for key in made})
        on_host += [key for key in made if tensors[key].device.type == "cpu" != owner.device.type]
    return tensors, {
        "class": type(optimizer).__name__,
        "groups": groups,
        "state": state,
        "shared": shared,
        "on_host": on_host,
    }


def _check_rows(parameter: Tensor, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for state beside a sharded parameter that `_make_room` would not make
    as it is.
    """
    apart = [key for key, one in state.items() if is_sharded(one) != (one.dim() > 0)]
    if is_sharded(parameter) and apart:
        raise CheckpointError(
            f"optimizer: {some(apart)}: kept by each rank for itself, beside a parameter that "
            "ranks share. Use an optimizer whose state is sharded like its parameters, such as "
            "AdamW or SGD."
        )


def restore_optimizer(
    optimizer: Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    ranks: Ranks | None = None,
) -> None:
    """Put back what `optimizer_tensors` took: dtypes, hyper-parameters and non-tensor state
    exactly, tensors on their parameter's device.

    Stored ones are read to where they stay. ranks: called by every rank.

    Raises CheckpointError naming what differs; nothing is changed then.
    """
    parameters = (ranks or Ranks()).together(
        lambda: _parameters_of(optimizer, names, tensors, rest)
    )
    placed = {
        key: made
        for name, values in rest["state"].items()
        for key, made in _make_room(values, name, *parameters[name], tensors, rest["on_host"])
    }
    fill(placed, tensors, ranks)
    for group, saved in zip(optimizer.param_groups, rest["groups"], strict=True):
        for key, value in saved["values"].items():
            group[key] = _put_into(group.get(key), _give(value, tensors))
    optimizer.state.clear()
    for name, values in rest["state"].items():
        optimizer.state[parameters[name][0]] = {
            key: _give(value, placed) for key, value in values.items()
        }
    for owner, values in rest["shared"].items():
        optimizer.state[owner] = _give(values, tensors)


def _parameters_of(
    optimizer: Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The optimizer's parameters and their groups by name, which the checkpoint must fit. Raises
    CheckpointError.
    """
    if rest["class"] != type(optimizer).__name__:
        raise CheckpointError(
            f"optimizer: the checkpoint has the state of {rest['class']}, this is "
            f"{type(optimizer).__name__}. Use the same one."
        )
    _check_groups(optimizer, names, rest["groups"])
    parameters = {
        names[parameter]: (parameter, group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    wanted = {key for section in ("groups", "state", "shared") for key in _keys_in(rest[section])}
    _check_names("optimizer", wanted, tensors.keys())
    _check_names(
        "optimizer's state", rest["state"].keys() & parameters.keys(), rest["state"].keys()
    )
    return parameters


def fill(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], ranks: Ranks | None = None
) -> None:
    """Put in the values of those names; stored ones are read. ranks: called by every rank."""
    if isinstance(tensors, StoredTensors):
        tensors.fill(targets, ranks)
        return
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _make_room(
    values: Any,
    name: str,
    parameter: Tensor,
    group: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    on_host: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """Tensors without values for one parameter's state, where and as an optimizer makes them: with
    the parameter's strides, which choose kernels; the count of steps is on the CPU unless a kernel
    on the device reads it.
    """
    reads_steps = bool(group.get("fused") or group.get("capturable"))
    for key in _keys_in(values):
        is_count = key == f"step/{name}"
        on_device = reads_steps if is_count else key not in on_host
        device = parameter.device if on_device else torch.device("cpu")
        dtype, shape = kind_of(tensors, key)
        yield (
            key,
            torch.empty_like(parameter, dtype=dtype, device=device, requires_grad=False)
            if shape == parameter.shape
            else empty_beside(parameter, shape, dtype, device),
        )


def kind_of(tensors: Mapping[str, Tensor], name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """The dtype and shape of one; a stored one is not read."""
    if isinstance(tensors, StoredTensors):
        return tensors.kind(name)
    return tensors[name].dtype, tuple(tensors[name].shape)


def restore_network(network: nn.Module, loaded: LoadedState, ranks: Ranks | None = None) -> None:
    """Read a checkpoint's weights and buffers into the network's own memory.

    ranks: called by every rank. Raises CheckpointError naming what differs; nothing is changed
    then.
    """
    state: dict[str, Tensor] = network.state_dict()
    (ranks or Ranks()).together(lambda: check_network(state, loaded.model))
    tensors = (network.named_parameters, network.named_buffers)
    live = {
        name: one
        for named in tensors
        for name, one in named(remove_duplicate=False)
        if not is_lazy(one)
    }
    tied = find_aliases({name: own for name, own in state.items() if not is_lazy(own)})
    for name, own in state.items():
        # What has no elements has no memory to tell it by
        if name in live and (own.numel() == 0 or find_aliases({"live": live[name], "own": own})):
            state[name] = live[name]  # which a module does not copy to itself
        else:
            # Lazy layers take the shapes that they are given; extra states go to their modules
            dtype, shape = loaded.model.kind(name)
            state[name] = torch.empty(shape, dtype=dtype)
    fill({name: one for name, one in state.items() if name not in tied}, loaded.model, ranks)
    # `state` also carries the versions of its modules
    network.load_state_dict(state)


def check_network(state: Mapping[str, Tensor], stored: StoredTensors) -> None:
    """Compare a network's state with a checkpoint's: names, types, shapes, and ties where it has
    memory. Raises CheckpointError.
    """
    _check_names("network", state.keys(), stored.keys())
    made = {name: own for name, own in state.items() if not is_lazy(own)}
    for name, own in made.items():
        here, there = (own.dtype, tuple(own.shape)), stored.kind(name)
        if here != there:
            raise CheckpointError(
                f"network: {name} is {here[0]} {here[1]}, in the checkpoint {there[0]} {there[1]}. "
                "Build the network that was saved."
            )
    for alias, name in find_aliases(
        {name: own for name, own in made.items() if not own.is_meta}
    ).items():
        if not stored.are_one(alias, name) and not same_bits(stored[alias], stored[name]):
            raise CheckpointError(
                f"network: {alias} is tied to {name}, and in the checkpoint they differ. Build the "
                "network that was saved."
            )


def label_names(config: Any, names: Sequence[str]) -> dict[str, dict[Any, Any]]:
    """The settings by which a config of transformers calls its classes by `names`; {} where it has
    names, or another number of classes.
    """
    labels = getattr(config, "id2label", None) or {}
    has_names = not all(str(label).startswith("LABEL_") for label in labels.values())
    if has_names or len(names) != len(labels):
        return {}
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": dict(enumerate(names)), "label2id": numbers}


def extra_files_of(network: nn.Module, names: Sequence[str] = ()) -> dict[str, str]:
    """For a network of transformers, the config.json by which `from_pretrained` reads a
    checkpoint's directory; {} for any other, and where it would find other tensors than its own,
    as with adapters. names: of its classes, for a config that has none.
    """
    theirs = sys.modules.get("transformers.modeling_utils")  # else no network is of its classes
    if theirs is None or not isinstance(network, theirs.PreTrainedModel):
        return {}
    try:
        with torch.device("meta"):
            plain = class_of(network)(copy.deepcopy(network.config))
    except Exception:  # noqa: BLE001 - a class of a user's own need not be made of its config alone
        return {}
    if plain.state_dict().keys() != network.state_dict().keys():
        return {}
    config = json.loads(network.config.to_json_string())
    config |= {"architectures": [class_of(network).__name__], **label_names(network.config, names)}
    return {"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}


def _take(value: Any, label: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor in it moved to `tensors` and its key left in its place."""
    if isinstance(value, Tensor):
        key = f"{label}/{name}"
        if key in tensors:
            raise CheckpointError(
                f"optimizer: two tensors of its state are called {key}. Use another optimizer."
            )
        tensors[key] = value.detach()
        return {_TENSOR: key}
    if type(value) in (list, tuple):
        return type(value)(
            _take(item, f"{label}.{index}", name, tensors) for index, item in enumerate(value)
        )
    if type(value) is dict:
        return {key: _take(item, f"{label}.{key}", name, tensors) for key, item in value.items()}
    return value


def _give(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_take`."""
    if isinstance(value, dict):
        return (
            tensors[value[_TENSOR]]
            if value.keys() == {_TENSOR}
            else {key: _give(item, tensors) for key, item in value.items()}
        )
    return (
        type(value)(_give(item, tensors) for item in value)
        if isinstance(value, list | tuple)
        else value
    )


def _keys_in(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            yield value[_TENSOR]
        else:
            for item in value.values():
                yield from _keys_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _keys_in(item)


def _put_into(present: Any, value: Any) -> Any:
    """A tensor goes into the present one, which a schedule may hold, if that is of its kind."""
    if (
        isinstance(present, Tensor)
        and isinstance(value, Tensor)
        and (present.dtype, present.shape) == (value.dtype, value.shape)
    ):
        with torch.no_grad():
            return present.copy_(value)
    return value


def _check_groups(
    optimizer: Optimizer, names: Mapping[Tensor, str], saved: list[dict[str, Any]]
) -> None:
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"optimizer: {len(saved)} parameter groups in the checkpoint, "
            f"{len(optimizer.param_groups)} here. Build the same."
        )
    for index, (group, one) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        _check_names(
            f"optimizer: parameter group {index}",
            [_name(parameter, names, index) for parameter in group["params"]],
            one["params"],
        )
        lacking = group.keys() - {"params"} - one["values"].keys() - _OF_SCHEDULES
        if lacking:
            raise CheckpointError(
                f"optimizer: parameter group {index}: the checkpoint lacks {sorted(lacking)}. Use "
                "the torch that wrote it."
            )


def _check_names(where: str, own: Iterable[str], saved: Iterable[str]) -> None:
    own, saved = list(own), list(saved)
    missing, unknown = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if missing or unknown:
        raise CheckpointError(
            f"{where}: not in the checkpoint: {some(missing, none='nothing')}; only in the "
            f"checkpoint: {some(unknown, none='nothing')}. Build what was saved, or start from "
            "its weights alone with run.init_from."
        )


def _name(parameter: Tensor, names: Mapping[Tensor, str], group: int) -> str:
    if parameter not in names:
        raise CheckpointError(
            f"optimizer: parameter group {group} has a parameter of shape {tuple(parameter.shape)} "
            "that is not the network's."
        )
    return names[parameter]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike in shape, type and every bit; of sharded ones this rank's rows
    are.
    """
    one, other = local_of(one), local_of(other)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )

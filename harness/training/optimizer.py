"""The optimizer and its groups of parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from harness import components
from harness.errors import ConfigError
from harness.training.parts import OPTIONS, Option, Parts, options_of, twins_of

# Have a fused kernel on the CPU and on CUDA
_FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")

# Prefix of the keys of the weights that an optimizer with modes trains, next to its state
TRAINED = "trained_weight/"


def build_optimizer(
    spec: Mapping[str, Any], network: nn.Module, parts: Parts, may_fuse: bool = True
) -> Optimizer:
    """The optimizer of a config over the network's trained parameters, in groups by part.

    may_fuse: whether to take a fused kernel where the config does not say. Raises ConfigError.
    """
    wanted = dict(spec)
    name = components.target_of(wanted)
    if name in _FUSED and not {"fused", "foreach", "capturable", "differentiable"} & wanted.keys():
        # Fused kernels know no complex numbers
        wanted["fused"] = may_fuse and all(
            one.is_floating_point() for one in network.parameters() if one.requires_grad
        )
    groups = parameter_groups(network, parts)
    given: Any = [{"params": group.parameters, **group.options} for group in groups]
    if [group.part for group in groups] == [""]:
        given = groups[0].parameters  # plainly, for an optimizer that makes groups of its own
    optimizer: Optimizer = components.build(wanted, "optimizer", params=given)
    check_options(optimizer, parts)
    return optimizer


@dataclass(frozen=True)
class Group:
    """Parameters that one part, or none (""), gives settings of the optimizer: `options` by their
    names.
    """

    part: str
    options: Mapping[str, float]
    parameters: Sequence[nn.Parameter]


def parameter_groups(network: nn.Module, parts: Parts) -> list[Group]:
    """The trained parameters: those of no part with settings for the optimizer first, then those of
    each such part, by name.

    Raises ConfigError for a setting that no parameter takes, and for tied parameters with different
    ones.
    """
    groups: dict[str, Group] = {}
    taken: set[Option] = set()
    for name, twins in twins_of(network).items():
        parameter = network.get_parameter(name)
        if not parameter.requires_grad:
            continue
        sayings = [found for one in twins if (found := options_of(one, parts))]
        if any(found != sayings[0] for found in sayings):
            raise ConfigError(
                f"parts: {' and '.join(twins)} are tied and get different settings. Give both the "
                "same."
            )
        givers = sayings[0] if sayings else {}
        taken |= set(givers.items())
        part = max(givers.values(), key=len, default="")
        options = {option: float(getattr(parts[giver], option)) for option, giver in givers.items()}
        group = groups.setdefault(part, Group(part, options, []))
        groups[part] = Group(part, options, [*group.parameters, parameter])
    for path, settings in parts.items():
        for option in OPTIONS:
            if getattr(settings, option) is not None and (option, path) not in taken:
                raise ConfigError(
                    f"parts.{path}.{option}: no effect: no parameter that is trained takes it. "
                    "Leave it out, or fix parts."
                )
    return [groups[part] for part in sorted(groups)]


def check_options(optimizer: Optimizer, parts: Parts) -> None:
    """Raise ConfigError for a setting of a part that the optimizer does not know: torch would keep
    it silently.
    """
    for path, settings in parts.items():
        for option in OPTIONS:
            if getattr(settings, option) is not None and option not in optimizer.defaults:
                raise ConfigError(
                    f"parts.{path}.{option}: {type(optimizer).__name__} has no {option}. Leave it "
                    "out, or use another optimizer."
                )


def check_proportions(
    optimizer: Optimizer, given: Sequence[float], schedule: Mapping[str, Any]
) -> None:
    """Raise ConfigError if a schedule did not keep the proportions of the groups' rates, as some do
    that bring rates of their own.

    given: the rate of each group before the schedule was made.
    """
    now = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(
        math.isclose(rate * given[0], now[0] * own, abs_tol=1e-30)
        for rate, own in zip(now, given, strict=True)
    ):
        raise ConfigError(
            f"schedule: {schedule['_target_']} sets rates of its own "
            f"({', '.join(f'{rate:g}' for rate in now)}), and those of parts have no effect. "
            "Give it a list with a rate for each part, after that of the rest, by name; or use one "
            "of harness.schedules."
        )


def parameter_names(network: nn.Module) -> dict[Tensor, str]:
    """Parameters by identity, each under its first name in the network."""
    return {parameter: name for name, parameter in network.named_parameters()}


def regroup(
    saved: Mapping[str, Any], optimizer: Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Any]:
    """The non-tensor half of `optimizer_tensors`, in the present groups: a part may have a
    rate of its own now, or no longer.
    """
    present = [
        [names.get(parameter, "") for parameter in group["params"]]
        for group in optimizer.param_groups
    ]
    values = {name: group["values"] for group in saved["groups"] for name in group["params"]}
    if present == [group["params"] for group in saved["groups"]] or sorted(values) != sorted(
        name for group in present for name in group
    ):
        return dict(saved)  # as they are, or of other parameters: to be refused
    groups = [{"params": group, "values": values[group[0]]} for group in present]
    return {**saved, "groups": groups}


def copy_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups with their settings as they are now; a rate may be a tensor that changes."""
    return [
        {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in group.items()
        }
        for group in optimizer.param_groups
    ]


def adopt_changes(
    optimizer: Optimizer,
    built_before: Optimizer,
    fresh: Sequence[Mapping[str, Any]],
    cycled: Sequence[str] = (),
) -> list[str]:
    """Apply what the config now says of the optimizer where it differs from before;
    returns what changed.

    built_before: an optimizer of the same network as the checkpoint's config makes it, without its
    schedule; `fresh`: the parameter groups as the present config made them, without one too. Both
    are compared as built, so that an optimizer may make groups of its own. `cycled`: what the
    schedule sets at each step. Raises ConfigError for a change of those.
    """
    changes = []
    before = {p: group for group in built_before.param_groups for p in group["params"]}
    for index, (group, new) in enumerate(zip(optimizer.param_groups, fresh, strict=True)):
        old = before[group["params"][0]] if group["params"] else new
        for name in new.keys() & old.keys() - {"params"}:
            if old[name] != new[name]:
                if name in cycled:
                    raise ConfigError(
                        f"optimizer.{name} changed, which has no effect: the schedule sets it at "
                        "each step. Take the change back."
                    )
                group[name] = new[name]
                if name == "lr" and "initial_lr" in group:
                    group["initial_lr"] = new[name]
                changes.append(f"group {index}: {name}: {old[name]} -> {new[name]}")
    return changes

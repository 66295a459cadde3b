"""The optimizer and its groups of parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from harness import components
from harness.errors import ConfigError
from harness.training.parts import _OPTIONS, Option, Parts, _options, _parameters

# Have a fused kernel on the CPU and on CUDA
_FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")


def build_optimizer(spec: Mapping[str, Any], network: nn.Module, parts: Parts) -> Optimizer:
    """The optimizer of a config over the network's trained parameters, in groups by part.

    Raises ConfigError.
    """
    wanted = dict(spec)
    name = str(wanted["_target_"]).replace(":", ".")
    if name in _FUSED and not {"fused", "foreach", "capturable", "differentiable"} & wanted.keys():
        wanted["fused"] = True
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
    for name, twins in _parameters(network).items():
        parameter = network.get_parameter(name)
        if not parameter.requires_grad:
            continue
        sayings = [found for one in twins if (found := _options(one, parts))]
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
        for option in _OPTIONS:
            if getattr(settings, option) is not None and (option, path) not in taken:
                raise ConfigError(
                    f"parts.{path}.{option}: no effect: no parameter that is trained takes it. "
                    "Leave it out, or mend parts."
                )
    return [groups[part] for part in sorted(groups)]


def check_options(optimizer: Optimizer, parts: Parts) -> None:
    """Raise ConfigError for a setting of a part that the optimizer does not know: torch would keep
    it without a word.
    """
    for path, settings in parts.items():
        for option in _OPTIONS:
            if getattr(settings, option) is not None and option not in optimizer.defaults:
                raise ConfigError(
                    f"parts.{path}.{option}: {type(optimizer).__name__} has no {option}. Leave it "
                    "out, or take another optimizer."
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

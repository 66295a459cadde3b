"""What the config says of parts of the network, `parts.<path>`: which are frozen, and at what rate
the others learn.

A part is a module or a single parameter, by its path in the network: `encoder`, `encoders.image.0`.
Where parts lie inside each other, each setting is that of the innermost part that gives it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from harness.config.parts import PartConfig
from harness.errors import ConfigError
from harness.wording import did_you_mean

Parts = Mapping[str, PartConfig]
Option = tuple[str, str]  # a setting of the optimizer and the path of the part that gives it

OPTIONS = ("lr", "weight_decay")
_SHOWN = 8  # names in a message


def check_parts(network: nn.Module, parts: Parts) -> None:
    """Raise ConfigError for a part that the network does not have."""
    names = sorted(_names(network))
    for path in parts:
        if path not in names:
            top = ", ".join([name for name in names if "." not in name][:_SHOWN])
            raise ConfigError(
                f"parts.{path}: the network has no part of this "
                f"name.{did_you_mean(path, names) or f' Its top-level parts are {top}.'}"
            )


def freeze(network: nn.Module, parts: Parts) -> None:
    """Take the parameters of frozen parts out of the training.

    Raises ConfigError if none is left, or if tied ones are to be both.
    """
    for name, twins in twins_of(network).items():
        given = {one: setting_of(one, "freeze", parts) for one in twins}
        if len({bool(given[one]) for one in twins if given[one] is not None}) > 1:
            raise ConfigError(
                f"parts: {' and '.join(twins)} are tied: one tensor cannot be frozen and trained. "
                "Freeze both or none."
            )
        if any(given.values()):
            network.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        why = (
            "every parameter is frozen"
            if any(part.freeze for part in parts.values())
            else "the network has no parameter that is trained"
        )
        raise ConfigError(f"network: {why}. Leave something to train.")


def training_mode(network: nn.Module, parts: Parts) -> None:
    """The network in training mode, but for its frozen parts, whose statistics stay and whose
    dropout rests.
    """
    network.train()
    modules = dict(network.named_modules(remove_duplicate=False))
    for path in sorted(parts, key=len):  # a part after those around it
        if parts[path].freeze is not None and path in modules:
            modules[path].train(not parts[path].freeze)


def _names(network: nn.Module) -> set[str]:
    modules = {name for name, _ in network.named_modules(remove_duplicate=False) if name}
    return modules | {name for name, _ in network.named_parameters(remove_duplicate=False)}


def twins_of(network: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by its first."""
    twins: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in twins.values()}


def _around(name: str, parts: Parts) -> Iterator[str]:
    """The parts that a name lies in, from the outermost."""
    return (path for path in sorted(parts, key=len) if name == path or name.startswith(f"{path}."))


def setting_of(name: str, setting: str, parts: Parts) -> Any:
    """The setting of the innermost part around a name that gives it, None if none does."""
    given = [
        value
        for path in _around(name, parts)
        if (value := getattr(parts[path], setting)) is not None
    ]
    return given[-1] if given else None


def options_of(name: str, parts: Parts) -> dict[str, str]:
    """Which part gives each setting of the optimizer to a name."""
    return {
        option: path
        for path in _around(name, parts)
        for option in OPTIONS
        if getattr(parts[path], option) is not None
    }

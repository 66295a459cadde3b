"""Networks that begin from a pretrained one: a checkpoint keeps how they are built without it, so
that neither its folder nor the hub is needed again.
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import components
from harness.bounded import parse_json, read_bytes
from harness.checkpoint.read import document_errors, read_manifest
from harness.components import TARGET, target_of
from harness.config import trust
from harness.wording import Keys, dotted

FILE = "network.json"
# Arguments of `from_pretrained` that say how a network computes, and are in no config
_COMPUTING = {"attn_implementation", "experts_implementation"}
# Of a config, what says only where its network came from
_ORIGIN = ("_name_or_path", "auto_map")

# Arguments of torchvision's networks that name pretrained weights
_WEIGHTS = ("weights", "weights_backbone")
ARCHITECTURE = "harness.networks.architecture.torchvision_architecture"
# Arguments of timm's networks that load something
_OF_TIMM_MODEL = ("pretrained_cfg", "pretrained_cfg_overlay")
_OF_TIMM = ("pretrained", "checkpoint_path", "cache_dir", *_OF_TIMM_MODEL)

Spec = Mapping[str, Any]
Parts = Mapping[Keys, Spec]


def build_network(spec: Spec, kept: Parts) -> tuple[nn.Module, Parts]:
    """The network, and how the components in it that begin from a pretrained one are built without
    it, by their keys.

    `kept`: those of the checkpoint that the run goes on from. Raises ConfigError.
    """
    spec = components.replaced(spec, kept)
    parts = dict(_pretrained(spec))
    made = {
        keys: components.build(part, dotted(("network", *keys))) for keys, part in parts.items()
    }
    network: nn.Module = (
        made[()] if () in made else components.build(components.replaced(spec, made), "network")
    )
    plain = {keys: _without_weights(part, made[keys]) for keys, part in parts.items()}
    return network, {**kept, **{keys: part for keys, part in plain.items() if part is not None}}


def dump_parts(parts: Parts) -> dict[str, str]:
    """The file beside a checkpoint that keeps them, by its name; {} if there are none."""
    listed = [{"keys": list(keys), "component": part} for keys, part in parts.items()]
    return {FILE: json.dumps(listed, indent=2, sort_keys=True) + "\n"} if listed else {}


def load_parts(checkpoint: Path) -> Parts:
    """What `dump_parts` left beside a checkpoint. Raises CheckpointError."""
    if FILE not in read_manifest(checkpoint).files:
        return {}
    with document_errors(checkpoint):
        listed = parse_json(read_bytes(checkpoint / FILE))
        return {tuple(one["keys"]): {**one["component"]} for one in listed}


def resumed_parts(checkpoint: Path | None, spec: Spec) -> Parts:
    """Those of the checkpoint that a run with this network goes on from, which may be somebody
    else's: they may name what trust.py allows, and the packages that the network itself names.

    Raises ConfigError and CheckpointError.
    """
    parts = {} if checkpoint is None else load_parts(checkpoint)
    libraries = {one.partition(".")[0] for one in trust.LIBRARIES}
    own = {path.partition(".")[0] for path in components.targets_in(spec)} - libraries
    for keys, part in parts.items():
        where = f"{checkpoint}/{FILE}: {dotted(keys)}"
        trust.check_code(part, where, [*own], "start from its weights alone with run.init_from")
    return parts


def _pretrained(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Spec]]:
    """The outermost components that load a pretrained network or its config, with their keys."""
    if isinstance(value, Mapping):
        if TARGET in value and _loads(value):
            yield keys, value
            return
        for key, item in value.items():
            yield from _pretrained(item, (*keys, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _pretrained(item, (*keys, index))


def _loads(spec: Spec) -> bool:
    """Whether a component loads weights, or the config of a pretrained network."""
    path = target_of(spec)
    if path.rpartition(".")[2] == "from_pretrained":
        return True
    if path.startswith("timm."):
        loading = any(spec.get(one) for one in _OF_TIMM)
        return loading or ":" in str(spec.get("model_name"))
    name = _torchvision_name(spec)
    if name is None:
        return False
    from torchvision.models import get_model_builder

    try:
        takes = inspect.signature(get_model_builder(name)).parameters
    except ValueError:  # no such network: said when it is built
        return False
    # Those of a backbone are loaded by default
    given = {one: spec.get(one, takes[one].default) for one in _WEIGHTS if one in takes}
    return any(given.values()) or bool(spec.get("pretrained"))


def _without_weights(spec: Spec, made: Any) -> Spec | None:
    """How to build a component again, with weights of any value; None if that needs what it was
    loaded from, such as code.
    """
    if target_of(spec).startswith("timm."):
        return _of_timm(spec, made)
    if (name := _torchvision_name(spec)) is not None:
        return _of_torchvision(spec, name)
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    if isinstance(made, transformers.PreTrainedConfig):
        return _config(made)
    path, config = _path_of(type(made)), _config(getattr(made, "config", None))
    if not isinstance(made, transformers.PreTrainedModel) or path is None or config is None:
        return None
    takes = {*_COMPUTING, *inspect.signature(type(made)).parameters} - {"config"}
    options = {name: value for name, value in spec.items() if name in takes}
    return {TARGET: f"{path}._from_config", "config": config, **options}


def _of_timm(spec: Spec, made: Any) -> Spec | None:
    """A network of timm by the name of its architecture; None if that does not make it again."""
    name = str(spec.get("model_name", target_of(spec).rpartition(".")[2]))
    options = {key: value for key, value in spec.items() if key not in _OF_TIMM}
    plain = {TARGET: "timm.create_model", "model_name": name, "pretrained": False}
    if ":" not in name and not any(spec.get(key) for key in _OF_TIMM_MODEL):
        return {**options, **plain}
    # Settings came with the weights
    options |= {**getattr(made, "_model_args", {}), "num_classes": made.num_classes}
    plain["model_name"] = str(made.pretrained_cfg.get("architecture"))
    again = components.build(found := {**options, **plain}, "network")
    return found if _shapes(again) == _shapes(made) else None


def _shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, one.shape) for name, one in network.state_dict().items()]


def _torchvision_name(spec: Spec) -> str | None:
    """The name of a network of torchvision; None for other components."""
    if not target_of(spec).startswith("torchvision.models."):
        return None
    from torchvision.models import get_model, list_models

    target = components.find(spec[TARGET])
    if target is get_model:
        return str(spec.get("name"))
    name = str(getattr(target, "__name__", ""))
    return name if name in list_models() else None


def _of_torchvision(spec: Spec, name: str) -> Spec:
    """Its architecture, which depends on the weights that it began from."""
    options = {key: value for key, value in spec.items() if key not in (TARGET, "name")}
    for key in _WEIGHTS:
        if isinstance(value := options.get(key), Mapping):  # torchvision.models.get_weight
            options[key] = value.get("name")
    if options.pop("pretrained", False):
        options["weights"] = "DEFAULT"
    return {TARGET: ARCHITECTURE, "name": name, **options}


def _config(config: Any) -> Spec | None:
    """A component for a config of transformers; None for anything else."""
    import transformers

    if not isinstance(config, transformers.PreTrainedConfig):
        return None
    values = json.loads(config.to_json_string())
    values = {name: value for name, value in values.items() if name not in _ORIGIN}
    kind = str(values.get("model_type"))
    if kind in transformers.CONFIG_MAPPING and type(config) is transformers.CONFIG_MAPPING[kind]:
        return {TARGET: "transformers.AutoConfig.for_model", **values}
    path = _path_of(type(config))
    return None if path is None else {TARGET: f"{path}.from_dict", "config_dict": values}


def _path_of(cls: type) -> str | None:
    """The dotted path of a class; None for one whose code came with the weights."""
    import transformers

    if cls.__module__.partition(".")[0] == "transformers_modules":
        return None
    short = getattr(transformers, cls.__name__, None) is cls
    return f"transformers.{cls.__name__}" if short else f"{cls.__module__}.{cls.__qualname__}"

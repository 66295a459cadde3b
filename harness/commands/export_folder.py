"""A network of transformers or adapters of peft in the folder that these libraries read, of a
network without memory for its parameters: tensors go from the checkpoint to the folder a few MB, or
one tensor, at a time.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.checkpoint.export import copy_tensors
from harness.checkpoint.read import load, model_of, read_manifest
from harness.checkpoint.state import label_names, same_bits
from harness.commands.trained import TrainedNetwork
from harness.errors import CheckpointError, ConfigError
from harness.wording import some

_SHARD_BYTES = 5 * 10**9  # of a file of weights; it is mapped as one by who reads it
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_hf(outlined: TrainedNetwork, out: Path) -> str:
    """A folder for `from_pretrained`, in files of some GB; returns how the weights were compared.
    Raises HarnessError.
    """
    network: Any = outlined.network
    if not (outlined.path / "config.json").is_file() or not hasattr(network, "save_pretrained"):
        raise ConfigError(
            f"network: a {type(network).__name__} is not of transformers, whose folders --to hf "
            "writes. Use --to safetensors, onnx or torch-export."
        )
    for key, value in label_names(network.config, outlined.class_names).items():
        setattr(network.config, key, value)
    network.save_pretrained(out, state_dict={})  # all but weights
    for name in _TOKENIZER:
        if (outlined.path / name).is_file():
            shutil.copyfile(outlined.path / name, out / name)
    _write_weights(outlined, out)
    _, told = type(network).from_pretrained(
        out, local_files_only=True, device_map="meta", output_loading_info=True
    )
    wrong = sorted({str(one) for found in told.values() for one in found})
    if wrong:
        raise CheckpointError(
            f"{out}: from_pretrained finds other weights than the network's: {some(wrong)}. Use "
            "--to safetensors, and tell us."
        )
    return "its weights read back bit by bit"


def _write_weights(outlined: TrainedNetwork, out: Path) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    manifest = read_manifest(outlined.path)
    names = _names_on_the_hub(outlined.network, manifest.model)
    split = split_state_dict_into_shards_factory(
        {new: manifest.model[own].spec for new, own in names.items()},
        get_storage_size=lambda spec: spec.size_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_SHARD_BYTES,
    )
    for file, inside in split.filename_to_tensors.items():
        own = {new: names[new] for new in inside}
        copy_tensors(outlined.path, manifest, own, out / file)
        require_weights(model_of(outlined.path, manifest).renamed(own), out / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (out / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _names_on_the_hub(network: Any, kept: Iterable[str]) -> dict[str, str]:
    """The network's own names by those that `save_pretrained` gives them. Where it would
    give other tensors too, such as those of one expert, they keep their own, which
    `from_pretrained` takes as well.
    """
    passed_over = {*(getattr(network, "_keys_to_ignore_on_save", None) or ())}
    state = network.state_dict()
    wanted = {name: state[name] for name in kept if name not in passed_over}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 they had the same names
        return {name: name for name in wanted}
    own = {id(one): name for name, one in wanted.items()}
    renamed = {
        new: own.get(id(one)) for new, one in revert_weight_conversion(network, {**wanted}).items()
    }
    found = {new: name for new, name in renamed.items() if name is not None}
    return found if len(found) == len(renamed) else {name: name for name in wanted}


def write_peft(outlined: TrainedNetwork, out: Path) -> str:
    """Adapters without what they adapt; returns how they were compared. Raises HarnessError."""
    network: Any = outlined.network
    peft: Any = sys.modules.get("peft")  # else no network is of its classes
    if peft is None or not isinstance(network, peft.PeftModel):
        raise ConfigError(
            f"network: a {type(network).__name__} is not of peft, whose adapters --to peft writes. "
            "Make it by peft.get_peft_model, or use --to safetensors."
        )
    state = network.state_dict()
    kept = {id(one) for found in _adapters(network, state).values() for one in found.values()}
    beside = [
        *(name for name, one in network.named_parameters() if one.requires_grad),
        *(name for name, one in network.named_buffers() if name.endswith("running_mean")),
    ]
    beside = [name for name in beside if id(state.get(name)) not in kept]
    if beside:
        raise ConfigError(
            f"network: {some(beside)} changed in the training too, and would be lost. Name the "
            "modules in modules_to_save of the adapters, or use --to safetensors."
        )
    own = {name: name for name, one in state.items() if id(one) in kept}
    stored = load(outlined.path, rank=0, num_ranks=0).model
    state |= stored.renamed(own).read()
    network.save_pretrained(out, save_embedding_layers=False, state_dict=state)
    for name, found in _adapters(network, state).items():
        require_weights(found, folder_of(out, name) / peft.utils.SAFETENSORS_WEIGHTS_NAME)
    return "its adapters read back bit by bit"


def folder_of(out: Path, adapter: str) -> Path:
    """Where peft keeps an adapter."""
    return out if adapter == "default" else out / adapter


def _adapters(network: Any, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What peft keeps of a network's state, by the adapter and by peft's names."""
    peft: Any = sys.modules["peft"]
    return {
        name: peft.get_peft_model_state_dict(
            network, state_dict=state, adapter_name=name, save_embedding_layers=False
        )
        for name in network.peft_config
    }


def require_weights(wanted: Mapping[str, Tensor], file: Path) -> None:
    """Compare a safetensors file with tensors, one at a time. Raises CheckpointError."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found = {*opened.keys()}
        wrong = [
            name
            for name in wanted
            if name not in found or not same_bits(opened.get_tensor(name), wanted[name])
        ]
    wrong += sorted(found - wanted.keys())
    if wrong:
        raise CheckpointError(
            f"{file}: other tensors were read back: {some(wrong)}. Try another disk."
        )

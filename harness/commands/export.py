"""`fermarsi export`: a checkpoint's network for use elsewhere, compared with the network itself."""

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from harness.checkpoint.export import export
from harness.checkpoint.read import find_checkpoint, model_of, read_manifest
from harness.commands.export_folder import folder_of, require_weights, write_hf, write_peft
from harness.commands.trained import TrainedNetwork, load_trained, open_split
from harness.data.source import of_batch
from harness.errors import CheckpointError, ConfigError, DataError, HarnessError, require_choice
from harness.training.evaluation import evaluation_mode
from harness.training.machine import available_bytes
from harness.wording import first_line

SUFFIXES = {
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "hf": "",
    "peft": "",
}
_SIZES = (4, 3)  # of the micro-batches that are compared; export fixes a size of 1
_RTOL, _ATOL = 1e-3, 1e-4  # of the largest output; other kernels add in another order
_NETWORKS = 3  # held while folders are compared: the network, another that reads them, outputs
_MOST_BYTES = 1_500_000_000  # of one ONNX file, which may have 2 GB


@dataclass(frozen=True)
class Examples:
    """What the network is given for two micro-batches, (B, ...) each, as a flat list by `names`;
    `axes`: of each, those whose length differs from one micro-batch to another.
    """

    names: Sequence[str]
    inputs: tuple[Sequence[Tensor], Sequence[Tensor]]
    axes: Sequence[Sequence[int]]
    spec: Any


class FlatNetwork(nn.Module):
    """A network with tensors by position in, and its tensors in a tuple out."""

    def __init__(self, network: nn.Module, spec: Any) -> None:
        super().__init__()
        self.network = network
        self._spec = spec

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = pytree.tree_unflatten(list(inputs), self._spec)
        return tuple(_tensors_of(self.network(*args, **kwargs)).values())


Compute = Callable[[Sequence[Tensor]], Sequence[Any]]
Write = Callable[[TrainedNetwork, FlatNetwork, Examples, Path], Compute]


def export_network(path: Path, out: Path, to: str, allow: Sequence[str] = ()) -> str:
    """Write the network of a run's best checkpoint, or of a checkpoint; returns what was done. In
    float32 where the run computed in mixed precision. Raises HarnessError; `out` is there when it
    was compared.
    """
    require_choice("--to", to, tuple(SUFFIXES))
    suffix = SUFFIXES[to]
    if out.suffix != suffix and suffix:
        raise ConfigError(f"{out}: give a name that ends in {suffix}, or another --to.")
    if out.exists():
        raise ConfigError(f"{out}: already exists. Remove it, or give another name.")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no directory {out.parent}. Create it.")
    if to == "safetensors":
        found = find_checkpoint(path)
        export(found, out)
        try:
            require_weights(model_of(found, read_manifest(found)), out)
        except HarnessError:
            out.unlink(missing_ok=True)
            raise
        return f"{out}: the weights of {found}, read back bit by bit"
    temporary = out.with_name(f".{secrets.token_hex(4)}-{out.name}")
    try:
        if to in FOLDERS:
            write, read = FOLDERS[to]
            outlined = load_trained(path, allow, weights=False)
            found = outlined.path
            done = write(outlined, temporary)
            done += f"; {_compare_in_memory(outlined, read, temporary, to)}"
        else:
            trained = load_trained(path, allow)
            found = trained.path
            done = _compare(
                trained, {"onnx": _onnx, "torch-export": _torch_export}[to], temporary, to
            )
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
    return f"{out}: the network of {found}; {done}"


def _compare_in_memory(outlined: TrainedNetwork, read: Write, out: Path, to: str) -> str:
    """The same for what is written already, where there is room for the network."""
    size_bytes = sum(one.nbytes for one in outlined.network.state_dict().values())
    needed, there = _NETWORKS * size_bytes, available_bytes()
    if needed > there:
        return (
            "its outputs were not compared with the network's: that takes "
            f"{needed / 1e9:,.1f} GB of memory, and {there / 1e9:,.1f} GB are free"
        )
    return _compare(load_trained(outlined.path, outlined.allow), read, out, to)


def _compare(trained: TrainedNetwork, write: Write, out: Path, to: str) -> str:
    """Write the network, and compare outputs; returns what was compared. Raises HarnessError."""
    network = trained.network.cpu()
    vars(network).pop("forward", None)  # of mixed precision
    examples = examples_of(trained, network)
    flat = FlatNetwork(network, examples.spec)
    with evaluation_mode(network), torch.no_grad():
        compute = write(trained, flat, examples, out)
        difference = _difference(flat, examples, compute, to)
    free = {name: list(axes) for name, axes in zip(examples.names, examples.axes, strict=True)}
    shown = ", ".join(f"{name} {axes}" for name, axes in free.items())
    return (
        f"axes of any length: {shown}; its outputs for two micro-batches differ from the network's "
        f"by {difference:.2g} at most"
    )


def examples_of(trained: TrainedNetwork, network: nn.Module) -> Examples:
    """What the network is given for two micro-batches of the config's data. Raises HarnessError."""
    name = "val" if "val" in trained.config.data.names else "train"
    split = open_split(trained, name)
    if len(split) < max(_SIZES):
        raise DataError(
            f"{split.where}: {len(split)} samples, and {max(_SIZES)} are needed. Add some."
        )
    given: list[tuple[Any, Any]] = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    with evaluation_mode(network), torch.no_grad():
        for size, end in zip(_SIZES, (0, len(split)), strict=True):
            indices = np.arange(end - size, end) if end else np.arange(size)
            batch = split.fetch(indices, indices.astype(np.uint64), 0, training=False)
            trained.task.forward(network, batch)
    hook.remove()
    flat = [pytree.tree_flatten_with_path(one) for one in given]
    if not all(isinstance(leaf, Tensor) for leaves, _ in flat for _, leaf in leaves):
        raise ConfigError("network: it is given other things than tensors. Export a part of it.")
    names = [_name(keys, trained.task) for keys, _ in flat[0][0]]
    first, second = ([leaf for _, leaf in leaves] for leaves, _ in flat)
    lengths = {one.shape[1] for one in first if one.dim() > 1} if _is_padded(split) else set()
    axes = [
        [
            axis
            for axis, (length, other) in enumerate(zip(one.shape, another.shape, strict=True))
            if length != other or (axis == 1 and length in lengths)
        ]
        for one, another in zip(first, second, strict=True)
    ]
    return Examples(names, (first, second), axes, flat[0][1])


def _is_padded(split: Any) -> bool:
    """Whether a length depends on the micro-batch."""
    return any(map(of_batch, split.treatments))


def _name(keys: Sequence[Any], task: Any) -> str:
    last = getattr(keys[-1], "key", None)
    own = getattr(task, "input", None)
    return str(last if last is not None else own if isinstance(own, str) else "input")


def _tensors_of(outputs: Any) -> dict[str, Tensor]:
    """The floating-point tensors in outputs, by name."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    found = pytree.tree_flatten_with_path(
        dict(outputs) if isinstance(outputs, Mapping) else outputs
    )[0]
    return {
        ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys): leaf
        for keys, leaf in found
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def _shapes(examples: Examples) -> tuple[Mapping[int, Any], ...]:
    return tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in examples.axes)


def _program(flat: FlatNetwork, examples: Examples) -> Any:
    try:
        return torch.export.export(
            flat, tuple(examples.inputs[0]), dynamic_shapes={"inputs": _shapes(examples)}
        )
    except Exception as error:  # torch raises anything for what it cannot follow
        raise ConfigError(
            f"network: torch.export cannot follow it: {type(error).__name__}: "
            f"{first_line(error)}. Lengths that only a run knows, such as .item(), or a fixed "
            "batch size in the code are the usual reasons; --to safetensors always works."
        ) from error


def _torch_export(
    trained: TrainedNetwork, flat: FlatNetwork, examples: Examples, out: Path
) -> Compute:
    torch.export.save(_program(flat, examples), out)
    loaded = torch.export.load(out).module()
    return lambda inputs: loaded(*inputs)


def _onnx(trained: TrainedNetwork, flat: FlatNetwork, examples: Examples, out: Path) -> Compute:
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs {error.name}, which is not installed: pip install 'fermarsi[export]'."
        ) from error
    size_bytes = sum(one.nbytes for one in flat.state_dict().values())
    if size_bytes > _MOST_BYTES:
        raise ConfigError(
            f"--to onnx: {size_bytes / 1e9:.1f} GB of weights, more than one ONNX file holds. Use "
            "--to torch-export or safetensors."
        )
    names = list(_tensors_of(_run(flat, examples)))
    try:
        program = torch.onnx.export(
            _program(flat, examples),
            input_names=list(examples.names),
            output_names=names,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            f"network: torch.onnx cannot write it: {first_line(error)}. Use --to torch-export."
        ) from error
    assert program is not None
    program.save(out, external_data=False)
    model = onnx.load(out)
    for key, value in {"producer": "fermarsi", "classes": json.dumps(trained.classes)}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    return _onnx_compute(out, examples.names)


def _onnx_compute(path: Path, names: Sequence[str]) -> Compute:
    """By onnxruntime, or, where that is not installed, by onnx's reference."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it has no stubs

        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
    return lambda inputs: [
        torch.as_tensor(one)
        for one in session.run(
            None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        )
    ]


def _read_hf(trained: TrainedNetwork, flat: FlatNetwork, examples: Examples, out: Path) -> Compute:
    network: Any = flat.network
    loaded = FlatNetwork(type(network).from_pretrained(out, local_files_only=True), flat._spec)
    loaded.eval()
    return lambda inputs: loaded(*inputs)


def _read_peft(
    trained: TrainedNetwork, flat: FlatNetwork, examples: Examples, out: Path
) -> Compute:
    """Adapters are put back into the network itself."""
    network: Any = flat.network
    peft: Any = sys.modules["peft"]
    before = iter([flat(*inputs) for inputs in examples.inputs])
    for name in network.peft_config:
        own = peft.get_peft_model_state_dict(
            network, adapter_name=name, save_embedding_layers=False
        )
        for one in own.values():
            one.zero_()
        found = peft.utils.load_peft_weights(str(folder_of(out, name)), device="cpu")
        peft.set_peft_model_state_dict(network, found, adapter_name=name)
    return lambda _: next(before)


FOLDERS = {"hf": (write_hf, _read_hf), "peft": (write_peft, _read_peft)}


def _run(flat: FlatNetwork, examples: Examples) -> Any:
    args, kwargs = pytree.tree_unflatten(list(examples.inputs[0]), examples.spec)
    return flat.network(*args, **kwargs)


def _difference(flat: FlatNetwork, examples: Examples, compute: Compute, to: str) -> float:
    """The largest difference of an output, for both micro-batches. Raises CheckpointError."""
    largest = 0.0
    for inputs in examples.inputs:
        wanted, found = flat(*inputs), compute(inputs)
        for one, other in zip(wanted, found, strict=True):
            scale = float(one.abs().max()) if one.numel() else 0.0
            if one.shape != other.shape or not torch.allclose(
                one, other, rtol=_RTOL, atol=_ATOL * max(scale, 1.0)
            ):
                raise CheckpointError(
                    f"--to {to}: what was written gives other outputs than the network, "
                    f"{tuple(other.shape)} for {tuple(one.shape)}. Use another --to, and tell us."
                )
            largest = max(largest, float((one - other).abs().max()) if one.numel() else 0.0)
    return largest

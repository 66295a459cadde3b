"""The safetensors format, written so that equal tensors give equal bytes: sorted keys, fixed order,
fixed metadata.

A file is an 8-byte little-endian length, a JSON header padded with spaces, and the tensors' bytes
without gaps, widest dtype first so that each is aligned
(https://github.com/huggingface/safetensors#format). A reader knows from the manifest what the
header must be, so no header is ever parsed.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import CheckpointError

_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_METADATA = "__metadata__"
_ALIGNMENT = 8


@dataclass(frozen=True)
class Spec:
    """What a tensor is, without its values. `dtype` in safetensors' words, e.g. "BF16"."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def num_rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize

    def rows(self, count: int) -> "Spec":
        """The same with another number of rows."""
        return Spec(self.dtype, (count, *self.shape[1:]))


@dataclass(frozen=True)
class Placement:
    """Where the tensors of a file lie: its first bytes, and for each key where its data begins,
    counted from the file's start.
    """

    head: bytes
    begins: Mapping[str, int]
    size_bytes: int


def known_dtype(name: str) -> bool:
    """Whether `name` is one of safetensors' dtypes that torch has too."""
    return name in _DTYPES


def spec_of(tensor: object, where: str) -> Spec:
    """The spec of a dense tensor. Raises CheckpointError for anything else."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(
            f"{where}: a {type(tensor).__name__} where a tensor is needed. Keep such state in the "
            "trainer's JSON."
        )
    if tensor.layout != torch.strided or tensor.dtype not in _NAMES or tensor.is_meta:
        raise CheckpointError(
            f"{where}: {tensor.dtype}, {tensor.layout} on {tensor.device}: a checkpoint "
            "(safetensors) cannot hold this tensor. Keep it in another type or layout."
        )
    return Spec(_NAMES[tensor.dtype], tuple(tensor.shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes; nothing is copied."""
    assert tensor.is_contiguous()
    # An array is a buffer; the stubs say so from Python 3.12 on
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type] # see above


def placement_of(specs: Mapping[str, Spec], aliases: Mapping[str, str] | None = None) -> Placement:
    """The header of a file with these tensors, and where the data of each begins; `aliases` go
    into its metadata. A pure function.
    """
    if sys.byteorder != "little":
        raise CheckpointError(
            "checkpoints are little-endian and this machine is not. Use another machine."
        )
    if _METADATA in specs:
        raise CheckpointError(
            f"a tensor is called {_METADATA}, which safetensors keeps for itself. Rename it."
        )
    header: dict[str, object] = {_METADATA: {**(aliases or {}), "format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for key in sorted(specs, key=lambda key: (-specs[key].torch_dtype.itemsize, key)):
        spec = specs[key]
        begins[key] = end
        end += spec.size_bytes
        header[key] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begins[key], end],
        }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return Placement(
        head, {key: len(head) + begin for key, begin in begins.items()}, len(head) + end
    )

"""Parameters whose values lie in files that are mapped into memory, as safetensors does it for
`from_pretrained`: of a network that ranks share, each reads its rows of them alone.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.components import TARGET, target_of
from harness.ranks.rows import cut_rows

_ASYNC = "HF_DEACTIVATE_ASYNC_LOAD"  # of transformers, whose threads no dispatch mode sees
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class FileValues:
    """The values of a parameter: those of `tensor`, which is mapped, in another type perhaps.

    file: the same on ranks that read one file, on one machine.
    """

    tensor: Tensor
    file: str

    def digest_of(self, index: int, num_shards: int) -> str:
        """SHA-256 of the rows of one of so many ranks."""
        octets = self.rows_of(index, num_shards)[1].reshape(-1).view(torch.uint8)
        return hashlib.sha256(octets.numpy().data).hexdigest()[:32]

    def rows_of(self, index: int, num_shards: int) -> tuple[slice, Tensor]:
        """Those of one of so many ranks, and where they stand."""
        ranks = tuple(range(num_shards))
        rows = slice(*cut_rows(len(self.tensor), (num_shards,), (True,), ranks, num_shards)[index])
        return rows, self.tensor[rows]


class Conversions(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Inside, mapped tensors are not converted to another type: what would be made has no memory,
    and is known by what it would be made of. Raises RuntimeError where its values are asked for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.obstacle = ""
        self._sources: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

    def source_of(self, tensor: Tensor) -> Tensor | None:
        """The mapped tensor that has its values; None if none has."""
        if tensor.is_meta:
            return self._sources.get(tensor.untyped_storage())
        return tensor.detach() if is_mapped(tensor) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        aten = torch.ops.aten
        if func is aten._to_copy.default and _only_converts(given) and is_mapped(args[0]):
            made = torch.empty_like(args[0], dtype=given["dtype"], device="meta")
            self._sources[made.untyped_storage()] = args[0]
            return made
        if func not in (aten.detach.default, aten.alias.default) and any(
            isinstance(one, Tensor) and one.is_meta and self.source_of(one) is not None
            for one in tree_leaves((args, given))
        ):
            self.obstacle = f"{func} needs values that are read by rows"
            raise RuntimeError(self.obstacle)
        return func(*args, **given)


def reads_pretrained(spec: Any) -> bool:
    """Whether a component, or one in it, is made by `from_pretrained`."""
    if isinstance(spec, Mapping):
        if TARGET in spec and target_of(spec).endswith(".from_pretrained"):
            return True
        spec = list(spec.values())
    return isinstance(spec, list | tuple) and any(map(reads_pretrained, spec))


@contextmanager
def deferring() -> Iterator[Conversions]:
    """What conversions of mapped tensors become inside."""
    before = os.environ.get(_ASYNC)
    os.environ[_ASYNC] = "1"
    try:
        with Conversions() as conversions:
            yield conversions
    finally:
        if before is None:
            del os.environ[_ASYNC]
        else:
            os.environ[_ASYNC] = before


def values_on_file(network: nn.Module, conversions: Conversions) -> dict[str, FileValues]:
    """Those of its parameters, by name, whose values lie in mapped files."""
    found: dict[str, FileValues] = {}
    files: dict[str, str] = {}
    for name, parameter in network.named_parameters():
        source = conversions.source_of(parameter)
        if source is None or source.dim() == 0 or not source.is_contiguous():
            continue
        begin, path = _mapping_of(source)
        offset = source.data_ptr() - begin
        file = files.get(path) or files.setdefault(path, _identity(Path(path)))
        found[name] = FileValues(source, f"{file} {offset}")
    return found


def is_mapped(tensor: Tensor) -> bool:
    """Whether its memory is that of a file, as Linux tells."""
    if tensor.device.type != "cpu" or tensor.untyped_storage().resizable():
        return False
    return bool(_mapping_of(tensor)[1])


def _mapping_of(tensor: Tensor) -> tuple[int, str]:
    """(the address at which the file begins, its path); (0, "") for memory of no file."""
    address = tensor.untyped_storage().data_ptr()
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return 0, ""
    for line in lines:
        if " rw-p " not in line:  # of code
            continue
        span, _, offset, _, inode, *path = line.split(maxsplit=5)
        begin, end = (int(one, 16) for one in span.split("-"))
        if begin <= address < end:
            return (begin - int(offset, 16), path[0]) if inode != "0" else (0, "")
    return 0, ""


def _only_converts(given: Mapping[str, Any]) -> bool:
    return given.get("dtype") is not None and given.get("device") in (None, torch.device("cpu"))


def _identity(path: Path) -> str:
    """Of a file on this machine, as long as it runs."""
    status = path.stat()
    return f"{_BOOT.read_text().strip()} {status.st_dev} {status.st_ino}"

"""The tensors of a safetensors file that is no checkpoint's, read as a checkpoint's are."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from harness.bounded import open_regular, parse_json
from harness.checkpoint.format import Placement, known_dtype
from harness.checkpoint.manifest import PieceEntry, TensorEntry
from harness.checkpoint.stored import StoredTensors
from harness.errors import CheckpointError

_LENGTH_BYTES = 8


def tensors_of_file(path: Path, where: str) -> StoredTensors:
    """Its tensors by name; none is read yet.

    Safetensors itself checks the header, so that the parts of the file that it names are there and
    do not overlap (https://github.com/huggingface/safetensors#format). Raises CheckpointError.
    """
    try:
        with open_regular(path) as file, safe_open(path, "pt"):
            head_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = parse_json(file.read(head_bytes))
            size_bytes = os.fstat(file.fileno()).st_size
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{where}: {error}. Give a run, a checkpoint or a safetensors file."
        ) from error
    header.pop("__metadata__", None)
    unknown = sorted({one["dtype"] for one in header.values() if not known_dtype(one["dtype"])})
    if unknown:
        raise CheckpointError(
            f"{where}: torch has no {', '.join(unknown)}. Convert the file's tensors first."
        )
    begin = _LENGTH_BYTES + head_bytes
    # The file's name is another's, and need not be such as those in checkpoints are
    entries = {
        name: TensorEntry(
            dtype=one["dtype"],
            shape=one["shape"],
            parts=[PieceEntry.model_construct(file=path.name, key=name, rows=None)],
        )
        for name, one in header.items()
    }
    begins = {name: begin + one["data_offsets"][0] for name, one in header.items()}
    placement = Placement(b"", begins, size_bytes)
    return StoredTensors(path.parent, entries, {path.name: placement})

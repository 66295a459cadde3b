"""The weights of a checkpoint in safetensors files, for use elsewhere. They are copied from file to
file, however many there are and however they are cut: no tensor is held.
"""

import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.checkpoint.files import Content, Stretch, translate_errors, write_files
from harness.checkpoint.format import placement_of
from harness.checkpoint.manifest import Manifest
from harness.checkpoint.read import inspect
from harness.durable import sync_directory
from harness.errors import CheckpointError
from harness.wording import some


def export(checkpoint: Path, out: Path) -> int:
    """Write the network's tensors into a new file `out`; returns its size in bytes. Hashes are
    verified first. Raises CheckpointError.

    A tied weight is stored once; its other names stand in the file's metadata, as safetensors' own
    `save_model` has it.
    """
    listed = inspect(checkpoint, verify="full")
    if listed.manifest is None:
        raise CheckpointError(
            f"{checkpoint}: {some(listed.problems, separator='; ')}. Export another checkpoint."
        )
    if out.exists():
        raise CheckpointError(f"{out}: already exists. Remove it, or give another name.")
    names = {name: name for name in listed.manifest.model}
    return copy_tensors(checkpoint, listed.manifest, names, out, listed.manifest.aliases)


def copy_tensors(
    checkpoint: Path,
    manifest: Manifest,
    names: Mapping[str, str],
    out: Path,
    aliases: Mapping[str, str] | None = None,
) -> int:
    """Write some of the network's tensors into a new file `out`; returns its size in bytes.

    names: the network's, by those in the file; aliases: go into its metadata. Raises
    CheckpointError.
    """
    stored = manifest.placements()
    entries = {new: manifest.model[own] for new, own in names.items()}
    placement = placement_of({new: entry.spec for new, entry in entries.items()}, aliases)
    in_order = sorted(
        placement.begins, key=lambda new: (placement.begins[new], entries[new].spec.size_bytes)
    )
    chunks: list[bytes | memoryview | Stretch] = [placement.head]
    for new in in_order:
        entry = entries[new]
        row_bytes = entry.spec.size_bytes // max(1, entry.spec.num_rows)
        for part in entry.parts:
            first, last = part.rows or (0, entry.spec.num_rows)
            begin = stored[part.file].begins[part.key]
            chunks.append(Stretch(checkpoint / part.file, begin, (last - first) * row_bytes))
    temporary = Content(f".{out.name}.{secrets.token_hex(4)}", "model", chunks)
    with translate_errors(f"exporting to {out}"), ThreadPoolExecutor(1) as hasher:
        try:
            write_files(out.parent, [temporary], hasher)
            os.rename(out.parent / temporary.name, out)
            sync_directory(out.parent)
        finally:
            (out.parent / temporary.name).unlink(missing_ok=True)
    return temporary.size_bytes

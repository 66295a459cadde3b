"""trace.jsonl: per step the loss in hex, a digest of the sample positions and one of the
parameters; two runs are the same if these are.

Asked for by `log.trace: true`; each step then waits for the device. Cut back on resume like
metrics.jsonl.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bounded import json_lines
from harness.data.sampling import Sampling
from harness.durable import replace_file
from harness.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


class Trace:
    """Writes on rank 0, from one step on."""

    def __init__(self, path: Path, from_step: int) -> None:
        kept = [one for one in read_trace(path) if one["step"] <= from_step]
        replace_file(path, "".join(f"{json.dumps(one)}\n" for one in kept), sync=False)
        self._path = path

    def write(
        self, step: int, losses: Sequence[float], sampling: Sampling, parameters: str
    ) -> None:
        """One line for `step`, whose loss is the last of `losses`; `parameters`: their digest."""
        samples = hashlib.sha256()
        for slot in range(sampling.num_slots):
            samples.update(sampling.samples(step - 1, slot).tobytes())
        record = {
            "step": step,
            "loss": losses[-1].hex(),
            "samples": samples.hexdigest()[:16],
            "parameters": parameters[:16],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_trace(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of a trace.jsonl; anything else, such as half a line left by a crash at the end,
    is skipped. Raises ConfigError.
    """
    if not os.path.lexists(path):
        return
    try:
        for _, found in json_lines(path):
            if isinstance(found, dict) and type(found.get("step")) is int:
                yield found
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Fix the file.") from error


def digest(network: "nn.Module") -> str:
    """SHA-256 over names and bytes of all parameters and buffers. The host waits. Called by every
    rank where they are sharded.
    """
    import torch  # not for `fermarsi trace`, which reads

    from harness.ranks.mesh import whole

    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()

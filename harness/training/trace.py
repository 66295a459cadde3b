"""trace.jsonl: per step the loss in hex, a digest of the sample positions and one of the
parameters; two runs are the same if these are.

Asked for by `log.trace: true`; each step then waits for the device. Cut back on resume like
metrics.jsonl.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from harness.data.sampling import Sampling
from harness.durable import replace_file


class Trace:
    """Writes on rank 0, from one step on."""

    def __init__(self, path: Path, from_step: int) -> None:
        kept = (
            [
                line
                for line in path.read_text().splitlines()
                if json.loads(line)["step"] <= from_step
            ]
            if path.exists()
            else []
        )
        replace_file(path, "".join(f"{line}\n" for line in kept), sync=False)
        self._path = path

    def write(
        self, step: int, losses: Sequence[float], sampling: Sampling, network: nn.Module
    ) -> None:
        """One line for `step`, whose loss is the last of `losses`."""
        samples = hashlib.sha256()
        for slot in range(sampling.num_slots):
            samples.update(sampling.samples(step - 1, slot).tobytes())
        record = {
            "step": step,
            "loss": losses[-1].hex(),
            "samples": samples.hexdigest()[:16],
            "parameters": digest(network)[:16],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def digest(network: nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers. The host waits."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return sha.hexdigest()

"""What wrote a checkpoint."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@cache
def versions() -> dict[str, str]:
    """What wrote a checkpoint: for people, and for bug reports."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "code": _revision(),
        "torch": torch.__version__,
    }
    for name in ("fermarsi", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # harness from a bare checkout
            found[name] = "not installed"
    found["cuda"] = str(torch.version.cuda)
    found["device"] = (
        # Only where it is in use: asking would start a context on the GPU.
        torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.machine()  # type: ignore[no-untyped-call] # torch's
    )
    return found


def _revision() -> str:
    """A digest of the harness's own sources, which tells changed ones apart where a version or a
    commit does not.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return f"sources {digest.hexdigest()[:16]}"

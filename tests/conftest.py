"""What holds for every test: one thread a process, no network, no settings of the user's, the same
examples every time in CI.
"""

import os
import tempfile

# Before torch, accelerate and wandb are imported by anything: they read these once.
_HOME = tempfile.mkdtemp(prefix="fermarsi-home-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HOME": _HOME,  # `accelerate launch` reads a default_config.yaml from the user's, silently
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MPLBACKEND": "Agg",
}

import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.pool import POOL  # noqa: E402

torch.set_num_threads(1)
# Repeatable: the same examples each time. `make explore` looks for others; what it finds becomes an
# @example of its test.
settings.register_profile("repeat", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("FERMARSI_EXAMPLES", "repeat"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    POOL.close()
    shutil.rmtree(_HOME, ignore_errors=True)

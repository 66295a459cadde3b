"""Copies of a run's state in the memory of its machine: checkpoints in a file system that is kept
in memory, of a directory that `fermarsi launch --min-processes` holds while processes come and go.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.checkpoint.read import inspect, read_manifest, step_names
from harness.errors import ConfigError
from harness.wording import some

COPIES = "FERMARSI_COPIES"  # in the environment of a launch's processes: the directory
MEMORY = Path("/dev/shm")
_PREFIX, _LOCK = "fermarsi-copies-", "held"


@contextmanager
def held_copies() -> Iterator[Path]:
    """A directory for copies, until the launcher ends; what launchers left that were killed is
    removed. Raises ConfigError.
    """
    if not os.path.ismount(MEMORY):
        raise ConfigError(
            f"checkpoint.in_memory: there is no file system in memory at {MEMORY}. Mount one "
            "(tmpfs; of a container --shm-size), or leave it out."
        )
    for left in MEMORY.glob(f"{_PREFIX}*"):
        with suppress(OSError), (left / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=MEMORY))
    directory = MEMORY / made.name.removeprefix(".")
    try:
        with (made / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made.rename(directory)  # held before another launcher can find it
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def copies_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this launch keeps copies. Raises ConfigError."""
    if COPIES not in environment:
        raise ConfigError(
            "checkpoint.in_memory: copies in memory outlive processes only under fermarsi launch "
            "--min-processes, and this was not launched by it. Use it, or leave this out."
        )
    return Path(environment[COPIES])


def forget_others(directory: Path, found: Path | None) -> None:
    """Remove all copies but the one that the launch goes on from, if it is one: what is damaged,
    or older than the checkpoint that was chosen.
    """
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.is_dir() and path != found:
            shutil.rmtree(path, ignore_errors=True)


def newer_copy(
    directory: Path, checkpoint: Path | None, damage: Mapping[str, Sequence[str]]
) -> tuple[Path | None, list[str]]:
    """The newest valid copy of a later step than the checkpoint's, by all but the hashes of its
    tensors; and what is wrong with newer ones. damage: what hashes have shown, by path.
    """
    saved = -1 if checkpoint is None else read_manifest(checkpoint).step
    skipped: list[str] = []
    for step, name in reversed(step_names(directory)):
        if step <= saved:
            break
        found = inspect(directory / name, step)
        problems = [*found.problems, *damage.get(str(found.path), ())]
        if not problems:
            return found.path, skipped
        reasons = some(problems, 3, separator="; ")
        skipped.append(f"the copy in memory of step {step:,} is not valid: {reasons}")
    return None, skipped

"""What a machine may do to a process in the midst of a training, or of a command."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.cli import main
from tests.resume.parts import Mortal

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.mkdir")


def command(*arguments: str) -> int:
    """The exit code of a command, run here."""
    try:
        main([*arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def die_at_change(number: int, *arguments: str) -> int:
    """A command whose process is killed before its `number`-th call that changes a directory; how
    many there were, if it comes to its end.
    """
    seen = 0

    def look(event: str, _: Any) -> None:
        nonlocal seen
        seen += event in CHANGES
        if event in CHANGES and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    assert command(*arguments) == 0
    return seen


def lose_checkpoint(number: int, checkpoint: Path, *arguments: str) -> tuple[int, int]:
    """A command under which a checkpoint is taken away, as retention takes it, at the `number`-th
    time that one of its files is opened: its exit code, and how many times there were.
    """
    seen = 0

    def look(event: str, given: Sequence[Any]) -> None:
        nonlocal seen
        if event == "open" and f"/{checkpoint.name}" in str(given[0]):
            seen += 1
            if seen == number and checkpoint.exists():
                hidden = checkpoint.with_name(f".{checkpoint.name}.deleted")
                os.rename(checkpoint, hidden)
                shutil.rmtree(hidden)

    sys.addaudithook(look)
    return command(*arguments), seen


class Poor(Mortal):
    """An optimizer on whose machine something happens in the step that POOR="step:what" names."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        step, _, what = (os.environ.get("POOR") or "0:").partition(":")
        if self.calls == int(step):
            happen(what)
        return result


def happen(what: str) -> None:
    """files: no further one can be opened; memory: none is left; readonly: the disk RUN_DISK;
    clock: it is set back by an hour.
    """
    if what == "files":
        # Files that were closed leave gaps, and the limit is one of numbers
        held = os.open(os.devnull, os.O_RDONLY)
        os.close(held)
        resource.setrlimit(resource.RLIMIT_NOFILE, (held, held))
    elif what == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        held = pages * resource.getpagesize() + 2**26
        resource.setrlimit(resource.RLIMIT_AS, (held, held))
        torch.zeros(2**26)
    elif what == "readonly" and os.environ.get("RANK", "0") == "0":
        disk = os.environ["RUN_DISK"]
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
    elif what == "clock":
        now = time.time
        time.time = lambda: now() - 3600  # type: ignore[method-assign,assignment] # see above

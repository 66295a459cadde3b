"""Training in this process, or in several others."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from os import PathLike
from pathlib import Path

import harness
from harness.api.config import Config, Overrides, reading, source_of_config, texts
from harness.config.read import resolved_yaml
from harness.errors import ConfigError, HarnessError, RankError, error_from_json
from harness.interrupt import DEPENDENT_CLI
from harness.objects import present
from harness.rundir.outcome import DIVERGED, INTERRUPTED, Outcome, read_outcome

_ERROR = re.compile(r"((?:Config|Data|Checkpoint|Rank|Leaving)Error): (.*)", re.DOTALL)


def train(config: str | PathLike[str] | Config, overrides: Overrides = ()) -> Outcome:
    """Train until the end, or continue a run from its last checkpoint, in this process; as
    `fermarsi train` does.

    config: a YAML file or a `Config`; overrides: {"optimizer.lr": 3e-4}, or ["optimizer.lr=3e-4"].
    Interrupting (Ctrl-C, or a notebook's stop button) saves and returns the outcome, whose
    `is_finished` is False; calling again goes on. SIGTERM saves, and then ends the process as it
    would have. In another thread than the main one there are no signals: a file PREEMPT in the run
    directory does the same. Whatever training changes of the process is put back.

    Raises HarnessError: ConfigError, DataError, CheckpointError, RankError; LeavingError if it was
    interrupted before the run directory was its own.
    """
    from harness.imports import without_garbage_collection

    with without_garbage_collection():
        from harness.training.in_process import train_in_process

    read, objects = source_of_config(config, overrides)
    if isinstance(config, Config) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        config.require_importable("this is one process of several")
    with present(objects):
        return train_in_process(read)


def launch(
    config: str | PathLike[str] | Config,
    overrides: Overrides = (),
    *,
    processes: int | None = None,
    cpu: bool = False,
) -> Outcome:
    """Train in several new processes of this machine, as `fermarsi launch` does, and wait for them;
    what they print is printed here. Nothing is forked: CUDA may be in use here.

    processes: by default one a GPU; cpu: train on the CPU. Interrupting saves and returns the
    outcome. Raises HarnessError; ConfigError for classes and objects that only this process has.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"processes: {processes}: give 1 or more.")
    if isinstance(config, Config):
        config.require_importable("several processes train")
    found = reading(config, overrides)
    with tempfile.TemporaryDirectory(prefix="fermarsi-") as directory:
        if isinstance(config, Config):
            path = Path(directory) / "config.yaml"
            path.write_text(resolved_yaml(found))
            changes = []
        else:
            path, changes = Path(config), texts(overrides, {})
        count = [] if processes is None else ["--processes", str(processes)]
        code, error = _run(["launch", *count, *(["--cpu"] if cpu else []), str(path), *changes])
    outcome = read_outcome(found.run.dir) if code in (0, DIVERGED, INTERRUPTED) else None
    if outcome is None:
        raise error or RankError(f"the launch ended with exit code {code}: see above.")
    return outcome


def _run(arguments: list[str]) -> tuple[int, HarnessError | None]:
    """`fermarsi` in a process of its own: the exit code, and the last error that it printed."""
    here = str(Path(harness.__file__).parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-c", DEPENDENT_CLI, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        # An interrupt is passed on once, not sent to the whole group of a terminal or kernel
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    error: HarnessError | None = None
    with process:
        try:
            while True:
                try:
                    for line in process.stdout:
                        print(line, end="")
                        if match := _ERROR.match(line):
                            told = {"type": match[1], "message": match[2].strip()}
                            error = error_from_json({**told, "origin_rank": None})
                    return process.wait(), error
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)
        finally:
            if process.poll() is None:
                process.terminate()

"""Runs and checkpoints as somebody who means harm would hand them over: whatever a file says, the
manifest vouches for it.
"""

import contextlib
import hashlib
import io
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.checkpoint.manifest import CONFIG, MANIFEST, dump_manifest, parse_manifest
from harness.cli import main
from harness.config.document import to_yaml
from tests.pool import Launched, train_on_ranks

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"


def train_digits(run: Path, *overrides: str) -> Path:
    """A finished run of six steps, with a checkpoint at each second one."""
    steps = ["stop.every={steps: 2}", "stop.budget={steps: 6}", "checkpoint.every={steps: 2}"]
    kept = ["checkpoint.keep_last=3", "stop.targets=null", "batch={size: 32, micro_size: 32}"]
    (end,) = train_on_ranks(1, DIGITS, [*steps, *kept, f"run.dir={run}", *overrides])
    assert end.exit_code == 0, end.stderr
    return run


def copied(run: Path, to: Path) -> Path:
    """Another run like it."""
    return Path(shutil.copytree(run, to, symlinks=True))


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path.resolve() for path in (run / "checkpoints").glob("step-*"))


def write_into(checkpoint: Path, name: str, content: bytes) -> None:
    """Give a file of a checkpoint another content, with a manifest that fits."""
    (checkpoint / name).write_bytes(content)
    manifest = parse_manifest((checkpoint / MANIFEST).read_bytes())
    entry = manifest.files[name].model_copy(
        update={"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    )
    forged = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (checkpoint / MANIFEST).write_bytes(dump_manifest(forged))


def flip(path: Path, where: float) -> None:
    """Flip a bit of a file, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def in_process(arguments: Sequence[object]) -> Launched:
    """`fermarsi ARGUMENTS` in this very process, for many in a row; an exception that is no exit
    passes.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")  # as a process has it
        try:
            main([str(one) for one in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Launched(code, out.getvalue(), err.getvalue())


def change_config(run: Path, changes: Mapping[str, Any]) -> None:
    """Change keys ("network.dims") in the config of a run and of all its checkpoints."""
    for path in (run, *checkpoints_of(run)):
        config = yaml.safe_load((path / CONFIG).read_text())
        for key, value in changes.items():
            *above, last = key.split(".")
            section = config
            for name in above:
                section = section.setdefault(name, {})
            section[last] = value
        text = to_yaml(config).encode()
        if path == run:
            (path / CONFIG).write_bytes(text)
        else:
            write_into(path, CONFIG, text)

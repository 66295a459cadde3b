"""docker/Dockerfile built and run for real, without an engine: Debian from its packages for a base,
buildah, a CPU build of torch.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.rundir.outcome import read_outcome

ROOT = Path(__file__).parents[2]
CONTEXT = (
    "harness",
    "launch",
    "configs",
    "docker",
    "requirements",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".dockerignore",
    "tests/__init__.py",
)
SUITE, PYTHON = "bookworm", "cp311"
OF_CUDA = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
USER = 10001
GOAL = ["stop.targets=null", "stop.improvement=null", "stop.budget.epochs=3"]


def cpu_torch() -> Path | None:
    """A CPU build of torch where pip looks for links (PIP_FIND_LINKS); PyPI has none."""
    directories = [
        Path(place)
        for place in os.environ.get("PIP_FIND_LINKS", "").split()
        if Path(place).is_dir()
    ]
    return next(
        (
            path
            for place in directories
            for path in sorted(place.glob(f"torch-*+cpu-{PYTHON}-*_{platform.machine()}.whl"))
        ),
        None,
    )


def missing() -> str | None:
    """Why there can be no image here; None if there can."""
    if os.geteuid() != 0:
        return "needs root, for debootstrap"
    absent = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if absent:
        return f"needs {' and '.join(absent)}: apt-get install buildah debootstrap"
    return (
        None
        if cpu_torch() is not None
        else "needs a CPU build of torch for Python 3.11 in a directory of PIP_FIND_LINKS"
    )


pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=f"image: {missing()}"),
]


class Builder:
    """buildah with a storage of its own in `directory`; nothing of it is left when that is gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tmp").mkdir()
        self._options = [
            f"--root={directory}/storage",
            f"--runroot={directory}/run",
            "--storage-driver=vfs",
        ]
        self._environment = {**os.environ, "TMPDIR": str(directory / "tmp")}

    def __call__(self, command: str, *arguments: str | Path) -> str:
        """What the command prints. Raises AssertionError if it fails."""
        done = self.try_to(command, *arguments)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout.strip()

    def try_to(self, command: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        words = ["buildah", *self._options, command, *map(str, arguments)]
        return subprocess.run(
            words,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def base(self) -> str:
        """A Debian, made of its packages."""
        container = self("from", "scratch")
        place = self("mount", container)
        debootstrap = [
            "debootstrap",
            "--variant=minbase",
            "--include=ca-certificates,python3,python3-venv,tini",
            SUITE,
            place,
        ]
        done = subprocess.run(debootstrap, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        shutil.rmtree(Path(place) / "var/cache/apt/archives")
        self("unmount", container)
        self(
            "config",
            "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            container,
        )
        self("commit", "--quiet", "--rm", container, "localhost/base")
        return "localhost/base"

    def build(self, base: str, context: Path, torch: Path) -> str:
        """The image of docker/Dockerfile."""
        arguments = {"BASE": base, "REQUIREMENTS": "requirements/cpu.txt", "REVISION": "abc123"}
        mounts = [f"{torch.parent}:{torch.parent}:ro"]
        if "SSL_CERT_FILE" in os.environ:  # a proxy with a certificate of its own
            arguments |= {"SSL_CERT_FILE": "/certificates.crt", "PIP_CERT": "/certificates.crt"}
            mounts.append(f"{os.environ['SSL_CERT_FILE']}:/certificates.crt:ro")
        options = [
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *(f"--volume={mount}" for mount in mounts),
        ]
        without_engine = ["--format=docker", "--isolation=chroot", "--network=host", "--quiet"]
        self(
            "build",
            *without_engine,
            *options,
            f"--file={context}/docker/Dockerfile",
            "--tag=localhost/fermarsi",
            context,
        )
        return "localhost/fermarsi"

    def close(self) -> None:
        self.try_to("rm", "--all")
        for line in Path("/proc/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.directory)


def cpu_requirements(torch: Path) -> str:
    """requirements/run.txt, locked as it is, with this torch and without CUDA's libraries."""
    packages = re.split(r"\n(?=\w)", (ROOT / "requirements" / "run.txt").read_text())
    kept = [package for package in packages if not OF_CUDA.match(package)]
    assert len(kept) < len(packages) - 5
    digest = hashlib.sha256(torch.read_bytes()).hexdigest()
    return "\n".join([*kept, f"torch @ {torch.as_uri()} --hash=sha256:{digest}", ""])


class Container:
    """A container of the image, with a directory of this machine for its runs."""

    def __init__(self, builder: Builder, image: str) -> None:
        self._builder = builder
        self.config: dict[str, Any] = json.loads(builder("inspect", "--type=image", image))[
            "Docker"
        ]["config"]
        self.runs = builder.directory / "runs"
        self.runs.mkdir()
        os.chown(self.runs, USER, USER)
        self._name = builder("from", image)

    def run(
        self, *command: str, env: dict[str, str] | None = None, entrypoint: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """As an engine would: the entrypoint before the command, the image's user, nothing of this
        machine's environment.
        """
        before = self.config["Entrypoint"] if entrypoint else []
        options = [f"--env={name}={value}" for name, value in (env or {}).items()]
        return self._builder.try_to(
            "run",
            "--isolation=chroot",
            f"--volume={self.runs}:/runs",
            *options,
            self._name,
            "--",
            *before,
            *command,
        )


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    torch = cpu_torch()
    assert torch is not None
    builder = Builder(Path(tempfile.mkdtemp(prefix="image-")))
    try:
        context = builder.directory / "checkout"
        for name in CONTEXT:
            source, target = ROOT / name, context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (context / "requirements" / "cpu.txt").write_text(cpu_requirements(torch))
        (context / "harness" / ".env").write_text("WANDB_API_KEY=secret")
        yield Container(builder, builder.build(builder.base(), context, torch))
    finally:
        builder.close()


def test_it_trains_three_epochs_and_its_health_is_seen(container: Container) -> None:
    train = [
        "launch/attend.sh",
        "/runs/digits",
        "launch/cpu.sh",
        "2",
        "configs/digits.yaml",
        "run.dir=/runs/digits",
        *GOAL,
    ]
    done = container.run(*train, env={"WANDB_MODE": "disabled"})
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = read_outcome(container.runs / "digits")
    assert outcome is not None
    assert (outcome.reason, outcome.world_size) == ("budget", 2)
    assert outcome.epoch >= 3
    assert {path.stat().st_uid for path in container.runs.rglob("*")} == {USER}
    check = container.config["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    for run, healthy in [("digits", True), ("none", True), ("crashed", False)]:
        if run == "crashed":
            shutil.copytree(container.runs / "digits", container.runs / run, symlinks=True)
            (container.runs / run / "outcome.json").unlink()
        looked = container.run(*check[1:], env={"RUN_DIR": f"/runs/{run}"}, entrypoint=False)
        assert (looked.returncode == 0) is healthy, looked.stdout + looked.stderr


def test_it_runs_as_nobody_in_particular_and_holds_no_secret(container: Container) -> None:
    assert container.run("id", "-u").stdout.strip() == str(USER)
    assert container.run("touch", "/fermarsi/harness/changed.py").returncode != 0
    assert container.run("fermarsi", "--help").returncode == 0
    left = container.run("ls", "-A", "/fermarsi", "/fermarsi/harness").stdout.split()
    assert not {".env", ".git", "tests", "runs", "requirements"} & set(left)
    names = {variable.partition("=")[0] for variable in container.config["Env"]}
    assert names == {"PATH", "PYTHONDONTWRITEBYTECODE", "RUN_DIR"}
    assert container.config["Labels"]["org.opencontainers.image.revision"] == "abc123"
    assert container.config["User"] == f"{USER}:{USER}"

"""A Slurm of two nodes on this machine, for root: real daemons with their own configuration, ports
and sockets; nothing outside of one directory.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
START_LIMIT_S = 60.0


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if os.geteuid() != 0:
        return "needs root, for munged and slurmd"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else None


def eventually(condition: Callable[[], bool], limit_s: float, what: Callable[[], str]) -> None:
    """Wait until it holds; `what` tells what went wrong."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {what()}"
        time.sleep(0.2)


class Cluster:
    """`directory`: short, for sockets, and this cluster's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._conf = directory / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._template = Path(__file__).with_name("slurm.conf").read_text()
        for name, value in {
            "HOST": socket.gethostname().partition(".")[0],
            "DIR": str(directory),
            **_free_ports("PORT", "PORT1", "PORT2"),
        }.items():
            self._template = self._template.replace(f"@{name}@", value)
        outside = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_"))
        }
        self.environment = {**outside, "PATH": PATH, "SLURM_CONF": str(self._conf)}

    def start(self) -> None:
        """Start the daemons and wait for the nodes. Raises AssertionError with their logs."""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir()
        self._write("")
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {
            "key-file": key.name,
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={self.directory / name}" for option, name in places.items()),
        )
        eventually((self.directory / "munge.socket").exists, START_LIMIT_S, self.logs)
        self._daemon("slurmctld", "-D", "-c", "-f", str(self._conf))
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self._conf))
        eventually(lambda: self._idle() == len(NODES), START_LIMIT_S, self.logs)

    def reconfigure(self, parameters: str) -> None:
        """Set SlurmctldParameters."""
        self._write(parameters)
        self.run("scontrol", "reconfigure")

    def submit(self, *command: str | Path, cwd: Path, **environment: str) -> int:
        """`sbatch COMMAND`; the job's number. Its output goes to job-NUMBER.log."""
        return int(
            self.run(
                "sbatch",
                "--parsable",
                f"--output={self.directory}/job-%j.log",
                *map(str, command),
                cwd=cwd,
                **environment,
            )
        )

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, number: int) -> str:
        """What a job has written."""
        path = self.directory / f"job-{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        """The last lines of all daemons."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:])
            for path in sorted(self.directory.glob("*.log"))
        )

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """A command of Slurm's; what it prints. Raises AssertionError if it fails."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        """End the jobs, then the daemons that were started here."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--full", "--signal=KILL", "--user=root")
            self.run("scancel", "--user=root")
            eventually(lambda: not self.run("squeue", "--noheader"), 20.0, lambda: "jobs stay")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()

    def _daemon(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=PATH)
        assert program is not None
        with (self.directory / f"{name}-{len(self._daemons)}.out.log").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            )

    def _write(self, parameters: str) -> None:
        lines = self._template.replace("@PARAMETERS@", parameters).splitlines(keepends=True)
        self._conf.write_text(
            "".join(line for line in lines if not line.startswith("SlurmctldParameters=\n"))
        )

    def _idle(self) -> int:
        try:
            return (
                self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
                .split()
                .count("idle")
            )
        except AssertionError:  # the controller does not listen yet
            return 0


def _free_ports(*names: str) -> Mapping[str, str]:
    """Ports that were free just now, for what is given its port by a file."""
    sockets = [socket.socket() for _ in names]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = {name: str(one.getsockname()[1]) for name, one in zip(names, sockets, strict=True)}
    for one in sockets:
        one.close()
    return found

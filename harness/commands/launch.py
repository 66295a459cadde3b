"""`fermarsi launch`: a training on several processes, by accelerate's launcher and torch's agent in
this process. A mistake in the config ends before any process starts; what the agent has to say of a
failure goes to a file, below nothing of ours; exit codes are the training's.
"""

import io
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import harness
from harness.config.read import read_config
from harness.config.schema import Config
from harness.console import Console
from harness.data.sampling import fitting_world_sizes, slots_a_rank
from harness.durable import replace_file
from harness.errors import ConfigError, HarnessError, RankError
from harness.rundir.outcome import DIVERGED, INTERRUPTED, Outcome, exit_code, read_outcome

TRAIN = Path(harness.__file__).parent / "train.py"
# Their message is whole, and stands above: the agent knows nothing more
_SAID = (2, DIVERGED)
# What is set already is kept
_ENVIRONMENT = {
    # Torch's agent passes SIGUSR1 on too (it would die of it and leave the processes behind), and
    # gives them five minutes to save after a signal, not thirty seconds. Accelerate has no options
    # for it. Whoever granted the time kills them sooner if it was less.
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "PET_SHUTDOWN_TIMEOUT": "300",
    # A log that a killed process had still in its buffer tells nothing
    "PYTHONUNBUFFERED": "1",
    # NCCL says nothing of what goes wrong unless asked to. When a collective exceeds run.timeout_s,
    # each process writes which collectives it had begun: who waited for whom
    "NCCL_DEBUG": "WARN",
    "TORCH_FR_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",
    # Tokenizers' threads do not live through the fork of a DataLoader's workers
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Machines:
    """`node`: the number of this one; `head`: number 0 as the others reach it, HOST[:PORT]."""

    nodes: int = 1
    node: int = 0
    head: str = "127.0.0.1"

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not 0 <= self.node < self.nodes:
            raise ConfigError(
                f"--node {self.node}: of {self.nodes} machines they are 0 to {self.nodes - 1}."
            )
        if self.nodes > 1 and self.head == Machines.head:
            raise ConfigError(
                "--head: give machine 0 as the others reach it, HOST[:PORT], the same on each."
            )
        if not self.port.isdecimal():
            raise ConfigError(f"--head {self.head}: {self.port} is no port.")

    @property
    def host(self) -> str:
        return self.head.rpartition(":")[0] or self.head

    @property
    def port(self) -> str:
        """29400 where none is given."""
        return self.head.rpartition(":")[2] if ":" in self.head else "29400"


def launch_training(
    path: Path,
    overrides: Sequence[str],
    processes: int | None,
    machines: Machines,
    *,
    cpu: bool,
    quiet: bool,
    debug: bool,
    least: int | None = None,
) -> int:
    """Train by a config; the exit code: of the training (0, 2, 3, 75), of the process that failed
    first, or 128 and the signal that killed it.

    processes: on this machine, by default one a GPU; alone, one becomes this process. cpu: also by
    ACCELERATE_USE_CPU. quiet: as of `fermarsi train`. debug: the agent's report is shown. least:
    processes of all machines with which the training goes on when others are lost; without it, the
    loss of one ends the launch.

    Raises HarnessError, ConfigError for a mistake in the config or without a GPU.
    """
    cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    options = ["--quiet"] if quiet else []
    with Console(True, quiet=quiet) as console:
        if console.is_live:  # what is read here tells nothing in a file
            console.phase(f"reading {path}")
        here = _processes_here(processes, cpu=cpu)
        environment = os.environ | _environment(here, os.environ, cpu=cpu)
        if least is not None or here * machines.nodes > 1:
            config = read_config(path, overrides)
    command = [sys.executable, str(TRAIN), *options, str(path), *overrides]
    if least is not None:
        return _launch_elastic(command, environment, config, here, machines, least)
    if here * machines.nodes > 1:
        slots_a_rank(config.batch.size, config.batch.micro_size, here * machines.nodes)
    if here * machines.nodes == 1:
        sys.stdout.flush()
        os.execve(sys.executable, command, environment)
    os.environ.update(environment)
    directory = config.run.dir
    if machines.nodes > 1:
        meeting = f"{machines.nodes} machines at {machines.host}:{machines.port}"
        print(f"fermarsi launch: waiting for {meeting}, ten minutes at most", file=sys.stderr)
    before, report = _outcome(directory), io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings:
        settings.write(_settings(here, machines))
        settings.flush()
        code, words = _run(settings.name, command[2:], machines, report)
    after = _outcome(directory)
    if not code:  # under the agent, processes that were asked to leave end with 0
        unsaid = after is None or (code is None and after == before)
        code = INTERRUPTED if unsaid or after is None else exit_code(after, under_agent=False)
    if debug:
        print(report.getvalue(), end="", file=sys.stderr)
    elif words:
        kept = _keep(report.getvalue(), directory, machines)
        print(f"fermarsi launch: {words}. The launcher's report: {kept}", file=sys.stderr)
    return code


def _launch_elastic(
    command: Sequence[str],
    environment: Mapping[str, str],
    config: Config,
    here: int,
    machines: Machines,
    least: int,
) -> int:
    """Raises HarnessError."""
    from harness.checkpoint.in_memory import COPIES, held_copies
    from harness.commands.elastic_launch import ElasticLaunch

    if least > here * machines.nodes:
        raise ConfigError(
            f"--min-processes {least}: {here * machines.nodes} processes are launched in all."
        )
    num_slots = config.batch.size // config.batch.micro_size
    most = max(one for one in fitting_world_sizes(num_slots) if one <= here * machines.nodes)
    if most < least:
        raise ConfigError(
            f"--min-processes {least}: of {here * machines.nodes} processes, {most} can share the "
            f"{num_slots} slots of a batch. Give {most} or less, or change batch.size."
        )
    with nullcontext() if config.checkpoint.in_memory is None else held_copies() as copies:
        return ElasticLaunch(
            command=command,
            environment={**environment, **({} if copies is None else {COPIES: str(copies)})},
            processes=here,
            machines=machines.nodes,
            machine=machines.node,
            host=machines.host,
            port=0 if machines.nodes == 1 else int(machines.port),
            num_slots=num_slots,
            least=least,
            grace_s=float(environment["PET_SHUTDOWN_TIMEOUT"]),
        ).run()


def _processes_here(asked: int | None, *, cpu: bool) -> int:
    """Raises ConfigError."""
    if cpu:
        return asked or 1
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise ConfigError(
            "torch sees no GPU here. Train on the CPU with --cpu --processes N, or see what "
            "nvidia-smi and CUDA_VISIBLE_DEVICES say."
        )
    if asked is not None and asked > gpus:
        raise ConfigError(
            f"--processes {asked}: torch sees {gpus} GPUs here, one a process. Give fewer."
        )
    return asked or gpus


def _environment(here: int, given: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """The variables that matter to a training of several processes, as far as they are not given.

    Left alone, each process would start a thread for every core, or, by the launcher's choice, only
    one: they share the cores. CUBLAS_WORKSPACE_CONFIG, without which CUDA is not deterministic, is
    set by the training. Not set, since only a user can know them: NCCL_SOCKET_IFNAME and
    GLOO_SOCKET_IFNAME, where the first network interface found is the wrong one (docker0), or a
    machine's own name stands for 127.0.1.1 in its /etc/hosts; NCCL_ALGO=Ring and NCCL_PROTO=Simple,
    which keep a run's bits on machines wired differently.
    """
    from harness.training.workers import num_cores

    threads = max(1, num_cores() // here)
    wanted = {**_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    if cpu:
        wanted["ACCELERATE_USE_CPU"] = "true"
    return {name: given.get(name) or value for name, value in wanted.items()}


def _settings(here: int, machines: Machines) -> str:
    """Accelerate's config file: without one it reads a user's default_config.yaml."""
    lines = {
        "compute_environment": "LOCAL_MACHINE",
        # Accelerate's word for several processes
        "distributed_type": "MULTI_GPU",
        # The config's train.precision decides
        "mixed_precision": '"no"',
        "num_machines": machines.nodes,
        "num_processes": here * machines.nodes,
    }
    if machines.nodes > 1:
        lines["rdzv_backend"] = "c10d"  # machines may come in any order
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _run(
    settings: str, training: Sequence[str], machines: Machines, report: io.StringIO
) -> tuple[int | None, str]:
    """(exit code, what went wrong); the code is None after a signal to this process. training: its
    arguments.

    Raises RankError if the machines do not meet.
    """
    from harness.ranks.agent import run_agent

    options = ["--config_file", settings, "--multi_gpu", "--main_process_port"]
    if machines.nodes == 1:
        options.append("0")
    else:
        # Machine 0 keeps the store at which all meet: left to itself, torch guesses by comparing
        # host names. Late machines have ten minutes
        meeting = f"is_host={int(machines.node == 0)},join_timeout=600"
        options += [machines.port, "--main_process_ip", machines.host]
        options += ["--machine_rank", str(machines.node), "--rdzv_conf", meeting]
    try:
        ended = run_agent([*options, str(TRAIN), *training], report)
    except ConnectionError as error:
        why = str(error).partition(". ")[0]  # the rest is about options of accelerate's
        raise RankError(
            f"machine {machines.node} ({socket.gethostname()}): the {machines.nodes} machines of "
            f"this launch could not meet at {machines.host}:{machines.port}: {why}. Is that "
            "machine 0, its name known here, its port free there and open to the others, and was "
            "the launch started on each?",
            origin_rank=0,
        ) from error
    if ended.signal is not None:
        return 128 + ended.signal, f"rank {ended.rank} was killed by {Signals(ended.signal).name}"
    failed = ended.code not in (None, 0, *_SAID)
    return ended.code, f"rank {ended.rank} ended with {ended.code}" if failed else ""


def _outcome(directory: Path) -> Outcome | None:
    """What the run says; None also where it cannot be understood, which the training reports."""
    with suppress(HarnessError):
        return read_outcome(directory)
    return None


def _keep(report: str, directory: Path, machines: Machines) -> Path:
    """Where it lies: in the run directory, if there is one."""
    name = "launcher.txt" if machines.nodes == 1 else f"launcher-{machines.node}.txt"
    try:
        replace_file(directory / name, report, sync=False)
    except OSError:
        with tempfile.NamedTemporaryFile("w", delete=False, prefix="fermarsi-launcher-") as file:
            file.write(report)
        return Path(file.name)
    return directory / name

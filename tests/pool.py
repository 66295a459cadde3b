"""Real gloo ranks for tests: processes that are started once a session and given one job after
another.

    squares = on_ranks(3, function, argument)
    launches = train_on_ranks(2, config, ["run.seed=1"])

The first gives the results of function(argument), one a rank; the second makes a launch of a
config, as `accelerate launch` would.

A cold start of a process that imports torch takes seconds: it is made once, and every process is a
fork. A fork takes milliseconds, leaves nothing behind, and may be killed for nothing. What a job
may find is what a worker of `accelerate launch` finds: the same environment variables, the store of
an agent that outlives the workers, its place in the main thread.

The function must be importable by its module and name; arguments and results must be picklable
(this is the only place that pickles).
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

MOST_RANKS = 8
START_LIMIT_S = 180.0  # importing torch on two busy cores
PEERS_LIMIT_S = 30.0  # what the other ranks are given when one has failed

# torch asks for the host name of every address it connects to, ::ffff:127.0.0.1 too, of which a
# machine's hosts file does not tell: an answer of the name server that is lost would cost five
# seconds, here it costs one.
os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
# Of all processes, whatever a test does to its own when one is started
_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

Meanwhile = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class Failure:
    """Why a rank gave no result.

    `error` is None if it died, hung, or raised what cannot be pickled; `exit_code` is negative for
    a signal.
    """

    rank: int
    summary: str
    traceback: str = ""
    error: BaseException | None = None
    exit_code: int | None = None
    hung: bool = False


class RanksFailed(Exception):  # noqa: N818 - says what happened, as StopIteration does
    """Some ranks of a job failed. `failures`: by rank; `results`: of the ranks that did not."""

    def __init__(self, failures: Mapping[int, Failure], results: Mapping[int, Any]) -> None:
        self.failures = dict(failures)
        self.results = dict(results)
        parts = [
            f"rank {rank}: {one.summary}\n{one.traceback}".rstrip()
            for rank, one in sorted(self.failures.items())
        ]
        super().__init__("\n\n".join(parts))

    def error(self, rank: int) -> BaseException:
        """What that rank raised."""
        error = self.failures[rank].error
        assert error is not None, (
            f"rank {rank} raised nothing that could be sent: {self.failures[rank]}"
        )
        return error


@dataclass(frozen=True)
class Launched:
    """How a launch ended on one rank.

    `exit_code`: as a shell's user would see it, negative for the signal that killed the process.
    """

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Template:
    """A process that has imported what jobs need, to be forked."""

    process: "subprocess.Popen[bytes]"
    control: socket.socket

    @classmethod
    def start(cls, directory: Path) -> "Template":
        """It dies with this process. Only for the main thread, whose end a child takes for its
        parent's.
        """
        assert threading.current_thread() is threading.main_thread()
        ours, theirs = socket.socketpair()
        said = directory / "template.err"
        script = Path(__file__).with_name("rank_process.py")
        with theirs, said.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(script), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches pytest alone
                env=_ENVIRONMENT,
            )
        if not wait([ours], START_LIMIT_S) or not ours.recv(1):
            process.kill()
            raise RuntimeError(
                f"the pool did not start within {START_LIMIT_S:.0f} s:\n{said.read_text()}"
            )
        return cls(process, ours)

    def end(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Worker:
    """A process of the pool, with the files that its standard output and error go to."""

    process: int
    connection: Connection
    stdout: Path
    stderr: Path
    child: int | None = None  # the job that it works on

    @classmethod
    def fork(cls, template: Template, directory: Path, number: int) -> "Worker":
        ours, theirs = Pipe()
        stdout, stderr = directory / f"{number}.out", directory / f"{number}.err"
        with theirs, stdout.open("ab") as out, stderr.open("ab") as err:
            given = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(template.control, [b"1"], given)
        return cls(ours.recv(), ours, stdout, stderr)

    def end_job(self, how: int = signal.SIGKILL) -> None:
        """Send a signal to the job; SIGKILL goes to whatever it started as well."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if how == signal.SIGKILL else os.kill)(self.child, how)

    def end(self) -> None:
        """End the process and the job it works on."""
        self.end_job()
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)


@dataclass
class Pool:
    """The processes of the session; as many as the largest job so far needed."""

    idle: list[Worker] = field(default_factory=list)
    _template: Template | None = None
    _directory: "tempfile.TemporaryDirectory[str] | None" = None
    _started: int = 0

    def run(
        self,
        n: int,
        function: Callable[..., Any],
        args: Sequence[Any],
        env: Mapping[str, str],
        timeout_s: float,
        meanwhile: Meanwhile | None,
    ) -> "tuple[dict[int, Any], dict[int, Failure], list[tuple[str, str]]]":
        """Results by rank, failures by rank, and what each rank wrote to (standard output, standard
        error).
        """
        assert 1 <= n <= MOST_RANKS, f"{n} ranks on a test machine"
        workers = self._take(n)
        # The store lives here, as it lives in the agent of a real launch: it outlives a worker that
        # dies.
        store = (
            dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if n > 1 else None
        )
        try:
            for rank, worker in enumerate(workers):
                os.truncate(worker.stdout, 0)  # the process appends
                os.truncate(worker.stderr, 0)
                place = {} if store is None else _launcher_environment(rank, n, store.port)
                job = {"function": function, "args": tuple(args), "env": {**place, **env}}
                worker.connection.send((list(sys.path), os.getcwd(), pickle.dumps(job)))
            for worker in workers:
                _, worker.child = worker.connection.recv()
            if meanwhile is not None:
                meanwhile([worker.child for worker in workers if worker.child is not None])
            results, failures = self._collect(workers, timeout_s)
        except BaseException:  # also a test's own time limit: no rank may stay in the job
            for worker in workers:
                worker.end()
            raise
        output = [
            (worker.stdout.read_text(errors="replace"), worker.stderr.read_text(errors="replace"))
            for worker in workers
        ]
        self.idle = workers + self.idle
        return results, failures, output

    def close(self) -> None:
        """End all processes."""
        for worker in self.idle:
            worker.end()
        self.idle.clear()
        if self._template is not None:
            self._template.end()
            self._template = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _take(self, n: int) -> list[Worker]:
        self.idle = [worker for worker in self.idle if not worker.connection.poll()]  # its end
        while len(self.idle) < n:
            self.idle.append(self._start())
        taken, self.idle = self.idle[:n], self.idle[n:]
        return taken

    def _start(self) -> Worker:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="fermarsi-pool-")
        directory = Path(self._directory.name)
        self._template = self._template or Template.start(directory)
        self._started += 1
        return Worker.fork(self._template, directory, self._started)

    def _collect(
        self, workers: Sequence[Worker], timeout_s: float
    ) -> tuple[dict[int, Any], dict[int, Failure]]:
        """Wait for every rank's answer; a job that hangs is ended."""
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        waiting = dict(enumerate(workers))

        def take(limit_s: float) -> None:
            for connection in wait([worker.connection for worker in waiting.values()], limit_s):
                rank = next(
                    rank for rank, worker in waiting.items() if worker.connection is connection
                )
                worker = waiting.pop(rank)
                worker.child = None
                how, told = worker.connection.recv()
                if how == "died":
                    name = signal.Signals(-told).name if told < 0 else f"exit code {told}"
                    failures[rank] = Failure(
                        rank,
                        f"the process died: {name}",
                        worker.stderr.read_text(errors="replace"),
                        exit_code=told,
                    )
                else:
                    outcome, answer = pickle.loads(told)
                    if outcome == "result":
                        results[rank] = answer
                    else:
                        failures[rank] = Failure(rank, **answer)

        deadline = time.monotonic() + timeout_s
        while waiting and (left := deadline - time.monotonic()) > 0:
            take(left)
            if failures:
                deadline = min(deadline, time.monotonic() + PEERS_LIMIT_S)
        hung = dict(waiting)
        for worker in hung.values():
            worker.end_job(signal.SIGUSR2)  # it prints where it stands
        if hung:
            time.sleep(0.5)
        for worker in hung.values():
            worker.end_job()
        while waiting:
            take(PEERS_LIMIT_S)
        for rank, worker in hung.items():
            where = worker.stderr.read_text(errors="replace")
            failures[rank] = Failure(
                rank,
                f"no answer within its time limit (of {timeout_s} s at most)",
                where,
                hung=True,
            )
            results.pop(rank, None)
        return results, failures


POOL = Pool()


def on_ranks(
    n: int,
    function: Callable[..., Any],
    *args: Any,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    meanwhile: Meanwhile | None = None,
) -> list[Any]:
    """function(*args) on n gloo ranks (one rank: no process group); the results in the order of
    ranks.

    `env` is added to the environment of each; `meanwhile` is called here with their process ids
    while they work. Raises RanksFailed.
    """
    results, failures, output = POOL.run(
        n, _in_group, (function, *args), env or {}, timeout_s, meanwhile
    )
    for rank, (out, err) in enumerate(output):
        print(*(f"[rank {rank}] {line}" for line in (out + err).splitlines()), sep="\n")
    if failures:
        raise RanksFailed(failures, results)
    return [results[rank] for rank in range(n)]


def train_on_ranks(
    n: int,
    config: Path,
    overrides: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
    meanwhile: Meanwhile | None = None,
) -> list[Launched]:
    """harness.training.launch.launch(config, overrides) on n ranks; how it ended on each, whether
    by an exit code or by a signal.

    Raises RanksFailed if a rank hangs, or if an exception leaves `launch`, which is to turn every
    one into an exit code.
    """
    results, failures, output = POOL.run(
        n, _launch, (config, list(overrides)), env or {}, timeout_s, meanwhile
    )
    for rank, (out, err) in enumerate(output):
        print(f"[rank {rank}] exit code {results.get(rank)}", out, err, sep="\n")
    if any(failure.exit_code is None for failure in failures.values()):
        raise RanksFailed(failures, results)
    exit_codes = {
        rank: failure.exit_code
        for rank, failure in failures.items()
        if failure.exit_code is not None
    } | results
    return [Launched(exit_codes[rank], out, err) for rank, (out, err) in enumerate(output)]


def command(
    *arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> Launched:
    """`fermarsi ARGUMENTS` in one process, with `env` in its environment.

    Raises RanksFailed if it hangs or dies of an exception.
    """
    results, failures, output = POOL.run(
        1, _command, ([str(one) for one in arguments],), env or {}, timeout_s, None
    )
    if failures:
        raise RanksFailed(failures, results)
    return Launched(results[0], *output[0])


def _in_group(function: Callable[..., Any], *args: Any) -> Any:
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        dist.barrier()  # one that leaves at once would leave while others still connect
    return function(*args)


def _command(arguments: list[str]) -> int:
    from harness.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _launch(config: Path, overrides: list[str]) -> int:
    from harness.training.launch import launch

    return launch(config, overrides)


def _launcher_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a worker of `accelerate launch` finds in its environment (1.15), but for
    TORCHELASTIC_RUN_ID: exit codes are those of a process alone.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "ACCELERATE_MIXED_PRECISION": "no",
    }

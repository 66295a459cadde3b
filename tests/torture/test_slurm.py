"""launch/slurm.sbatch under a real Slurm: preempted, requeued, cancelled, on one and two nodes."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.rundir.outcome import read_outcome
from tests.operations.test_wandb import assert_kept_what_was_written
from tests.pool import train_on_ranks
from tests.resume.test_exact import assert_same
from tests.torture.slurm_cluster import Cluster, eventually, missing

pytestmark = [
    pytest.mark.torture,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=f"Slurm: {missing()}"),
]
ROOT = Path(__file__).parents[2]
SBATCH = "launch/slurm.sbatch"
CONFIG = "configs/digits.yaml"
GOAL = ["stop.targets=null", "stop.improvement=null", "stop.budget.epochs=30", "log.trace=true"]
OPTIMIZER = "optimizer={{_target_: tests.torture.slurm_parts.Unhurried, lr: 3e-3, rest_s: {}}}"
LIMIT_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own is too long for a socket
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one go, without Slurm and without rests."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert [
        one.exit_code
        for one in train_on_ranks(2, ROOT / CONFIG, [f"run.dir={run}", *GOAL, OPTIMIZER.format(0)])
    ] == [0, 0]
    return run


class Job:
    """A training under Slurm. `nodes`: where; `per_node`: processes on each."""

    def __init__(
        self, cluster: Cluster, run: Path, *overrides: str, nodes: str = "n1", per_node: int = 2
    ) -> None:
        self.cluster = cluster
        self.run = run
        self.restarts = 0
        where = [
            f"--nodelist={nodes}",
            f"--nodes={nodes.count(',') + 1}",
            f"--cpus-per-task={per_node}",
        ]
        environment = {"PER_NODE": str(per_node), "ACCELERATE_USE_CPU": "true"}
        self.number = cluster.submit(
            *where,
            SBATCH,
            CONFIG,
            f"run.dir={run}",
            OPTIMIZER.format(0.05),
            *GOAL,
            *overrides,
            cwd=ROOT,
            **environment,
        )

    def trains(self) -> None:
        """Wait until this life of the job has saved something, and begun what is not saved yet."""
        self._until(lambda: self.state() == "RUNNING")
        before = self.newest()
        self._until(lambda: self.newest() > before)

    def preempt(self, node: str) -> None:
        """A job of the other partition takes the node for a second; wait until this one has left
        it, saved, and waits to go on.
        """
        self.cluster.submit(
            "--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=sleep 1", cwd=self.run
        )
        self.comes_back()
        outcome = read_outcome(self.run)
        assert outcome is not None, self.told()
        assert (outcome.reason, outcome.step) == ("interrupted", self.newest()), self.told()

    def comes_back(self) -> None:
        self.restarts += 1
        self._until(lambda: self.cluster.job(self.number)["Restarts"] == str(self.restarts))

    def ends(self) -> str:
        """Wait for the end; the job's state, in Slurm's words."""
        self._until(lambda: self.state() not in ("PENDING", "RUNNING", "COMPLETING"))
        return self.state()

    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    def newest(self) -> int:
        """The step of the last checkpoint, 0 if there is none."""
        return max(
            (int(path.name.removeprefix("step-")) for path in self.run.glob("checkpoints/step-*")),
            default=0,
        )

    def told(self) -> str:
        return f"{self.cluster.job(self.number)}\n{self.cluster.log(self.number)}"

    def _until(self, condition: Callable[[], bool]) -> None:
        eventually(condition, LIMIT_S, self.told)


def test_two_preemptions_and_a_requeue_leave_no_trace(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path / "run", "tracking.wandb={project: tests, mode: offline}")
    job.trains()
    job.preempt("n1")
    cluster.reconfigure("preempt_send_user_signal")
    job.trains()
    job.preempt("n1")
    job.trains()
    cluster.run("scontrol", "requeue", str(job.number))  # no grace: as a node that fails
    job.comes_back()
    assert job.ends() == "COMPLETED", job.told()
    assert "SIGTERM came" in job.told()
    assert "SIGUSR1 came" in job.told()
    outcome = read_outcome(job.run)
    assert outcome is not None
    assert (outcome.reason, outcome.launches, outcome.exact) == ("budget", 4, True)
    assert_same(job.run, undisturbed)
    assert_kept_what_was_written(job.run)
    assert (
        len(
            {
                path.stem.removeprefix("run-")
                for path in job.run.glob("wandb/offline-run-*/run-*.wandb")
            }
        )
        == 1
    )


def test_two_nodes_are_preempted_on_one_and_go_on_together(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path / "run", nodes="n1,n2", per_node=1)
    job.trains()
    job.preempt("n2")
    assert job.ends() == "COMPLETED", job.told()
    assert_same(job.run, undisturbed)
    launches = [
        json.loads(line)
        for line in (job.run / "metrics.jsonl").read_text().splitlines()
        if '"event": "launch"' in line
    ]
    assert [one["world_size"] for one in launches] == [2, 2]


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "run", per_node=1)
    job.trains()
    cluster.run("scancel", str(job.number))
    assert job.ends() == "CANCELLED", job.told()
    outcome = read_outcome(job.run)
    assert outcome is not None, job.told()
    assert (outcome.reason, outcome.step) == ("interrupted", job.newest())


def test_a_mistake_fails_the_job_and_is_not_repeated(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "run", "batch.micro_size=7", per_node=1)
    assert job.ends() == "FAILED", job.told()
    assert cluster.job(job.number)["Restarts"] == "0"
    assert "ConfigError: " in job.told()

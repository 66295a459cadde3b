"""The real wandb package against a server on loopback that fails to order: one history without gap
or duplicate, and no training is delayed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.tracking.records import read_records
from tests.elastic.runs import TIMES
from tests.operations.wandb_server import Fault, WandbServer
from tests.pool import Launched, on_ranks, train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
LIMIT_S = 30.0


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


def arguments(run: Path, *overrides: str) -> list[str]:
    return [f"run.dir={run}", "network.width=16", "tracking.wandb={project: tests}", *overrides]


def launch(
    server: WandbServer, run: Path, *overrides: str, dies_at: str = "", meanwhile: Any = None
) -> Launched:
    env = {**server.environment(run.parent), "WANDB_MODE": "online", "DIE_AT": dies_at}
    return train_on_ranks(1, STORM, arguments(run, *overrides), env=env, meanwhile=meanwhile)[0]


def synced(run: str) -> list[str]:
    from harness.commands.track import sync_run

    return sync_run(Path(run))


def sync(server: WandbServer, run: Path) -> list[str]:
    (lines,) = on_ranks(
        1, synced, str(run), env={**server.environment(run.parent), "WANDB_MODE": "online"}
    )
    return list(lines)


def run_id(run: Path) -> str:
    return next(
        str(record["run_id"])
        for record in read_records(run / "metrics.jsonl")
        if record.get("event") == "launch"
    )


def assert_server_has_what_was_written(server: WandbServer, run: Path) -> None:
    written: dict[int, dict[str, Any]] = {}
    for record in read_records(run / "metrics.jsonl"):
        if record["kind"] in ("train", "eval"):
            numbers = {name: value for name, value in record.items() if type(value) in (int, float)}
            written.setdefault(record["step"], {}).update(numbers)
    rows = server.history(run_id(run))
    assert [row["_step"] for row in rows] == list(written)
    for row in rows:
        expected = written[row["step"]]
        for name in TIMES:  # a step that was done again took another time
            expected.pop(name, None)
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def core_processes(pids: Sequence[int]) -> list[int]:
    """The wandb-core processes that these processes started."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().split(b"\0")
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if (
            command[0].endswith(b"wandb-core")
            and any(str(pid).encode() in command for pid in pids)
            and state != "Z"
        ):
            found.append(int(directory.name))
    return found


def wait_for(what: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_history_after_a_kill_and_a_resume_from_an_older_checkpoint(
    tmp_path: Path, server: WandbServer
) -> None:
    run = tmp_path / "run"
    assert (
        launch(
            server, run, "tracking.wandb.checkpoints=true", "checkpoint.keep_last=3", dies_at="0:30"
        ).exit_code
        == -9
    )
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert (
        launch(server, run, f"run.resume={saved[0]}", "tracking.wandb.checkpoints=true").exit_code
        == 0
    )
    assert_server_has_what_was_written(server, run)
    found, outcome = run_id(run), json.loads((run / "outcome.json").read_text())
    assert server.runs.keys() == {found}
    config = json.loads(server.runs[found]["config"])
    assert config["launches"]["value"] == [
        {"launch": 1, "from_step": 0, "world_size": 1},
        {"launch": 2, "from_step": int(saved[0].removeprefix("step-")), "world_size": 1},
    ]
    assert config["optimizer"]["value"]["lr"] == 1e-3
    summary = server.summaries[found]
    assert (summary["reason"], summary["best/value"]) == ("budget", outcome["best"]["value"])
    assert [(alert["title"], alert["severity"]) for alert in server.alerts] == [
        ("storm: budget", "INFO")
    ]
    assert server.ends[found][-1] == 0
    assert {one["artifactTypeName"] for one in server.artifacts} == {"checkpoint", "run_table"}


def test_an_interruption_is_told_although_it_killed_wandb_core_too(
    tmp_path: Path, server: WandbServer
) -> None:
    run = tmp_path / "run"

    def terminate_all(pids: Sequence[int]) -> None:  # as Slurm does with the processes of a step
        wait_for(lambda: server.runs and (run / "metrics.jsonl").stat().st_size > 2000)
        for pid in [*core_processes(pids), *pids]:
            os.kill(pid, signal.SIGTERM)

    endless = [
        "stop.budget.steps=100000",
        "stop.improvement.patience=10000",
        "checkpoint.every.steps=500",
    ]
    end = launch(server, run, *endless, meanwhile=terminate_all)
    assert (end.exit_code, "warning" in end.stdout) == (75, False), end.stdout
    assert [(alert["title"], alert["severity"]) for alert in server.alerts] == [
        ("storm: interrupted", "WARN")
    ]
    assert launch(server, run, *endless, dies_at="0:30:term").exit_code == 75
    sync(server, run)
    rows = [row["_step"] for row in server.history(run_id(run))]
    assert (
        rows
        == list(
            dict.fromkeys(
                record["step"]
                for record in read_records(run / "metrics.jsonl")
                if record["kind"] != "event"
            )
        )[: len(rows)]
    )
    assert len(server.alerts) == 2  # a sync is no news


@pytest.mark.parametrize(
    "fault", ["error", "hang", pytest.param("refuse", marks=pytest.mark.torture)]
)
def test_what_a_server_missed_is_sent_by_a_sync(
    tmp_path: Path, server: WandbServer, fault: Fault
) -> None:
    run = tmp_path / "run"
    if fault == "refuse":
        server.refuse()
    else:
        server.fault = fault
    end = launch(server, run, "tracking.timeout_s=1", "stop.budget.steps=20")
    assert end.exit_code == 0, end.stderr
    assert end.stdout.count("warning") == 1, end.stdout
    assert "Weights & Biases did not finish in time" in end.stdout
    assert f"`fermarsi track sync {run}` sends what is missing" in end.stdout
    server.closed.set()  # those that hang
    if fault == "refuse":
        server.accept()
    server.fault = "none"
    (line,) = sync(server, run)
    assert line == f"Weights & Biases: {len(server.history(run_id(run)))} rows sent"
    assert_server_has_what_was_written(server, run)
    assert sync(server, run) == ["Weights & Biases: 0 rows sent"]


@pytest.mark.torture
def test_a_connection_that_breaks_midway_loses_nothing(tmp_path: Path, server: WandbServer) -> None:
    run = tmp_path / "run"

    def breaks(pids: Sequence[int]) -> None:
        wait_for(lambda: any(server.lines.values()))
        server.refuse()
        time.sleep(1.0)
        server.accept()
        server.fault = "error"
        time.sleep(0.5)
        server.fault = "slow"

    assert (
        launch(
            server, run, "stop.budget.steps=400", "stop.every.steps=40", meanwhile=breaks
        ).exit_code
        == 0
    )
    assert_server_has_what_was_written(server, run)


def test_a_process_ends_in_time_with_a_server_that_hangs(
    tmp_path: Path, server: WandbServer
) -> None:
    server.fault = "hang"
    command = [
        sys.executable,
        "-m",
        "harness.train",
        str(STORM),
        *arguments(tmp_path / "run", "stop.budget.steps=6", "tracking.timeout_s=2"),
    ]
    env = {**os.environ, **server.environment(tmp_path), "WANDB_MODE": "online"}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        output, _ = process.communicate(timeout=120)
    ended = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert process.returncode == 0, output
    assert "did not finish in time" in output
    assert "Traceback" not in output
    assert time.time() - (tmp_path / "run" / "outcome.json").stat().st_mtime < 20, ended
    assert not core_processes([process.pid])


def leave_while_wandb_is_stuck(directory: str) -> tuple[float, float]:
    """The seconds that 20,000 records and the end of a launch that fails take on a rank whose W&B
    answers nothing.
    """
    from harness.config.read import read_config
    from harness.console import Console
    from harness.tracking.courier import RunInfo
    from harness.tracking.tracker import Tracker

    config = read_config(STORM, arguments(Path(directory) / "run"))
    (Path(directory) / "run").mkdir()
    tracker = Tracker(config.run.dir, Console(False), enabled=True)
    run = RunInfo(config.run.name, "stuck", config.run.dir, config.to_json(), "")
    tracker.begin(config.tracking, run, 0)
    begun = time.monotonic()
    for step in range(1, 20_001):
        tracker.train(
            {"step": step, "epoch": 0.5, "samples": step, "elapsed_s": 1.0, "train/loss": 2.0}
        )
    written = time.monotonic()
    tracker.close()
    return written - begun, time.monotonic() - written


def test_a_rank_that_fails_leaves_within_two_seconds_however_stuck_wandb_is(
    tmp_path: Path, server: WandbServer
) -> None:
    server.fault = "hang"
    ((writing_s, leaving_s),) = on_ranks(
        1,
        leave_while_wandb_is_stuck,
        str(tmp_path),
        env={**server.environment(tmp_path), "WANDB_MODE": "online"},
    )
    assert writing_s < 10, "half a millisecond a record: a file opened and closed"
    assert leaving_s < 3.5

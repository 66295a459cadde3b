"""Machine 0 of a launch on several, which keeps its store, is lost: it may come back, with another
launch; else the other machines leave with the exit code by which schedulers launch again.
"""

import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands import elastic_launch
from harness.commands.elastic_launch import ElasticLaunch
from tests.operations.test_lost_processes import ELASTIC, SLOW, launched
from tests.pool import train_on_ranks
from tests.resume.test_exact import STORM


def unanswered(*_: Any) -> None:
    raise RuntimeError("Broken pipe")


def refused() -> None:
    raise ConnectionError("refused")


def test_without_machine_0_the_exit_code_is_that_of_runs_to_be_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("AWAY_S", -1.0), ("POLL_S", 0.0)):
        monkeypatch.setattr(elastic_launch, name, value)
    lost = SimpleNamespace(tell=unanswered, reconnect=refused)
    monkeypatch.setattr(elastic_launch, "Gathering", lambda *_: lost)
    handler = signal.getsignal(signal.SIGTERM)
    launch = ElasticLaunch([], {}, 0, 2, 1, "node-a", 29500, 12, 1)
    assert launch.run() == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    told = capsys.readouterr().err
    assert "machine 0 does not answer (Broken pipe): trying again" in told
    assert "machine 1: machine 0 at node-a:29500 is gone: refused" in told


@pytest.mark.torture
def test_the_others_join_machine_0_when_it_is_back_and_else_leave_to_be_launched_again(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"localhost:{free.getsockname()[1]}"
    options = ("--min-processes", "2", "--nodes", "2", "--head", head, "--node")
    kept = ["checkpoint.every.steps=2", "run.timeout_s=20"]
    with (
        launched(run, 1, *options, "1", settings=kept) as other,
        launched(run, 1, *options, "0", settings=kept) as first,
    ):
        first.wait_for(lambda: len(first.trace()) >= 5)
        first.kill()
        with launched(run, 1, *options, "0", settings=kept) as again:
            again.wait_for(lambda: len(again.launches()) == 2, 200.0)
            steps = len(again.trace())
            again.wait_for(lambda: len(again.trace()) >= steps + 3)
            again.kill()
        other.process.send_signal(signal.SIGTERM)  # it would wait ten minutes
        code, text = other.end()
    assert code == 75, text
    assert "machine 0 does not answer" in text
    assert f"machine 1: machine 0 at {head} is gone" in text
    assert "Launch again to resume from the last checkpoint" in text
    assert [one["world_size"] for one in other.launches()] == [2, 2]
    done = len(other.trace())
    rest = [f"run.dir={run}", *SLOW, *ELASTIC, f"stop.budget.steps={done + 2}"]
    ends = train_on_ranks(1, STORM, rest)
    assert ends[0].exit_code == 0, ends[0].stderr
    assert [one["step"] for one in other.trace()] == [*range(1, done + 3)]

"""TensorBoard's event files and Trackio's database, read back, hold what metrics.jsonl holds; and
no backend can hold a training up.
"""

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.rundir.outcome import Outcome
from harness.tracking.backends import TrackioRows
from harness.tracking.courier import Courier, RunInfo, deliver
from harness.tracking.records import Row, read_records
from tests.pool import command, on_ranks, train_on_ranks
from tests.tracking.trackers import lines

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"
ENDED = Outcome("budget", "spent", 4, 1.0, 4, 1, 1, None, None, True, "", {"compute_s": 1.0})


def written(run: Path) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for record in read_records(run / "metrics.jsonl"):
        if record["kind"] in ("train", "eval"):
            rows.setdefault(record["step"], {}).update(
                {
                    name: one
                    for name, one in record.items()
                    if type(one) in (int, float) and name != "step"
                }
            )
    return rows


def in_tensorboard(directory: Path) -> dict[int, dict[str, float]]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    rows: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for scalar in events.Scalars(name):
            assert name not in rows.setdefault(scalar.step, {}), (
                f"{name} of step {scalar.step} twice"
            )
            rows[scalar.step][name] = scalar.value
    return dict(sorted(rows.items()))


def in_trackio(database: Path) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    with sqlite3.connect(database) as connection:
        for step, metrics in connection.execute("SELECT step, metrics FROM metrics ORDER BY step"):
            assert step not in rows, f"step {step} twice"
            rows[step] = json.loads(metrics)
    return rows


def assert_alike(
    found: Mapping[int, Mapping[str, float]], expected: Mapping[int, Mapping[str, float]]
) -> None:
    assert list(found) == list(expected)
    for step, row in expected.items():
        assert found[step] == pytest.approx(row, rel=1e-6, nan_ok=True)


def test_tensorboard_and_trackio_hold_the_run_after_a_kill_and_a_resume_from_an_older_checkpoint(
    tmp_path: Path,
) -> None:
    run, trackio = tmp_path / "run", tmp_path / "trackio"
    settings = [
        f"run.dir={run}",
        "network.width=16",
        "tracking.backends=[tensorboard,trackio]",
        "checkpoint.keep_last=3",
    ]
    (killed,) = train_on_ranks(
        1, STORM, settings, env={"DIE_AT": "0:30", "TRACKIO_DIR": str(trackio)}
    )
    assert killed.exit_code == -9
    seen = in_tensorboard(run / "tensorboard")
    assert set(seen) <= set(written(run))
    older = min(path.name for path in (run / "checkpoints").glob("step-*"))
    (ended,) = train_on_ranks(
        1, STORM, [*settings, f"run.resume={older}"], env={"TRACKIO_DIR": str(trackio)}
    )
    assert (ended.exit_code, "warning: T" in ended.stdout) == (0, False), ended.stdout
    assert_alike(in_tensorboard(run / "tensorboard"), written(run))
    assert_alike(in_trackio(trackio / "fermarsi.db"), written(run))


def test_a_sync_makes_what_no_launch_has_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (ended,) = train_on_ranks(
        1, STORM, [f"run.dir={run}", "network.width=16", "stop.budget.steps=12"]
    )
    assert ended.exit_code == 0
    synced = command("track", "sync", run, "tracking.backends=[tensorboard]")
    assert (synced.exit_code, synced.stdout.strip()) == (
        0,
        f"TensorBoard: {len(written(run))} rows sent",
    ), synced.stderr
    assert_alike(in_tensorboard(run / "tensorboard"), written(run))
    nowhere = command("track", "sync", run)
    assert (nowhere.exit_code, "its config names no tracker. Give one" in nowhere.stderr) == (
        2,
        True,
    )
    other = command("track", "sync", run, "optimizer.lr=1")
    assert (other.exit_code, "only tracking.* has an effect here" in other.stderr) == (2, True)
    empty = command("track", "sync", tmp_path)
    assert (empty.exit_code, f"{tmp_path}: no metrics.jsonl of a run" in empty.stderr) == (
        2,
        True,
    )


def test_a_tracker_of_ones_own_gets_the_run_and_one_that_raises_costs_a_line(
    tmp_path: Path,
) -> None:
    run, named = tmp_path / "run", "_target_: tests.tracking.trackers"
    trackers = (
        f"{{{named}.Lines, file: mine.jsonl}}, {{{named}.Broken, file: broken.jsonl}}, "
        f"{{{named}.Unmade}}, {{{named}.Slow, file: slow.jsonl}}"
    )
    (ended,) = train_on_ranks(
        1,
        STORM,
        [
            f"run.dir={run}",
            "network.width=16",
            "stop.budget={steps: 12, hours: 0.01}",
            f"tracking.backends=[{trackers}]",
        ],
    )
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stderr
    # What the end takes is booked as well, to the account that a budget of hours is compared with.
    said = json.loads((run / "outcome.json").read_text())["time"]
    booked = json.loads((run / "ledger.json").read_text())["totals"]
    assert sum(booked.values()) >= sum(said[f"{name}_s"] for name in booked) + 0.9
    mine = run / "mine.jsonl"
    assert lines(mine, "begin") == [["storm", 11]]
    assert dict(lines(mine, "row")) == written(run)
    assert lines(mine, "event") == [
        record["event"] for record in read_records(run / "metrics.jsonl") if "event" in record
    ]
    assert lines(mine, "finish") == ["budget"]
    warnings = sorted(line for line in ended.stdout.splitlines() if "warning" in line)
    assert len(warnings) == 2, ended.stdout
    assert warnings[0].startswith(
        "warning: tests.tracking.trackers.Broken failed (RuntimeError: no such table); "
    )
    assert "Unmade failed (ConfigError: tracking.backends[2]: " in warnings[1]
    assert "ValueError: no licence" in warnings[1]
    # Another's run may name any code: a sync makes none of it that was not allowed
    override = f"tracking.backends=[{{{named}.Lines, file: synced.jsonl}}]"
    refused = command("track", "sync", run, override)
    assert refused.exit_code == 2
    assert "tests.tracking.trackers.Lines is code from elsewhere" in refused.stderr
    assert not (run / "synced.jsonl").exists()
    synced = command("track", "sync", run, override, "--allow", "tests")
    assert synced.stdout.strip() == f"tests.tracking.trackers.Lines: {len(written(run))} rows sent"
    assert lines(run / "synced.jsonl", "row") == lines(mine, "row")


def trackio_without_a_network(directory: str) -> list[str]:
    """The addresses that writing to Trackio connects to."""
    asked: list[str] = []

    def refuse(self: socket.socket, address: Any) -> None:
        asked.append(str(address))
        raise OSError("no network here")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = lambda *arguments, **more: asked.append(str(arguments)) or []  # type: ignore[func-returns-value]
    trackio = TrackioRows(RunInfo("a", "1", Path(directory), {"x": 1}, "x: 1"), "p")
    assert (
        deliver(
            trackio,
            [{"kind": "train", "step": step, "train/loss": 9.0} for step in (2, 3, 4)],
            lambda: ENDED,
        )
        == 3
    )
    # The launch after, with another learning rate
    assert deliver(trackio, records(2, 4), lambda: ENDED) == 2
    return asked


def test_trackio_asks_no_network_even_if_the_environment_names_a_server(tmp_path: Path) -> None:
    env = {
        "TRACKIO_DIR": str(tmp_path),
        "TRACKIO_SPACE_ID": "a/b",
        "TRACKIO_SERVER_URL": "http://example.org",
    }
    assert on_ranks(1, trackio_without_a_network, str(tmp_path), env=env) == [[]]
    assert in_trackio(tmp_path / "p.db") == {2: {"train/loss": 1.0}, 4: {"train/loss": 1.0}}


class Recorder:
    """A backend that notes what it is given, and fails or stands still where it is told to."""

    name = "Recorder"

    def __init__(self, lacks: int = 0, failures: int = 0, stuck: bool = False) -> None:
        self.lacks = lacks
        self.failures = failures
        self.rows: list[Row] = []
        self.finished: list[Outcome | None] = []
        self.abandoned = threading.Event()
        self.stuck = stuck

    def begin(self) -> int:
        if self.stuck:
            self.abandoned.wait()
            raise ConnectionError("abandoned")
        self.rows.clear()
        return self.lacks

    def row(self, row: Row) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("Connection lost")
        self.rows.append(row)

    def event(self, record: Mapping[str, Any]) -> None: ...

    def finish(self, outcome: Outcome | None) -> None:
        self.finished.append(outcome)

    def abandon(self) -> None:
        self.abandoned.set()


def records(*steps: int) -> list[dict[str, Any]]:
    return [{"kind": "train", "step": step, "train/loss": 1.0} for step in steps]


def courier(
    backend: Recorder, directory: Path, outcome: Outcome | None = ENDED, limit_s: float = 5.0
) -> list[str]:
    """What is said when a backend is given two rows."""
    said: list[str] = []
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records(2, 4))
    )
    one = Courier(backend, directory, said.append)
    one.end(outcome)
    one.wait(time.monotonic() + limit_s)
    return said


def test_a_row_is_sent_when_it_is_whole() -> None:
    backend = Recorder()
    evaluation = {"kind": "eval", "step": 4, "val/loss": 2.0, "tables": {"val/confusion": [[1]]}}
    assert deliver(backend, [*records(2, 4), evaluation], lambda: None) == 1
    assert [row.step for row in backend.rows] == [2]
    assert deliver(backend, [*records(2, 4), evaluation], lambda: ENDED) == 2
    assert backend.rows[-1] == Row(
        4, {"train/loss": 1.0, "val/loss": 2.0}, {"val/confusion": [[1]]}, True
    )


def test_a_row_whose_evaluation_may_still_come_waits_for_the_next_launch() -> None:
    backend, interrupted = Recorder(), Outcome(**{**ENDED.to_json(), "reason": "interrupted"})
    assert deliver(backend, records(2, 4), lambda: interrupted) == 1
    assert deliver(backend, records(2, 3), lambda: interrupted) == 2


def test_a_backend_that_has_rows_gets_none_of_them_again() -> None:
    backend = Recorder(lacks=3)
    assert deliver(backend, records(1, 2, 3, 4), lambda: ENDED) == 2
    assert [row.step for row in backend.rows] == [3, 4]


def test_a_backend_that_fails_once_is_opened_again(tmp_path: Path) -> None:
    backend = Recorder(failures=1)
    assert courier(backend, tmp_path) == []
    assert ([row.step for row in backend.rows], backend.finished) == ([2, 4], [ENDED])


def test_a_backend_that_keeps_failing_is_let_go_with_one_line(tmp_path: Path) -> None:
    backend = Recorder(failures=9)
    (line,) = courier(backend, tmp_path)
    assert line.startswith("Recorder failed (ConnectionResetError: Connection lost); ")
    assert line.endswith(f"`fermarsi track sync {tmp_path}` sends what is missing.")
    assert backend.abandoned.is_set()


def test_a_backend_that_stands_still_is_let_go_in_time(tmp_path: Path) -> None:
    backend, begun = Recorder(stuck=True), time.monotonic()
    (line,) = courier(backend, tmp_path, limit_s=0.5)
    assert line.startswith("Recorder did not finish in time; ")
    assert 0.4 < time.monotonic() - begun < 2


def test_what_is_written_while_a_backend_works_arrives(tmp_path: Path) -> None:
    path, backend, said = tmp_path / "metrics.jsonl", Recorder(), []  # type: ignore[var-annotated]
    path.write_text("")
    one = Courier(backend, tmp_path, said.append)
    for record in records(*range(1, 301)):
        text = json.dumps(record) + "\n"
        for part in (text[:10], text[10:]):  # a reader may see half a line
            with path.open("a") as file:
                file.write(part)
    one.end(ENDED)
    one.wait(time.monotonic() + 5)
    assert said == []
    assert [row.step for row in backend.rows] == list(range(1, 301))


def test_a_name_has_one_meaning_in_all_records(tmp_path: Path) -> None:
    """Records of one step go into one row of a tracker: what both kinds name would overwrite."""
    run = tmp_path / "run"
    asked = [f"run.dir={run}", "network.width=16", "stop.budget.steps=12"]
    (ended,) = train_on_ranks(1, STORM, asked)
    assert ended.exit_code == 0, ended.stderr
    names: dict[str, set[str]] = {"train": set(), "eval": set()}
    losses = {"train": 0.0, "eval": 0.0}
    for record in read_records(run / "metrics.jsonl"):
        if record["kind"] in names:
            names[record["kind"]] |= record.keys()
            losses[record["kind"]] = record.get("train/loss_step", record.get("train/loss"))
    position = {"kind", "step", "epoch", "samples", "elapsed_s", "lr"}
    assert names["train"] & names["eval"] == position
    assert losses["train"] != losses["eval"], "four steps' mean, and six steps'"

"""The console of a run: what a terminal shows at the end of each write, and what a file holds."""

import io
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import main
from harness.console import Console
from harness.errors import ConfigError
from harness.evaluation_table import EvaluationTable, Shown
from harness.rundir.outcome import Outcome
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Best, CriterionVerdict, MetricInfo, Verdict
from harness.training.launch import launch, leave_process, report
from tests.pool import on_ranks, train_on_ranks

STORM = Path(__file__).parent / "resume" / "storm.yaml"
METRICS = {
    f"{split}/{name}": MetricInfo(mode)
    for split in ("train", "val")
    for name, mode in (("loss", "min"), ("accuracy", "max"), ("balanced_accuracy", "max"))
}
STOP = StopSettings.model_validate(
    {
        "targets": {"accuracy": {"at_least": 0.95}},
        "improvement": {"metric": "val/loss", "at_least": "2%", "patience": 10},
        "best": {"metric": "val/accuracy"},
        "budget": {"epochs": 200},
    }
)


class Terminal(io.TextIOWrapper):
    """A terminal that scrolls and knows few control codes, `width` columns wide."""

    def __init__(self, width: int = 80, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.width = width
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text.encode(self.encoding)
        self.written += text
        return len(text)

    def shown(self) -> list[str]:
        """The lines of the screen from the first one, without trailing spaces."""
        lines, row, column = [""], 0, 0
        for code, text in re.findall(
            r"(\x1b\[[\d;?]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", self.written
        ):
            if text:
                assert column + len(text) <= self.width, f"wraps: {text!r}"
                lines[row] = (
                    lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                )
                column += len(text)
            elif code == "\r":
                column = 0
            elif code == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif code == "\x1b[2K":
                lines[row] = ""
            elif code == "\x1b[K":
                lines[row] = lines[row][:column]
            elif code == "\x1b[1A":
                row -= 1
            else:
                assert code.endswith("m"), f"a code that moves something: {code!r}"
        return [line.rstrip() for line in lines]


def open_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", **variables: str
) -> Terminal:
    """Standard output is a terminal of 80 columns, and always due to be drawn."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **variables}.items():
        monkeypatch.setenv(name, value)
    screen = Terminal(encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr("harness.console.DRAW_EVERY_S", 0.0)
    monkeypatch.setattr("harness.console.DRAW_SHARE", 1e9)
    return screen


def record(step: int, **values: float) -> dict[str, Any]:
    names = {name.replace("_", "/", 1): value for name, value in values.items()}
    return {"step": step, "epoch": step / 11, "samples": step * 96, "elapsed_s": step / 5, **names}


def verdict_of(stale: int, *, new_best: bool = False, **changes: Any) -> Verdict:
    criterion = CriterionVerdict(
        "val/loss", 0.5, 0.5, 1, 0.0, 0.01, False, stale, stale, 10, "intervals", False
    )
    return Verdict("go_on", new_best=new_best, criteria=[criterion], **changes)


def evaluate(console: Console, step: int, accuracy: float, stale: int = 0) -> None:
    console.evaluation(
        record(
            step,
            train_loss=0.1234567,
            train_accuracy=accuracy,
            train_balanced_accuracy=accuracy,
            val_loss=1.5,
            val_accuracy=accuracy,
            val_balanced_accuracy=accuracy,
        )
    )
    console.verdict(verdict_of(stale, new_best=True), Best("val/accuracy", accuracy, step))


def outcome_of(**changes: Any) -> Outcome:
    values: Mapping[str, Any] = {
        "reason": "budget", "detail": "the budget is spent.", "step": 9, "epoch": 1.0,
        "samples": 99, "world_size": 1, "launches": 1, "checkpoint": None, "exact": True,
        "exact_reason": "", "time": {"compute_s": 61.0, "idle_s": 5.0, "saved_s": 3.0},
        "best": {"metric": "val/loss", "value": 0.5, "step": 9, "checkpoint": "runs/my run/best"},
    }  # fmt: skip
    return Outcome(**{**values, **changes})


def train_a_little(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three evaluations of a run of 2,261 steps, and one more step."""
    now = iter(range(1000))
    monkeypatch.setattr("harness.console.time.monotonic", lambda: float(next(now)))
    console.phase("preparing the data")
    console.expect(2261, STOP.budget, Shown.of(STOP, METRICS, []))
    for step in range(1, 34):
        console.tick(lambda: record(step))  # noqa: B023 - called at once
        if step % 10 == 0:
            console.training({**record(step), "train/loss_step": 0.5, "lr": 1e-3, "grad_norm": 2.0})
        if step % 11 == 0:
            console.progress("evaluating val", 2, 3, "micro-batches")
            evaluate(console, step, 0.9 + step / 1000, stale=step // 11)
    console.tick(lambda: record(34))


def test_a_terminal_has_a_table_and_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with Console(True) as console:
        train_a_little(console, monkeypatch)
        *table, live = terminal.shown()
        assert re.fullmatch(
            r"[\u2501\u2500]{6,} +step 34/2,261  epoch 3\.1/206  [\d:]+ left  \d+ samples/s"
            r"  loss 0\.5",
            live,
        )
        console.say("warning: " + "word " * 40 + "/a/path" * 10)
        assert terminal.shown()[-1] == live
    assert table == [
        "in metrics.jsonl, but not in this table (log.show): train/loss,",
        "  train/balanced_accuracy, val/balanced_accuracy",
        "                              train/       val/                  best  stale",
        "                            accuracy   accuracy       val/       val/   val/",
        "   step    epoch     time    >= 0.95    >= 0.95       loss   accuracy   loss",
        "     11     1.00     0:02      0.911      0.911        1.5      0.911   1/10",
        "     22     2.00     0:04      0.922      0.922        1.5      0.922   2/10",
        "     33     3.00     0:07      0.933      0.933        1.5      0.933   3/10",
    ]
    warning = terminal.shown()[len(table) :]
    assert warning[0].startswith("warning: word word")
    assert warning[-1] == ""
    assert "/a/path" * 10 in "".join(warning)
    assert "\x1b[1m" in terminal.written
    assert "\x1b[32m" in terminal.written


def test_what_others_write_to_the_terminal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with Console(True) as console:
        console.phase("preparing the data")
        monkeypatch.setattr(sys, "stderr", terminal)  # of another process: nothing redirects it
        report("DataError: rank 1: no such file", SimpleNamespace(rank=1))  # type: ignore[arg-type] # its rank
        console.tick(lambda: record(1))
        print("printed by a network")
    assert terminal.shown() == ["DataError: rank 1: no such file", "printed by a network", "", ""]


@pytest.mark.parametrize("variable", [("CI", "true"), ("TERM", "dumb"), ("TERM", "")])
def test_where_nothing_can_be_redrawn_lines_are_plain(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    terminal = open_terminal(monkeypatch, FORCE_COLOR="1", **dict([variable]))
    with Console(True) as console:
        console.phase("preparing the data")
        train_a_little(console, monkeypatch)
        for step in range(40, 2000, 90):
            evaluate(console, 10**6 + step, 0.9499999)
        big = {"step": 99_999_999, "epoch": 12345.678, "samples": 10**12, "elapsed_s": 5e5}
        console.training({**big, "train/loss_step": -1.2345e-5, "lr": 1.234e-5, "grad_norm": 1e9})
        console.outcome(outcome_of(), Path("runs/x"))
    lines = terminal.written.split("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", terminal.written)
    assert max(map(len, lines)) < 120
    assert lines[0] == "preparing the data ..."
    # The next metric has room; the target is not reached, and is not rounded to it
    row = (
        r" *1,000,040  90912\.73 +55:33:28 +0\.9499999 +0\.9499999 +1\.5 +0\.1235 +0\.9499999 +0/10"
    )
    assert any(re.fullmatch(row, line) for line in lines), lines
    assert sum("step    epoch" in line for line in lines) == 2
    assert any(line.startswith("step     10  epoch 0.91  loss 0.5  lr 0.001") for line in lines)


def test_it_is_drawn_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, NO_COLOR="1")
    monkeypatch.setattr("harness.console.DRAW_EVERY_S", 0.25)
    clock = {"now": 0.0}
    monkeypatch.setattr("harness.console.time.monotonic", lambda: clock["now"])
    with Console(True) as console:
        console.expect(2261, STOP.budget, Shown())
        console.phase("warm-up")
        for step in range(1000):
            clock["now"] += 0.01
            console.tick(lambda: record(step))  # noqa: B023 - called at once
    assert 35 <= terminal.written.count("step ") <= 41  # of ten seconds
    assert "\x1b[3" not in terminal.written


def test_a_quiet_console_tells_warnings_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with Console(True, quiet=True) as console:
        train_a_little(console, monkeypatch)
        console.say("a remark")
        console.say("warning: a worry")
        console.verdict(Verdict("stop", "budget", "it is spent."), None)
        console.again = "fermarsi train 'a b.yaml'"
        console.outcome(
            outcome_of(reason="interrupted", detail="SIGINT came.", best=None), Path("r")
        )
    assert terminal.written.splitlines() == [
        "warning: a worry",
        "stop: budget: it is spent.",
        "interrupted: SIGINT came.",
        "time: 1:01, of which 1:01 computing steps that count",
        "run: r",
        "next: fermarsi train 'a b.yaml'",
    ]


def test_a_terminal_without_its_characters_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = open_terminal(monkeypatch, encoding="ascii")
    with Console(True) as console:
        console.progress("data.train", 1, 2)
        assert re.fullmatch("=+-+  data.train: 1 of 2 samples", poor.shown()[-1])


def test_which_metrics_the_table_has() -> None:
    assert Shown.of(STOP, METRICS, ["val/loss", "balanced_accuracy"]).metrics == [
        "val/loss",
        "train/balanced_accuracy",
        "val/balanced_accuracy",
        "train/accuracy",
        "val/accuracy",
        "train/loss",
    ]
    with pytest.raises(ConfigError, match=r"^log.show: there is no metric val/acc.* Did you mean"):
        Shown.of(STOP, METRICS, ["val/accurracy"])
    assert list(EvaluationTable(Shown()).rows(record(1, val_x=1.0), None, None, width=0))
    rows = list(EvaluationTable(Shown()).rows(record(1, val_x=1.0), None, None, 80))
    assert rows[-1].text.split() == ["1", "0.09", "0:00"]


def launch_with_stdout(where: str, directory: str) -> int:
    """A launch whose standard output nobody reads, or whose disk is full."""
    if where == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(where, os.O_WRONLY)
    os.dup2(writer, 1)
    code = launch(STORM, [f"run.dir={directory}", "stop.budget.epochs=1"])
    with suppress(SystemExit):
        leave_process(code)
    return code


def train_in_ascii(directory: str) -> int:
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    with pytest.raises(SystemExit) as end:
        main(["train", str(STORM), f"run.dir={directory}", "stop.budget.epochs=1"])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_poor_locale_ends_no_training(tmp_path: Path) -> None:
    assert on_ranks(1, train_in_ascii, str(tmp_path / "lä\u2028uft")) == [0]


def test_one_rank_alone_speaks(tmp_path: Path) -> None:
    first, second = train_on_ranks(2, STORM, [f"run.dir={tmp_path}", "stop.budget.epochs=1"])
    assert (second.stdout, second.stderr) == ("", "")
    assert first.stdout.endswith(f"run: {tmp_path}\nnext: fermarsi report {tmp_path}\n")
    assert "waiting for all 2 processes ...\npreparing the data ...\n" in first.stdout


@pytest.mark.parametrize("where", ["pipe", "/dev/full"])
def test_output_that_nobody_takes_ends_no_training(tmp_path: Path, where: str) -> None:
    assert on_ranks(1, launch_with_stdout, where, str(tmp_path / "run")) == [0]
    assert (tmp_path / "run" / "outcome.json").exists()

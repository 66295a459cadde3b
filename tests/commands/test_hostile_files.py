"""Whatever lies in a run directory, every command ends soon, with a result or one message."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.rundir.lease import MAX_NUMBER, Lease
from tests.commands.forged import DIGITS, checkpoints_of, copied, in_process
from tests.commands.test_hostile_code import SMALL
from tests.pool import command, train_on_ranks

FILES = (
    "config.yaml",
    "metrics.jsonl",
    "outcome.json",
    "ledger.json",
    "trace.jsonl",
    "step-in-work",
    "treatments.json",
    "lease/00000001",
    "checkpoints/best.json",
    "checkpoints/latest.json",
    "checkpoints/step-00000006/manifest.json",
    "checkpoints/step-00000006/trainer_state.json",
    "checkpoints/step-00000006/history.jsonl",
)
COMMANDS = (
    ["status"],
    ["status", "--json"],
    ["report"],
    ["replay"],
    ["trace"],
    ["checkpoints", "list"],
    ["checkpoints", "verify"],
    ["checkpoints", "prune"],
    ["track", "sync", "tracking.backends=[tensorboard]"],
    ["evaluate"],
    ["export"],
)
READERS = (["status"], ["replay"], ["trace"], ["checkpoints", "list"])
LIMIT_S = 10.0
# 60 each time, 600 with `make explore`: a fifth of a second each
EXAMPLES = settings.default.max_examples * 3 // 5


def ends_well(run: Path, arguments: list[str]) -> str:
    """What a command on the run printed."""
    out = run.parent / "out.safetensors"
    out.unlink(missing_ok=True)
    more = [str(out)] if arguments == ["export"] else []
    words = [one for one in arguments if "=" not in one]
    began = time.monotonic()
    ended = in_process([*words, run, *arguments[len(words) :], *more])
    assert time.monotonic() - began < LIMIT_S
    assert ended.exit_code in (0, 1, 2, 75), ended
    assert "Traceback" not in ended.stderr
    printed = ended.stdout + ended.stderr
    assert "\x1b" not in printed
    if ended.exit_code == 2 and arguments[0] not in ("status", "trace", "checkpoints"):
        assert len(re.findall(r"^\w+Error: ", ended.stderr, re.MULTILINE)) == 1, ended.stderr
    return printed


@pytest.fixture(scope="module")
def traced(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that leaves every file, and leases that are watched shortly."""
    run = copied(digits, tmp_path_factory.mktemp("traced") / "run")
    asked = [*SMALL, "stop.budget={steps: 8}", "log.trace=true", f"run.dir={run}"]
    (ended,) = train_on_ranks(1, DIGITS, asked)
    assert ended.exit_code == 0, ended.stderr
    for name in ("best", "latest"):
        path = run / "checkpoints" / name
        (run / "checkpoints" / f"{name}.json").write_text(
            json.dumps({"checkpoint": os.readlink(path)})
        )
        path.unlink()
    (run / "lease" / "00000001").write_bytes((run / "lease" / "00000002").read_bytes())
    (run / "lease" / "00000002").unlink()
    (run / "step-in-work").write_text("3 0 0")
    (run / "treatments.json").touch()
    defaults = Lease.__init__.__kwdefaults__
    Lease.__init__.__kwdefaults__ = {**defaults, "watch_s": 0.1}
    yield run
    Lease.__init__.__kwdefaults__ = defaults


NUMBERS = st.integers() | st.floats() | st.sampled_from([1e308, -1, 10**30, 2**63, 0])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def changed(value: Any, draw: st.DrawFn) -> Any:
    """The value with something else in one place."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 6)) == 0:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
    return draw(VALUES)


@st.composite
def contents(draw: st.DrawFn, original: bytes) -> bytes:
    """Random bytes, random JSON, or the file as it was with something else in it."""
    kind = draw(st.sampled_from(["bytes", "json", "changed", "changed", "changed", "torn", "deep"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "json":
        lines = draw(st.lists(VALUES, min_size=1, max_size=4))
        return "\n".join(map(json.dumps, lines)).encode()
    if kind == "deep":
        return draw(st.sampled_from([b"[", b'{"a":', b"- "])) * draw(st.sampled_from([900, 10**5]))
    if kind == "torn":
        return original[: draw(st.integers(0, len(original)))]
    lines = original.splitlines()
    try:
        parsed = [json.loads(line) for line in lines]
    except ValueError:
        position = draw(st.integers(0, max(0, len(original) - 1)))
        return original[:position] + draw(st.binary(max_size=8)) + original[position + 1 :]
    assume(parsed)
    place = draw(st.integers(0, len(parsed) - 1))
    parsed[place] = changed(parsed[place], draw)
    return "\n".join(map(json.dumps, parsed)).encode()


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_anything_in_any_file_ends_with_a_result_or_one_message(traced: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(FILES))
    arguments = data.draw(st.sampled_from(COMMANDS))
    run = traced.parent / "fuzzed"
    shutil.rmtree(run, ignore_errors=True)
    copied(traced, run)
    original = (run / name).read_bytes()
    (run / name).write_bytes(data.draw(contents(original)))
    printed = ends_well(run, arguments)
    printed.encode()


# -- what no random bytes find


@pytest.mark.parametrize("name", FILES)
def test_pipes_devices_and_endless_files_are_not_waited_for(traced: Path, name: str) -> None:
    run = traced.parent / "odd"
    for kind in ("pipe", "endless", "zeros", "directory"):
        shutil.rmtree(run, ignore_errors=True)
        copied(traced, run)
        (run / name).unlink()
        if kind == "pipe":
            os.mkfifo(run / name)
        elif kind == "endless":
            (run / name).symlink_to("/dev/zero")
        elif kind == "zeros":
            (run / name).touch()
            os.truncate(run / name, 2**40)
        else:
            (run / name).mkdir()
        for arguments in COMMANDS if kind == "pipe" else READERS:
            ends_well(run, arguments)


def test_a_torn_line_of_a_trace_does_not_keep_a_run_from_going_on(
    digits: Path, tmp_path: Path
) -> None:
    run = copied(digits, tmp_path / "run")
    asked = [*SMALL, "log.trace=true", f"run.dir={run}"]
    assert train_on_ranks(1, DIGITS, [*asked, "stop.budget={steps: 8}"])[0].exit_code == 0
    for name in ("trace.jsonl", "metrics.jsonl"):
        with (run / name).open("ab") as file:
            file.write(b'7\n{"step": "x"}\n[[[\n{"step": 8, "lo')
    (ended,) = train_on_ranks(1, DIGITS, [*asked, "stop.budget={steps: 10}"])
    assert ended.exit_code == 0, ended.stderr
    traced = [json.loads(line)["step"] for line in (run / "trace.jsonl").read_text().splitlines()]
    assert traced == [7, 8, 9, 10]


@pytest.mark.parametrize("name", ["ledger.json", "step-in-work", "outcome.json", "lease"])
@pytest.mark.parametrize("content", [b"[1]", b'{"totals": {"compute": "x"}, "wall_s": 1e309}'])
def test_a_launch_goes_on_over_odd_files_or_says_which_one(
    digits: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    run = copied(digits, tmp_path / "run")
    path = next((run / "lease").iterdir()) if name == "lease" else run / name
    released = b'{"released": true, "beat_s": 1e9, "pid": "x"}'
    path.write_bytes(released if name == "lease" else content)
    (ended,) = train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 8}", f"run.dir={run}"])
    if name == "outcome.json":
        assert ended.exit_code == 2
        assert f"{path}: cannot be parsed" in ended.stderr
    else:
        assert ended.exit_code == 0, ended.stderr


def test_a_lease_makes_nobody_wait_for_ever(traced: Path) -> None:
    run = copied(traced, traced.parent / "leased")
    odd: tuple[Any, ...] = (1e9, "1e9", -5, None, [1], float("nan"), float("inf"))
    waited = time.monotonic()
    Lease.take.__globals__["MAX_BEAT_S"], kept = 0.05, Lease.take.__globals__["MAX_BEAT_S"]
    try:
        for beat_s in odd:
            for path in (run / "lease").iterdir():
                path.unlink()
            lease = {"host": "elsewhere", "beat_s": beat_s, "pid": [], "machine": 3}
            (run / "lease" / "00000001").write_text(json.dumps(lease))
            ends_well(run, ["checkpoints", "prune"])
            ends_well(run, ["status"])
    finally:
        Lease.take.__globals__["MAX_BEAT_S"] = kept
    assert time.monotonic() - waited < LIMIT_S
    (run / "lease" / f"{MAX_NUMBER * 10:018}").touch()
    ended = in_process(["checkpoints", "prune", run])
    assert "which no launch wrote" in ended.stderr


def test_a_report_of_thousands_of_metrics_and_classes_is_made_in_time(
    digits: Path, tmp_path: Path
) -> None:
    run = copied(digits, tmp_path / "run")
    values = {f"val/{number}": float(number) for number in range(3000)}
    table = [[1] * 1500] * 1500
    record = {"kind": "eval", "step": 6, "epoch": 1.0, "samples": 1, "elapsed_s": 1.0, **values}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**record, "tables": {f"val/{n}": table for n in range(3)}}) + "\n")
        file.write(json.dumps({**record, "tables": {"a": [[1, 2], [3]], "b": "x"}}) + "\n")
    began = time.process_time()  # of work, not of waiting for a processor
    ended = in_process(["report", run])
    assert ended.exit_code == 0, ended.stderr
    assert time.process_time() - began < LIMIT_S
    assert "2,944 more metrics are not drawn" in (run / "report.html").read_text()


# -- 5: what is shown


HOSTILE = (
    "<script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "[/red]",
    "[link=file:///x]y",
    r"$\frac$",
    "$x^{$",
    "\x1b]0;owned\x07\x1b[31m",
    "\u202egnp.exe",
    "\ud800",
    "{{ 7 * 7 }}",
    "{title}",
    "a\rb",
)


@pytest.mark.parametrize("word", HOSTILE)
def test_what_a_run_says_is_shown_as_text(digits: Path, tmp_path: Path, word: str) -> None:
    run = copied(digits, tmp_path / "run")
    name = f"val/{word}"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            line[name] = 0.5
            line["tables"] = {word: [[1, 2], [3, 4]], "val/confusion": [[1, 0], [0, 1]]}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    outcome = json.loads((run / "outcome.json").read_text())
    outcome |= {"detail": word, "reason": word, "exact_reason": word, "checkpoint": word}
    outcome["best"] |= {"metric": name, "checkpoint": word}
    outcome["time"] |= {f"{word}_s": 1.0}
    if word.isprintable() or word.isascii():  # half a character is refused
        (run / "outcome.json").write_text(json.dumps(outcome))
    ended = command("report", run)
    assert ended.exit_code == 0, ended.stderr
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert "49" not in page.partition("<table>")[2].partition("</table>")[0]
    assert not [one for one in page if one in "\x1b\x07\u202e\r"]
    plot = tmp_path / "plot.svg"
    for arguments in (
        ["status", run],
        ["replay", run, "--plot", plot],
        ["checkpoints", "list", run],
        ["track", "sync", run, "tracking.backends=[tensorboard]"],
    ):
        ended = command(*arguments)
        printed = ended.stdout + ended.stderr
        assert ended.exit_code in (0, 2), printed
        assert not [one for one in printed if one in "\x1b\x07\u202e\r"], printed
    assert checkpoints_of(run)

"""A flipped bit in any file of the newest checkpoint is found at every entry: it is named, and the
checkpoint before it is used where there is a choice.
"""

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import (
    HISTORY,
    MANIFEST,
    TRAINER_STATE,
    dump_manifest,
    parse_manifest,
)
from tests.commands.forged import (
    DIGITS,
    checkpoints_of,
    copied,
    flip,
    in_process,
    write_into,
)
from tests.commands.test_hostile_code import SMALL
from tests.pool import Launched, on_ranks, train_on_ranks

FILES = (
    "config.yaml",
    "history.jsonl",
    "manifest.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "optimizer-00001-of-00001.safetensors",
    "optimizer.safetensors.index.json",
    "rng-00000-of-00001.safetensors",
    "trainer_state.json",
)


def assert_said(ended: Launched, code: int, *words: str) -> None:
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.exit_code == code, ended.stdout + ended.stderr
    for word in words:
        assert word in ended.stdout + ended.stderr, ended.stdout + ended.stderr


def last_evaluation(run: Path) -> dict[str, Any]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found: dict[str, Any] = [one for one in map(json.loads, lines) if one["kind"] == "eval"][-1]
    del found["elapsed_s"]
    return found


def sweep_commands(run: Path, times: int) -> int:
    """Every command on the run and on its newest checkpoint, once for each of `times` flips in each
    file; how many there were.
    """
    positions, out = random.Random(14), run.parent / "out"
    before, newest = checkpoints_of(run)[-2:]
    # The best is the newest, so that it is asked for first
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to(newest.name)
    count = 0
    for name in FILES:
        for where in [0.0, 1.0, *(positions.random() for _ in range(times - 2))]:
            kept = (newest / name).read_bytes()
            flip(newest / name, where)
            for arguments in (["evaluate"], ["predict", "--out", f"{out}.csv"], ["export"]):
                more = [f"{out}.safetensors"] if arguments == ["export"] else []
                Path(f"{out}.safetensors").unlink(missing_ok=True)
                of_run = in_process([*arguments, run, *more])
                assert_said(of_run, 0, str(before), f"{before.name} is taken instead: {newest}: ")
                Path(f"{out}.safetensors").unlink(missing_ok=True)
                assert_said(in_process([*arguments, newest, *more]), 2, str(newest))
            row = json.loads(in_process(["checkpoints", "verify", run, "--json"]).stdout)[-1]
            assert (row["path"], row["valid"]) == (str(newest), False)
            assert_said(in_process(["checkpoints", "list", run]), 0)
            assert_said(in_process(["status", run]), 0)
            (newest / name).write_bytes(kept)
            count += 1
    assert_said(in_process(["report", run]), 0)
    return count


def test_every_command_names_the_checkpoint_and_takes_the_one_before(
    digits: Path, tmp_path: Path
) -> None:
    run = copied(digits, tmp_path / "run")
    assert sorted(os.listdir(checkpoints_of(run)[-1])) == sorted(FILES)
    assert on_ranks(1, sweep_commands, run, 4, timeout_s=120) == [4 * len(FILES)]


@pytest.mark.parametrize("name", FILES)
def test_launches_skip_it_or_say_so(digits: Path, tmp_path: Path, name: str) -> None:
    where = random.Random(name).random()
    run = copied(digits, tmp_path / "run")
    newest = checkpoints_of(run)[-1]
    flip(newest / name, where)
    other = [*SMALL, f"run.dir={tmp_path / 'other'}", "stop.budget={steps: 8}"]
    # By its path, and for its weights: it and no other is meant
    for asked in ("run.resume", "run.init_from"):
        (ended,) = train_on_ranks(1, DIGITS, [*other, f"{asked}={newest}"])
        assert_said(ended, 2, f"CheckpointError: {asked}: {newest}: ")
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
    # A finished run that is asked for more
    more = copied(run, tmp_path / "more")
    (ended,) = train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 8}", f"run.dir={more}"])
    damaged = more / "checkpoints" / newest.name
    assert_said(ended, 0, f"{damaged}: skipped, not valid", "going on from step-00000004")
    assert last_evaluation(more)["step"] == 8
    # One that was interrupted: it ends as it did
    (run / "outcome.json").unlink()
    (ended,) = train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 6}", f"run.dir={run}"])
    assert_said(ended, 0, f"{newest}: skipped, not valid", "going on from step-00000004")
    assert last_evaluation(run) == last_evaluation(digits)


@pytest.mark.parametrize("verify", ["full", "size"])
def test_the_look_at_a_finished_run_reads_no_document_that_was_not_verified(
    digits: Path, tmp_path: Path, verify: str
) -> None:
    run = copied(digits, tmp_path / "run")
    newest = checkpoints_of(run)[-1]
    state = (newest / TRAINER_STATE).read_bytes()
    position = state.index(b'"~float"') + 12
    (newest / TRAINER_STATE).write_bytes(state[:position] + b"q" + state[position + 1 :])
    (ended,) = train_on_ranks(
        1,
        DIGITS,
        [*SMALL, "stop.budget={steps: 8}", f"checkpoint.verify={verify}", f"run.dir={run}"],
    )
    assert_said(ended, 0, f"{newest}: skipped, not valid: trainer_state.json: its SHA-256")
    assert last_evaluation(run)["step"] == 8


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"7", b"{}", b'{"stop": 3}', b'{"run_id": null, "stop": {"evaluations": 1}}'],
)
def test_documents_that_hold_something_else_are_said_in_a_message(
    digits: Path, tmp_path: Path, content: bytes
) -> None:
    run = copied(digits, tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        write_into(checkpoint, TRAINER_STATE, content)
    newest = checkpoints_of(run)[-1]
    for ended in (
        train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 8}", f"run.dir={run}"])[0],
        train_on_ranks(
            1,
            DIGITS,
            [
                *SMALL,
                "stop.budget={steps: 8}",
                f"run.dir={tmp_path / 'other'}",
                f"run.resume={newest}",
            ],
        )[0],
    ):
        assert_said(ended, 2, "not what a training leaves", newest.name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[]", "not what a training leaves"),
        (b'{"step": 2}', "not what a training leaves"),
        (b'{"step": 2, "verdict": {}}', "not what a training leaves"),
        (b'{"step": {"~float": "0x1p+0", "decimal": "2.0"}}', "not a stored value"),
        (b"[" * 2000, "nested too deeply|not valid JSON"),
        (b"no JSON", "not valid JSON"),
    ],
)
def test_a_history_of_something_else_is_said_in_a_message(
    digits: Path, tmp_path: Path, line: bytes, words: str
) -> None:
    run = copied(digits, tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        manifest = parse_manifest((checkpoint / MANIFEST).read_bytes())
        write_into(checkpoint, HISTORY, (line + b"\n") * int(manifest.num_evaluations or 0))
    for more in ("stop.budget={steps: 8}", f"run.resume={checkpoints_of(run)[-1]}"):
        (ended,) = train_on_ranks(1, DIGITS, [*SMALL, f"run.dir={run}", more])
        assert_said(ended, 2, "step-00000006")
        assert re.search(words, ended.stderr), ended.stderr


@pytest.mark.parametrize(
    "facts",
    [{"data": 3}, {"data": {}, "code": 3}, {"data": {}, "environment": [3]}, {"ranked_by": [[]]}],
)
def test_facts_of_another_kind_are_said_in_a_message(
    digits: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    run = copied(digits, tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        manifest = parse_manifest((checkpoint / MANIFEST).read_bytes())
        known = manifest.facts if "data" in facts and facts["data"] == {} else {}
        mixed = {**known, **facts, **({"data": known["data"]} if known else {})}
        (checkpoint / MANIFEST).write_bytes(
            dump_manifest(manifest.model_copy(update={"facts": mixed}))
        )
    (ended,) = train_on_ranks(1, DIGITS, [*SMALL, "stop.budget={steps: 8}", f"run.dir={run}"])
    assert_said(ended, 2, "step-00000006")
    assert_said(in_process(["checkpoints", "list", run]), 0)
    in_process(["checkpoints", "prune", run])

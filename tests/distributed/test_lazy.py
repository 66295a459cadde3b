"""Ranks that connect when they first speak to each other, as 64 and more do."""

import os
from pathlib import Path

import pytest

from harness.ranks.meeting import LAZY_FROM, connect_lazily
from tests.pool import train_on_ranks

SMALL = Path(__file__).parents[1] / "training" / "small.yaml"
LAZY = "TORCH_GLOO_LAZY_INIT"


def test_from_64_ranks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAZY, "")  # so that it is taken away again: ranks that differ in it crash
    monkeypatch.delenv(LAZY)
    connect_lazily(LAZY_FROM - 1)
    before = LAZY in os.environ
    connect_lazily(LAZY_FROM)
    assert (before, LAZY in os.environ) == (False, True)


def test_the_bits_of_ranks_that_connect_at_once(tmp_path: Path) -> None:
    """With evaluations, checkpoints, and an end in order."""
    traces = []
    for lazy in ("0", "1"):
        directory = tmp_path / lazy
        asked = [f"run.dir={directory}", "batch.size=6"]
        ends = train_on_ranks(3, SMALL, asked, env={LAZY: lazy})
        assert [one.exit_code for one in ends] == [0, 0, 0], ends[0].stderr
        traces.append((directory / "trace.jsonl").read_bytes())
    assert traces[0] == traces[1]

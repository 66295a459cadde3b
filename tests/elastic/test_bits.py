"""The same bits on any number of ranks, also on changing ones: losses, parameters, moments,
averages, buffers, norms, metrics, verdicts.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from harness.commands.trace import compare
from tests.elastic.runs import CONFIGS, came_to, finish, outcome, train

EVERYTHING, SENTENCES = CONFIGS / "everything.yaml", CONFIGS / "sentences.yaml"


def assert_same(found: dict[str, Any], reference: dict[str, Any], where: str) -> None:
    differing = [name for name in reference if found[name] != reference[name]]
    assert not differing, f"{where}: {differing}"


def resize(directory: Path, launches: list[tuple[int, int]], *overrides: str) -> None:
    """Each launch on some ranks that are killed in its step of that number."""
    for ranks, die_at in launches:
        ends = train(EVERYTHING, directory, ranks, *overrides, DIE_AT=str(die_at))
        assert -9 in [one.exit_code for one in ends], ends[0].stderr


def test_any_number_of_ranks_gives_the_same_bits_and_so_do_changing_ones(tmp_path: Path) -> None:
    reference = finish(EVERYTHING, tmp_path / "1", 1)
    assert len(reference["trace"]) == 12
    found = outcome(tmp_path / "1")
    assert found["exact"] is True, found
    manifest = next((tmp_path / "1" / "checkpoints" / "latest").glob("manifest.json"))
    assert "any number of processes that divides 12" in manifest.read_text()
    for ranks in (2, 3, 4, 6):
        assert_same(finish(EVERYTHING, tmp_path / str(ranks), ranks), reference, f"{ranks} ranks")
    text, code = compare(tmp_path / "1", tmp_path / "6")  # as docs/elastic.md has it
    assert code == 0, text
    # Killed right after a save, between saves, before the first, and before an evaluation is saved
    saves = "checkpoint.every.steps=2"
    kills = [(4, 1), (1, 3), (6, 1), (2, 3), (3, 2), (1, 1), (4, 3)]
    resize(tmp_path / "changing", kills, saves)
    assert_same(finish(EVERYTHING, tmp_path / "changing", 2, saves), reference, "changing ranks")
    found = outcome(tmp_path / "changing")
    assert found["exact"] is True, found
    assert found["launches"] == 8


def test_uneven_items_count_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    reference = finish(SENTENCES, tmp_path / "1", 1)
    for ranks in (2, 5):
        assert_same(finish(SENTENCES, tmp_path / str(ranks), ranks), reference, f"{ranks} ranks")
    # And what is computed is what is computed otherwise
    finish(SENTENCES, tmp_path / "resume", 1, "run.exactness=resume")
    for mine, theirs in zip(reference["trace"], came_to(tmp_path / "resume")["trace"], strict=True):
        losses = [float.fromhex(one["loss"]) for one in (mine, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.torture
def test_a_run_killed_and_resized_every_few_steps(tmp_path: Path) -> None:
    """A launch costs seconds of two busy cores: 16 of them. Some repeat a step, whose save was not
    done yet.
    """
    steps = ["stop.budget.steps=90", "schedule.T_max=90", "checkpoint.every.steps=1"]
    steps.append("run.max_crashes=20")
    reference = finish(EVERYTHING, tmp_path / "1", 1, *steps)
    generator = random.Random(5)
    kills = [(generator.choice((1, 2, 3, 4, 6)), generator.randint(2, 5)) for _ in range(16)]
    resize(tmp_path / "changing", kills, *steps)
    assert_same(finish(EVERYTHING, tmp_path / "changing", 3, *steps), reference, "changing ranks")

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


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank."""
    directory = tmp_path_factory.mktemp("one") / "run"
    finish(EVERYTHING, directory, 1)
    return directory


def test_any_number_of_ranks_gives_the_same_bits_and_so_do_changing_ones(
    one: Path, tmp_path: Path
) -> None:
    reference = came_to(one)
    assert len(reference["trace"]) == 12
    found = outcome(one)
    assert found["exact"] is True, found
    manifest = next((one / "checkpoints" / "latest").glob("manifest.json"))
    assert "any number of processes that divides 12" in manifest.read_text()
    for ranks in (2, 3, 4, 6):
        assert_same(finish(EVERYTHING, tmp_path / str(ranks), ranks), reference, f"{ranks} ranks")
    text, code = compare(one, tmp_path / "6")  # as docs/elastic.md has it
    assert code == 0, text
    # Killed before the first save, right after one, between saves, before an evaluation is saved
    saves = "checkpoint.every.steps=2"
    kills = [(4, 1), (1, 3), (6, 3), (2, 2)]
    resize(tmp_path / "changing", kills, saves)
    assert_same(finish(EVERYTHING, tmp_path / "changing", 2, saves), reference, "changing ranks")
    found = outcome(tmp_path / "changing")
    assert found["exact"] is True, found
    assert found["launches"] == 5


def shared(kind: str, blocks: str = "first, last") -> str:
    """Each rank holds its rows; a layer that some ranks leave out may be no block."""
    replicas = ", replicate: 2" if kind == "hsdp" else ""
    return f"parallel={{kind: {kind}, shard: [{blocks}]{replicas}}}"


def test_sharded_networks_have_the_bits_of_whole_ones(one: Path, tmp_path: Path) -> None:
    """Rows that three ranks share unevenly, two partial sums a rank, and ways that change."""
    resize(tmp_path, [(4, 6)], shared("hsdp"))
    resize(tmp_path, [(2, 2)], "parallel.kind=ddp")
    assert_same(finish(EVERYTHING, tmp_path, 3, shared("fsdp")), came_to(one), "changing ways")
    assert outcome(tmp_path)["exact"] is True, outcome(tmp_path)


@pytest.mark.torture
def test_sharded_networks_have_the_same_bits_on_any_number_of_ranks(
    one: Path, tmp_path: Path
) -> None:
    for ranks, kind in ((1, "fsdp"), (4, "fsdp"), (6, "hsdp")):
        found = finish(EVERYTHING, tmp_path / f"{kind}{ranks}", ranks, shared(kind))
        assert_same(found, came_to(one), f"{kind} on {ranks}")


@pytest.mark.torture
@pytest.mark.parametrize("summed", ["fp32", "bf16"])
def test_half_precision_of_blocks_has_the_same_bits_on_any_number_of_ranks(
    tmp_path: Path, summed: str
) -> None:
    """Passes compute in bfloat16; what a rank adds up alone is as wide as what ranks exchange."""
    kinds = f"precision: {{params: bf16, reduce: {summed}}}"
    way = f"parallel={{kind: fsdp, shard: [block], {kinds}}}"
    averaged = "train.ema={decay: 0.9}"
    reference = finish(SENTENCES, tmp_path / "1", 1, way, averaged)
    assert_same(finish(SENTENCES, tmp_path / "5", 5, way, averaged), reference, summed)


def test_uneven_items_count_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    reference = finish(SENTENCES, tmp_path / "1", 1)
    for ranks in (2, 5):
        assert_same(finish(SENTENCES, tmp_path / str(ranks), ranks), reference, f"{ranks} ranks")
    # And what is computed is what is computed otherwise
    finish(SENTENCES, tmp_path / "resume", 1, "run.exactness=resume")
    for mine, theirs in zip(reference["trace"], came_to(tmp_path / "resume")["trace"], strict=True):
        losses = [float.fromhex(one["loss"]) for one in (mine, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param("compile=true", marks=pytest.mark.soak),
        pytest.param("channels_last=true", marks=pytest.mark.torture),
    ],
)
def test_kernels_of_other_kinds_give_the_same_bits(tmp_path: Path, setting: str) -> None:
    """inductor's, which see a micro-batch alone; convolutions of another layout."""
    settings = ["network={_target_: tests.elastic.parts.Picture}", f"train.{setting}"]
    reference = finish(EVERYTHING, tmp_path / "1", 1, *settings)
    assert_same(finish(EVERYTHING, tmp_path / "2", 2, *settings), reference, setting)


@pytest.mark.torture
def test_a_run_killed_and_resized_every_few_steps(tmp_path: Path) -> None:
    """A launch costs seconds of two busy cores: 16 of them."""
    kill_and_resize(tmp_path, 16, seed=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_runs_killed_and_resized_at_two_hundred_points(tmp_path: Path, seed: int) -> None:
    kill_and_resize(tmp_path, 40, seed=seed)


def kill_and_resize(tmp_path: Path, num_kills: int, seed: int) -> None:
    """Each launch is killed in one of its first steps, right after a save or during one; some
    repeat a step, whose save was not done yet.
    """
    generator = random.Random(seed)
    sizes = [3]  # from the last launch, which ends, to the first
    for _ in range(num_kills):
        sizes.append(generator.choice([one for one in (1, 2, 3, 4, 6) if one != sizes[-1]]))
    kills = [(size, generator.randint(2, 5)) for size in sizes[:0:-1]]
    num_steps = sum(die_at for _, die_at in kills) + 5
    steps = [f"stop.budget.steps={num_steps}", f"schedule.T_max={num_steps}"]
    steps += ["checkpoint.every.steps=1", "run.max_crashes=20", "stop.improvement.patience=1000"]
    reference = finish(EVERYTHING, tmp_path / "1", 1, *steps)
    assert len(reference["trace"]) == num_steps
    resize(tmp_path / "changing", kills, *steps)
    assert_same(finish(EVERYTHING, tmp_path / "changing", 3, *steps), reference, "changing ranks")
    assert outcome(tmp_path / "changing")["launches"] == num_kills + 1

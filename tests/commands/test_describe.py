"""`fermarsi describe` against counts by hand."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from harness import components
from harness.cli import app
from harness.commands.describe_ranks import RankMemory, describe_ranks
from harness.config.read import read_config
from tests.pool import command, on_ranks

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.yaml"
# The two layers of the digits' perceptron: weights, biases
HIDDEN, OUT = (64 * 256, 256), (256 * 10, 10)
PARAMETERS = sum(HIDDEN + OUT)


def described(*arguments: str, config: Path = DIGITS) -> dict[str, Any]:
    with redirect_stdout(StringIO()) as told:
        assert not app(["describe", str(config), *arguments, "--json"], standalone_mode=False)
    found: dict[str, Any] = json.loads(told.getvalue().splitlines()[-1])
    return found


# Per parameter tensor AdamW and Adafactor keep a count of steps, a float32; Adafactor keeps for a
# matrix the means of its rows and columns.
@pytest.mark.parametrize(
    ("optimizer", "state_bytes"),
    [
        ("{_target_: torch.optim.AdamW, lr: 1e-3}", 4 * (2 * PARAMETERS + 4)),
        ("{_target_: torch.optim.SGD, lr: 1e-3}", 0),
        ("{_target_: torch.optim.SGD, lr: 1e-3, momentum: 0.9}", 4 * PARAMETERS),
        (
            "{_target_: torch.optim.Adafactor, lr: 1e-3}",
            4 * ((256 + 64) + 256 + (10 + 256) + 10 + 4),
        ),
    ],
)
def test_memory_is_what_one_counts_by_hand(optimizer: str, state_bytes: int) -> None:
    total = described(f"optimizer={optimizer}")["total"]
    assert (total["trained"], total["frozen"]) == (PARAMETERS, 0)
    assert (total["weight_bytes"], total["gradient_bytes"], total["optimizer_bytes"]) == (
        4 * PARAMETERS,
        4 * PARAMETERS,
        state_bytes,
    )


def test_activations_and_averages_are_what_one_counts_by_hand() -> None:
    """Of a sample: what ReLU gives, log-probabilities, and at most as much again of the latter."""
    found = described("network.dims=[64, 512, 10]", "train.ema={decay: 0.9}")
    assert 4 * (512 + 10) <= found["activation_bytes"] / 8 <= 4 * (512 + 3 * 10)
    assert found["average_bytes"] == 4 * (64 * 512 + 512 + 512 * 10 + 10)


def test_shapes_flow_and_what_is_frozen_takes_weights_alone() -> None:
    found = described("parts={'1': {freeze: true}}", "network.norm=batch")
    rows = {row["name"]: row for row in found["rows"]}
    assert [rows[name]["kind"] for name in rows] == [
        "Mlp",
        "Flatten",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    assert rows["0"]["takes"] == [8, 1, 8, 8]
    assert rows["0"]["gives"] == rows["1"]["takes"] == [8, 64]
    assert rows["4"]["gives"] == rows[""]["gives"] == [8, 10]
    assert (rows["1"]["trained"], rows["1"]["frozen"], rows["1"]["weight_bytes"]) == (
        0,
        sum(HIDDEN),
        4 * sum(HIDDEN),
    )
    assert (rows["1"]["gradient_bytes"], rows["1"]["optimizer_bytes"]) == (0, 0)
    # Scale, shift, mean, variance; the count of batches is an int64
    assert rows["2"]["weight_bytes"] == 4 * 4 * 256 + 8
    assert (found["num_slots"], found["world_sizes"], found["unreached"]) == (
        12,
        [1, 2, 3, 4, 6, 12],
        [],
    )


def test_a_table_names_what_no_gradient_reaches(tmp_path: Path) -> None:
    end = command(
        "describe",
        ROOT / "tests" / "training" / "halves.yaml",
        "network.idle=true",
        f"run.dir={tmp_path / 'run'}",
        "--depth",
        1,
    )
    assert end.exit_code == 0, end.stderr
    told = end.stdout
    assert "no gradient reaches idle.weight, idle.bias: several processes cannot train this" in told
    assert "a step is 2 micro-batches of 12 samples: launch 1, 2 processes" in told
    assert "BatchNorm" not in told  # deeper than 1
    encoder = next(line for line in told.splitlines() if "encoder" in line)
    assert f"{6 * 16 + 16 + 2 * 16 + 16 * 8 + 8}" in encoder
    assert not list(tmp_path.iterdir())


CHAIN = (
    "network={_target_: harness.networks.Gpt, vocabulary: 11, context: 5, dim: 12, depth: 2, "
    "num_heads: 2}",
    "task={_target_: harness.tasks.LanguageModelling, input: tokens}",
    "data={checks: {duplicates: warn}, train: {source: {_target_: tests.start_parts.Words}}}",
    "batch={size: 32, micro_size: 4}",
    "optimizer={_target_: torch.optim.AdamW, lr: 0.01}",
    "stop={every: {steps: 3}, budget: {steps: 3}}",
)


def test_of_each_of_several_processes_it_says_what_one_counts_by_hand(tmp_path: Path) -> None:
    config = tmp_path / "words.yaml"
    config.write_text("run: {name: words}\n")
    whole = described(*CHAIN, config=config)
    alone = described(*CHAIN, "--ranks", "1", config=config)
    total = whole["total"]
    assert alone["activation_bytes"] == whole["activation_bytes"]
    for name, found in (("weight", "parameter"), ("gradient",) * 2, ("optimizer",) * 2):
        assert alone[f"{found}_bytes"] == total[f"{name}_bytes"]
    assert alone["gathered_bytes"] == 0

    network = read_config(config, CHAIN).network
    parameters = dict(components.build(network, "network").named_parameters())
    rows = sum(-(-len(one) // 4) * one[0].numel() for one in parameters.values())
    everything = sum(one.numel() for one in parameters.values())
    block = sum(one.numel() for name, one in parameters.items() if name.startswith("blocks.0."))
    sharded = [*CHAIN, "parallel={kind: fsdp}", "train={ema: {decay: 0.9}}", "--ranks", "4"]
    found = described(*sharded, config=config)
    assert found["parameter_bytes"] == found["average_bytes"] == 4 * rows
    assert found["gradient_bytes"] == 4 * (rows + everything)  # of two slots
    assert found["optimizer_bytes"] == 4 * (2 * rows + len(parameters))
    assert found["gathered_bytes"] == 4 * (everything - 2 * block + 3 * block)

    host = described(*sharded, "parallel.offload=cpu", config=config)
    assert host["gradient_bytes"] == 4 * everything
    assert host["total_bytes"] + host["host_bytes"] == found["total_bytes"]
    assert host["host_bytes"] == 4 * (rows * 5 + len(parameters))

    # Of one process the rows are whole, on its host; its GPU has whole gradients beside them
    one = described(*CHAIN, "parallel={kind: fsdp, offload: cpu}", "--ranks", "1", config=config)
    assert one["gradient_bytes"] == 4 * everything
    assert one["parameter_bytes"] == one["optimizer_bytes"] == one["average_bytes"] == 0
    assert one["gathered_bytes"] == found["gathered_bytes"]
    assert one["host_bytes"] == 4 * (everything * 4 + len(parameters))

    # One slot each, and so no whole gradients but of what is gathered for a whole pass
    larger = described(*sharded, "batch={size: 32, micro_size: 8}", config=config)
    assert larger["gradient_bytes"] == 4 * (rows + everything - 2 * block)
    each = "parallel={kind: fsdp, reduce_every: micro_batch}"
    summed = described(*sharded, each, config=config)
    assert summed["gradient_bytes"] == larger["gradient_bytes"]
    ones = "batch={size: 32, micro_size: 1}"
    memory_gb = str(described(*sharded, each, ones, config=config)["total_bytes"] / 1e9)
    told = described(*sharded, "--memory-gb", memory_gb, config=config)
    assert told["largest_micro_size"] is None
    assert told["advice"][1].startswith("parallel.reduce_every: micro_batch keeps no whole grad")
    assert told["advice"][1].endswith("then a batch.micro_size of 1 fits")
    for spare, largest in ((0, 8), (-64, 4)):
        memory_gb = str((larger["total_bytes"] + spare) / 1e9)
        exact = described(*sharded, "--memory-gb", memory_gb, config=config)
        assert exact["largest_micro_size"] == largest
    small = described(*sharded, "--memory-gb", "1e-6", config=config)
    assert small["largest_micro_size"] is None
    assert small["advice"][0].startswith("train.recompute: auto")


def test_sharded_weights_that_are_cast_are_not_kept_where_blocks_run_again(tmp_path: Path) -> None:
    config = tmp_path / "words.yaml"
    config.write_text("run: {name: words}\n")
    given = [*CHAIN, "network.dim=96", "parallel={kind: fsdp}", "train.precision=bf16"]
    # Of Accelerate a process has one precision
    ((kept, again),) = on_ranks(1, kept_and_again, config, given)
    copy_bytes = 8 * kept.parameter_bytes / 2
    assert kept.activation_bytes > copy_bytes
    assert "keeps a copy of all weights" in kept.advice[0]
    assert again.activation_bytes < 0.2 * copy_bytes
    assert not again.advice


def kept_and_again(config: Path, given: list[str]) -> list[RankMemory]:
    return [describe_ranks(config, [*given, f"train.recompute={one}"], 8) for one in ("[]", "auto")]


def test_a_network_larger_than_this_machine_is_described(tmp_path: Path) -> None:
    config = tmp_path / "tall.yaml"
    config.write_text("run: {name: tall}\n")
    tall = "network={_target_: tests.parallel.large_parts.Tall, depth: 64, width: 32768}"
    blobs = "data={train: {source: {_target_: tests.resume.parts.Blobs, count: 96}}}"
    task = "task={_target_: harness.tasks.Classification, input: x, target: label}"
    given = [tall, blobs, task, *CHAIN[3:], "parallel={kind: fsdp}", "--memory-gb", "80"]
    found = described(*given, "--ranks", "8", config=config)
    assert found["parameter_bytes"] == pytest.approx(64 * 4 * 32768**2 / 8, rel=1e-3)
    assert any("processes have room for their rows" in one for one in found["advice"])


def test_what_has_no_effect_or_does_not_fit_is_refused() -> None:
    for given, message in (
        (["--memory-gb", "8"], "--memory-gb: no effect without --ranks"),
        (["--ranks", "2", "--depth", "1"], "--depth: no effect with --ranks"),
        (["--ranks", "5"], "--ranks: 5 processes cannot share 12 micro-batches evenly"),
    ):
        end = command("describe", DIGITS, *given)
        assert end.exit_code == 2
        assert message in end.stderr

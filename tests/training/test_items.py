"""How many items a step's batch has: agreed on once, or counted at each step; the same bits."""

from pathlib import Path

import pytest
import torch

from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.items import Items
from tests.pool import on_ranks, train_on_ranks
from tests.training.contract_parts import Miscounts

SMALL = Path(__file__).with_name("small.yaml")
PARTS = "tests.training.contract_parts"


def weights(kind: str) -> list[float]:
    """Of a step's gradients, where micro-batches of two ranks have 3 and 5 items."""
    ranks = Ranks.join()
    items = Items(Miscounts("x", "y"), ranks, torch.device("cpu"), 2, 2)
    first = {"y": torch.zeros(4 if kind == "alike" else 3 + 2 * ranks.rank)}
    items.agree(first)
    count = items.of([first])
    return [float(count.number()), float(count.weight(torch.float64))]


def test_ranks_sum_what_is_not_the_same_on_all() -> None:
    assert on_ranks(2, weights, "uneven") == [[8.0, 0.25]] * 2
    assert on_ranks(2, weights, "alike") == [[8.0, 0.25]] * 2


def test_a_count_that_follows_from_the_samples_is_asked_for_once_and_changes_no_bit(
    tmp_path: Path,
) -> None:
    traces = []
    for name in (
        "harness.tasks.Classification",
        f"{PARTS}.CountsItems",
        f"{PARTS}.CountsItemsAtTimes",
    ):
        run = tmp_path / name.rpartition(".")[2]
        ends = train_on_ranks(2, SMALL, [f"run.dir={run}", f"task._target_={name}"])
        assert [one.exit_code for one in ends] == [0, 0], ends[0].stderr
        traces.append((run / "trace.jsonl").read_bytes())
    assert len(traces[0].splitlines()) >= 12
    assert traces[1:] == traces[:1] * 2


def test_an_int_that_changes_is_one_message() -> None:
    items = Items(Miscounts("x", "y"), Ranks(), torch.device("cpu"), 1, 1)
    items.agree({"y": torch.zeros(4)})
    assert items.of([{"y": torch.zeros(4)}]) is items.of([{"y": torch.zeros(4)}])
    with pytest.raises(ConfigError, match=r"Miscounts.num_items returned the int 4 .* now \[5\]"):
        items.of([{"y": torch.zeros(5)}])


def test_a_gradient_that_autograd_keeps_is_not_the_weight() -> None:
    """A parameter that the loss has as it is takes the gradient it is given, to be changed."""
    items = Items(Miscounts("x", "y"), Ranks(), torch.device("cpu"), 2, 1)
    items.agree({"y": torch.zeros(4)})
    bias = torch.nn.Parameter(torch.zeros(1))
    for _ in range(2):
        count = items.of([{"y": torch.zeros(4)}] * 2)
        torch.autograd.backward(bias.squeeze(), count.weight(torch.float32))
        assert bias.grad is not None
        bias.grad.mul_(0.1)
    assert float(count.weight(torch.float32)) == 0.125

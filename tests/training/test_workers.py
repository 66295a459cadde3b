"""How many processes prepare micro-batches where the config leaves it open."""

import re
from pathlib import Path

import pytest

from harness.config.read import read_config
from harness.errors import ConfigError
from harness.training.workers import choose_workers
from tests.pool import train_on_ranks

SMALL = Path(__file__).with_name("small.yaml")
SLOW = "data.train.source={_target_: tests.training.contract_parts.Slow, count: 64}"


@pytest.mark.parametrize(
    ("fetch_s", "obstacle", "spare", "number"),
    [
        (0.0001, None, 15, 0),  # a worker would take longer
        (0.1, None, 3, 3),
        (0.1, None, 63, 8),
        (0.1, None, 0, 0),
        (0.1, "a stream is read by one process", 15, 0),
    ],
)
def test_workers_are_taken_where_they_are_worth_it(
    fetch_s: float, obstacle: str | None, spare: int, number: int
) -> None:
    chosen, why = choose_workers(fetch_s, obstacle, spare)
    assert chosen == number
    assert (why is None) == (fetch_s < 0.003)
    assert obstacle is None or obstacle in str(why)


def test_the_choice_is_told_and_changes_no_bit(tmp_path: Path) -> None:
    """A source that is slow, on a machine that may have a core to spare or none."""
    traces = []
    for number in ("auto", "0", "1"):
        run = tmp_path / number
        asked = [f"run.dir={run}", SLOW, f"data.num_workers={number}", "stop.budget.steps=6"]
        [end] = train_on_ranks(1, SMALL, asked)
        assert end.exit_code == 0, end.stderr
        said = [line for line in end.stdout.splitlines() if "data.num_workers" in line]
        assert len(said) == (number == "auto")
        assert all(re.match(r"data.num_workers: auto: \d: a micro-batch", one) for one in said)
        traces.append((run / "trace.jsonl").read_bytes())
    assert traces[1:] == traces[:1] * 2


@pytest.mark.parametrize("value", ["-1", "some", "1.5"])
def test_another_word_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data.num_workers: .* is not allowed. Give .*auto"):
        read_config(SMALL, [f"data.num_workers={value}"])

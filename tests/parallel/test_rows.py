"""Checkpoints of sharded networks: each rank writes the rows that it holds, and any number of ranks
reads them, however it shares the network.
"""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from harness.checkpoint.read import inspect
from harness.checkpoint.settings import ModelLayout
from harness.ranks.rows import own_range
from tests.checkpoint.examples import loaded_from, names_in
from tests.parallel.sharded import Network, differing, made, save, wrong_after_load
from tests.pool import on_ranks

LAUNCHES = [("ddp", 1), ("ddp", 3), ("fsdp", 2), ("fsdp", 3), ("fsdp", 4), ("hsdp", 4)]
LAYOUTS: list[ModelLayout] = ["whole", "rows"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same state, written by each launch, with whole weights and in rows."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for way, size in LAUNCHES:
        on_ranks(size, save_both, directory, f"{way}-{size}", way)
    return sorted(directory.glob("*/step-*"))


def save_both(directory: Path, name: str, way: str) -> None:
    for layout in LAYOUTS[: 1 if way == "ddp" else 2]:
        save(directory / f"{name}-{layout}", way, layout)


def wrong_after_loads(paths: list[Path], way: str) -> dict[str, list[str]]:
    return {path.parent.name: wrong_after_load(path, way) for path in paths}


@pytest.mark.parametrize(("way", "size"), LAUNCHES)
def test_any_launch_reads_what_any_other_wrote(
    checkpoints: list[Path], way: str, size: int
) -> None:
    assert len(checkpoints) == 10
    for of_rank in on_ranks(size, wrong_after_loads, checkpoints, way):
        assert of_rank == {path.parent.name: [] for path in checkpoints}


def test_every_element_is_there_once_and_weights_are_whole_unless_rows_are_asked_for(
    checkpoints: list[Path],
) -> None:
    names = {*Network().state_dict()} - {"head.weight"}
    for path in checkpoints:
        assert inspect(path, verify="full").problems == []
        loaded = loaded_from(path)
        assert [*differing(loaded.model.read())] == [*differing(loaded.optimizer.read())] == []
        keys = {
            key
            for file in path.glob("model-0*.safetensors")
            for key in safe_open(file, "pt").keys()  # noqa: SIM118 - it is no mapping
        }
        in_rows = path.parent.name.endswith("rows")
        assert (keys == names) is not in_rows
        # `from_pretrained` must not take rows for weights of other names
        (index,) = names_in(path, lambda name: name.startswith("model") and "index" in name)
        assert index == ("model-rows" if in_rows else "model") + ".safetensors.index.json"


def sizes_and_rows(directory: Path) -> tuple[list[int], dict[str, int]]:
    sizes = [save(directory / f"h{layout}", "hsdp", layout) for layout in LAYOUTS]
    rows = {name: own_range(one) or (0, 0) for name, one in made("hsdp").state_dict().items()}
    return sizes, {name: last - first for name, (first, last) in rows.items()}


def test_replicas_write_about_as_much_each(tmp_path: Path) -> None:
    answers = on_ranks(4, sizes_and_rows, tmp_path)
    assert answers[0][1]["embed.weight"] == answers[1][1]["embed.weight"] == 15
    assert [rows["one.weight"] for _, rows in answers] == [1, 0, 1, 0]
    in_rows = [sizes[1] for sizes, _ in answers]
    assert max(in_rows) < 1.3 * sum(in_rows) / 4
    whole = sum(sizes[0] for sizes, _ in answers)
    model = sum(one.nbytes for one in Network().state_dict().values())
    assert sum(in_rows) < whole < sum(in_rows) + 1.1 * model


def ask_for_columns() -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from harness.checkpoint.stage import Stage
    from harness.errors import CheckpointError
    from tests.checkpoint.examples import snapshot

    tensor = distribute_tensor(torch.ones(4, 6), init_device_mesh("cpu", (2,)), [Shard(1)])
    try:
        Stage().check(snapshot(1, model={"x": tensor}), 0, 2)
    except CheckpointError as error:
        return str(error)
    return ""


def test_what_is_cut_between_columns_is_refused_by_name() -> None:
    for message in on_ranks(2, ask_for_columns):
        assert message.startswith("model x: placed as (Shard(dim=1),) over ranks")

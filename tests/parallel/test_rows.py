"""Checkpoints of sharded networks: each rank writes the rows that it holds, and any number of ranks
reads them, however it shares the network.
"""

import threading
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from harness.checkpoint import copying, stage, stored
from harness.checkpoint.read import inspect
from harness.checkpoint.settings import ModelLayout
from harness.checkpoint.stage import Stage
from harness.checkpoint.state import optimizer_tensors, restore_network, restore_optimizer
from harness.commands.export import export_network
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of, own_range
from harness.training.warm_start import warm_start
from tests.checkpoint.examples import assert_same, loaded_from, names_in, snapshot, store_in
from tests.parallel.sharded import (
    Network,
    differing,
    expected,
    made,
    names_of,
    optimizer_of,
    save,
    state_of,
    taken,
    wrong_after_load,
)
from tests.pool import on_ranks

LAUNCHES = [("ddp", 1), ("ddp", 3), ("fsdp", 2), ("fsdp", 3), ("fsdp", 4), ("hsdp", 4)]
LAYOUTS: list[ModelLayout] = ["whole", "rows"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same state, written by each launch, with whole weights and in rows.

    What was lost or refused elsewhere is in it: another number of ranks (pytorch/torchtitan#811,
    Lightning-AI/pytorch-lightning#16815), ranks without rows (pytorch/pytorch#102821, #163480),
    frozen weights and buffers (deepspeedai/DeepSpeed#3090, #1146), tied weights, and others taken
    for tied (huggingface/accelerate#3870, #2155).
    """
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


def bytes_read(path: Path, way: str) -> tuple[int, int]:
    """(read, held) once this rank has loaded a checkpoint."""
    read, usual = [], stored._read_into

    def count(file: FileIO, begin: int, target: memoryview) -> None:
        read.append(len(target))
        usual(file, begin, target)

    stored._read_into = count
    ranks = Ranks.join(20.0)
    network, loaded = made(way), loaded_from(path, ranks.rank, 0)
    optimizer = optimizer_of(network)
    restore_network(network, loaded, ranks)
    rest = loaded.trainer["optimizer"]
    restore_optimizer(optimizer, names_of(network), loaded.optimizer, rest, ranks)
    tensors = state_of(network, optimizer)[0]
    del tensors["head.weight"]  # tied
    return sum(read), sum(local_of(one).nbytes for one in tensors.values())


def test_each_rank_reads_what_it_holds_and_no_more(checkpoints: list[Path]) -> None:
    """pytorch/pytorch#125740 and #118327: each rank needed every file."""
    for name in ("ddp-3-whole", "fsdp-2-rows", "fsdp-4-whole"):
        (path,) = (one for one in checkpoints if one.parent.name == name)
        answers = on_ranks(4, bytes_read, path, "fsdp")
        assert all(read == held for read, held in answers)
        total = sum(entry.size_bytes for entry in loaded_from(path).manifest.files.values())
        assert max(read for read, _ in answers) < 0.55 * total


def start_from(file: Path) -> list[str]:
    network = made("fsdp")
    assert "not used: nothing" not in warm_start(network, file, {})
    return [*differing(network.state_dict())]


def test_a_sharded_network_starts_from_the_weights_of_a_file(tmp_path: Path) -> None:
    values = {
        name: expected(name.replace("head", "embed"), one)
        for name, one in Network().state_dict().items()
    }
    save_file(values, tmp_path / "weights.safetensors")
    assert on_ranks(3, start_from, tmp_path / "weights.safetensors") == [[]] * 3


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


def test_an_export_puts_rows_together(checkpoints: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(checkpoints):
        out = tmp_path / f"{number}.safetensors"
        assert "bit by bit" in export_network(path, out, "safetensors")
        model = loaded_from(path).model
        assert_same(load_file(out), {name: model[name] for name in model if "head" not in name})


def sizes_and_rows(directory: Path) -> tuple[list[int], dict[str, int]]:
    sizes = [save(directory / f"h{layout}", "hsdp", layout) for layout in LAYOUTS]
    rows = {name: own_range(one) or (0, 0) for name, one in made("hsdp").state_dict().items()}
    return sizes, {name: last - first for name, (first, last) in rows.items()}


def test_replicas_write_about_as_much_each(tmp_path: Path) -> None:
    """pytorch/pytorch#104081: one of them wrote everything."""
    answers = on_ranks(4, sizes_and_rows, tmp_path)
    assert answers[0][1]["embed.weight"] == answers[1][1]["embed.weight"] == 15
    assert [rows["one.weight"] for _, rows in answers] == [1, 0, 1, 0]
    in_rows = [sizes[1] for sizes, _ in answers]
    assert max(in_rows) < 1.3 * sum(in_rows) / 4
    whole = sum(sizes[0] for sizes, _ in answers)
    model = sum(one.nbytes for one in Network().state_dict().values())
    assert sum(in_rows) < whole < sum(in_rows) + 1.1 * model


def copy_under_a_step(directory: Path) -> list[tuple[int, str]]:
    """Two saves that are copied under the next step, in the first of which a rank's moment is
    changed; how they ended.
    """
    ranks = Ranks.join(20.0)
    stage._LATER_FROM_BYTES = 0
    begin, fill = threading.Event(), copying._fill
    copying._fill = lambda *args: fill(*args) if begin.wait(10) else None
    store = store_in(directory, ranks)
    for step in (1, 2):
        state = taken("fsdp", step)
        stable = {"model": {*state.model}, "optimizer": {*state.optimizer}}
        store.save(replace(state, stable=stable), None)
        assert store.is_copying() is (step == 1)
        if step == 1 and ranks.rank == 1:
            with torch.no_grad():
                state.optimizer["exp_avg/embed.weight"].add_(1)
        begin.set()
        store.finish_copy()
        store.wait()
    store.close()
    return [(one.step, one.error or "") for one in store.reports()]


def test_a_write_to_rows_that_are_copied_is_found(tmp_path: Path) -> None:
    for (_, error), (_, none) in on_ranks(2, copy_under_a_step, tmp_path):
        assert error.startswith("exp_avg/embed.weight: changed by the next step")
        assert none == ""
    assert on_ranks(2, wrong_after_load, tmp_path / "step-00000002", "fsdp") == [[], []]


def keep_apart() -> str:
    network = made("fsdp")
    optimizer = optimizer_of(network)
    first = optimizer.param_groups[0]["params"][0]
    optimizer.state[first] = {"step": torch.zeros(()), "factor": torch.zeros(len(first))}
    try:
        optimizer_tensors(optimizer, names_of(network))
    except CheckpointError as error:
        return str(error)
    return ""


def test_state_that_an_optimizer_keeps_outside_of_the_shards_is_refused_by_name() -> None:
    for message in on_ranks(2, keep_apart):
        assert message.startswith("optimizer: factor/embed.weight: kept by each rank for itself")


def place(placement: Placement) -> str:
    tensor: Any = distribute_tensor(torch.ones(4, 6), init_device_mesh("cpu", (2,)), [placement])
    try:
        Stage().check(snapshot(1, model={"x": tensor}), 0, 2)
    except CheckpointError as error:
        return str(error)
    return ""


def test_what_is_cut_otherwise_than_between_rows_is_refused_by_name() -> None:
    """ROCm/Megatron-LM#63: interleaved rows were put together in another order."""
    for placement in (Shard(1), _StridedShard(0, split_factor=2)):
        for message in on_ranks(2, place, placement):
            assert message.startswith(f"model x: placed as ({placement!r},) over ranks")

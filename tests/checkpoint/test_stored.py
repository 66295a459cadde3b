"""Tensors go from a checkpoint's files straight to where they stay, whoever reads them."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from harness.checkpoint import layout, stored
from harness.checkpoint.state import optimizer_tensors, restore_network, restore_optimizer
from harness.checkpoint.stored import StoredTensors
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from tests.checkpoint.examples import assert_same, loaded_from, snapshot, store_in
from tests.pool import on_ranks


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch knows it


def trained() -> tuple[nn.Module, AdamW]:
    net = network()
    optimizer = AdamW(net.parameters())
    net(torch.rand(4, 3, 4, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def names_of(net: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in net.named_parameters()}


def save(directory: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    net, optimizer = trained()
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    store = store_in(directory, Ranks.join(20.0))
    state = snapshot(1, model=net.state_dict(), optimizer=tensors, trainer={"optimizer": rest})
    store.save(state, None)
    store.close()
    assert [one.error for one in store.reports()] == [None]
    return net, tensors


def restored(directory: Path, ranks: Ranks) -> tuple[nn.Module, AdamW]:
    net, loaded = network(), loaded_from(directory / "step-00000001", ranks.rank, ranks.size)
    with torch.no_grad():
        for one in net.parameters():
            one.fill_(7.0)
    optimizer = AdamW(net.parameters())
    restore_network(net, loaded, ranks)
    rest = loaded.trainer["optimizer"]
    restore_optimizer(optimizer, names_of(net), loaded.optimizer, rest, ranks)
    return net, optimizer


def test_bytes_are_read_into_the_memory_in_which_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    read: list[tuple[int, int]] = []
    original = stored._read_into

    def note(file: Any, begin: int, target: memoryview) -> None:
        read.append((ctypes.addressof(ctypes.c_char.from_buffer(target)), len(target)))
        original(file, begin, target)

    monkeypatch.setattr(stored, "_read_into", note)
    net, optimizer = restored(tmp_path, Ranks())
    tensors = [*net.state_dict().values(), *optimizer_tensors(optimizer, names_of(net))[0].values()]
    own = [(one.data_ptr(), one.data_ptr() + one.nbytes) for one in tensors]
    aside = [
        size
        for begin, size in read
        if not any(first <= begin and begin + size <= last for first, last in own)
    ]
    # Weight and moments of the convolution, which lie in another order than they are stored; and
    # the random state
    assert sorted(aside) == [16] + [3 * 8 * 9 * 4] * 3
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    moment = optimizer.state[net[0].weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def load_every_way(directory: Path, chunk_bytes: int) -> list[int]:
    """How many chunks this rank read: by itself, with the faster way, and among its peers."""
    ranks = Ranks.join(20.0)
    stored._CHUNK_BYTES = chunk_bytes
    net, optimizer = trained()
    expected = optimizer_tensors(optimizer, names_of(net))[0]
    usual, fill = stored.StoredTensors._read_chunk, stored._seconds_a_byte
    counts = []
    for size_bytes, times in ((2**40, []), (0, []), (0, [2.0, 1.0]), (0, [1.0, 2.0])):
        stored._TRY_FROM_BYTES = size_bytes
        read: list[str] = []

        def note(self: StoredTensors, chunk: Any, room: Tensor, read: list[str] = read) -> Tensor:
            read.append(chunk.file)
            return usual(self, chunk, room)

        def timed(way: Any, owned: Any, times: list[float] = times) -> float:
            measured_s = fill(way, owned)
            times.append(times.pop(0)) if times else None
            return times[-1] if times else measured_s

        stored.StoredTensors._read_chunk = note  # type: ignore[method-assign] # put back below
        stored._seconds_a_byte = timed
        other, other_optimizer = restored(directory, ranks)
        stored.StoredTensors._read_chunk = usual  # type: ignore[method-assign] # see above
        stored._seconds_a_byte = fill
        assert_same(other.state_dict(), net.state_dict())
        assert_same(optimizer_tensors(other_optimizer, names_of(other))[0], expected)
        counts.append(len(read))
    return counts


@pytest.mark.parametrize(
    ("writers", "readers", "chunk_bytes"), [(1, 2, 64), (3, 2, 64), (2, 3, 64), (2, 2, 2**20)]
)
def test_ranks_read_the_same_by_themselves_and_from_each_other(
    tmp_path: Path, writers: int, readers: int, chunk_bytes: int
) -> None:
    on_ranks(writers, save_cut, tmp_path)
    counts = on_ranks(readers, load_every_way, tmp_path, chunk_bytes)
    alone, _, among, tried = (list(one) for one in zip(*counts, strict=True))
    assert sum(alone) == 0
    if chunk_bytes == 64:
        assert 0 < sum(tried) < sum(among)
        assert all(among)  # each reads its share for all


def save_cut(directory: Path) -> None:
    layout.CUT_BYTES = 256
    save(directory)


def test_what_is_stored_as_one_is_read_as_one_and_parts_may_be_asked_for(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    state = snapshot(1)
    store.save(state, None)
    store.close()
    loaded = loaded_from(tmp_path / "step-00000001")
    assert_same(loaded.model.read(), state.model)
    assert_same(loaded.model, state.model)
    assert_same(
        loaded.optimizer.without("step/").read(),
        {name: one for name, one in state.optimizer.items() if name.startswith("exp_avg")},
    )
    tensors = {
        "mask": torch.empty(7, dtype=torch.bool),
        "norm.count": torch.empty((), dtype=torch.int64),
    }
    loaded.model.fill(tensors)
    assert_same(tensors, {name: state.model[name] for name in tensors})


def test_a_file_that_was_cut_since_it_was_looked_at_is_an_error_in_words(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "step-00000001"
    loaded = loaded_from(path)
    for file in path.glob("model-*.safetensors"):
        os.truncate(file, file.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*ends early.*Resume"):
        loaded.model.read()


WIDE = 4096  # a layer of 64 MB, with two moments as large


def wide() -> tuple[nn.Module, AdamW]:
    net = nn.Linear(WIDE, WIDE)
    return net, AdamW(net.parameters())


def save_wide(directory: Path) -> None:
    net, optimizer = wide()
    for one in net.parameters():
        one.grad = torch.ones_like(one)
    optimizer.step()
    tensors, rest = optimizer_tensors(optimizer, names_of(net))
    store = store_in(directory, Ranks.join(20.0))
    state = snapshot(1, model=net.state_dict(), optimizer=tensors, trainer={"optimizer": rest})
    store.save(state, None)
    store.close()
    assert [one.error for one in store.reports()] == [None]


def memory_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def peak_bytes(call: Callable[[], object]) -> int:
    """How much more memory this process holds at most while it calls."""
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    call()
    return memory_bytes("VmHWM") - before


def peaks_of_loading(directory: Path) -> list[int]:
    """By itself, and among peers: beyond the weights, which are there, and the moments."""
    ranks = Ranks.join(20.0)
    peaks = []
    for tried_from_bytes in (2**40, 0):
        stored._TRY_FROM_BYTES = tried_from_bytes
        times = [2.0, 1.0]  # reading everything takes longer, so that it is not done
        net, optimizer = wide()
        loaded = loaded_from(directory / "step-00000001", ranks.rank, ranks.size)

        def timed(way: Any, owned: Any, times: list[float] = times) -> float:
            way(owned)
            times.append(times.pop(0))
            return times[-1]

        stored._seconds_a_byte = timed

        def load(net: nn.Module = net, optimizer: AdamW = optimizer, loaded: Any = loaded) -> None:
            restore_network(net, loaded, ranks)
            rest = loaded.trainer["optimizer"]
            restore_optimizer(optimizer, names_of(net), loaded.optimizer, rest, ranks)

        peak = peak_bytes(load)
        moments = optimizer_tensors(optimizer, names_of(net))[0]
        peaks.append(peak - sum(one.nbytes for one in moments.values()))
        assert all((one == one.flatten()[0]).all() for one in moments.values())
    return peaks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is not told here")
def test_loading_holds_no_second_copy(tmp_path: Path) -> None:
    """Neither of the 192 MB nor of a layer's 64: less than a chunk, among peers three."""
    on_ranks(1, save_wide, tmp_path)
    for alone, among in on_ranks(2, peaks_of_loading, tmp_path):
        assert alone < stored._CHUNK_BYTES
        # Its own, the one that it reads ahead, and one of a peer
        assert among < 3.5 * stored._CHUNK_BYTES

"""Pinned staging memory, with a stand-in for CUDA; tests/gpu has the real one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.checkpoint.copying import HostMemory
from harness.checkpoint.stage import Stage
from harness.checkpoint.write import CheckpointStore
from tests.checkpoint.examples import LOSS, snapshot, store_in


class Runtime:
    """Registers as CUDA does: nothing twice, and nothing that has no size."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.registered: dict[int, int] = {}

    def register(self, begin: int, size_bytes: int, flags: int) -> int:
        assert size_bytes > 0
        assert begin not in self.registered
        if self.code == 0:
            self.registered[begin] = size_bytes
        return self.code

    def unregister(self, begin: int) -> int:
        del self.registered[begin]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made, empty = Runtime(), torch.empty
    calls = SimpleNamespace(cudaHostRegister=made.register, cudaHostUnregister=made.unregister)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: calls)

    def plain(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", plain)
    return made


def test_it_is_registered_as_it_is_and_given_back_before_more_is_taken(runtime: Runtime) -> None:
    memory = HostMemory()
    for size, has in ((1000, 1000), (700, 1000), (5001, 5001)):
        memory.reserve(size, True)
        assert list(runtime.registered.values()) == [has]
    assert memory.trouble is None
    del memory
    assert runtime.registered == {}


def test_where_it_cannot_be_registered_a_save_says_so_once(
    runtime: Runtime, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers with a small `ulimit -l`."""
    runtime.code = 2

    def refuse(*size: int, **options: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")  # of the registration before

    monkeypatch.setattr(torch, "zeros", refuse)
    reserve = HostMemory.reserve
    monkeypatch.setattr(HostMemory, "reserve", lambda self, size, _: reserve(self, size, True))
    store: CheckpointStore = store_in(tmp_path)
    for step in (1, 2):
        store.save(snapshot(step), LOSS)
        store.wait()
    first, second = store.reports()
    store.close()
    assert first.error is None
    assert "could not be pinned (CUDA error 2: is the memory" in str(first.warning)
    assert (second.error, second.warning) == (None, None)
    assert Stage().troubles() == []

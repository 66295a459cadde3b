"""Imports without garbage collection: nothing is collected inside, and everything can be after."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from harness.imports import without_garbage_collection


class Loop:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    gc.enable()
    yield
    gc.enable()
    if frozen:
        gc.freeze()


def test_garbage_is_left_alone_inside_and_found_after() -> None:
    with without_garbage_collection():
        assert not gc.isenabled()
        garbage = weakref.ref(Loop())
        made = [[] for _ in range(100_000)]
        assert garbage() is not None
    assert gc.isenabled()
    assert garbage() is not None
    assert gc.get_count()[0] < len(made)  # they are not walked one moment later
    gc.collect()
    assert garbage() is None


def test_collection_goes_on_after_an_error() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert gc.isenabled()


def test_who_has_turned_collection_off_keeps_it_off() -> None:
    gc.disable()
    with without_garbage_collection(), without_garbage_collection():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_what_is_frozen_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with without_garbage_collection():
        pass
    assert gc.get_freeze_count() >= frozen > 0
    gc.unfreeze()

"""The networks of torchvision as their builders make them for pretrained weights, without those."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn


class _Absent(dict[str, Any]):
    """Stands for weights that are not fetched."""


_fetching: ContextVar[bool] = ContextVar("fetching", default=True)
_LOCK = threading.RLock()  # patches of two threads would undo each other


def torchvision_architecture(name: str, **arguments: Any) -> nn.Module:
    """`torchvision.models.get_model(name, **arguments)`, whose `weights` and `weights_backbone`
    decide its layers and settings (frozen BatchNorm, classes, epsilons) and nothing else: no file
    is fetched or read, and its values are those that it is initialised with. Raises what the
    builder does, ValueError for an unknown name.
    """
    from torchvision.models import get_model

    with _without_weights():
        found: nn.Module = get_model(name, **arguments)
    return found


@contextmanager
def _without_weights() -> Iterator[None]:
    """Inside, in this thread, weights of torchvision are absent and load nothing."""
    from torchvision.models import WeightsEnum

    fetch, load = WeightsEnum.get_state_dict, nn.Module.load_state_dict

    def get_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fetch(self, *args, **kwargs) if _fetching.get() else _Absent()

    def load_state_dict(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state, _Absent) else load(self, state, *args, **kwargs)

    ours: list[tuple[Any, Any, Any]] = [
        (WeightsEnum, get_state_dict, fetch),
        (nn.Module, load_state_dict, load),
    ]
    with _LOCK:
        token = _fetching.set(False)
        for owner, method, _ in ours:
            setattr(owner, method.__name__, method)
        try:
            yield
        finally:
            for owner, _, method in ours:
                setattr(owner, method.__name__, method)
            _fetching.reset(token)

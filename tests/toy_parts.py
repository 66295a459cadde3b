"""Components without torch, for configs in tests."""

from typing import Any


class Source:
    def __init__(self, split: str = "train", path: str = "") -> None: ...


class Treatment:
    def __init__(self, size: int = 1) -> None: ...


class Net:
    def __init__(self, width: int, depth: int = 2, value: Any = None) -> None: ...


class Task:
    def __init__(self, target: str = "label") -> None: ...


class Optimizer:
    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.0) -> None: ...


class OtherOptimizer:
    def __init__(self, params: Any, lr: float = 0.1) -> None: ...


class Schedule:
    def __init__(self, optimizer: Any, gamma: float = 0.5) -> None: ...

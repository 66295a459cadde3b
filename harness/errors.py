"""The errors a user can cause, one small tree; each message says where, what, and what to do.

    HarnessError            exit code 2 unless said otherwise
    +-- ConfigError         a mistake in a config, an argument or an override
    +-- DataError           samples that are missing, unreadable or outside what the task allows
    +-- CheckpointError     a checkpoint that cannot be selected, read, written or trusted
    +-- RankError           exit code 1: the processes of a launch lost contact
    +-- LeavingError        exit code 75: not a mistake: the launch was asked to stop before it
                            had finished work that may be left undone
        +-- AbandonedError  the same, raised on one rank alone while the others are in a step

Anything else that is raised is a bug and ends with a traceback.
"""

from collections.abc import Collection, Mapping
from typing import Any


class HarnessError(Exception):
    """Base of all errors with a message for people.

    `origin_rank`: the rank that failed and will print it.
    """

    exit_code = 2

    def __init__(self, message: str, *, origin_rank: int | None = None) -> None:
        super().__init__(message)
        self.origin_rank = origin_rank

    def to_json(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "message": str(self), "origin_rank": self.origin_rank}


class ConfigError(HarnessError):
    """A mistake in a config, an argument or an override."""


class DataError(HarnessError):
    """Samples that are missing, unreadable or outside what the task allows."""


class CheckpointError(HarnessError):
    """A checkpoint that cannot be selected, read, written or trusted."""


class RankError(HarnessError):
    """The processes of a launch lost contact, or one of them failed unexpectedly."""

    exit_code = 1


class LeavingError(HarnessError):
    """The launch was asked to stop during its start-up or an evaluation, which may be left undone.
    Raised on every rank.
    """

    exit_code = 75


class AbandonedError(LeavingError):
    """The launch was asked to stop while this rank waits in a step for its own samples. Raised on
    this rank alone: the others wait for it inside of a collective, and leave when it is gone.
    """


def require_choice(name: str, value: Any, choices: Collection[str], hint: str = "") -> None:
    """Raise ConfigError unless a setting is one of `choices`; `hint` ends the message."""
    if value not in choices:
        listed = "neither " + " nor ".join(choices)
        if len(choices) > 2:
            listed = "not one of " + ", ".join(choices)
        raise ConfigError(f"{name}: {value!r} is {listed}.{hint}")


_KINDS = (
    HarnessError,
    ConfigError,
    DataError,
    CheckpointError,
    RankError,
    LeavingError,
    AbandonedError,
)
_BY_NAME: dict[str, type[HarnessError]] = {kind.__name__: kind for kind in _KINDS}


def error_from_json(value: Mapping[str, Any]) -> HarnessError:
    """The error that another rank sent with `to_json`."""
    kind = _BY_NAME.get(value["type"], RankError)
    return kind(value["message"], origin_rank=value["origin_rank"])

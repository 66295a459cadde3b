"""What ranks send each other: JSON in frames of one size, with the rest of a long message behind;
errors as what they are.
"""

import json
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError, error_from_json

FRAME_BYTES = 4096  # a message that fits is sent in one collective


_ROOM = FRAME_BYTES - (_LENGTH_BYTES := 8)


def error_to_json(error: BaseException, rank: int) -> dict[str, Any]:
    """An error for other ranks: one of ours as it is, any other with its traceback."""
    if isinstance(error, HarnessError):
        sent = error.to_json()
        sent["origin_rank"] = rank if error.origin_rank is None else error.origin_rank
        return sent
    text = "".join(traceback.format_exception(error)).strip()
    return {"type": "RankError", "message": f"rank {rank} failed:\n{text}", "origin_rank": rank}


def stamp_origin(error: BaseException, rank: int) -> BaseException:
    """The error, with the rank that it comes from."""
    if isinstance(error, HarnessError) and error.origin_rank is None:
        error.origin_rank = rank
    return error


def values_of(replies: Sequence[Any]) -> list[Any]:
    """The values of replies. Raises the first error among them."""
    for reply in replies:
        if "error" in reply:
            raise error_from_json(reply["error"])
    return [reply["value"] for reply in replies]


def pack(reply: Any) -> tuple[Tensor, bytes]:
    """JSON -> a frame (FRAME_BYTES,) uint8, and what does not fit into it."""
    data = json.dumps(reply).encode()
    head = len(data).to_bytes(_LENGTH_BYTES, "little") + data[:_ROOM]
    return torch.frombuffer(bytearray(head.ljust(FRAME_BYTES, b"\0")), dtype=torch.uint8), data[
        _ROOM:
    ]


def rest_bytes(frame: Tensor) -> int:
    """How many bytes of a message did not fit into its frame."""
    return max(0, _length(frame) - _ROOM)


def unpack(frame: Tensor, tail: bytes) -> Any:
    """The inverse of `pack`."""
    body = frame.numpy().tobytes()[_LENGTH_BYTES:]
    return json.loads(body[: _length(frame)] + tail)


def _length(frame: Tensor) -> int:
    return int.from_bytes(frame[:_LENGTH_BYTES].numpy().tobytes(), "little")

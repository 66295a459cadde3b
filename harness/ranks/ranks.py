"""The processes of a launch: the only module that calls collectives.

Every collective looks like a call (`ranks.decide(...)`), never like an attribute. Control messages
are JSON in byte tensors on a gloo group of their own, so that they never mix with the gradients'
collectives and never pass through pickle.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import HarnessError, error_from_json
from harness.ranks.board import Board, report_of
from harness.ranks.heartbeat import Heartbeat
from harness.ranks.messages import (
    FRAME_BYTES,
    error_to_json,
    pack,
    rest_bytes,
    stamp_origin,
    unpack,
    values_of,
)
from harness.ranks.sockets import noted_sockets

T = TypeVar("T")


class Jsonable(Protocol):
    """What can travel between ranks as a JSON value."""

    def to_json(self) -> Any: ...

    @classmethod
    def from_json(cls, value: Any) -> Self: ...


J = TypeVar("J", bound=Jsonable)


_FAILURE, _SURVIVORS = "failure", "survivors"
_MOST_ASKED = 64  # ranks whose reports are read, each of them by each survivor
_MOST_NUMBERS = 10  # a dtype, the number of axes, and eight axes
_ALIGNED = 16  # bytes: so that each rank's chunk can be read as any dtype
_DTYPES = sorted((one for one in vars(torch).values() if isinstance(one, torch.dtype)), key=str)

# The thread that leaves and reads notes: it may be held for ever by a machine that is cut off.
NOTES = "fermarsi-notes"
_BOARD_LIMIT_S = 3.0


class Ranks:
    """This process's rank among `size` processes, and what they agree on.

    All methods that say so must be called by every rank.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        group: "dist.ProcessGroup | None" = None,
        timeout_s: float = 1800.0,
    ) -> None:
        self.rank = rank
        self.size = size
        self.timeout_s = timeout_s
        self.heartbeat = Heartbeat()
        self._group = group
        self._board_lost = False

    @classmethod
    def join(cls, timeout_s: float = 1800.0) -> "Ranks":
        """The ranks of the default process group, or one rank alone if there is none.

        Called by every rank.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(timeout_s=timeout_s)
        with noted_sockets():
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        # A number stands for a process outside of the group: this one is in it
        assert not isinstance(group, int)
        return cls(dist.get_rank(), dist.get_world_size(), group, timeout_s)

    def channel(self, timeout_s: float | None = None) -> "Ranks":
        """The same ranks in a separate group, for another thread or for messages that are pending
        for long. Called by every rank.
        """
        return (
            Ranks.join(self.timeout_s if timeout_s is None else timeout_s)
            if self.size > 1
            else Ranks(timeout_s=self.timeout_s)
        )

    def is_first(self) -> bool:
        return self.rank == 0

    # -- decisions: JSON values in, the same JSON value (or the same error) out on every rank

    @overload
    def decide(self, decision: Callable[[], T]) -> T: ...
    @overload
    def decide(self, decision: Callable[[], J], kind: type[J]) -> J: ...
    @overload
    def decide(self, decision: Callable[[], J | None], kind: type[J]) -> J | None: ...

    def decide(self, decision: Callable[[], Any], kind: type[Any] | None = None) -> Any:
        """Rank 0 runs `decision`; every rank gets its result or raises its error. Called by every
        rank.

        The result is a JSON value, or with `kind` an instance of that class, which travels as JSON.
        """
        if kind is not None:
            found = self.decide(lambda: None if (one := decision()) is None else one.to_json())
            return None if found is None else kind.from_json(found)
        if self.size == 1:
            return json.loads(json.dumps(decision()))  # what several ranks would get
        failure: BaseException | None = None
        reply: Any = None
        if self.rank == 0:
            reply, failure = self._attempt(decision)
        reply = self._broadcast(reply)
        if failure is not None:
            raise failure
        return values_of([reply])[0]

    def together(self, work: Callable[[], T]) -> T:
        """Every rank runs `work` and keeps its own result; if any rank fails, every rank raises the
        lowest failing rank's error.

        `work` must not contain collectives. Called by every rank.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - sent to all ranks below, then raised
            failure = error
        replies = self._gather(
            {"error": error_to_json(failure, self.rank)} if failure is not None else {"value": None}
        )
        first = next((reply for reply in replies if "error" in reply), None)
        if failure is not None and first is not None and first["error"]["origin_rank"] == self.rank:
            raise stamp_origin(failure, self.rank)
        values_of(replies)
        return result  # type: ignore[return-value]  # no rank failed, so `work` returned

    def gather(self, value: T) -> list[T]:
        """Each rank's JSON value, in the order of ranks, on every rank. Called by every rank."""
        return (
            [value]
            if self.size == 1
            else [reply["value"] for reply in self._gather({"value": value})]
        )

    def wait_for_all(self) -> None:
        """Return when every rank has called this. Called by every rank."""
        self.gather(None)

    # -- tensors

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """Each rank's tensor (n_r, ...) on the CPU, in the order of ranks; n may differ between
        ranks. Called by every rank; the host waits.
        """
        mine = rows.detach().cpu().contiguous()
        if self.size == 1:
            return [mine]
        # Sizes first, as numbers: a thousand ranks are read at once
        kinds = self._gather_numbers([_DTYPES.index(mine.dtype), mine.dim(), *mine.shape])
        if any(one[:2] != kinds[0][:2] or one[3:] != kinds[0][3:] for one in kinds):
            # Gloo would end a process by SIGABRT
            shapes = [(one[2 : 2 + one[1]], str(_DTYPES[one[0]])) for one in kinds]
            raise ValueError(f"rows that do not fit together, by rank: {shapes}")
        row_bytes = math.prod(mine.shape[1:]) * mine.element_size()
        # Bytes: gloo knows no uint64 and no float8
        most_bytes = max(1, max(one[2] for one in kinds) * row_bytes)
        padded = torch.zeros(-(-most_bytes // _ALIGNED) * _ALIGNED, dtype=torch.uint8)
        padded[: mine.numel() * mine.element_size()] = mine.reshape(-1).view(torch.uint8)
        chunks = torch.empty(self.size, len(padded), dtype=torch.uint8)
        with self.heartbeat:
            dist.all_gather_into_tensor(chunks.view(-1), padded, group=self._group)
        return [
            chunk[: rows * row_bytes].view(mine.dtype).view(rows, *mine.shape[1:])
            for chunk, (_, _, rows, *_) in zip(chunks.unbind(), kinds, strict=True)
        ]

    def start_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over ranks in place, on the tensor's own device, by the default group. Gives
        what finishes it, to be called once: no host wait on a GPU. Called by every rank.
        """
        work = dist.all_reduce(tensor, async_op=True) if self.size > 1 else None
        return self._finish([work], tensor)

    def start_exchange(
        self, chunks: Tensor, received: Tensor, counts: Sequence[int]
    ) -> Callable[[], Tensor]:
        """Begin to give each rank its row of `chunks` (R, n), and to get this rank's row of every
        rank's, of `counts` elements each, into `received` (sum of counts,), one after another.
        Gives what waits for these: no host wait on a GPU. Called by every rank.
        """
        size = chunks.element_size()
        if chunks.is_cpu:
            pairs = zip(chunks.unbind(), torch.split(received, list(counts)), strict=True)
            return self._swap(list(pairs), received)
        # Bytes: not every backend knows every type
        work = dist.all_to_all_single(
            received.view(torch.uint8),
            chunks.view(-1).view(torch.uint8),
            [one * size for one in counts],
            [chunks.shape[1] * size] * self.size,
            async_op=True,
        )
        return self._finish([work], received)

    def start_gather(self, whole: Tensor) -> Callable[[], Tensor]:
        """Begin to give all ranks each one's row of `whole` (R, n), which it has written there, on
        the tensor's own device. Gives what waits for it: no host wait on a GPU. Called by every
        rank.
        """
        if self.size == 1:
            return lambda: whole
        mine = whole[self.rank]
        if whole.is_cpu:
            return self._swap([(mine, row) for row in whole.unbind()], whole)
        octets = whole.view(-1).view(torch.uint8)
        work = dist.all_gather_into_tensor(octets, mine.view(torch.uint8), async_op=True)
        return self._finish([work], whole)

    def _swap(self, pairs: Sequence[tuple[Tensor, Tensor]], result: Tensor) -> Callable[[], Tensor]:
        """Begin to send each rank the first tensor of its pair, and to get the second: without the
        copies that gloo makes of what it gathers, and in the order of distance, so that not all
        send to one.
        """
        works = []
        for distance in range(1, self.size):
            to, source = (self.rank + distance) % self.size, (self.rank - distance) % self.size
            works.append(dist.irecv(pairs[source][1].view(torch.uint8), source))
            works.append(dist.isend(pairs[to][0].view(torch.uint8), to))
        mine, row = pairs[self.rank]
        if mine.data_ptr() != row.data_ptr():
            row.copy_(mine)
        return self._finish(works, result)

    def gather_alike(self, rows: Tensor) -> Tensor:
        """Each rank's (n, ...) in the order of ranks (R n, ...), on the tensors' own device. No
        host wait on a GPU. Called by every rank, with the same shape.
        """
        whole = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        by_rank = whole.view(self.size, -1)
        by_rank[self.rank] = rows.reshape(-1)
        self.start_gather(by_rank)()
        return whole

    def _finish(self, works: "Sequence[dist.Work | None]", result: Tensor) -> Callable[[], Tensor]:
        def finish() -> Tensor:
            with self.heartbeat:
                for work in works:
                    if work is not None:
                        work.wait()
            return result

        return finish

    def broadcast_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values into every rank's tensors, one collective a dtype.

        Called by every rank.
        """
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for same in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            with self.heartbeat:
                # Bytes: gloo knows no uint64 and no float8
                dist.broadcast(flat.view(torch.uint8), 0)
            if self.rank != 0:
                for tensor, chunk in zip(
                    same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True
                ):
                    tensor.copy_(chunk.view_as(tensor))

    def broadcast_from(self, source: int, octets: Tensor) -> None:
        """One rank's bytes into every rank's tensor of as many, on the CPU or on the ranks' own
        devices. Called by every rank.
        """
        with self.heartbeat:
            dist.broadcast(octets, source, group=self._group if octets.is_cpu else None)

    def exchange(
        self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]
    ) -> None:
        """Bytes on the CPU to some ranks, and from others into tensors of as many. Called by the
        ranks at both ends of each; the host waits.
        """
        works = [dist.isend(octets, peer, group=self._group) for peer, octets in sends]
        works += [dist.irecv(octets, peer, group=self._group) for peer, octets in receives]
        with self.heartbeat:
            for work in works:
                if work is not None:  # of a group that this rank is not in
                    work.wait()

    def start_maximum(self, tensor: Tensor) -> "dist.Work | None":
        """Begin an element-wise maximum over ranks in place on the control group; `wait()` on the
        result before reading. Called by every rank.
        """
        return (
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
            if self.size > 1
            else None
        )

    # -- failures

    def publish_failure(self, error: BaseException) -> None:
        """Publish this rank's error for its peers to find when their collectives fail; the first
        one stays. No collective.
        """
        self._use_board(
            lambda board: board.post(_FAILURE, json.dumps(error_to_json(error, self.rank))), None
        )

    def published_failure(self) -> HarnessError | None:
        """The first error that any rank published, or None. No collective."""
        text = self._use_board(lambda board: board.read(_FAILURE), None)
        return error_from_json(json.loads(text)) if text else None

    def missing(self, limit_s: float) -> list[int]:
        """After a failed collective: the ranks that report nothing within `limit_s`, neither that
        they survived nor, if they have not noticed the failure yet, a new report of their watch; []
        also if the store is lost. No collective.
        """

        def look(board: Board) -> list[int]:
            board.append(_SURVIVORS, f"{self.rank} ")
            deadline = time.monotonic() + limit_s
            reports: dict[int, str | None] = {}
            while True:
                here = {int(rank) for rank in (board.read(_SURVIVORS) or "").split()}
                silent = [rank for rank in range(self.size) if rank not in here]
                if not silent or self.rank in silent:
                    return []
                if time.monotonic() >= deadline:
                    return [
                        rank
                        for rank in silent
                        if rank in reports and board.read(report_of(rank)) == reports[rank]
                    ]
                time.sleep(limit_s / 5)
                reports = reports or {
                    rank: board.read(report_of(rank)) for rank in silent[:_MOST_ASKED]
                }

        return self._use_board(look, [], limit_s)

    def board(self) -> "Board | None":
        """A connection for notes, None for a rank alone or without a store. No collective."""
        try:
            return Board() if self.size > 1 else None
        except (RuntimeError, ValueError):
            return None  # the store's host is gone

    def _use_board(self, act: "Callable[[Board], T]", otherwise: T, limit_s: float = 0.0) -> T:
        """The result of an act on the board; `otherwise` if there is none, or if it takes longer
        than it may: its machine may be cut off.
        """
        found = [otherwise]

        def work() -> None:
            if (board := self.board()) is not None:
                found.append(act(board))

        thread = threading.Thread(target=work, name=NOTES, daemon=True)
        if self.size > 1 and not self._board_lost:
            thread.start()
            thread.join(limit_s + _BOARD_LIMIT_S)
            self._board_lost = thread.is_alive()
        return found[-1]

    # -- messages

    def _attempt(self, decision: Callable[[], T]) -> tuple[dict[str, Any], BaseException | None]:
        try:
            reply = {"value": decision()}
            # A value that is not JSON fails here, on rank 0, before its peers wait for it
            json.dumps(reply)
            return reply, None
        except Exception as error:  # noqa: BLE001 - sent to all ranks, then raised on each
            return {"error": error_to_json(error, self.rank)}, stamp_origin(error, self.rank)

    def _broadcast(self, reply: Any) -> Any:
        frame, rest = (
            pack(reply) if self.rank == 0 else (torch.zeros(FRAME_BYTES, dtype=torch.uint8), b"")
        )
        with self.heartbeat:
            dist.broadcast(frame, 0, group=self._group)
        extra = rest_bytes(frame)
        if extra == 0:
            return unpack(frame, b"")
        tail = (
            torch.frombuffer(bytearray(rest), dtype=torch.uint8)
            if self.rank == 0
            else torch.empty(extra, dtype=torch.uint8)
        )
        with self.heartbeat:
            dist.broadcast(tail, 0, group=self._group)
        return unpack(frame, tail.numpy().tobytes())

    def _gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        """Each rank's few whole numbers, filled up with zeros."""
        mine = torch.zeros(_MOST_NUMBERS, dtype=torch.int64)
        mine[: len(numbers)] = torch.tensor(numbers)
        gathered = torch.empty(self.size * _MOST_NUMBERS, dtype=torch.int64)
        with self.heartbeat:
            dist.all_gather_into_tensor(gathered, mine, group=self._group)
        found: list[list[int]] = gathered.view(self.size, _MOST_NUMBERS).tolist()
        return found

    def _gather(self, reply: Any) -> list[Any]:
        frame, rest = pack(reply)
        frames = [torch.empty_like(frame) for _ in range(self.size)]
        with self.heartbeat:
            dist.all_gather(frames, frame, group=self._group)
        extras = [rest_bytes(one) for one in frames]
        tails = [b""] * self.size
        if max(extras) > 0:
            mine = torch.zeros(max(extras), dtype=torch.uint8)
            if rest:
                mine[: len(rest)] = torch.frombuffer(bytearray(rest), dtype=torch.uint8)
            chunks = [torch.empty_like(mine) for _ in range(self.size)]
            with self.heartbeat:
                dist.all_gather(chunks, mine, group=self._group)
            tails = [
                chunk[:extra].numpy().tobytes() for chunk, extra in zip(chunks, extras, strict=True)
            ]
        return [unpack(one, tail) for one, tail in zip(frames, tails, strict=True)]

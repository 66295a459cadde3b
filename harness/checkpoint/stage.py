"""Taking one consistent copy of a rank's share: all of a save that the training waits for."""

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import exact_json
from harness.checkpoint.copying import Copy, HostMemory, Part
from harness.checkpoint.files import Content
from harness.checkpoint.format import spec_of
from harness.checkpoint.layout import assign, find_aliases
from harness.checkpoint.manifest import (
    CONFIG,
    FILE_NAME,
    HISTORY,
    MANIFEST,
    TRAINER_STATE,
    SaveReason,
)
from harness.checkpoint.plan import Plan, Round, plan_of
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of, rows_of

_LATER_FROM_BYTES = 2**21  # what is less is copied sooner than a thread takes over


@dataclass(frozen=True)
class Snapshot:
    """The state after a step.

    Every rank has the same, but for `rng` and its rows of sharded tensors; rank 0's `trainer`,
    `metrics`, `facts`, `extra_files` and `history` are written.

    `model` is the network's state_dict (tied weights under each of their names), `optimizer` has
    keys "<state>/<parameter name>", `rng` is this rank's. `metrics` are those of an evaluation at
    this very step, or empty: checkpoints are ranked by them.

    `stable`: by role, the tensors that nothing changes before the next optimizer step: they may be
    copied until then.
    """

    step: int
    epoch: int
    samples: int
    reason: SaveReason
    exact: bool
    exact_reason: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    rng: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    config_yaml: str
    extra_files: Mapping[str, str]
    history: Sequence[Any]
    stable: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class StagedShare:
    """What this rank will write: `contents` into files, rank 0 also `small_files()`; `pieces` tell
    which tensors stand where.
    """

    contents: list[Content]
    pieces: list[dict[str, Any]]
    aliases: dict[str, str]
    total_bytes: int  # of all ranks' tensor files, nearly
    trainer: Any  # as exact_json encodes it
    texts: Mapping[str, tuple[str, str]]  # by file: role, text
    copy: Copy | None  # what of it is still under way
    exchange: "Exchange | None"  # what is missing of the model's tensors before they are written

    def small_files(self) -> list[Content]:
        """Rank 0's files that hold no tensors."""
        trainer = Content(TRAINER_STATE, "trainer", [exact_json.to_bytes(self.trainer)])
        return [
            trainer,
            *(Content(name, role, [text.encode()]) for name, (role, text) in self.texts.items()),
        ]


class Exchange:
    """Rows that go to the ranks that write their tensors, one tensor of each rank at a time."""

    def __init__(
        self, memory: HostMemory, rounds: Sequence[Round], ready: Future[None] | None
    ) -> None:
        self._memory = memory
        self._rounds = rounds
        self._ready = ready

    def run(self, ranks: Ranks) -> None:
        """Called by every rank, by the thread that saves."""
        ranks.together(lambda: self._ready.result() if self._ready is not None else None)
        for one in self._rounds:
            ranks.exchange(
                [(move.peer, self._memory.octets[move.begin : move.end]) for move in one.sends],
                [(move.peer, self._memory.octets[move.begin : move.end]) for move in one.receives],
            )


class Stage:
    """Takes this rank's share of the state, into memory that is filled again at each save."""

    def __init__(self, *, whole_model: bool = True) -> None:
        """`whole_model`: whether the model's sharded tensors are written whole."""
        self._whole_model = whole_model
        self._memory = HostMemory()
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="fermarsi-copy")
        self._copy: Copy | None = None
        self._planned_for: object = None
        self._plan = Plan([], [], [], [], {}, 0, 0)

    def take(self, snapshot: Snapshot, rank: int, num_ranks: int) -> StagedShare:
        """Copy this rank's share of the state; what is stable until `finish`.

        No collective; the host waits for the device. Raises CheckpointError.
        """
        aliases, trainer, texts = self.check(snapshot, rank, num_ranks)
        contents, exchange = self._fill(snapshot)
        return StagedShare(
            contents,
            self._plan.pieces,
            aliases,
            self._plan.tensor_bytes,
            trainer,
            texts,
            self._copy,
            exchange,
        )

    def finish(self) -> None:
        """Before an optimizer step: until the copy that is under way no longer needs the present
        values. By the thread that called `take`.
        """
        if self._copy is not None:
            self._copy.finish()
            self._copy = None

    def is_copying(self) -> bool:
        """Whether `finish` is still to be called."""
        return self._copy is not None

    def troubles(self) -> list[str]:
        """What is not as it should be, though the copy is."""
        return [] if self._memory.trouble is None else [self._memory.trouble]

    def close(self) -> None:
        """Give the memory back, once nothing reads it."""
        self._copier.shutdown(wait=False)
        self._memory = HostMemory()

    def check(
        self, snapshot: Snapshot, rank: int, num_ranks: int
    ) -> tuple[dict[str, str], Any, dict[str, tuple[str, str]]]:
        """All of `take` but the copy: (tied names, trainer state in JSON, texts by file).

        Raises CheckpointError for what a checkpoint cannot hold.
        """
        model = {name: spec_of(tensor, f"model {name}") for name, tensor in snapshot.model.items()}
        optimizer = {
            name: spec_of(tensor, f"optimizer {name}")
            for name, tensor in snapshot.optimizer.items()
        }
        rng = {name: spec_of(tensor, f"rng {name}") for name, tensor in snapshot.rng.items()}
        aliases = find_aliases(snapshot.model)
        held = {
            (role, name): rows
            for role, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer))
            for name, tensor in tensors.items()
            if (rows := rows_of(tensor, f"{role} {name}")) is not None
        }
        key = (model, optimizer, rng, held, aliases, rank, num_ranks)
        if key != self._planned_for:
            shares = assign(
                {name: spec for name, spec in model.items() if name not in aliases},
                optimizer,
                num_ranks,
                held,
                whole_model=self._whole_model,
            )
            self._plan, self._planned_for = plan_of(shares, rank, rng, held), key
        trainer = exact_json.encode(dict(snapshot.trainer), "trainer state") if rank == 0 else None
        texts = {CONFIG: ("config", snapshot.config_yaml), **self._plan.indexes}
        if not all(
            re.match(FILE_NAME, name) for name in snapshot.extra_files
        ) or snapshot.extra_files.keys() & {*texts, TRAINER_STATE, HISTORY, MANIFEST}:
            raise CheckpointError(
                f"extra files {sorted(snapshot.extra_files)}: a name that is the checkpoint's own, "
                "or no plain file name."
            )
        texts |= {name: ("beside", text) for name, text in snapshot.extra_files.items()}
        return aliases, trainer, texts

    def _fill(self, snapshot: Snapshot) -> tuple[list[Content], Exchange | None]:
        plan = self._plan
        sources = {"model": snapshot.model, "optimizer": snapshot.optimizer, "rng": snapshot.rng}
        now: list[Part] = []
        later: list[list[Part]] = []
        # What goes elsewhere first: others wait for it
        for cuts in (plan.outbox, *(file.cuts for file in plan.files)):
            later.append([])
            for cut in cuts:
                whole = sources[cut.role][cut.name].detach()
                tensor = local_of(whole)
                rows = tensor if cut.rows is None else tensor[cut.rows[0] : cut.rows[1]]
                # Torch counts no writes to those of its inference mode
                stable = snapshot.stable.get(cut.role, ())
                may_wait = cut.name in stable and not tensor.is_inference()
                (later[-1] if may_wait else now).append(Part(cut.name, rows, cut.begin, whole))
        deferred = [part for parts in later for part in parts]
        if sum(part.tensor.nbytes for part in deferred) < _LATER_FROM_BYTES:
            now += deferred
            deferred = []
        on_gpu = any(part.tensor.device.type != "cpu" for part in (*now, *deferred))
        self._memory.reserve(plan.memory_bytes, on_gpu)
        copy = Copy(self._memory, later) if deferred else None
        for part in now:
            self._memory.fill(part)
        outbox_ready, *ready = [None] * len(later) if copy is None else copy.ready
        contents = [
            Content(
                file.name, file.role, [file.head, self._memory.bytes[file.begin : file.end]], one
            )
            for file, one in zip(plan.files, ready, strict=True)
        ]
        exchange = Exchange(self._memory, plan.rounds, outbox_ready) if plan.rounds else None
        if copy is not None:
            copy.start(self._copier)
        self._copy = copy
        if on_gpu and now:
            torch.accelerator.current_stream().synchronize()
        return contents, exchange

"""Ways of sharing whose runs have the same bits on any number of ranks (slot_sums.py;
docs/elastic.md): a whole copy on each rank, or its rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.config.parallel import ParallelConfig
from harness.errors import ConfigError
from harness.ranks.mesh import (
    exchange_gradients,
    keeps_wide_gradients_aside,
    whole_parameters,
)
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of
from harness.training.birth import Birth
from harness.training.buckets import WholeBucket, grouped
from harness.training.network_state import BufferState, find_changes
from harness.training.parallel import Whole, require_gradients
from harness.training.row_buckets import RowBucket, RowNorms
from harness.training.shards import DTYPES, Shards
from harness.training.slot_sums import SlotSums
from harness.training.statistics import RunningStatistics
from harness.wording import some

_NOTHING: AbstractContextManager[None] = nullcontext()


def refuse_synchronised(network: nn.Module) -> None:
    """Raise ConfigError for layers that look at the other ranks' batches."""
    found = [name for name, one in network.named_modules() if isinstance(one, nn.SyncBatchNorm)]
    if found:
        raise ConfigError(
            f"network: {some(found)} (SyncBatchNorm) computes with the samples that all processes "
            "have at one time, so that a run depends on their number. Use batch normalisation of "
            "micro-batches (BatchNorm), or set run.exactness: resume from the start of a run."
        )


def refuse_precision(settings: ParallelConfig, network: nn.Module) -> None:
    """Raise ConfigError where torch would keep gradients from the sums: those that are summed in
    another type than passes compute in.
    """
    params, reduce = DTYPES[settings.precision.params], DTYPES[settings.precision.reduce]
    own = {one.dtype for one in network.parameters() if one.requires_grad}
    differs = any((reduce or one) != (params or one) for one in own)
    if differs and keeps_wide_gradients_aside():
        raise ConfigError(
            f"parallel.precision: with torch {torch.__version__} run.exactness: elastic would not "
            "find the gradients. Use torch 2.15 or newer, train.precision: bf16, or "
            "run.exactness: resume from the start of a run."
        )


class SteadyBuffers:
    """A network's buffers: running statistics come in the order of slots, and no others change."""

    def __init__(self, network: nn.Module, ranks: Ranks) -> None:
        """With the buffers as they are before a first training pass."""
        self._network = network
        self.statistics = RunningStatistics(network, ranks)
        self._before: BufferState | None = BufferState(network)

    def slot(self) -> AbstractContextManager[None]:
        """Around one slot's forward and backward pass."""
        return self.statistics.slot() if self.statistics.modules else _NOTHING

    def check(self) -> None:
        """After the pass. Raise ConfigError for buffers that it changed and that do not come in the
        order of slots.
        """
        assert self._before is not None
        own = {
            f"{path}.{key}".lstrip(".")
            for path, module in self._network.named_modules()
            for key in module._buffers
            if self.statistics.owns(module, key)
        }
        before, now = (
            {name: one.values for name, one in state.kept.items() if name not in own}
            for state in (self._before, BufferState(self._network))
        )
        changed = find_changes(before, now)
        self._before = None  # they took memory
        if changed:
            raise ConfigError(
                f"network: a training pass changes the buffers {some(changed)}, on each rank by "
                "its own slots, so that a run depends on the number of processes. Use batch "
                "normalisation, whose statistics are put in the order of slots, or set "
                "run.exactness: resume from the start of a run."
            )


class Elastic(Whole):
    """A whole copy on each rank; gradients, buffers and norms have the same bits on any number."""

    averaged_over = 1

    def __init__(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        ranks: Ranks,
        num_slots: int,
        find_unused: bool,
    ) -> None:
        """Called by every rank, once the weights are in. num_slots: of all ranks.

        find_unused: whether parameters may get a gradient in some forward passes and none in
        others. Raises ConfigError.
        """
        super().__init__(network, ranks)
        refuse_synchronised(network)
        # Without DDP: only the precision
        self.model = accelerator.prepare_model(network, evaluation_mode=True)
        self._buffers = SteadyBuffers(network, ranks)
        names = {one: name for name, one in network.named_parameters() if one.requires_grad}
        self._sums = SlotSums(names, ranks, num_slots, find_unused, self._buckets_of)

    def _buckets_of(self, parameters: Sequence[nn.Parameter]) -> list[WholeBucket]:
        groups = grouped(parameters, lambda one: one.dtype)
        return [WholeBucket(one, self.ranks) for one in groups]

    def check_gradients(self) -> None:
        """After a first backward pass. Called by every rank. Raises ConfigError for gradients that
        cannot be summed, and for buffers that the pass changed and that do not come in the order of
        slots.
        """
        require_gradients(self._network.named_parameters(), of_all=False)
        self.ranks.together(self._buffers.check)
        self._sums.begin()

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Around one slot's forward and backward pass: its gradients are taken, and after the last
        one's the parameters have the sum over all slots. Raises ConfigError.
        """
        with self._sums.slot(last), self._buffers.slot():
            yield

    def agree_on_buffers(self) -> None:
        """Running statistics of all slots, in order; other buffers do not change. Called by every
        rank.
        """
        self._buffers.statistics.update()


class ElasticShards(Shards):
    """Its rows on each rank; gradients, buffers and norms have the same bits on any number, and in
    any way of sharing.

    Each slot's gradients are whole ones of its rank, which torch (FSDP2) leaves alone; the exchange
    of their sums gives each rank its rows. Torch's own place for it, a custom reduce-scatter, knows
    one partial sum a rank, and a rank alone never comes there.
    """

    def __init__(
        self,
        birth: Birth,
        accelerator: Accelerator,
        ranks: Ranks,
        settings: ParallelConfig,
        num_slots: int,
        find_unused: bool,
    ) -> None:
        """Called by every rank, before there is an optimizer: its parameters are others then.
        Raises ConfigError.
        """
        refuse_precision(settings, birth.network)
        refuse_synchronised(birth.network)
        super().__init__(birth, accelerator, ranks, settings, find_unused)
        self.averaged_over = 1
        self._num_slots = num_slots
        self._summed = DTYPES[settings.precision.reduce]
        exchange_gradients(self._network, on=False)
        self._sharded: dict[nn.Parameter, nn.Parameter] = {}  # by the whole one
        self._norms = RowNorms(self.mesh)
        self._has_begun = False

    def begin(self) -> None:
        """After the trial on each rank, before the warm-up of all. Called by every rank."""
        super().begin()
        self._steady = SteadyBuffers(self._network, self.ranks)
        sharded = {one: name for name, one in self._network.named_parameters()}
        names = {whole: sharded[one] for whole, one in self._sharded.items()}
        self._sums = SlotSums(
            names, self.ranks, self._num_slots, self._find_unused, self._buckets_of
        )
        self._has_begun = True

    def _buckets_of(self, parameters: Sequence[nn.Parameter]) -> list[RowBucket]:
        def dtype_of(one: nn.Parameter) -> torch.dtype:
            return self._summed or self._sharded[one].dtype

        groups = grouped(parameters, dtype_of)
        return [RowBucket(one, self._sharded, self.mesh, dtype_of(one[0])) for one in groups]

    def check_gradients(self) -> None:
        """After the first backward passes, of the trial and of the warm-up. Called by every rank.
        Raises ConfigError for gradients that cannot be summed, and for buffers that a pass changed
        and that do not come in the order of slots.
        """
        if not self._sharded:
            found = whole_parameters(self._network)
            self._sharded = {whole: one for one, whole in found.items() if one.requires_grad}
        names = {one: name for name, one in self._network.named_parameters()}
        named = [(names[one], whole) for whole, one in self._sharded.items()]
        require_gradients(named, of_all=False)
        if self._has_begun:
            self.ranks.together(self._steady.check)
            self._sums.begin()
        for _, whole in named:
            whole.grad = None

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Around one slot's forward and backward pass: its gradients are taken, and after the last
        one's the parameters have the sum over all slots. Raises ConfigError.
        """
        with self._sums.slot(last), self._steady.slot():
            yield

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the gradients down to a norm of `limit`, None: leave them. Gives the norm that they
        had, of all ranks' rows; no host wait. Called by every rank.
        """
        gradients = [one.grad for one in parameters if one.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(self._norms.of(gradients))
        if limit is not None:
            factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
            for one in map(local_of, gradients):
                one.mul_(factor.to(one.device))
        return norm

    def agree_on_buffers(self) -> None:
        """Running statistics of all slots, in order; other buffers do not change. Called by every
        rank.
        """
        self._steady.statistics.update()

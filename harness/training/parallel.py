"""How ranks share a network: today each holds a whole copy, and DDP averages their gradients.

Another way of sharing is another class with the methods of `Sharing`; nothing else knows of DDP.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.config.schema import Config
from harness.errors import ConfigError
from harness.ranks.meeting import MEETING
from harness.ranks.mesh import num_shards_of
from harness.ranks.ranks import Ranks
from harness.ranks.rows import is_sharded, local_of
from harness.training.buffers import Buffers
from harness.training.determinism import require_determinism
from harness.training.norms import Norms
from harness.wording import some

# Gradients whose norms torch takes in one call
_TOGETHER = ((Tensor, "cpu"), (Tensor, "cuda"))
_ALONE: AbstractContextManager[None] = nullcontext()
# DDP's sentence about the parameters that a step left out (torch 2.15)
_WITHOUT = re.compile(r"indices which did not receive grad for rank \d+:([\d ]+)")


def products_in(matmul_precision: str | None, exactness: str) -> str:
    """The precision of float32 products by these settings of a config."""
    return matmul_precision or ("high" if exactness == "none" else "highest")


def accelerator_for(config: Config) -> Accelerator:
    """The Accelerator of this process; joins the process group if the process was launched as one
    of several. Raises ConfigError.
    """
    train, exactness = config.train, config.run.exactness
    # Whose sums are the same however a network is shared, and which keep whole gradients anyway
    whole = config.parallel.kind == "ddp" or exactness == "elastic"
    return start_accelerator(
        train.precision,
        exactness,
        config.run.timeout_s,
        train.matmul_precision,
        keeps_casts=whole,
    )


def start_accelerator(
    precision: str,
    exactness: str,
    timeout_s: float,
    matmul_precision: str | None = None,
    *,
    keeps_casts: bool = True,
) -> Accelerator:
    """The same by single settings. Raises ConfigError.

    `timeout_s`: what the others are given to come, and later to answer; `matmul_precision`: as in
    the config; `keeps_casts`: whether autocast keeps the weights that it casts until a pass ends,
    or casts them at each use.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(
            "train.precision: fp16 needs a CUDA device and there is none. Use bf16 or no."
        )
    if exactness != "none":
        require_determinism()
    else:
        torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision(products_in(matmul_precision, exactness))
    meeting = InitProcessGroupKwargs(init_method=MEETING, timeout=timedelta(seconds=timeout_s))
    handlers: list[KwargsHandler] = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        meeting,
    ]
    if not keeps_casts:
        handlers.append(AutocastKwargs(cache_enabled=False))
    accelerator = Accelerator(
        mixed_precision=precision,
        # The schedule is stepped by the engine, once a step on every rank.
        step_scheduler_with_optimizer=False,
        rng_types=[],  # no synchronisation of generators: randomness is by purpose
        kwargs_handlers=handlers,
    )
    if accelerator.device.type == "mps":
        raise ConfigError(
            "this machine's device is mps, which lacks float64: losses and metrics could not be "
            "summed without rounding. Set ACCELERATE_USE_CPU=true."
        )
    return accelerator


class Whole:
    """The network with a whole copy on each rank, however the ranks' gradients are added up."""

    def __init__(self, network: nn.Module, ranks: Ranks) -> None:
        """Called by every rank, once the weights are in."""
        self.ranks = ranks
        self.model: nn.Module = network
        self._network = network
        self._alike: dict[int, bool] = {}
        self._norms = Norms()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the gradients down to a norm of `limit`, None: leave them. Gives the norm that they
        had, of all ranks' parameters; no host wait.
        """
        gradients = [one.grad for one in parameters if one.grad is not None]
        if not self._are_alike(gradients):
            if limit is not None:
                return nn.utils.clip_grad_norm_(parameters, limit)
            return nn.utils.get_total_norm(gradients)
        # What these do with gradients of one kind, without looking for its kernels: the same bits
        norm: Tensor = torch.linalg.vector_norm(self._norms.of(gradients))
        if limit is not None:
            torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    def _are_alike(self, gradients: Sequence[Tensor]) -> bool:
        """Whether torch takes their norms in one call. Looked at once for each number of gradients:
        a parameter's are of one kind.
        """
        if len(gradients) not in self._alike:
            kinds = {(type(one), one.device.type, one.device.index, one.dtype) for one in gradients}
            self._alike[len(gradients)] = len(kinds) == 1 and next(iter(kinds))[:2] in _TOGETHER
        return self._alike[len(gradients)]

    @property
    def in_step(self) -> None:
        """A forward pass is a rank's own."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors by name, as a checkpoint holds them."""
        return self._network.state_dict()


class Replicas(Whole):
    """The network as the training's forward passes see it, a whole copy on each rank."""

    def __init__(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        ranks: Ranks,
        find_unused: bool,
        writes_are_counted: bool = False,
    ) -> None:
        """Called by every rank, once the weights are in.

        find_unused: whether a step may leave parameters out, on one rank or on all;
        writes_are_counted: as in `Buffers`.
        """
        super().__init__(network, ranks)
        self.averaged_over = ranks.size
        self._find_unused = find_unused
        assert accelerator.ddp_handler is not None
        accelerator.ddp_handler.find_unused_parameters = find_unused
        # With views, DDP fails on a parameter that only slots before the last one used (torch 2.15)
        accelerator.ddp_handler.gradient_as_bucket_view = not find_unused
        with _hidden_buffers(network):
            self.model = accelerator.prepare_model(network)
        self._accelerator = accelerator
        if isinstance(self.model, DistributedDataParallel):
            # Buffers become rank 0's at the end of each step (`agree_on_buffers`), not at the next
            # forward: a checkpoint in between would differ.
            self.model.forward_sync_buffers = False
        self._buffers = Buffers(network, ranks, writes_are_counted)
        self.agree_on_buffers()

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Inside, backward passes exchange gradients between ranks only if this is the step's last
        slot. Raises ConfigError.
        """
        return self._exchange(last) if isinstance(self.model, DistributedDataParallel) else _ALONE

    @contextmanager
    def _exchange(self, last: bool) -> Iterator[None]:
        alone = nullcontext() if last else self._accelerator.no_sync(self.model)
        with self._buffers.slot(), alone:
            yield
        if last:
            self._check_reduced()

    def agree_on_buffers(self) -> None:
        """The same buffers on every rank. Called by every rank."""
        self._buffers.agree()

    def check_gradients(self) -> None:
        """After a first backward pass: DDP waits for a gradient of each parameter that is trained;
        one that never gets any would end a run in its second step. Raises ConfigError.
        """
        wanted = isinstance(self.model, DistributedDataParallel) and not self._find_unused
        require_gradients(self._network.named_parameters(), wanted)

    def _check_reduced(self) -> None:
        """Raise ConfigError if DDP still waits for gradients that a step did not give: this rank's
        are its own then, and the other ranks wait.
        """
        assert isinstance(self.model, DistributedDataParallel)
        try:
            self.model.reducer._check_reducer_finalized()
        except RuntimeError as error:
            trained = [name for name, one in self._network.named_parameters() if one.requires_grad]
            match = _WITHOUT.search(str(error))
            missing = [trained[int(index)] for index in match[1].split()] if match else []
            raise ConfigError(
                f"network: on rank {self.ranks.rank} the step's last micro-batch gives "
                f"{some(missing, none='some parameters')} no gradient, and the other processes "
                "wait for it. Set train.find_unused_parameters: true, or use every parameter in "
                "each forward pass."
            ) from error


def require_gradients(named: Iterable[tuple[str, nn.Parameter]], of_all: bool) -> None:
    """After a first backward pass. Raise ConfigError for sparse gradients and, with `of_all`, for
    trained parameters that have none.
    """
    parameters = dict(named)
    sparse = [
        name
        for name, parameter in parameters.items()
        if parameter.grad is not None and parameter.grad.layout != torch.strided
    ]
    if sparse:
        raise ConfigError(
            f"network: the gradients of {some(sparse)} are sparse, which are neither clipped "
            "nor summed over ranks exactly. Set sparse: false."
        )
    without = [
        name
        for name, parameter in parameters.items()
        if parameter.requires_grad and parameter.grad is None
    ]
    if without and of_all:
        raise ConfigError(
            f"network: no gradient reaches {some(without)}, and several processes cannot "
            "train that. Freeze them, e.g. by parts, or use them; if only some forward passes "
            "do, set train.find_unused_parameters: true."
        )


# What gloo and NCCL send by themselves; other buffers go as bytes, by `agree_on_buffers`
_SENT: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SENT += (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)


@contextmanager
def _hidden_buffers(network: nn.Module) -> Iterator[None]:
    """Without the buffers that DDP cannot send from rank 0 when it begins."""
    hidden = [
        (module._buffers, key, tensor)
        for module in network.modules()
        for key, tensor in module._buffers.items()
        if tensor is not None and tensor.dtype not in _SENT
    ]
    for buffers, key, _ in hidden:
        buffers[key] = None
    try:
        yield
    finally:
        for buffers, key, tensor in hidden:
            buffers[key] = tensor


def agree_on_start(network: nn.Module, ranks: Ranks) -> None:
    """Rank 0's parameters and buffers on every rank, where an initialisation drew from something
    other than the run's seed. Called by every rank.
    """
    tensors = {
        name: tensor.detach()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if tensor.numel() and not is_sharded(tensor)
    }
    if tensors:
        device = next(iter(tensors.values())).device
        ranks.broadcast_in_place([tensors[name] for name in find_differing(tensors, ranks, device)])


def find_differing(tensors: Mapping[str, Tensor], ranks: Ranks, device: torch.device) -> list[str]:
    """The names whose tensors are not the same on all ranks, or whose rows not on those that hold
    the same ones, by a sum over the bits of each: 8 bytes a tensor are exchanged. Another value
    anywhere is found, another order of the same values is not. Called by every rank; the host
    waits.
    """
    if ranks.size == 1:
        return []
    local = [local_of(tensor) for tensor in tensors.values()]
    mine = torch.stack([bit_sum(one).to(device) for one in local]).cpu()
    found = ranks.gather_rows(mine)
    if any(one.shape != mine.shape for one in found):
        return list(tensors)
    sums = torch.stack(found)
    # Ranks in rows, as a mesh has them: the first row is compared with
    spans = torch.tensor([num_shards_of(tensor) for tensor in tensors.values()])
    first = torch.arange(ranks.size)[:, None] % spans
    same = (sums == sums.gather(0, first)).all(0)
    return [name for name, alike in zip(tensors, same.tolist(), strict=True) if not alike]


def bit_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits read as whole numbers, modulo 2^64; a scalar on its device."""
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    # Eight at a time, the fastest; a view of another tensor may begin between
    whole = len(octets) // 8 * 8 if octets.storage_offset() % 8 == 0 else 0
    return octets[:whole].view(torch.int64).sum() + octets[whole:].sum(dtype=torch.int64)

"""How ranks share a network: what the engine asks of a way of sharing, and which one a config asks
for.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from harness.config.schema import Config
from harness.data.source import Batch
from harness.ranks.ranks import Ranks
from harness.training.birth import Birth
from harness.training.elastic import Elastic, ElasticShards
from harness.training.parallel import Replicas
from harness.training.shards import Shards
from harness.training.stable import writes_are_counted


class Sharing(Protocol):
    """A network as the training's forward and backward passes see it, shared by all ranks."""

    model: nn.Module
    # The number of ranks that it divides the sum of their gradients by
    averaged_over: int

    @property
    def in_step(self) -> Callable[[Batch], AbstractContextManager[None]] | None:
        """Around what an evaluation does with a micro-batch, where each forward pass is one of all
        ranks; None where it is a rank's own.
        """

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around one slot's forward and backward pass; the step's last one may exchange gradients
        between ranks. Raises ConfigError.
        """

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the gradients down to a norm of `limit`, None: leave them. Gives the norm that they
        had, of all ranks' parameters; no host wait.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors by name, as a checkpoint holds them."""

    def agree_on_buffers(self) -> None:
        """After each step: the same buffers on every rank. Called by every rank."""

    def check_gradients(self) -> None:
        """Raise ConfigError for gradients, after a first backward pass, that this way of sharing
        cannot sum.
        """


def shard(birth: Birth, accelerator: Accelerator, ranks: Ranks, config: Config) -> Shards | None:
    """The network with each rank's rows alone, if the config asks for that: before there is an
    optimizer. Called by every rank. Raises ConfigError.
    """
    if config.parallel.kind == "ddp":
        return None
    unused = config.train.find_unused_parameters
    if config.run.exactness == "elastic":
        slots = num_slots_of(config)
        return ElasticShards(birth, accelerator, ranks, config.parallel, slots, unused)
    counted = counts_buffers(config)
    return Shards(birth, accelerator, ranks, config.parallel, unused, counted)


def share(network: nn.Module, accelerator: Accelerator, ranks: Ranks, config: Config) -> Sharing:
    """The network shared in the way that the config asks for, where `shard` does not.

    Called by every rank, once the weights are in.
    """
    find_unused = config.train.find_unused_parameters
    if config.run.exactness == "elastic":
        return Elastic(network, accelerator, ranks, num_slots_of(config), find_unused)
    return Replicas(network, accelerator, ranks, find_unused, counts_buffers(config))


def counts_buffers(config: Config) -> bool:
    """Whether torch counts what passes write to buffers; compiled ones may write uncounted."""
    return not config.train.compile and writes_are_counted([config.network, config.task])


def num_slots_of(config: Config) -> int:
    """Of all ranks."""
    return config.batch.size // config.batch.micro_size

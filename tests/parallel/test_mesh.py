"""What is asked of torch where parameters are shared by rows."""

import functools
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import fsdp

from harness.ranks.mesh import REPLICATE, SHARD, Mesh, whole
from harness.ranks.ranks import Ranks
from harness.training.fused import FusedAdam
from tests.parallel.way_parts import Tower
from tests.pool import on_ranks


def test_gradients_are_summed_in_the_type_of_the_parameters_whatever_they_are_computed_in() -> None:
    assert on_ranks(2, reduced_in) == [["torch.float64", "torch.float32", "False"]] * 2


def reduced_in() -> list[str]:
    network = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4))
    mesh = Mesh.open(Ranks.join(), 1, torch.device("cpu"))
    mesh.shard(
        [network[0], network],
        reshard_after_forward=True,
        params=torch.bfloat16,
        reduce=None,
        offload=False,
    )
    units = [network[0], network]
    found = [str(one._get_fsdp_state()._mp_policy.reduce_dtype) for one in units]  # type: ignore[operator] # torch's
    optimizer = torch.optim.AdamW(network[1].parameters(), fused=True)
    for one in network[1].parameters():
        one.grad = torch.zeros_like(one)
    optimizer.step()
    return [*found, str(FusedAdam.of(optimizer) is not None)]


def test_no_rank_of_a_mesh_waits_for_longer_than_it_was_told() -> None:
    assert on_ranks(4, waited) == [[True, True], *[[]] * 3]


def waited() -> list[bool]:
    """For ranks that do not come: whether each group gave up in time, on rank 0."""
    ranks = Ranks.join(timeout_s=0.5)
    mesh = Mesh.open(ranks, 2, torch.device("cpu"))
    found = []
    for name in (SHARD, REPLICATE) if ranks.is_first() else ():
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)timed out"):
            dist.all_reduce(torch.ones(1), group=mesh._mesh.get_group(name))
        found.append(0.4 < time.monotonic() - began < 5)
    time.sleep(0 if ranks.is_first() else 2)
    return found


def test_rows_that_the_host_keeps_are_trained_as_others() -> None:
    # On the CPU the host is the device; tests/gpu has both
    assert on_ranks(2, trained_offloaded) == [True, True]


def trained_offloaded() -> bool:
    """Whether three steps with `offload` give the bits of those without."""
    ranks = Ranks.join()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        # Memory is pinned for a GPU
        policy = functools.partial(fsdp.CPUOffloadPolicy, pin_memory=False)
        patch.setattr(fsdp, "CPUOffloadPolicy", policy)
        for offload in (False, True):
            torch.manual_seed(0)
            network = Tower()
            mesh = Mesh.open(ranks, 1, torch.device("cpu"))
            mesh.shard(
                [*network.blocks, network],
                reshard_after_forward=True,
                params=None,
                reduce=None,
                offload=offload,
            )
            optimizer = torch.optim.AdamW(network.parameters())
            for seed in range(3):
                torch.manual_seed(seed)
                network(torch.randn(4, 6)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append([whole(one) for one in network.parameters()])
    return all(map(torch.equal, *found))

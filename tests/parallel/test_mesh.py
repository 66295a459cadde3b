"""What is asked of torch where parameters are shared by rows."""

import torch
from torch import nn

from harness.ranks.mesh import Mesh
from harness.ranks.ranks import Ranks
from harness.training.fused import FusedAdam
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

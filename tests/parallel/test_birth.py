"""Networks that no rank but the first builds with values: the bits of a whole construction."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.config.read import read_config
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of, own_range
from harness.training.birth import build_shared, build_whole
from harness.training.network_state import attributes_of
from harness.training.parallel import start_accelerator
from harness.training.shards import Shards
from tests.pool import on_ranks

CONFIG = Path(__file__).with_name("ways.yaml")
PARTS = "tests.parallel.birth_parts"
SPREAD = {
    "ties": "{_target_: tests.parallel.way_parts.Tower}",
    "draws": f"{{_target_: {PARTS}.Drawn}}",
    "copies": f"{{_target_: {PARTS}.Copied}}",
    "gpt": "{_target_: harness.networks.Gpt, vocabulary: 7, context: 8, dim: 12, depth: 2, "
    "num_heads: 2}",
}
WHOLE = {
    "reads": (f"{{_target_: {PARTS}.Reading}}", "cannot be called on meta tensors"),
    "keeps": (f"{{_target_: {PARTS}.Deriving}}", "first would differ"),
    "lazy": (f"{{_target_: {PARTS}.Lazy}}", "enter.weight has no shape yet"),
}


def tensors_in(network: nn.Module) -> dict[str, Tensor]:
    """All that decides a pass, by name."""
    attributes = {".".join(key): one for key, one in attributes_of(network).items()}
    hidden = getattr(network, "hidden", None)
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers()),
        **{key: one for key, one in attributes.items() if isinstance(one, Tensor)},
        **({} if hidden is None else {"hidden": hidden.values}),
    }


def born(networks: Sequence[str]) -> list[tuple[list[str], str, int]]:
    """Of each network, (what differs on this rank from a whole construction, what is told, bytes of
    parameters before they are shared).
    """
    ranks = Ranks.join(30.0)
    return [born_one(network, ranks) for network in networks]


def born_one(network: str, ranks: Ranks) -> tuple[list[str], str, int]:
    shard = "[encoder.layers.*]" if "Copied" in network else "auto"
    settings = [f"network={network}", f"parallel={{kind: fsdp, shard: {shard}}}"]
    config = read_config(CONFIG, settings)
    accelerator = start_accelerator("no", "same_world", 60.0)
    birth = build_shared(config, {}, ranks)
    parameters = [one for one in birth.network.parameters() if not is_lazy(one)]
    size_bytes = sum(one.nbytes for one in parameters if not one.is_meta)
    whole = build_whole(config, {}).network
    if any(map(is_lazy, whole.parameters())):
        return [], birth.note, size_bytes
    marks = [vars(one) for one in parameters]
    assert marks == [vars(one) for one in whole.parameters()]
    Shards(birth, accelerator, ranks, config.parallel, find_unused=False)
    wanted, found = tensors_in(whole), tensors_in(birth.network)
    assert wanted.keys() == found.keys()
    return (
        [name for name, one in wanted.items() if differs(found[name], one)],
        birth.note,
        size_bytes,
    )


def differs(tensor: Tensor, wanted: Tensor) -> bool:
    """From this rank's rows of what is wanted."""
    rows = own_range(tensor)
    own = wanted if rows is None else wanted[rows[0] : rows[1]]
    kinds = (tensor.dtype, tensor.requires_grad), (wanted.dtype, wanted.requires_grad)
    return kinds[0] != kinds[1] or not torch.equal(local_of(tensor), own)


def test_a_network_that_rank_0_builds_has_the_bits_of_a_whole_construction() -> None:
    first, *others = on_ranks(2, born, [*SPREAD.values()])
    for rank in (first, *others):
        assert [wrong for wrong, _, _ in rank] == [[]] * len(SPREAD)
        assert {note[:37] for _, note, _ in rank} == {"rank 0 builds the network on its host"}
    assert all(size_bytes > 0 for _, _, size_bytes in first)
    assert all(size_bytes == 0 for rank in others for _, _, size_bytes in rank)


def test_what_needs_values_is_built_by_each_process_and_that_is_told() -> None:
    networks = [network for network, _ in WHOLE.values()]
    for rank in on_ranks(2, born, networks):
        for (wrong, note, size_bytes), (_, why) in zip(rank, WHOLE.values(), strict=True):
            assert not wrong
            assert "each process builds the whole network" in note
            assert why in note
            assert size_bytes > 0

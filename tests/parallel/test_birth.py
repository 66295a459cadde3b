"""Networks that no rank but the first builds with values: the bits of a whole construction."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import GPT2Config, GPT2LMHeadModel

from harness.config.read import read_config
from harness.ranks.ranks import Ranks
from harness.ranks.rows import local_of, own_range
from harness.training.birth import build_shared, build_whole
from harness.training.network_state import attributes_of
from harness.training.on_file import is_mapped
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
    size_bytes = sum(one.nbytes for one in parameters if not (one.is_meta or is_mapped(one)))
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


Births = list[list[tuple[list[str], str, int]]]  # by rank, of each network


@pytest.fixture(scope="module")
def births(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Births]:
    """Of all networks on the same two ranks: what they import costs more than they do."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrained_folder(folder)
    groups = {
        "spread": [*SPREAD.values()],
        "whole": [network for network, _ in WHOLE.values()],
        "pretrained": pretrained_networks(folder),
    }
    networks = [network for one in groups.values() for network in one]
    ranks = [iter(rank) for rank in on_ranks(2, born, networks, timeout_s=180.0)]
    return {name: [[next(rank) for _ in one] for rank in ranks] for name, one in groups.items()}


def test_a_network_that_rank_0_builds_has_the_bits_of_a_whole_construction(
    births: dict[str, Births],
) -> None:
    first, *others = births["spread"]
    for rank in (first, *others):
        assert [wrong for wrong, _, _ in rank] == [[]] * len(SPREAD)
        assert {note[:37] for _, note, _ in rank} == {"rank 0 builds the network on its host"}
    assert all(size_bytes > 0 for _, _, size_bytes in first)
    assert all(size_bytes == 0 for rank in others for _, _, size_bytes in rank)


def test_what_needs_values_is_built_by_each_process_and_that_is_told(
    births: dict[str, Births],
) -> None:
    for rank in births["whole"]:
        for (wrong, note, size_bytes), (_, why) in zip(rank, WHOLE.values(), strict=True):
            assert not wrong
            assert "each process builds the whole network" in note
            assert why in note
            assert size_bytes > 0


def pretrained_folder(folder: Path) -> None:
    """Of GPT-2 in bfloat16, in several files."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=12, n_layer=2, n_head=2)
    network: Any = GPT2LMHeadModel(config)
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size="4KB")


def pretrained_networks(path: Path) -> list[str]:
    folder = f"pretrained_model_name_or_path: {path}"
    loaded = f"{{_target_: transformers.GPT2LMHeadModel.from_pretrained, {folder}"
    classifier = "transformers.GPT2ForSequenceClassification.from_pretrained"
    return [
        f"{loaded}}}",
        f"{loaded}, dtype: float32}}",
        f"{{_target_: {classifier}, {folder}, dtype: float32}}",
        f"{{_target_: {PARTS}.Halved, inner: {loaded}, dtype: bfloat16}}}}",
        f"{{_target_: {PARTS}.Halved, inner: {loaded}, dtype: float32}}}}",
    ]


def test_pretrained_weights_are_read_by_rows_in_any_type(births: dict[str, Births]) -> None:
    for rank, found in enumerate(births["pretrained"]):
        assert [wrong for wrong, _, _ in found] == [[]] * 5
        told = ["pretrained files" in note for _, note, _ in found]
        assert told == [True, True, True, True, False]  # one asks for what is not read yet
        head = 2 * 12 * 4 if rank == 0 else 0
        assert [size_bytes for _, _, size_bytes in found[:4]] == [0, 0, head, 0]


def read_from_two(folders: Sequence[Path]) -> tuple[list[str], str]:
    ranks = Ranks.join(30.0)
    os.chdir(folders[ranks.rank])
    network = (
        "{_target_: transformers.GPT2LMHeadModel.from_pretrained, dtype: float32, "
        "pretrained_model_name_or_path: base}"
    )
    wrong, note, _ = born_one(network, ranks)
    return wrong, note


def test_of_folders_that_differ_between_machines_rank_0_s_is_taken(tmp_path: Path) -> None:
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        pretrained_folder(folder / "base")
    damaged = sorted(folders[1].glob("base/*.safetensors"))[0]
    octets = bytearray(damaged.read_bytes())
    octets[-9] ^= 1  # one bit of a row that rank 1 reads
    damaged.write_bytes(octets)
    (none, note), (differing, _) = on_ranks(2, read_from_two, folders)
    assert (none, {*differing}) == ([], {"lm_head.weight", "transformer.wte.weight"})
    assert "rank 0 builds" in note

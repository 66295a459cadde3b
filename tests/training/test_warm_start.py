"""Starting from somebody else's weights."""

import json
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.checkpoint import read, stored
from harness.checkpoint.files import prefix_sha256
from harness.checkpoint.retention import Retention
from harness.errors import CheckpointError
from harness.ranks.ranks import Ranks
from harness.training.warm_start import warm_start
from tests.checkpoint.examples import LOSS, snapshot, store_in
from tests.pool import on_ranks


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    save_file(
        {
            "encoder.weight": torch.full((2, 3), 5.0),
            "encoder.bias": torch.full((2,), 6.0),
            "head.weight": torch.ones(1, 2),
        },
        path,
    )
    return path


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, width)
        self.decoder = nn.Linear(3, width)


def test_what_matches_is_put_in_and_what_does_not_is_named(weights: Path) -> None:
    network = Net()
    told = warm_start(network, weights, {})
    assert network.encoder.weight.eq(5.0).all()
    assert "2 tensors loaded" in told
    assert "newly initialised: decoder.weight, decoder.bias" in told
    assert "not used: head.weight" in told


def test_a_prefix_puts_a_part_into_another_part(weights: Path) -> None:
    network = Net()
    before = network.encoder.weight.clone()
    warm_start(network, weights, {"encoder.": "decoder."})
    assert network.decoder.bias.eq(6.0).all()
    assert network.encoder.weight.equal(before)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ({"enc.": "decoder."}, "none of its names begins with 'enc.'"),
        ({"encoder.": "x.", "encoder.w": "x.w"}, "two weights would be called x.weight"),
    ],
)
def test_a_prefix_that_cannot_be_meant_is_refused(
    weights: Path, prefixes: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        warm_start(Net(), weights, prefixes)


def test_shapes_that_do_not_fit_are_named_and_nothing_is_changed(weights: Path) -> None:
    network = Net(width=4)
    before = network.encoder.weight.clone()
    with pytest.raises(
        CheckpointError,
        match=r"encoder\.weight: torch\.float32 \(2, 3\), the network's is torch\.float32 \(4, 3\)",
    ):
        warm_start(network, weights, {})
    assert network.encoder.weight.equal(before)


def test_no_common_name_and_no_safetensors_file_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none of its 3 tensors has a name in the network"):
        warm_start(nn.Linear(3, 2), weights, {})
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match=r"run\.init_from"):
        warm_start(Net(), tmp_path / "text", {})


def start_from(
    path: Path, try_from_bytes: int = 2**29
) -> tuple[dict[str, list[float]], str, list[str]]:
    """What a rank has then, what is said, and which files this rank has hashed."""
    ranks, network, hashed = Ranks.join(), nn.Linear(2, 2), []

    def note(file: FileIO, size_bytes: int) -> str:
        hashed.append(Path(str(file.name)).name)
        return prefix_sha256(file, size_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "open_regular", Named)
        patch.setattr(read, "prefix_sha256", note)
        patch.setattr(stored, "_TRY_FROM_BYTES", try_from_bytes)
        told = warm_start(network, path, {}, ranks)
    weights = {name: one.reshape(-1).tolist() for name, one in network.state_dict().items()}
    return weights, told, sorted(name for name in hashed if name.endswith(".safetensors"))


class Named(FileIO):
    """As `open_regular` opens a file, but with its name."""


def save_linear(directory: Path) -> None:
    """Two checkpoints by two ranks, the second of which is the best."""
    store = store_in(directory, Ranks.join(), Retention(keep_last=2))
    for step in (1, 2):
        model = {"weight": torch.full((2, 2), float(step)), "bias": torch.full((2,), step / 4)}
        store.save(snapshot(step, model=model, metrics={"val/loss": 1.0 / step}), LOSS)
    store.close()
    assert [one.error for one in store.reports()] == [None, None]


def test_each_rank_verifies_a_share_of_a_checkpoint_and_all_have_its_weights(
    tmp_path: Path,
) -> None:
    """Where each process reads, hashes and holds everything for itself, a node's memory runs out:
    pytorch/pytorch#122582, openvla/openvla#208.
    """
    on_ranks(2, save_linear, tmp_path)
    found = on_ranks(2, start_from, tmp_path)
    assert [weights for weights, _, _ in found] == [{"weight": [2.0] * 4, "bias": [0.5] * 2}] * 2
    assert len({told for _, told, _ in found}) == 1
    shards = sorted(one.name for one in (tmp_path / "step-00000002").glob("*.safetensors"))
    assert sorted(found[0][2] + found[1][2]) == shards
    assert all(hashed for _, _, hashed in found)
    among = on_ranks(2, start_from, tmp_path, 0)  # what one has read goes to the other, too
    assert [weights for weights, _, _ in among] == [weights for weights, _, _ in found]


def test_the_best_checkpoint_damaged_on_any_rank_gives_way_to_a_valid_one_on_all(
    tmp_path: Path,
) -> None:
    on_ranks(2, save_linear, tmp_path)
    for file in (tmp_path / "step-00000002").glob("model-*.safetensors"):
        octets = bytearray(file.read_bytes())
        octets[-1] ^= 1
        file.write_bytes(octets)
    found = on_ranks(2, start_from, tmp_path)
    assert [weights for weights, _, _ in found] == [{"weight": [1.0] * 4, "bias": [0.25] * 2}] * 2
    skipped = f"{tmp_path}/step-00000002: skipped, not valid: model-0000"
    words = f"warning: run.init_from: {tmp_path}: step-00000001 is taken instead: {skipped}"
    assert all(told.startswith(words) for _, told, _ in found)
    for path in tmp_path.glob("step-*"):  # by its path, it and no other is meant
        (path / "config.yaml").write_text("other")
        with pytest.raises(CheckpointError, match=f"^run.init_from: {path}: config.yaml: "):
            warm_start(nn.Linear(2, 2), path, {})
    with pytest.raises(CheckpointError, match=f"^run.init_from: {tmp_path}: there are checkpoints"):
        warm_start(nn.Linear(2, 2), tmp_path, {})


def test_tied_weights_that_differ_there_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2, 2), "b.weight": torch.zeros(2, 2)}, tmp_path / "w")
    network = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    network["b"].weight = network["a"].weight
    with pytest.raises(CheckpointError, match=r"b\.weight is tied to a\.weight in the network"):
        warm_start(network, tmp_path / "w", {})
    save_file({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "w")
    warm_start(network, tmp_path / "w", {})
    assert network["b"].weight.eq(1.0).all()


def test_any_layout_and_name_of_a_file_is_read(tmp_path: Path) -> None:
    """Files of the hub are links with any name. Not mapped into memory, from where a network mount
    reads page by page: huggingface/safetensors#562.
    """
    weight = torch.randn(2, 3, 4, 4)
    save_file(
        {"weight": weight, "bias": torch.arange(2.0), "odd": torch.ones(3, dtype=torch.int8)},
        tmp_path / "blob",
    )
    (tmp_path / "my weights (1).safetensors").symlink_to(tmp_path / "blob")
    network = nn.Conv2d(3, 2, 4).to(memory_format=torch.channels_last)
    told = warm_start(network, tmp_path / "my weights (1).safetensors", {})
    assert network.weight.equal(weight)
    assert network.bias.tolist() == [0.0, 1.0]
    assert told.endswith("newly initialised: none; not used: odd")


def test_a_file_with_tensors_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    octets = len(header).to_bytes(8, "little") + header + bytes(2)
    (tmp_path / "w.safetensors").write_bytes(octets)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: torch has no F4\. Convert the fi"):
        warm_start(Net(), tmp_path / "w.safetensors", {})

"""Checkpoints as other tools find them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model

from harness.checkpoint.export import export
from harness.checkpoint.read import inspect
from harness.checkpoint.state import extra_files_of
from harness.errors import CheckpointError
from tests.checkpoint.examples import (
    assert_same,
    loaded_from,
    names_in,
    save_steps,
    snapshot,
    store_in,
    tensors_of,
)
from tests.checkpoint.test_state import Tied


def test_an_export_is_one_file_with_all_weights(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    size_bytes = export(tmp_path / "step-00000001", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").stat().st_size == size_bytes
    expected = tensors_of(1)
    del expected["head.weight"]
    assert_same(load_file(tmp_path / "out.safetensors"), expected)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    assert names_in(tmp_path, lambda name: name.startswith(".")) == []


def test_an_exported_network_with_tied_weights_loads_by_safetensors_own_function(
    tmp_path: Path,
) -> None:
    net, other = Tied(), Tied()
    store = store_in(tmp_path)
    store.save(snapshot(1, model=net.state_dict()), None)
    store.close()
    export(tmp_path / "step-00000001", tmp_path / "out.safetensors")
    assert load_model(other, tmp_path / "out.safetensors") == (set(), [])
    assert_same(other.state_dict(), net.state_dict())


def test_an_export_overwrites_nothing_and_takes_nothing_damaged(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "out").touch()
    with pytest.raises(CheckpointError, match="out: already exists"):
        export(tmp_path / "step-00000001", tmp_path / "out")
    with pytest.raises(CheckpointError, match="No such file or directory"):
        export(tmp_path / "step-00000001", tmp_path / "nowhere" / "out")
    (tmp_path / "step-00000001" / "config.yaml").write_text("changed")
    with pytest.raises(CheckpointError, match=r"config\.yaml: 7 bytes instead of"):
        export(tmp_path / "step-00000001", tmp_path / "other")


def test_the_index_leads_to_every_tensor(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    path = tmp_path / "step-00000001"
    for role, names in (
        ("model", {*tensors_of(1)} - {"head.weight"}),
        ("optimizer", {"exp_avg/embed.weight", "step/embed.weight"}),
    ):
        index = json.loads((path / f"{role}.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == names
        for name, file in index["weight_map"].items():
            with safe_open(path / file, "pt") as opened:
                assert name in opened.keys()  # noqa: SIM118 - no mapping


def test_from_pretrained_reads_a_checkpoint_directory(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    net = transformers.GPT2LMHeadModel(config).eval()
    store = store_in(tmp_path)
    store.save(snapshot(1, model=net.state_dict(), extra_files=extra_files_of(net)), None)
    store.close()
    path = tmp_path / "step-00000001"
    manifest = inspect(path).manifest
    assert manifest is not None
    assert manifest.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert manifest.files["config.json"].role == "beside"
    other, told = transformers.GPT2LMHeadModel.from_pretrained(
        path, local_files_only=True, output_loading_info=True
    )
    assert not any(told.values())
    assert_same(other.state_dict(), net.state_dict())
    tokens = torch.arange(5)[None]
    assert torch.equal(other.eval()(tokens).logits, net(tokens).logits)
    assert type(
        transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    ) is type(net)
    assert_same(loaded_from(path).model, net.state_dict())


def test_other_networks_need_nothing_beside() -> None:
    assert extra_files_of(torch.nn.Linear(1, 1)) == {}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_network_with_adapters_has_no_config_that_would_load_others() -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    options = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    assert extra_files_of(peft.get_peft_model(transformers.GPT2LMHeadModel(config), options)) == {}

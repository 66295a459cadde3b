"""Networks that were trained sharded, in one process and in other tools: as any other."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

import peft
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2LMHeadModel, MixtralForCausalLM

import fermarsi
from harness.checkpoint.read import find_checkpoint
from harness.commands import export, export_folder
from harness.commands.export import export_network
from harness.commands.trained import load_trained
from harness.config.read import read_config
from harness.errors import ConfigError
from tests.checkpoint.examples import assert_same, loaded_from, names_in
from tests.pool import command, train_on_ranks
from tests.resume.zoo import gpt2

CONFIG = """
run: {name: words}
data:
  checks: {duplicates: warn}
  train: {source: {_target_: tests.start_parts.Words}}
  val: {source: {_target_: tests.start_parts.Words}}
network: NETWORK
task: {_target_: harness.tasks.LanguageModelling, input: tokens}
batch: {size: 8, micro_size: 2}
optimizer: {_target_: torch.optim.AdamW, lr: 0.01}
stop: {every: {steps: 3}, budget: {steps: 3}}
log: {trace: true}
parallel: {kind: fsdp}
"""
NETWORKS = {
    "gpt2": "{_target_: transformers.GPT2LMHeadModel.from_pretrained, dtype: float32, "
    "pretrained_model_name_or_path: BASE}",
    "gpt": "{_target_: harness.networks.Gpt, vocabulary: 7, context: 8, dim: 12, depth: 2, "
    "num_heads: 2}",
}
LAYOUTS = ("whole", "rows")


@pytest.fixture(scope="module", params=NETWORKS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on two ranks with whole weights and with rows."""
    directory = tmp_path_factory.mktemp(request.param)
    config = directory / "words.yaml"
    gpt2().to(torch.bfloat16).save_pretrained(directory / "base")
    network = NETWORKS[request.param].replace("BASE", f"{directory}/base")
    config.write_text(CONFIG.replace("NETWORK", network))
    for layout in LAYOUTS:
        overrides = [f"run.dir={directory / layout}", f"checkpoint.model_layout={layout}"]
        launched = train_on_ranks(2, config, overrides)
        assert [one.exit_code for one in launched] == [0, 0], launched[0].stderr
        assert "rank 0 builds the network on its host" in launched[0].stdout
        is_read = "reads its rows from pretrained files" in launched[0].stdout
        assert is_read == (request.param == "gpt2")
    return directory


def test_rows_and_whole_weights_serve_every_command_alike(runs: Path, tmp_path: Path) -> None:
    whole, rows = (find_checkpoint(runs / layout) for layout in LAYOUTS)
    assert names_in(rows, lambda name: name == "model-rows.safetensors.index.json")
    assert_same(loaded_from(rows).model, loaded_from(whole).model)
    told = []
    for layout in LAYOUTS:
        run, out = runs / layout, tmp_path / f"{layout}.csv"
        asked = [
            ["predict", run, "--out", out, "--allow", "tests"],
            ["evaluate", run, "--allow", "tests"],
            ["checkpoints", "verify", run],
            ["checkpoints", "list", run],
            ["report", run],
            ["export", run, tmp_path / f"{layout}.safetensors"],
        ]
        done = [command(*one) for one in asked]
        assert [one.exit_code for one in done] == [0] * len(asked), [one.stderr for one in done]
        told.append((out.read_text(), done[1].stdout.partition(": val")[2]))
    assert told[0] == told[1]
    exported = [(tmp_path / f"{layout}.safetensors").read_bytes() for layout in LAYOUTS]
    assert exported[0] == exported[1]
    assert command("compare", runs / "whole", runs / "rows").exit_code == 0


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """The most bytes of tensors with memory at one time, meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self._live: WeakSet[Any] = WeakSet()
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, made)):
            if isinstance(one, Tensor) and not one.is_meta:
                self._live.add(one.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, sum(one.nbytes() for one in self._live))
        return made


def test_from_pretrained_reads_whole_weights_and_takes_no_rows_for_weights(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runs.name.startswith("gpt2"):
        whole, rows = (find_checkpoint(runs / layout) for layout in LAYOUTS)
        network, told = GPT2LMHeadModel.from_pretrained(whole, output_loading_info=True)
        assert not any(told.values())
        own = fermarsi.load(runs / "rows", allow=["tests"]).network
        assert_same(network.state_dict(), own.cpu().state_dict())
        tokens = torch.tensor([[1, 2, 0, 1]])
        assert torch.equal(network(tokens).logits, own.eval()(tokens).logits)
        with pytest.raises(ConfigError, match=r"a GPT2LMHeadModel is not of peft"):
            export_network(whole, tmp_path / "none", "peft", ["tests"])
        # transformers#34080: rows were taken for weights
        with pytest.raises(OSError, match="no file named model"):
            GPT2LMHeadModel.from_pretrained(rows)
        monkeypatch.setattr(export_folder, "_SHARD_BYTES", 10_000)
        size_bytes = sum(one.nbytes for one in network.state_dict().values())
        with Held() as compared:
            for run, out in ((rows, tmp_path / "rows"), (whole, tmp_path / "whole")):
                said = export_network(run, out, "hf", ["tests"])
                assert "differ from the network's by 0 at" in said
                again = GPT2LMHeadModel.from_pretrained(out)
                assert_same(again.state_dict(), network.state_dict())
                assert torch.equal(again(tokens).logits, network(tokens).logits)
                assert len([*out.glob("model-*.safetensors")]) > 2
        monkeypatch.setattr(export, "available_bytes", lambda: 50_000)
        with Held() as held:
            said = export_network(rows, tmp_path / "narrow", "hf", ["tests"])
        assert re.search(
            r"bit by bit; its outputs were not compared .* takes .* GB of memory", said
        )
        assert held.peak_bytes < size_bytes / 2 < size_bytes < compared.peak_bytes
        names = sorted(one.name for one in out.iterdir())
        assert names == sorted(one.name for one in (tmp_path / "narrow").iterdir())
        for name in names:
            assert (out / name).read_bytes() == (tmp_path / "narrow" / name).read_bytes()


def test_rows_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text(CONFIG.replace("NETWORK", NETWORKS["gpt"]))
    given = [f"run.dir={tmp_path}", "parallel.kind=ddp", "checkpoint.model_layout=rows"]
    with pytest.raises(ConfigError, match=r"checkpoint: model_layout: rows has no effect with"):
        read_config(tmp_path / "words.yaml", given)


def test_experts_that_micro_batches_choose_train_within_blocks_and_are_exported(
    tmp_path: Path,
) -> None:
    """pytorch/pytorch#158719: what only some ranks use in a pass."""
    network = "{_target_: tests.resume.zoo.mixtral}"
    (tmp_path / "words.yaml").write_text(CONFIG.replace("NETWORK", network))
    run = tmp_path / "run"
    given = [f"run.dir={run}", "train.find_unused_parameters=true"]
    launched = train_on_ranks(2, tmp_path / "words.yaml", given)
    assert [one.exit_code for one in launched] == [0, 0], launched[0].stderr
    assert "gather model.layers.0, model.layers.1 while in use" in launched[0].stdout
    told = export_network(run, tmp_path / "hf", "hf", ["tests"])
    assert "differ from the network's by 0 at" in told
    trained = fermarsi.load(run, allow=["tests"]).network.cpu().eval()
    again = MixtralForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = torch.tensor([[1, 2, 0, 1]])
    assert torch.equal(again(tokens).logits, trained(tokens).logits)


@pytest.mark.filterwarnings("ignore")  # of transformers and peft
def test_adapters_are_trained_sharded_and_exported_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    gpt2().save_pretrained(base)
    loading = "transformers.GPT2LMHeadModel.from_pretrained"
    inner = f"{{_target_: {loading}, pretrained_model_name_or_path: {base}}}"
    network = f"{{_target_: tests.resume.zoo.adapted, model: {inner}}}"
    (tmp_path / "words.yaml").write_text(CONFIG.replace("NETWORK", network))
    run, out = tmp_path / "run", tmp_path / "adapters"
    launched = train_on_ranks(2, tmp_path / "words.yaml", [f"run.dir={run}"])
    assert [one.exit_code for one in launched] == [0, 0], launched[0].stderr
    assert "reads its rows from pretrained files" in launched[0].stdout
    moments = loaded_from(find_checkpoint(run)).optimizer
    assert {*moments} == {name for name in moments if ".lora_" in name}

    allow = ["tests", f"{tmp_path}/"]
    assert "differ from the network's by 0 at" in export_network(run, out, "peft", allow)
    plain = GPT2LMHeadModel.from_pretrained(base)
    tokens = torch.tensor([[1, 2, 0, 1]])
    untrained = plain(tokens).logits
    again = peft.PeftModel.from_pretrained(plain, out).eval()
    trained = fermarsi.load(run, allow=allow).network.cpu().eval()
    assert torch.equal(again(tokens).logits, trained(tokens).logits)
    assert not torch.equal(again(tokens).logits, untrained)
    file = "adapter_model.safetensors"
    size_bytes = (base / "model.safetensors").stat().st_size
    assert (out / file).stat().st_size < 0.2 * size_bytes
    with monkeypatch.context() as patch, Held() as held:
        patch.setattr(export, "available_bytes", lambda: 50_000)
        assert "were not compared" in export_network(run, tmp_path / "narrow", "peft", allow)
    assert held.peak_bytes < size_bytes / 2
    assert (tmp_path / "narrow" / file).read_bytes() == (out / file).read_bytes()

    found = load_trained(run, allow)
    found.network.get_parameter("base_model.model.transformer.wpe.weight").requires_grad_(True)
    monkeypatch.setattr(export, "load_trained", lambda *_, **__: found)
    with pytest.raises(ConfigError, match=r"wpe\.weight changed in the training too"):
        export_network(run, tmp_path / "other", "peft", allow)
    assert not (tmp_path / "other").exists()

"""A network is used elsewhere, and computes there what it computed here."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from harness.commands import export, export_folder
from harness.commands.export import Examples, FlatNetwork, export_network
from harness.commands.trained import load_trained
from harness.errors import CheckpointError, ConfigError, HarnessError
from tests.checkpoint.examples import assert_same
from tests.pool import train_on_ranks
from tests.training.test_pretrained import prepare


def test_onnx_and_torch_export_take_batches_of_any_size(digits: Path, tmp_path: Path) -> None:
    """Known: an exported network takes only the batch size of its example (pytorch 126127, and
    many of torch.onnx), and its input is called `x` or `l_x_`.
    """
    network = load_trained(digits).network
    files = {"onnx": tmp_path / "digits.onnx", "torch-export": tmp_path / "digits.pt2"}
    for to, out in files.items():
        assert "axes of any length: image [0]" in export_network(digits, out, to)
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    program = torch.export.load(files["torch-export"]).module()
    assert [one.name for one in session.get_inputs()] == ["image"]
    for size in (1, 2, 37):
        images = torch.rand(size, *session.get_inputs()[0].shape[1:])
        with torch.no_grad():
            wanted = network(images)
        (found,) = session.run(None, {"image": images.numpy()})
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(program(images)[0], wanted)
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    kept = {one.key: one.value for one in onnx.load(files["onnx"]).metadata_props}
    assert kept["producer"] == "fermarsi"


@pytest.mark.filterwarnings("ignore")  # of transformers and torch.onnx
def test_a_fine_tuned_transformer_in_each_format(tmp_path: Path) -> None:
    """Known: labels come back as LABEL_0 (transformers 12623), attention masks are lost."""
    auto = "transformers.AutoModelForSequenceClassification.from_pretrained"
    network = f"{{_target_: {auto}, pretrained_model_name_or_path: {tmp_path}/base}}"
    run = tmp_path / "run"
    asked = [f"run.dir={run}", "stop.budget.steps=4", "checkpoint.every.steps=4"]
    (end,) = train_on_ranks(1, prepare(tmp_path, network), asked)
    assert end.exit_code == 0, end.stderr
    allow = [f"{tmp_path}/"]
    for to, name in (("hf", "folder"), ("onnx", "mood.onnx"), ("torch-export", "mood.pt2")):
        said = export_network(run, tmp_path / name, to, allow)
        assert "input_ids [0], attention_mask [0]" in said
    for folder in (tmp_path / "folder", run / "checkpoints" / "best"):
        found = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        assert found.config.id2label == {0: "glad", 1: "sad"}
        assert found.config.label2id == {"glad": 0, "sad": 1}
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert words.tokenize("the awful film") == ["the", "awful", "film"]
    names = export_folder._names_on_the_hub
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            export_folder,
            "_names_on_the_hub",
            lambda *given: {f"odd.{new}": own for new, own in names(*given).items()},
        )
        with pytest.raises(CheckpointError, match="from_pretrained finds other weights"):
            export_network(run, tmp_path / "odd", "hf", allow)
    assert not (tmp_path / "odd").exists()


def test_a_network_that_fixes_its_batch_is_refused_in_words() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 4 else x.reshape(4, -1)

    leaves, spec = pytree.tree_flatten(((torch.rand(4, 8),), {}))
    examples = Examples(["x"], (leaves, [torch.rand(4, 8)]), [[0]], spec)
    with pytest.raises(ConfigError, match="cannot follow it"):
        export._program(FlatNetwork(Fixed(), spec), examples)


@pytest.mark.parametrize(
    ("out", "to", "words"),
    [
        ("model.onnx", "torch-export", "ends in .pt2"),
        ("model.bin", "safetensors", "ends in .safetensors"),
        ("model.onnx", "tflite", "--to: 'tflite' is not one of"),
        ("there.onnx", "onnx", "already exists"),
        ("nowhere/model.onnx", "onnx", "there is no directory"),
    ],
)
def test_a_wrong_name_is_refused_before_anything(
    tmp_path: Path, out: str, to: str, words: str
) -> None:
    (tmp_path / "there.onnx").write_text("")
    with pytest.raises(ConfigError, match=words):
        export_network(tmp_path / "no such run", tmp_path / out, to)


def test_what_cannot_be_written_or_differs_is_refused_and_leaves_nothing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(to: str, words: str) -> None:
        with pytest.raises(HarnessError, match=words):
            export_network(digits, tmp_path / f"out{export.SUFFIXES[to]}", to)
        assert not any(tmp_path.iterdir())

    def fail(*args: object, **kwargs: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", fail)
        refused("onnx", r"cannot write it: no such operator. Use --to torch-export.")
        patch.setattr(export, "_MOST_BYTES", 10)
        refused("onnx", r"0\.0 GB of weights, more than one ONNX file holds. Use --to torch")
        patch.setitem(sys.modules, "onnxscript", None)
        refused("onnx", r"needs onnxscript, which is not installed: pip install")
    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "same_bits", lambda *both: False)
        refused("safetensors", r"other tensors were read back: .* Try another disk.")
    with monkeypatch.context() as patch:
        patch.setattr(export, "_SIZES", (2, 10_000))
        refused("torch-export", r"357 samples, and 10000 are needed. Add some.")
    with monkeypatch.context() as patch:
        patch.setattr(
            export, "_torch_export", lambda trained, flat, examples, out: flat_of_zeros(flat)
        )
        refused("torch-export", r"what was written gives other outputs than the network")


def flat_of_zeros(flat: FlatNetwork) -> export.Compute:
    return lambda inputs: [torch.zeros_like(one) for one in pytree.tree_leaves(flat(*inputs))]


def test_a_network_of_another_library_has_no_folder_of_hugging_face(
    digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a Mlp is not of transformers"):
        export_network(digits, tmp_path / "folder", "hf")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["vit", "mixtral"])
def test_weights_of_a_folder_are_called_as_save_pretrained_calls_them(
    kind: str, tmp_path: Path
) -> None:
    """Known: transformers 5 has other names, or other tensors, in memory than in its files."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.AutoConfig.for_model(kind, **sizes, vocab_size=11, num_local_experts=2)
    made = {"vit": "ViTForImageClassification", "mixtral": "MixtralForCausalLM"}[kind]
    network = getattr(transformers, made)(config)
    state = network.state_dict()
    names = export_folder._names_on_the_hub(network, state)
    network.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    assert {*names.values()} == {*state}
    assert (files.keys() == names.keys()) == (kind == "vit")  # not of each expert alone
    save_file({new: state[own] for new, own in names.items()}, tmp_path / "model.safetensors")
    again, told = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert_same(again.state_dict(), state)

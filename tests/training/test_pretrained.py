"""A network that was fine-tuned comes back without what it was fine-tuned from."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness import components
from harness.commands.evaluate import evaluate_split
from harness.commands.predict import write_predictions
from harness.errors import ConfigError
from harness.networks.architecture import torchvision_architecture
from harness.training import pretrained
from tests.pool import train_on_ranks

SMALL = Path(__file__).parent / "small.yaml"
DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "the", "was", "a"]
AUTO = "transformers.AutoModelForSequenceClassification.from_pretrained"
CONFIG = """
run: {{name: reviews, seed: 3}}
data:
  checks: {{duplicates: warn, overlaps: warn, conflicts: warn}}
  train: &split
    source:
      _target_: harness.sources.tables.Table
      files: "{root}/reviews.csv"
      features: []
      columns: {{text: text, mood: text}}
    treatments:
      - {{_target_: harness.treatments.Encode, key: mood, optional: true}}
      - {{_target_: harness.treatments.Tokenise, file: "{root}/base", length: 8}}
      - {{_target_: harness.treatments.Pad, length: 8, mask: mask}}
  val: *split
network: {network}
task:
  _target_: harness.tasks.Classification
  input: {{input_ids: tokens, attention_mask: mask}}
  target: mood
batch: {{size: 8, micro_size: 4}}
optimizer: {{_target_: torch.optim.AdamW, lr: 0.01}}
stop: {{every: {{steps: 4}}, budget: {{steps: 8}}}}
checkpoint: {{every: {{steps: 4}}}}
"""
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


class Mood(nn.Module):
    """A network of a user's own around a pretrained one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.head(found.last_hidden_state[:, 0])


def prepare(root: Path, network: str) -> Path:
    """A base with a vocabulary of its own in another order than BERT's, reviews and a config."""
    (root / "base").mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizer(str(root / "vocab.txt")).save_pretrained(root / "base")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), **SIZES)
    transformers.BertModel(config).save_pretrained(root / "base")
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(24):
        mood = int(draw.integers(2))
        words = [*draw.choice(WORDS[6:], 3), draw.choice(WORDS[3 * mood : 3 * mood + 3])]
        rows.append({"text": " ".join(words), "mood": ["glad", "sad"][mood]})
    pd.DataFrame(rows).to_csv(root / "reviews.csv", index=False)
    path = root / "reviews.yaml"
    path.write_text(CONFIG.format(root=root, network=network))
    return path


def train(config: Path, *overrides: str) -> None:
    (end,) = train_on_ranks(1, config, list(overrides))
    assert end.exit_code == 0, end.stderr


def evaluate(checkpoint: Path, root: Path, *allow: str) -> dict[str, float]:
    return dict(evaluate_split(checkpoint, "val", [f"{root}/", *allow]).values)


def predict(checkpoint: Path, root: Path) -> pd.DataFrame:
    write_predictions(checkpoint, "val", "", root / "found.parquet", [f"{root}/"])
    return pd.read_parquet(root / "found.parquet")


@pytest.mark.filterwarnings("ignore")  # of transformers: the head is new
def test_a_fine_tuned_network_is_loaded_and_trained_further_without_its_base(
    tmp_path: Path,
) -> None:
    """Known: "Can't load the configuration of '/old/path'" (transformers, many); a tokenizer of
    another vocabulary beside a checkpoint.
    """
    network = f"{{_target_: {AUTO}, pretrained_model_name_or_path: {tmp_path}/base}}"
    config = prepare(tmp_path, network)
    old, new = tmp_path / "run", tmp_path / "elsewhere" / "run"
    train(config, f"run.dir={old}")
    whole = old / "checkpoints" / "step-00000008"
    values, rows = evaluate(whole, tmp_path), predict(whole, tmp_path)
    sentence = "the film was great"
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")(sentence)["input_ids"]

    shutil.rmtree(tmp_path / "base")
    shutil.copytree(old, new, symlinks=True)
    moved = new / "checkpoints" / whole.name
    assert evaluate(moved, tmp_path) == values
    pd.testing.assert_frame_equal(predict(moved, tmp_path), rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(moved, local_files_only=True)
    assert tokenizer(sentence)["input_ids"] == tokens
    assert transformers.AutoConfig.from_pretrained(moved).vocab_size == len(tokenizer)

    shutil.rmtree(moved)
    (new / "outcome.json").unlink()
    train(config, f"run.dir={new}")
    for name in ("model-00001-of-00001.safetensors", "network.json", "tokenizer_config.json"):
        assert (moved / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.filterwarnings("ignore")  # of transformers: as above
def test_a_network_of_one_s_own_around_a_pretrained_one(tmp_path: Path) -> None:
    encoder = (
        "{_target_: transformers.AutoModel.from_pretrained, add_pooling_layer: false, "
        f"pretrained_model_name_or_path: {tmp_path}/base, attn_implementation: eager}}"
    )
    own = f"{{_target_: tests.training.test_pretrained.Mood, encoder: {encoder}}}"
    run = tmp_path / "run"
    train(prepare(tmp_path, own), f"run.dir={run}", "stop.budget.steps=4")
    shutil.rmtree(tmp_path / "base")
    [kept] = json.loads((run / "checkpoints" / "step-00000004" / "network.json").read_text())
    assert kept["keys"] == ["encoder"]
    assert kept["component"]["add_pooling_layer"] is False
    assert kept["component"]["attn_implementation"] == "eager"
    assert evaluate(run, tmp_path, "tests")["accuracy"] > 0.4
    with pytest.raises(ConfigError, match=r"test_pretrained\.Mood is code from elsewhere"):
        evaluate(run, tmp_path)


class Fetching(nn.Module):
    """A network of a user's own that fetches what it begins from, (B, 6) -> (B, 3)."""

    def __init__(self, url: str, directory: str) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.layer.load_state_dict(torch.hub.load_state_dict_from_url(url, directory))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_network_that_fetches_its_base_by_itself_is_told(tmp_path: Path) -> None:
    """Known: pretrained weights are downloaded again whenever a checkpoint is loaded, which fails
    on nodes without a network (qubvel-org/segmentation_models.pytorch#957,
    Lightning-Universe/lightning-flash#984).
    """
    torch.manual_seed(0)
    torch.save(nn.Linear(6, 3).state_dict(), tmp_path / "w.pth")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    run, cache, allow = tmp_path / "run", tmp_path / "cache", [__name__, "tests.resume"]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/w.pth"
        network = f"{{_target_: {__name__}.Fetching, url: '{url}', directory: {cache}}}"
        asked = [f"network={network}", f"run.dir={run}"]
        (end,) = train_on_ranks(1, SMALL, [*asked, "stop.budget.steps=4"])
        assert (end.exit_code, "asked for" in end.stdout) == (0, False), end.stderr
        known = evaluate_split(run, "val", allow).values  # from torch's cache: nothing is said
        shutil.rmtree(cache)
        with pytest.warns(UserWarning, match=r"asked for 127\.0\.0\.1 while it was built, though"):
            assert evaluate_split(run, "val", allow).values == known
        shutil.rmtree(cache)
        (end,) = train_on_ranks(1, SMALL, [*asked, "stop.budget.steps=8"])
        assert (end.exit_code, "asked for 127.0.0.1" in end.stdout) == (0, True), end.stderr
        server.shutdown()
    shutil.rmtree(cache)
    with pytest.raises(ConfigError, match=r"refused.*asked for 127\.0\.0\.1 .*pretrained: false"):
        evaluate_split(run, "val", allow)


FRONT = "see: {_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 3, kernel_size: 1}"
HEAD = "head: {_target_: torch.nn.Linear, in_features: 1000, out_features: 10}"


def no_fetch(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"fetched: {args}")


@pytest.mark.parametrize(
    "base",
    [
        "{_target_: torchvision.models.shufflenet_v2_x0_5, weights: DEFAULT}",
        "{_target_: timm.create_model, model_name: 'local-dir:BASE', pretrained: true}",
    ],
    ids=["torchvision", "timm"],
)
def test_a_network_of_torchvision_or_timm_comes_back_without_its_weights(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known: a checkpoint that can only be loaded where the weights it began from can be fetched
    (Lightning, load_from_checkpoint of a class with weights="DEFAULT").
    """
    weights = tmp_path / "home" / "hub" / "checkpoints"
    weights.mkdir(parents=True)
    torch.manual_seed(5)
    original = torchvision.models.shufflenet_v2_x0_5()
    torch.save(original.state_dict(), weights / "shufflenetv2_x0.5-f707e7126e.pth")
    other = timm.create_model("test_resnet", num_classes=1000, in_chans=3, stem_type="deep")
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    known = {"num_classes": 1000, "first_conv": "conv1", "classifier": "fc"}
    config = {"architecture": "test_resnet", "model_args": {"stem_type": "deep"}, **known}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": known}))
    chain = f"{{_target_: harness.networks.Chain, {FRONT}, base: {base}, {HEAD}}}"
    run = tmp_path / "run"
    overrides = [f"network={chain.replace('BASE', str(tmp_path))}", f"run.dir={run}"]
    overrides += ["stop.budget={steps: 1}", "stop.every={steps: 1}", "batch.size=8"]
    overrides += ["batch.micro_size=8", "optimizer.lr=0", "optimizer.weight_decay=0"]
    overrides += ["stop.targets=null", "stop.improvement=null"]
    home = {"TORCH_HOME": str(tmp_path / "home")}
    (end,) = train_on_ranks(1, DIGITS, overrides, env=home)
    assert end.exit_code == 0, end.stderr
    began_from = other if "timm" in base else original
    trained = {**torch_weights(run)}
    for name, value in began_from.named_parameters():
        assert torch.equal(trained[f"base.{name}"], value.detach()), name

    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").unlink()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_fetch)
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    [loss] = [one["val/loss"] for one in records if one["kind"] == "eval"]
    assert evaluate_split(run, "val").values["loss"] == loss
    overrides[2] = "stop.budget={steps: 2}"
    (end,) = train_on_ranks(1, DIGITS, overrides, env={"TORCH_HOME": str(tmp_path / "none")})
    assert end.exit_code == 0, end.stderr
    assert not (tmp_path / "none").exists()


def torch_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "best" / "model-00001-of-00001.safetensors")


def test_weights_decide_the_layers_of_a_network_of_torchvision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its builders do for weights besides loading them."""
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_fetch)
    googlenet = torchvision_architecture("googlenet", weights="DEFAULT")
    assert googlenet.transform_input
    assert googlenet.aux1 is None
    lraspp = torchvision_architecture("lraspp_mobilenet_v3_large", weights_backbone=None)
    fresh = torchvision.models.get_model("lraspp_mobilenet_v3_large", weights_backbone=None)
    assert [*lraspp.state_dict()] == [*fresh.state_dict()]
    found = torchvision_architecture("ssdlite320_mobilenet_v3_large", weights="COCO_V1")
    assert len(found.head.classification_head.module_list) == 6
    with pytest.raises(AssertionError, match="fetched"):
        torchvision.models.squeezenet1_1(weights="DEFAULT")
    spec: dict[str, Any] = {"_target_": "torchvision.models.get_model", "name": "squeezenet1_1"}
    weight = {"_target_": "torchvision.models.get_weight", "name": "SqueezeNet1_1_Weights.DEFAULT"}
    with pytest.raises(ConfigError, match="fetched"):
        pretrained.build_network({**spec, "weights": weight}, {})
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: fresh_weights
    )
    fresh_weights = torchvision.models.squeezenet1_1().state_dict()
    _, parts = pretrained.build_network({**spec, "weights": weight}, {})
    [kept] = parts.values()
    assert kept["weights"] == "SqueezeNet1_1_Weights.DEFAULT"
    assert not torch.equal(
        components.build(kept, "network").classifier[1].weight, fresh_weights["classifier.1.weight"]
    )
    spec |= {"name": "nothing", "weights": "DEFAULT"}
    with pytest.raises(ConfigError, match="Unknown model nothing"):
        pretrained.build_network(spec, {})


def test_other_networks_keep_what_they_are_built_by() -> None:
    timm = {"_target_": "timm.create_model", "model_name": "resnet10t", "pretrained": False}
    network, parts = pretrained.build_network(timm, {})
    assert isinstance(network, nn.Module)
    assert parts == {}
    assert pretrained.dump_parts(parts) == {}


def test_what_is_kept_may_come_from_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {(): {"_target_": "os.system", "command": "true"}}
    monkeypatch.setattr(pretrained, "load_parts", lambda checkpoint: evil)
    spec = {"_target_": "transformers.AutoModel.from_pretrained"}
    with pytest.raises(ConfigError, match=r"os\.system is code from elsewhere"):
        pretrained.resumed_parts(tmp_path, spec)

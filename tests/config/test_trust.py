"""What somebody else's config may have made, and what it may not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config import trust
from harness.errors import ConfigError


def refusal(target: str, *allow: str, **arguments: Any) -> str:
    try:
        trust.check_code({"layers": [{"_target_": target, **arguments}]}, "network", allow)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.nn:Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torchvision.models.resnet18",
        "torchvision.models.get_model",
        "torchvision.ops.MLP",
        "timm.create_model",
        "timm.layers.LayerNorm2d",
        "transformers.ViTConfig",
        "transformers.ViTForImageClassification",
        "transformers.AutoModelForImageClassification.from_config",
        "transformers.AutoConfig.for_model",
        "torchmetrics.classification.MulticlassAUROC",
        "harness.networks.Mlp",
        "harness.sources.digits.Digits",
        "harness.schedules.Plateau",
    ],
)
def test_a_checkpoint_may_name_what_trainings_are_made_of(target: str) -> None:
    assert refusal(target) == ""


NO_BUILDER = "is neither a class nor a known builder of networks"
NO_KIND = "is not a network, metric, optimizer, schedule or transformers config"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "is code from elsewhere"),
        ("torch.hub.load", "is code from elsewhere"),
        ("torch.load", "is code from elsewhere"),
        ("torch.nnx.Linear", "is code from elsewhere"),
        ("harness_evil.Net", "is code from elsewhere"),
        ("parts_pkg.layers.Net", "is code from elsewhere"),
        ("torch.nn.modules.module.warnings.warn", "leads to code from elsewhere (warnings)"),
        ("harness.sources.files:importlib.import_module", "leads to code from elsewhere"),
        (
            "harness.networks.Mlp.__init__.__globals__.get",
            "leads to code from elsewhere (None)",
        ),
        # Ours, but not what a training is made of
        ("harness.components.build", "is code from elsewhere"),
        ("harness.checkpoint.write.CheckpointStore", "is code from elsewhere"),
        ("harness.rundir.lease.Lease", "is code from elsewhere"),
        ("harness.networks.blocks.head", NO_BUILDER),
        ("harness.sources.hub.Hub", "may fetch data from elsewhere, and read pickles"),
        # Functions of the libraries, by any way
        ("transformers.testing_utils.execute_subprocess_async", NO_BUILDER),
        ("transformers.dynamic_module_utils.get_class_in_module", NO_BUILDER),
        ("transformers.pipeline", NO_BUILDER),
        ("transformers.AutoModel.from_pretrained", NO_BUILDER),
        ("transformers.ViTModel.from_pretrained", NO_BUILDER),
        ("torchvision.models.get_model_weights", NO_BUILDER),
        ("torchvision.datasets.utils.download_and_extract_archive", NO_BUILDER),
        ("timm.models.load_checkpoint", NO_BUILDER),
        ("torch.nn.utils.clip_grad_norm_", NO_BUILDER),
        # Classes of the libraries that are something else
        ("torchvision.datasets.CIFAR10", NO_KIND),
        ("transformers.TrainingArguments", NO_KIND),
        ("transformers.Trainer", NO_KIND),
        ("transformers.AutoTokenizer", NO_KIND),
    ],
)
def test_a_checkpoint_may_not_lead_to_other_code_by_any_way(target: str, reason: str) -> None:
    pytest.importorskip(target.partition(".")[0] if "trans" in target else "torch")
    message = refusal(target)
    shown = target.replace(":", ".")
    assert message.startswith(f"network.layers[0]._target_: {shown} {reason}"), message
    assert f"If you trust this one, add --allow {shown}: it is then built." in message


def test_what_is_refused_is_not_imported() -> None:
    assert refusal("antigravity.webbrowser.open")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("target", "arguments", "key"),
    [
        ("timm.create_model", {"pretrained": True}, "pretrained"),
        ("timm.create_model", {"pretrained": 1}, "pretrained"),
        ("timm.create_model", {"checkpoint_path": "w.pth"}, "checkpoint_path"),
        ("timm.create_model", {"pretrained_cfg": {"file": "w.pth"}}, "pretrained_cfg.file"),
        ("timm.create_model", {"model_name": "hf-hub:evil/net"}, "model_name"),
        ("timm.create_model", {"model_name": "hf_hub:net"}, "model_name"),
        ("timm.create_model", {"model_name": "local-dir:net"}, "model_name"),
        ("torchvision.models.resnet18", {"weights": "DEFAULT"}, "weights"),
        ("torchvision.models.get_model", {"weights_backbone": "x"}, "weights_backbone"),
        ("transformers.ViTConfig", {"trust_remote_code": 1}, "trust_remote_code"),
        ("transformers.ViTConfig", {"auto_map": {"AutoModel": "a--b.C"}}, "auto_map.AutoModel"),
        ("transformers.ViTConfig", {"_name_or_path": "gpt2"}, "_name_or_path"),
        ("transformers.ViTConfig", {"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ("transformers.ViTConfig", {"attn_implementation": "kernels"}, "attn_implementation"),
        (
            "transformers.ViTConfig",
            {"_attn_implementation_internal": {"": "evil"}},
            "_attn_implementation_internal.",
        ),
        ("transformers.ViTConfig", {"text_config": {"trust_remote_code": True}}, "text_config.tr"),
        ("transformers.ViTConfig", {"backbone": "resnet18"}, "backbone"),
        ("torchmetrics.text.InfoLM", {"model_name_or_path": "evil"}, "model_name_or_path"),
        ("torch.nn.Linear", {"name": ["../../weights.pt"]}, "name[0]"),
        ("harness.sources.images.Images", {"path": "https://evil.example/x"}, "path"),
        ("harness.sources.video.Clips", {"path": "concat:/etc/passwd"}, "path"),
        ("harness.sources.tables.Table", {"files": {"a": ["s3://x/y.csv"]}}, "files.a[0]"),
    ],
)
def test_nothing_is_loaded_from_elsewhere_by_an_argument_at_any_depth(
    target: str, arguments: dict[str, Any], key: str
) -> None:
    message = refusal(target, **arguments)
    assert message.startswith(f"network.layers[0].{key}"), message
    assert refusal(target, target, **arguments) == ""


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("timm.create_model", {"pretrained": False, "model_name": "vit_tiny.augreg_in21k"}),
        ("timm.create_model", {"drop_path_rate": 0.1, "pretrained_window_size": 8}),
        ("torchvision.models.resnet18", {"weights": None}),
        ("transformers.ViTConfig", {"id2label": {0: "and/or", 1: "https://x"}}),
        ("transformers.ViTConfig", {"attn_implementation": "sdpa", "torch_dtype": "bfloat16"}),
        ("transformers.ViTConfig", {"gradient_checkpointing": True, "bos_token_id": 3}),
        ("torchmetrics.classification.MulticlassCohenKappa", {"weights": "linear"}),
        ("torch.nn.Linear", {"device": "cuda:0"}),
        ("harness.sources.tables.Table", {"name": "file: name", "columns": ["time:s", "C:/x"]}),
    ],
)
def test_what_only_looks_like_it_is_taken(target: str, arguments: dict[str, Any]) -> None:
    assert refusal(target, **arguments) == ""


def test_a_prefix_that_the_user_allows_is_whole_words() -> None:
    assert refusal("parts_pkg.layers.Net", "parts_pkg") == ""
    assert refusal("parts_pkg.layers.no_data", "parts_pkg.") == ""
    assert "code from elsewhere" in refusal("parts_pkg.layers.Net", "parts")
    assert "code from elsewhere" in refusal("parts_pkg.layers.Net", "/parts_pkg/")


def test_an_allowed_path_that_does_not_exist_is_said_with_its_place() -> None:
    assert (
        refusal("torch.nn.Linaer")
        == "network.layers[0]._target_: the module torch.nn has no Linaer. Did you mean Linear?"
    )


# -- files


def outside(text: str, *allow: str) -> bool:
    spec = {"_target_": "harness.sources.tables.Table", "files": [{"path": text}]}
    try:
        trust.check_files(spec, "data.val.source", allow)
    except ConfigError as error:
        said = str(error)
    else:
        said = ""
    assert said.startswith("data.val.source.files[0].path: " if said else "")
    return "is outside the working directory" in said


def test_a_checkpoint_names_no_files_outside_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for path in (here / "data", here / ".ssh", other):
        path.mkdir(parents=True)
        (path / "a.csv").touch()
    (here / "link.csv").symlink_to(other / "a.csv")
    (here / "linked").symlink_to(other)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(other))
    for text in ("data/a.csv", "data/*.csv", "data/new.csv", str(here / "data"), "a", "x/y z"):
        assert not outside(text), text
    leaving = ["../other/a.csv", "/etc/passwd", f"{other}/*.csv", f"{other}/new.csv", "~/a.csv"]
    for text in [*leaving, "link.csv", "linked/a.csv", "linked", ".ssh/a.csv", "data/../../other"]:
        assert outside(text), text
        assert not outside(text, "/"), text
        assert not outside(text, "harness.sources"), text
    assert not outside("link.csv", f"{other}/")
    assert outside("/etc/passwd", f"{other}/")
    monkeypatch.chdir("/")
    assert outside("etc/passwd")
    # What is no path, or could not be read by anyone
    for text in ("~nobody-at-all/x", "x" * 5000 + "/", "a\0/b", r"/(\d+)/s"):
        assert not outside(text), text

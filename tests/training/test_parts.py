"""Parts of a network: frozen, at rates of their own, from earlier runs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.checkpoint.read import find_checkpoint, list_checkpoints, load, load_trainer
from harness.config.identity import config_hashes, identity_changes, rate_changes
from harness.config.parts import PartConfig
from harness.config.read import read_config, resolved_yaml
from harness.config.schema import Config
from harness.data.sampling import Sampling
from harness.errors import ConfigError
from harness.networks.attention import Gpt
from harness.randomness import seed_ambient, seed_for
from harness.training import parts as network_parts
from harness.training.evaluation import evaluation_mode
from harness.training.optimizer import parameter_groups
from tests.pool import Launched, train_on_ranks
from tests.resume.parts import Blobs
from tests.resume.test_exact import assert_same, finish, launch
from tests.training.parts import Halves

STORM = Path(__file__).with_name("parts.yaml")
HALVES = STORM.with_name("halves.yaml")


def parts(**settings: Mapping[str, Any]) -> dict[str, PartConfig]:
    return {
        path.replace("__", "."): PartConfig.model_validate(dict(given))
        for path, given in settings.items()
    }


def config(*overrides: str) -> Config:
    return read_config(HALVES, overrides)


def train(directory: Path, *overrides: str, ranks: int = 2) -> list[Launched]:
    return train_on_ranks(ranks, HALVES, [f"run.dir={directory}", *overrides])


def weights(run: Path) -> dict[str, Tensor]:
    """Of the last checkpoint."""
    return load(
        list_checkpoints(run / "checkpoints")[-1].path,
        rank=0,
        num_ranks=0,
    ).model


def rates(run: Path) -> list[float]:
    groups = load_trainer(list_checkpoints(run / "checkpoints")[-1].path)["optimizer"]["groups"]
    return [group["values"]["lr"] for group in groups]


# -- what is frozen, and at which rate the others learn


def test_each_setting_is_that_of_the_innermost_part() -> None:
    network = Halves()
    given = parts(
        encoder={"lr": 0.1, "weight_decay": 0.5},
        encoder__4={"lr": 0.2},
        encoder__4__bias={"freeze": True},
    )
    network_parts.freeze(network, given)
    groups = parameter_groups(network, given)
    assert [(one.part, dict(one.options)) for one in groups] == [
        ("", {}),
        ("encoder", {"lr": 0.1, "weight_decay": 0.5}),
        ("encoder.4", {"lr": 0.2, "weight_decay": 0.5}),
    ]
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert [[names[parameter] for parameter in one.parameters] for one in groups] == [
        ["head.weight", "head.bias"],
        ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
        ["encoder.4.weight"],
    ]


def test_a_frozen_part_is_as_in_an_evaluation_also_after_one() -> None:
    network = Halves()
    given = parts(encoder={"freeze": True}, encoder__3={"freeze": False})
    network_parts.training_mode(network, given)
    for _ in range(2):
        assert [network.training, network.encoder.training, network.encoder[1].training] == [
            True,
            False,
            False,
        ]
        assert network.encoder[3].training
        assert network.head.training
        with evaluation_mode(network):
            assert not any(module.training for module in network.modules())


def test_tied_parameters_cannot_be_told_apart() -> None:
    gpt = Gpt(vocabulary=5, context=4, dim=8, depth=1, num_heads=2)
    network_parts.freeze(gpt, parts(head={"freeze": True}))
    assert not gpt.embedding.weight.requires_grad
    with pytest.raises(
        ConfigError,
        match=r"embedding\.weight and head\.weight are tied: "
        "one tensor cannot be frozen and trained",
    ):
        network_parts.freeze(gpt, parts(head={"freeze": True}, embedding={"freeze": False}))
    twins = parts(head={"lr": 0.1}, embedding={"lr": 0.2})
    with pytest.raises(ConfigError, match=r"are tied and get different settings"):
        parameter_groups(Gpt(vocabulary=5, context=4, dim=8, depth=1, num_heads=2), twins)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["parts={encodr: {freeze: true}}"],
            ["parts.encodr: the network has no part of this name. Did you mean encoder?"],
        ),
        (["parts={x: {freeze: true}}"], ["parts.x", "Its top-level parts are encoder, head."]),
        (
            ["parts={encoder: {freeze: true}, head: {freeze: true}}"],
            ["network: every parameter is frozen"],
        ),
        (
            ["parts={encoder: {freeze: true}, encoder.0: {lr: 0.1}}"],
            ["parts.encoder.0.lr: no effect: no parameter that is trained takes it"],
        ),
        (["parts={encoder.2: {lr: 0.1}}"], ["parts.encoder.2.lr: no effect"]),
        (
            ["parts={head: {weight_decay: 0.1}}", "optimizer={_target_: torch.optim.Rprop}"],
            ["parts.head.weight_decay: Rprop has no weight_decay"],
        ),
        (
            [
                "parts={head: {lr: 0.1}}",
                "schedule={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 1, total_steps: "
                "99}",
            ],
            ["schedule: torch.optim.lr_scheduler.OneCycleLR sets rates of its own (0.04, 0.04)"],
        ),
        (
            ["parts={head: {freeze: true, lr: 0.1}}"],
            ["parts.head", "lr and weight_decay have no effect on a frozen part"],
        ),
        (["parts={head: {prefix: x}}"], ["parts.head", "prefix has no effect without init_from"]),
        (["parts={head: {}}"], ["parts.head", "sets nothing"]),
        (
            ["parts={head: {frozen: true}}"],
            ["parts.head.frozen", "Did you mean parts.head.freeze?"],
        ),
        (
            ["parts={head: {init_from: x}}", "run.resume=must"],
            ["parts", "head.init_from: no effect with run.resume: must"],
        ),
        (["parts={head: {init_from: /nowhere}}"], ["parts.head.init_from: /nowhere"]),
        (
            ["network.idle=true"],
            [
                "network: no gradient reaches idle.weight, idle.bias, and several processes "
                "cannot train"
            ],
        ),
    ],
    ids=lambda value: value[0][:40],
)
def test_a_mistake_is_one_message(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    ends = train(tmp_path / "run", *overrides)
    told = "".join(end.stderr for end in ends)
    assert [end.exit_code for end in ends] == [2, 2], told
    assert "Traceback" not in told
    # Torch notes on standard error where the name server does not answer in time.
    own = [line for line in told.strip().splitlines() if line and "[c10d]" not in line]
    assert len(own) == 1, told
    for word in words:
        assert word in told


def test_what_several_processes_cannot_train_may_be_frozen(tmp_path: Path) -> None:
    ends = train(
        tmp_path / "run", "network.idle=true", "parts={idle: {freeze: true}}", "stop.budget.steps=2"
    )
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr


# -- the config


def test_what_identifies_a_run_and_what_does_not() -> None:
    before = config("parts={encoder: {freeze: true}, head: {lr: 0.1}}")
    same = config(
        "parts={encoder: {freeze: true, init_from: x}, head: {lr: 0.2, freeze: false, "
        "weight_decay: 0.1}}"
    )
    assert identity_changes(before, same) == []
    assert rate_changes(before, same) == ["parts.head.lr", "parts.head.weight_decay"]
    assert (
        rate_changes(
            before, config("parts={encoder: {freeze: true, init_from: x}, head: {lr: 0.1}}")
        )
        == []
    )
    assert identity_changes(before, config()) == ["parts.encoder.freeze: True -> absent"]
    inside = config("parts={encoder: {freeze: true}, encoder.4: {freeze: false}, head: {lr: 0.1}}")
    assert identity_changes(before, inside) == ["parts.encoder.4.freeze: absent -> False"]
    hashes = [config_hashes(one) for one in (before, same, inside)]
    assert hashes[0]["identity"] == hashes[1]["identity"] != hashes[2]["identity"]
    assert hashes[0]["course"] == hashes[2]["course"] != hashes[1]["course"]


def test_a_resolved_config_has_its_parts(tmp_path: Path) -> None:
    one = config(
        "parts={encoder.4: {freeze: false, init_from: x, prefix: ''}, head: {lr: 0.1, "
        "weight_decay: 0}}"
    )
    (tmp_path / "again.yaml").write_text(resolved_yaml(one))
    assert read_config(tmp_path / "again.yaml") == one


# -- trained


def test_training_is_that_of_plain_torch_with_two_groups(tmp_path: Path) -> None:
    settings = (
        "parts={encoder: {freeze: true}, encoder.4: {freeze: false, lr: 3e-3, weight_decay: 0}}"
    )
    ends = train(
        tmp_path / "run",
        settings,
        "schedule={_target_: torch.optim.lr_scheduler.LinearLR, total_iters: 20}",
    )
    assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr

    seed_ambient(seed_for(3, "network"))
    network, source, sampling = Halves(), Blobs(96), Sampling(96, 24, 24, 3)
    network.encoder[:4].eval().requires_grad_(False)
    moved = {"params": network.encoder[4].parameters(), "lr": 3e-3, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": network.head.parameters()}, moved], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
    for step in range(30):
        batch = source.__getitems__(sampling.samples(step, 0).tolist())
        loss = nn.functional.cross_entropy(
            network(torch.from_numpy(batch["x"])), torch.from_numpy(batch["label"])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(
        weights(tmp_path / "run"), dict(network.state_dict()), rtol=1e-4, atol=1e-6
    )


def test_parts_of_an_earlier_run_stay_as_they_were_to_the_bit_also_after_a_death(
    tmp_path: Path,
) -> None:
    finish(tmp_path / "earlier", 1, "stop.budget.steps=10")
    earlier = load(find_checkpoint(tmp_path / "earlier"), rank=0, num_ranks=0).model
    assert int(earlier["norm.num_batches_tracked"]) > 0
    shutil.copytree(tmp_path / "earlier", tmp_path / "moved")
    origin = [
        f"parts.first.init_from={tmp_path / 'moved'}",
        f"parts.norm.init_from={tmp_path / 'moved'}",
    ]
    (whole, _) = launch(tmp_path / "whole", 2, *origin, config=STORM)
    assert whole.exit_code == 0, whole.stderr
    assert (
        f"parts.norm.init_from: {tmp_path / 'moved'}: 5 tensors loaded; newly initialised: none; "
        "not used: none" in whole.stdout
    )
    after = weights(tmp_path / "whole")
    for name, tensor in after.items():
        assert tensor.equal(earlier[name]) == name.startswith(("first.", "norm.")), name
    launch(tmp_path / "cut", 2, *origin, die_at="1:13", config=STORM)
    shutil.rmtree(tmp_path / "moved")  # not looked for in a run that goes on
    (second, _) = launch(tmp_path / "cut", 2, *origin, die_at="0:9:term", config=STORM)
    (third, _) = launch(tmp_path / "cut", 2, *origin, config=STORM)
    assert [second.exit_code, third.exit_code] == [75, 0], third.stderr
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_part_may_come_from_a_file_under_another_name(tmp_path: Path) -> None:
    save_file(
        {
            "net.backbone.weight": torch.full((3, 8), 0.5),
            "net.backbone.scale": torch.ones(1),
            "x": torch.ones(1),
        },
        tmp_path / "w.safetensors",
    )
    given = (
        f"parts={{head: {{init_from: {tmp_path}/w.safetensors, prefix: net.backbone., freeze: "
        f"true}}}}"
    )
    (end,) = train(tmp_path / "run", given, ranks=1)
    assert end.exit_code == 0, end.stderr
    assert "1 tensors loaded; newly initialised: head.bias; not used: head.scale" in end.stdout
    assert weights(tmp_path / "run")["head.weight"].eq(0.5).all()
    (end,) = train(tmp_path / "other", given.replace("backbone.", "trunk."), ranks=1)
    assert end.exit_code == 2
    assert "parts.head.prefix: none of its names begins with 'net.trunk.'" in end.stderr


def test_other_rates_hold_from_a_resume_on(tmp_path: Path) -> None:
    run, schedule = (
        tmp_path / "run",
        "schedule={_target_: harness.schedules.WarmupCosine, total_steps: 20, floor: 0.5}",
    )
    steps = [
        ("parts={encoder.4: {lr: 4e-3}}", 10),
        ("parts={encoder.4: {lr: 8e-3}}", 20),
        ("parts={encoder.4: {lr: 8e-3}, head: {lr: 2e-2}}", 22),
        ("parts={}", 24),
    ]
    found = []
    for given, budget in steps:
        ends = train(
            run, given, schedule, f"stop.budget.steps={budget}", "checkpoint.every.steps=1"
        )
        assert [end.exit_code for end in ends] == [0, 0], ends[0].stderr
        found.append(rates(run))
    assert found == [
        pytest.approx([0.75e-2, 3e-3]),
        pytest.approx([5e-3, 4e-3]),
        pytest.approx([5e-3, 4e-3, 1e-2]),
        pytest.approx([5e-3]),
    ]
    last = [json.loads(line).get("lr") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [rate for rate in last if rate is not None][-1] == pytest.approx(5e-3)


def test_a_changed_rate_that_a_torch_schedule_would_swallow_is_refused(tmp_path: Path) -> None:
    schedule = "schedule={_target_: torch.optim.lr_scheduler.LinearLR}"
    (end,) = train(
        tmp_path / "run", "parts={head: {lr: 0.1}}", schedule, "stop.budget.steps=4", ranks=1
    )
    assert end.exit_code == 0, end.stderr
    (end,) = train(tmp_path / "run", "parts={head: {lr: 0.2}}", schedule, ranks=1)
    assert end.exit_code == 2
    assert "parts.head.lr changed, which has no effect on a run with a torch schedule" in end.stderr

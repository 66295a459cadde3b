"""Every optimizer of torch that our contract allows continues with the bits it had."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import components
from harness.checkpoint.state import optimizer_tensors, restore_optimizer
from harness.config.read import read_config
from harness.data.source import Batch
from harness.errors import ConfigError
from harness.ranks.ranks import Ranks
from harness.training.engine import Engine
from harness.training.fused import FusedAdam
from harness.training.items import Count
from harness.training.optimizer import parameter_names
from harness.training.parallel import Replicas, start_accelerator
from tests.pool import on_ranks

SMALL = Path(__file__).with_name("small.yaml")
REFUSED = ("LBFGS", "SparseAdam")
OPTIMIZERS = sorted(
    name
    for name, one in vars(torch.optim).items()
    if isinstance(one, type) and one is not torch.optim.Optimizer and name not in REFUSED
)
NETWORK = "network={_target_: tests.training.optimizer_parts.Typed, dtype: %s}"


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return {
        "x": torch.randn(4, 6, generator=generator),
        "label": torch.randint(3, (4,), generator=generator),
    }


def engine_of(optimizer: str, dtype: str) -> Engine:
    overrides = [f"optimizer={optimizer}", NETWORK % dtype]
    config = read_config(SMALL, overrides)
    task = components.build(config.task, "task")
    engine = Engine(config, start_accelerator("no", "same_world", 60.0), task, batch_of(0))
    engine.shard(Ranks())
    engine.open()
    return engine


def go(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        engine.forward_backward(batch_of(step), Count(torch.tensor(4), 1))
        engine.update()


def bits(engine: Engine) -> list[torch.Tensor]:
    return [one.detach().clone() for one in engine.network.parameters()]


def resumed(engine: Engine, optimizer: str, dtype: str) -> Engine:
    """As a resume puts it together: the state is in before the ranks are joined."""
    names = parameter_names(engine.network)
    tensors, rest = optimizer_tensors(engine.optimizer, names)
    copies = {key: one.clone() for key, one in tensors.items()}
    other = engine_of(optimizer, dtype)
    other.network.load_state_dict(engine.network.state_dict())
    restore_optimizer(other.optimizer, parameter_names(other.network), copies, rest)
    other.wrap(Ranks())
    return other


def check_variants(name: str) -> list[str]:
    """The variants of an optimizer that were run, and asserts that each goes on as it was."""
    takes = inspect.signature(getattr(torch.optim, name)).parameters
    done = []
    for dtype in ("float32", "bfloat16", "float64"):
        for variant in ("fused", "foreach", "plain"):
            if variant != "plain" and variant not in takes:
                continue
            options = f"{variant}: true" if variant != "plain" else "foreach: false"
            options = options if options.split(":")[0] in takes else ""
            spec = f"{{_target_: torch.optim.{name}, lr: 0.05{', ' * bool(options)}{options}}}"
            try:
                whole = engine_of(spec, dtype)
            except ConfigError:  # torch has no such kernel on the CPU
                assert variant == "fused"
                continue
            whole.wrap(Ranks())
            go(whole, 0, 5)
            other = resumed(whole, spec, dtype)
            go(whole, 5, 11)
            go(other, 5, 11)
            same = all(map(torch.equal, bits(whole), bits(other)))
            assert same, f"{name}, {dtype}, {variant}"
            done.append(f"{dtype} {variant}")
    return done


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_with_the_same_bits_in_every_dtype_and_kernel(name: str) -> None:
    [done] = on_ranks(1, check_variants, name)
    assert {"float32 plain", "bfloat16 plain", "float64 plain"} <= set(done)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_kernel_called_directly_steps_as_the_optimizer_does(name: str) -> None:
    """Groups of their own, a schedule of torch's, gradients that are missing at times, hooks."""

    def optimizer_of() -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
        torch.manual_seed(1)
        given = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(4)]
        groups = [{"params": given[:3]}, {"params": given[3:], "lr": 0.3, "weight_decay": 0.5}]
        return getattr(torch.optim, name)(groups, lr=0.1, fused=True), given

    (ours, mine), (its, theirs) = optimizer_of(), optimizer_of()
    schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in (ours, its)]
    direct, taken = None, []
    for step in range(8):
        for one, other in zip(mine, theirs, strict=True):
            gradient = None if step == 3 and one is mine[1] else torch.randn_like(one)
            one.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        if step == 5:
            hook = ours.register_step_post_hook(lambda *_: None)
        if step == 6:
            hook.remove()
        its.step()
        taken.append(direct is not None and direct.step())
        if not taken[-1]:
            ours.step()
        direct = direct or FusedAdam.of(ours)
        for schedule in schedules:
            schedule.step()
        if step == 6:  # in other tensors from here on
            ours.load_state_dict(ours.state_dict())
        assert all(map(torch.equal, mine, theirs)), step
        assert all(
            ours.state[one][key].equal(its.state[other][key])
            for one, other in zip(mine, theirs, strict=True)
            for key in ("step", "exp_avg", "exp_avg_sq")
        )
    assert taken == [False, True, True, False, True, False, True, False]


def test_what_is_not_a_plain_fused_adam_steps_itself() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    for optimizer in (
        torch.optim.SGD([parameter], lr=0.1, fused=True),
        torch.optim.AdamW([parameter], foreach=True),
        torch.optim.AdamW([parameter], fused=True, amsgrad=True),
        torch.optim.AdamW([parameter, torch.nn.Parameter(torch.ones(2).double())], fused=True),
        type("Own", (torch.optim.AdamW,), {})([parameter], fused=True),
    ):
        assert FusedAdam.of(optimizer) is None
        for group in optimizer.param_groups:
            for one in group["params"]:
                one.grad = torch.ones_like(one)
        optimizer.step()
        assert FusedAdam.of(optimizer) is None
    rate = torch.optim.AdamW([parameter], lr=torch.tensor(0.1), fused=True)
    rate.step()
    direct = FusedAdam.of(rate)
    assert direct is not None
    assert not direct.step()
    grown = torch.optim.AdamW([parameter], fused=True)
    grown.step()
    direct = FusedAdam.of(grown)
    assert direct is not None
    assert direct.step()
    other = torch.nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    grown.add_param_group({"params": [other]})
    assert not direct.step()


def test_wide_moments_of_narrow_weights_stay_wide() -> None:
    assert on_ranks(1, wide_moments) == [torch.float32]


def wide_moments() -> Any:
    spec = "{_target_: tests.training.optimizer_parts.WideMoments}"
    engine = engine_of(spec, "bfloat16")
    engine.wrap(Ranks())
    go(engine, 0, 3)
    other = resumed(engine, spec, "bfloat16")
    go(engine, 3, 9)
    go(other, 3, 9)
    assert all(map(torch.equal, bits(engine), bits(other)))
    return next(iter(other.optimizer.state.values()))["moment"].dtype


@pytest.mark.parametrize("limit", [None, 0.5, 1e6])
@pytest.mark.parametrize(
    "dtypes", [["float32"] * 5, ["float64"], ["float32", "float64", "bfloat16"], []]
)
def test_gradients_are_clipped_to_the_bit_as_torch_clips_them(
    dtypes: list[str], limit: float | None
) -> None:
    def parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(1)
        given = [torch.nn.Parameter(torch.randn(7, 3, dtype=getattr(torch, one))) for one in dtypes]
        for one in given:
            one.grad = torch.randn_like(one)
        return [torch.nn.Parameter(torch.randn(2)), *given]  # the first one without a gradient

    ours, its = parameters(), parameters()
    accelerator = start_accelerator("no", "none", 60.0)
    clip = Replicas(torch.nn.Linear(1, 1), accelerator, Ranks(), False).clip
    norm = clip(ours, limit)
    if limit is None:
        expected = torch.nn.utils.get_total_norm([one.grad for one in its if one.grad is not None])
    else:
        expected = torch.nn.utils.clip_grad_norm_(its, limit)
    assert norm.equal(expected)
    for one, other in zip(ours[1:], its[1:], strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.equal(other.grad)

"""torch.compile of a network's forward pass, so that an interrupted run ends with the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from harness.errors import ConfigError
from harness.wording import first_line

MOST_SHAPES = 64  # of inputs, each of which is compiled by itself


def compile_forward(network: nn.Module, device: torch.device, exact: bool) -> None:
    """Compile the network's forward pass, and with it the backward pass, where each is first run:
    in the trial before the first step. The network remains the same module, with the same names.

    exact: with kernels that do not depend on what a measurement found fastest. Raises ConfigError.
    """
    check_compiler(device)
    import torch._dynamo
    import torch._inductor.config

    # Shapes as they come, each by itself: torch would make one of them variable for those that
    # follow, so that kernels depended on what came before, which a resume does not see again. And
    # where there are too many, it would go on uncompiled, with other bits.
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._inductor.config.deterministic = exact
    network.compile(dynamic=False)


@contextmanager
def compiler_kept() -> Iterator[None]:
    """Afterwards the compiler has the settings that it had, and nothing of what it compiled."""
    import torch._dynamo
    import torch._inductor.config

    dynamo, inductor = torch._dynamo.config, torch._inductor.config
    with (
        dynamo.patch(
            recompile_limit=dynamo.recompile_limit,
            fail_on_recompile_limit_hit=dynamo.fail_on_recompile_limit_hit,
        ),
        inductor.patch(deterministic=inductor.deterministic),
    ):
        yield
    torch.compiler.reset()


def has_too_many_shapes(error: BaseException) -> bool:
    """Whether a compiled network met more than MOST_SHAPES shapes of inputs."""
    return type(error).__name__ == "FailOnRecompileLimitHit"


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError on a machine that has no compiler for the device's kernels."""
    try:
        if device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
            return
        from torch.utils._triton import has_triton

        if has_triton():
            return
        found = "Triton does not know this device"
    except Exception as error:  # noqa: BLE001 - torch has several, and they are not public
        found = first_line(error)
    raise ConfigError(
        f"train.compile: no compiler works for {device.type} here: {found}. Install a C++ compiler "
        "(g++) for the CPU or Triton for a GPU, or set train.compile: false."
    )

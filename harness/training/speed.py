"""How fast a training is: samples and floating-point operations in a second, at each log point."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.config.schema import Config


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types none of it
    """Counts the floating-point operations inside by torch's own formulas: of matrix products,
    convolutions and attention, a multiplication and an addition each; others count nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # see above
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


class Speed:
    """The rates since the last log point, of all ranks together, without evaluations and what a
    save holds the loop for.
    """

    def __init__(self, step: int, num_samples: int, peak: float | None) -> None:
        """step: of the run, where the launch begins; num_samples: of a step; peak: operations in a
        second of all devices, None if unknown.
        """
        self._num_samples = num_samples
        self._peak = peak
        self._since = step, 0.0

    def measure(self, step: int, stepped_s: float, operations: int | None) -> dict[str, float]:
        """`samples_per_s`, `flop_per_s` and `peak_share`, as far as they are known.

        stepped_s: seconds that the launch's steps took so far; operations: of a step.
        """
        (before, before_s), self._since = self._since, (step, stepped_s)
        if step <= before or stepped_s <= before_s:
            return {}
        steps_per_s = (step - before) / (stepped_s - before_s)
        rates = {"samples_per_s": self._num_samples * steps_per_s}
        if operations:
            rates["flop_per_s"] = operations * steps_per_s
            if self._peak:
                rates["peak_share"] = rates["flop_per_s"] / self._peak
        return rates


def peak_of(config: Config, device: torch.device, num_devices: int) -> float | None:
    """Floating-point operations in a second that the data sheet promises for matrix products in
    `train.precision`, by torch's list; None if it is not in there.
    """
    if device.type != "cuda":
        return None
    try:
        from torch._inductor.analysis.device_info import datasheet_tops
    except ImportError:  # it is not public
        return None
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    is_tf32 = torch.get_float32_matmul_precision() != "highest"
    found = datasheet_tops(kinds.get(config.train.precision, torch.float32), is_tf32)
    return None if found is None else 1e12 * found * num_devices

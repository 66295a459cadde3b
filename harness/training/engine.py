"""What is trained, on its device: the network, its wrapped form, the optimizer, the schedule; built
through Accelerate.

`network` is the user's module and what is evaluated and saved; `model` is the same module as the
training's forward passes see it (DDP).
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from harness import components
from harness.config.schema import Config
from harness.data.feed import to_device
from harness.data.source import Batch
from harness.errors import ConfigError
from harness.randomness import (
    capture_random,
    generators_of,
    preserved,
    restore_random,
    seed_ambient,
    seed_for,
)
from harness.ranks.ranks import Ranks
from harness.tasks.task import Task, detach
from harness.training import parts as network_parts
from harness.training.optimizer import build_optimizer, check_proportions


class Engine:
    """Forward, backward and update of one network.

    Built on each rank without a collective; `wrap` joins the ranks.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, num_ranks: int, task: Task, probe: Batch
    ) -> None:
        """`probe`: a micro-batch for a first forward pass, which tells the task the shape of the
        outputs. Raises ConfigError.
        """
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self._num_ranks = num_ranks
        self._task = task
        self._clip_grad_norm = config.train.clip_grad_norm
        seed_ambient(seed_for(config.run.seed, "network"))
        self.network: nn.Module = components.build(config.network, "network").to(self.device)
        self._parts = config.parts
        network_parts.check_parts(self.network, self._parts)
        network_parts.freeze(self.network, self._parts)
        self._probe(to_device(probe, self.device))
        self.optimizer: Optimizer = build_optimizer(config.optimizer, self.network, self._parts)
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.schedule: Any = (
            components.build(config.schedule, "schedule", optimizer=self.optimizer)
            if config.schedule
            else None
        )
        if config.schedule and any(part.lr is not None for part in self._parts.values()):
            check_proportions(self.optimizer, rates, config.schedule)
        self.model: nn.Module = self.network
        self._stepper: Any = None
        self._ranks = Ranks()
        self._buffers: list[Tensor] = []
        self.generators = generators_of(self.network)
        self.not_deterministic: list[str] = []

    def wrap(self, ranks: Ranks) -> None:
        """Make the passes and steps those of all ranks.

        Called by every rank, once the weights are in.
        """
        self._ranks = ranks
        self.model = self.accelerator.prepare_model(self.network)
        if isinstance(self.model, DistributedDataParallel):
            # Buffers become rank 0's at the end of each step (see `update`), not at the next
            # forward: a checkpoint in between would differ.
            self.model.forward_sync_buffers = False
        self._stepper = self.accelerator.prepare_optimizer(self.optimizer)
        # Taken only now: wrapping may put other tensors in the buffers' places.
        self._buffers = [buffer for buffer in self.network.buffers() if buffer.numel()]
        own = {id(parameter) for parameter in self.network.parameters()}
        assert all(
            id(parameter) in own
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )

    def parameter_names(self) -> dict[Tensor, str]:
        """Parameters by identity, each under its first name in the network."""
        return {parameter: name for name, parameter in self.network.named_parameters()}

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Inside, backward passes exchange gradients between ranks only if this is the step's last
        slot.
        """
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def forward_backward(self, batch: Batch, num_items: Tensor) -> tuple[Any, Tensor]:
        """Gradients of (sum of losses over the micro-batch) / num_items, added up.

        Returns (outputs, loss sum), detached.

        DDP averages gradients over ranks where the mean over all items needs their sum: hence the
        factor.
        """
        outputs = self._task.forward(self.model, batch)
        loss_sum = self._task.loss_sum(outputs, batch)
        self.accelerator.backward(loss_sum * (self._num_ranks / num_items))
        return detach(outputs), loss_sum.detach()

    def update(self) -> tuple[Tensor, bool]:
        """Clip, step the optimizer and the schedule, agree on buffers.

        Returns (gradient norm before clipping, whether the scaler skipped it).
        """
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if self._clip_grad_norm is not None:
            norm: Tensor = self.accelerator.clip_grad_norm_(parameters, self._clip_grad_norm)
        else:
            self.accelerator.unscale_gradients(self._stepper)
            norm = nn.utils.get_total_norm(
                [parameter.grad for parameter in parameters if parameter.grad is not None]
            )
        self._stepper.step()
        skipped = self.accelerator.scaler is not None and self._stepper.step_was_skipped
        if self.schedule is not None and not skipped:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._ranks.broadcast_in_place(self._buffers)
        return norm.detach(), skipped

    def learning_rate(self) -> float:
        """Of the first parameter group: of what no part has a rate for."""
        return float(self.optimizer.param_groups[0]["lr"])

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Feed an evaluation to a schedule that follows one, e.g. a plateau.

        All ranks have the same metrics, hence the same rate.
        """
        if self.schedule is not None and hasattr(self.schedule, "observe"):
            self.schedule.observe(metrics)

    def warm_up(self, batch: Batch) -> None:
        """One forward and backward that leaves no trace but what a launch does once, and names the
        operations that are not deterministic.

        DDP orders its gradient buckets by the first backward pass of a process; with three ranks
        and more another order adds the gradients up otherwise. They are rebuilt in the forward that
        follows that backward, hence in the first real step: docs/decisions/0004-warm-up.md. Called
        by every rank.
        """
        buffers, random_state = (
            [buffer.clone() for buffer in self._buffers],
            capture_random(self.generators),
        )
        with preserved(), _noting_nondeterminism(self.not_deterministic):
            network_parts.training_mode(self.network, self._parts)
            self.forward_backward(batch, torch.ones((), device=self.device))
        self._check_gradients()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)
        restore_random(random_state, self.generators)

    def regrouped(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What `optimizer_tensors` said beside the tensors, in the present groups: a part may have
        a rate of its own now, or no longer.
        """
        names = self.parameter_names()
        present = [
            [names.get(parameter, "") for parameter in group["params"]]
            for group in self.optimizer.param_groups
        ]
        values = {name: group["values"] for group in saved["groups"] for name in group["params"]}
        if present == [group["params"] for group in saved["groups"]] or sorted(values) != sorted(
            name for group in present for name in group
        ):
            return dict(saved)  # as they are, or of other parameters: to be refused
        return {
            **saved,
            "groups": [{"params": group, "values": values[group[0]]} for group in present],
        }

    def adopt_changes(
        self,
        before: Mapping[str, Any],
        fresh: Sequence[Mapping[str, Any]],
        parts: network_parts.Parts,
    ) -> list[str]:
        """Let what the config now says of the optimizer hold where it says something else than
        `before` did; returns what changed.

        before, parts: of the config that the checkpoint was written under. `fresh`: the parameter
        groups as the present config made them. Both are compared as built, so that an optimizer may
        make groups of its own.
        """
        changes = []
        built = {
            parameter: group
            for group in build_optimizer(before, self.network, parts).param_groups
            for parameter in group["params"]
        }
        for index, (group, new) in enumerate(zip(self.optimizer.param_groups, fresh, strict=True)):
            old = built[group["params"][0]] if group["params"] else new
            for name in new.keys() & old.keys() - {"params"}:
                if old[name] != new[name]:
                    group[name] = new[name]
                    if name == "lr" and "initial_lr" in group:
                        group["initial_lr"] = new[name]
                    changes.append(f"group {index}: {name}: {old[name]} -> {new[name]}")
        return changes

    def scaler_state(self) -> dict[str, Any] | None:
        """The loss scaler's state, None without fp16."""
        return (
            None if self.accelerator.scaler is None else dict(self.accelerator.scaler.state_dict())
        )

    def restore_rest(
        self, schedule: Mapping[str, Any] | None, scaler: Mapping[str, Any] | None
    ) -> None:
        """Put back the state of the schedule and of the loss scaler."""
        if self.schedule is not None and schedule is not None:
            self.schedule.load_state_dict(dict(schedule))
        if self.accelerator.scaler is not None and scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(scaler))

    def _probe(self, batch: Batch) -> None:
        self.network.eval()
        try:
            with preserved(), torch.no_grad():
                outputs = self._task.forward(self.network, batch)
        except Exception as error:
            shapes = {
                name: (tuple(value.shape), str(value.dtype))
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            raise ConfigError(
                f"network: cannot take a micro-batch {shapes}: {error}. Mend network or the "
                "treatments before it."
            ) from error
        self._task.fit_to(outputs)
        network_parts.training_mode(self.network, self._parts)

    def _check_gradients(self) -> None:
        """DDP waits for a gradient of each parameter that is trained; a parameter that never gets
        one would end a run in its second step.
        """
        without = [
            name
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        if without and isinstance(self.model, DistributedDataParallel):
            shown = ", ".join(without[:5]) + (
                f" and {len(without) - 5} more" if len(without) > 5 else ""
            )
            raise ConfigError(
                f"network: no gradient reaches {shown}, which several processes cannot train. "
                "Freeze them, e.g. by parts, or use them."
            )


@contextmanager
def _noting_nondeterminism(found: list[str]) -> Iterator[None]:
    """Collect the names of operations that torch warns of as not deterministic; other warnings go
    on as they would.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        match = re.match(
            r"(\S+) does not have a deterministic implementation", str(warning.message)
        )
        if match is None:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif match[1] not in found:
            found.append(match[1])

"""What is trained, on its device: the network, its optimizer and its schedule; forward, backward,
update.

`network` is the user's module and what is evaluated and saved; `sharing.model` is the same module
as the training's forward passes see it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer

from harness.config.schema import Config
from harness.data.delivery import to_device
from harness.data.source import Batch
from harness.errors import ConfigError, HarnessError
from harness.metrics.interval import IntervalMetrics
from harness.randomness import (
    Boundary,
    capture_random,
    generators_of,
    modules_of,
    preserve_random,
    restore_random,
    seed_torch,
    seeding_for,
)
from harness.ranks.heartbeat import BACKWARD, FORWARD, UPDATE
from harness.ranks.mesh import release_parameters
from harness.ranks.ranks import Ranks
from harness.tasks.task import Task, detach, kind_of, widen
from harness.training import parts as network_parts
from harness.training.average import WeightAverage
from harness.training.birth import Birth, build_whole
from harness.training.compiling import compile_forward
from harness.training.determinism import (
    operation_in,
    record_nondeterminism,
    settle,
    settle_in_step,
)
from harness.training.items import Count, Items
from harness.training.machine import is_out_of_memory, kinds_of_memory
from harness.training.network_state import (
    NetworkState,
    buffers_in,
    check_extra_states,
    find_changes,
    give_buffers_memory,
    to_channels_last,
    unsaved_state,
)
from harness.training.optimizer import build_optimizer, check_proportions, copy_options
from harness.training.parallel import agree_on_start
from harness.training.recompute import recompute
from harness.training.schedule import build_schedule, restore_schedule, step_schedule
from harness.training.sharing import Sharing, shard, share
from harness.training.speed import Operations
from harness.training.stable import stable_tensors, write_counts, writes_are_counted
from harness.training.stepper import Stepper, has_modes
from harness.wording import first_line, origin


class Engine:
    """Forward, backward and update of one network. Built on each rank without a collective; then
    ranks `shard` it, `open` makes its optimizer, and `wrap` joins the ranks.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        task: Task,
        probe: Batch,
        birth: Birth | None = None,
    ) -> None:
        """`probe`: a micro-batch for a first forward pass, which tells the task the shape of the
        outputs. `birth`: of the network, if it is built already. Raises ConfigError.
        """
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self._task = task
        self.birth = birth or build_whole(config, {})
        self.network: nn.Module = self.birth.network
        if not self.birth.is_spread:
            self.network = self.network.to(self.device)
        give_buffers_memory(self.network)
        if config.train.channels_last:
            to_channels_last(self.network)
        self._num_slots = config.batch.size // config.batch.micro_size
        self._parts = config.parts
        self._config = config
        network_parts.check_parts(self.network, self._parts)
        network_parts.freeze(self.network, self._parts)
        self.recomputed = recompute(self.network, config.train.recompute)
        if not self.birth.is_spread:
            self._probe(to_device(probe, self.device))
        self.seed_forward = seeding_for(self.network, task)
        self.generators = generators_of(network=self.network, task=task)
        self.not_deterministic: list[str] = []
        # Why an interrupted run may end with other bits, found in the warm-up.
        self.inexact: list[str] = []
        # Floating-point operations of a micro-batch, forward and backward, once they are counted
        self.operations: int | None = None
        # Parameters that forward or backward passes change as well, found in the warm-up
        self._changed_in_passes: set[str] = set()
        self._writes_are_counted = writes_are_counted([config.network, config.task])

    def shard(self, ranks: Ranks) -> None:
        """Leave the network as ranks share it. Called by every rank. Raises ConfigError."""
        self.shards = shard(self.birth, self.accelerator, ranks, self._config)

    def open(self) -> None:
        """An optimizer for them. Raises ConfigError."""
        config = self._config
        if config.train.compile:
            compile_forward(self.network, self.device, config.run.exactness != "none")
        self.optimizer: Optimizer = self.optimizer_of(config.optimizer, self._parts)
        ema = config.train.ema
        average = None if ema is None else WeightAverage(ema)
        self.stepper = Stepper(
            self.optimizer, self.accelerator.scaler, config.train.clip_grad_norm, average
        )
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        # As the config made them: a schedule changes them when it is built
        self.fresh_groups = copy_options(self.optimizer)
        self.schedule: Any = (
            build_schedule(config.schedule, self.optimizer) if config.schedule else None
        )
        # Optimizers and schedules of torch's and ours draw nothing; a user's may
        self.boundary = Boundary(
            late=self.seed_forward is seed_torch
            and type(self.optimizer).__module__.startswith("torch.optim.")
            and type(self.schedule).__module__ in ("builtins", "harness.schedules")
        )
        if config.schedule and any(part.lr is not None for part in self._parts.values()):
            check_proportions(self.optimizer, rates, config.schedule)

    def optimizer_of(self, spec: Mapping[str, Any], parts: network_parts.Parts) -> Optimizer:
        """An optimizer over the network's trained parameters. Raises ConfigError."""
        # Fused kernels compute the last elements of a tensor otherwise, and rows end elsewhere on
        # another number of ranks
        apart = self.shards is not None and self._config.run.exactness == "elastic"
        return build_optimizer(spec, self.network, parts, may_fuse=not apart)

    def wrap(self, ranks: Ranks) -> None:
        """Make the passes and steps those of all ranks.

        Called by every rank, once the weights are in; in a training by `warm_up`.
        """
        self.heartbeat = ranks.heartbeat
        if self.shards is not None:
            self.shards.begin()
        self.sharing: Sharing = self.shards or share(
            self.network, self.accelerator, ranks, self._config
        )
        over = self.sharing.averaged_over
        self.items = Items(self._task, ranks, self.device, self._num_slots, over)
        own = {id(parameter) for parameter in self.network.parameters()}
        assert all(
            id(parameter) in own
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Inside, backward passes exchange gradients between ranks only if this is the step's last
        slot.
        """
        return self.sharing.accumulate(last)

    def forward_backward(self, batch: Batch, items: Count) -> tuple[Any, Tensor]:
        """Gradients of (sum of losses over the micro-batch) / number of items, added up.

        Returns (outputs, loss sum), detached.
        """
        try:
            return self._forward_backward(batch, items)
        except (RuntimeError, MemoryError) as error:
            note_shapes(error, batch)
            if is_out_of_memory(error):
                error.add_note(f"beside {kinds_of_memory(self.network, self.optimizer)}")
            raise

    def _forward_backward(self, batch: Batch, items: Count) -> tuple[Any, Tensor]:
        self.heartbeat.enter(FORWARD)
        outputs = self._task.forward(self.sharing.model, batch)
        loss_sum = self._task.loss_sum(outputs, batch)
        self.heartbeat.enter(BACKWARD)
        if self.accelerator.scaler is not None:
            wide = torch.promote_types(loss_sum.dtype, torch.float32)
            self.accelerator.backward(loss_sum * items.weight(wide))
        elif type(loss_sum) is Tensor and loss_sum.dim() == 0:
            # What `torch.autograd.backward` calls after 20 us of checking its arguments
            weights = (items.weight(loss_sum.dtype),)
            _engine_run_backward(
                (loss_sum,), weights, False, False, (), allow_unreachable=True, accumulate_grad=True
            )
        else:
            weight = items.weight(loss_sum.dtype)
            torch.autograd.backward(loss_sum, weight.expand_as(loss_sum))
        return detach(outputs), loss_sum.detach()

    def update(self) -> tuple[Tensor, bool]:
        """Clip, step the optimizer and the schedule, agree on buffers.

        Returns (gradient norm before clipping, whether the scaler skipped it).
        """
        self.heartbeat.enter(UPDATE)
        norm, skipped = self.stepper.step(self.sharing.clip)
        if self.schedule is not None and not skipped:
            step_schedule(self.schedule)
        self.stepper.forget_gradients()
        self.sharing.agree_on_buffers()
        return norm.detach(), skipped

    def learning_rate(self) -> float:
        """The rate of the first parameter group: of everything without a rate of its own."""
        return float(self.optimizer.param_groups[0]["lr"])

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Feed an evaluation to a schedule that follows one, e.g. a plateau.

        All ranks have the same metrics, hence the same rate.
        """
        if self.schedule is not None and hasattr(self.schedule, "observe"):
            self.schedule.observe(metrics)

    def warm_up(self, ranks: Ranks, batch: Batch, other: Batch) -> None:
        """Join the ranks, after a trial on each alone; then one forward and backward of all. It
        leaves no trace but what a launch does once, and names the operations that are not
        deterministic.

        DDP orders its gradient buckets by the first backward pass of a process; with three or more
        ranks another order gives another sum. They are rebuilt in the forward that
        follows that backward, hence in the first real step: docs/decisions/0004-warm-up.md.

        Also names what a forward pass changes that no checkpoint holds. `other`: a micro-batch
        of other samples. Called by every rank. Raises ConfigError.
        """
        check_extra_states(self.network)
        agree_on_start(self.network, ranks)
        state, random_state = NetworkState(self.network), capture_random(self.generators)
        losses = modules_of(self._task, "task")
        losses_before = [NetworkState(loss) for loss in losses.values()]
        with preserve_random():
            self._settle(ranks, other)
        ranks.together(state.check_buffers)
        # After the trial, whose gradients DDP would take for those of its first step
        self.wrap(ranks)
        self.items.agree(batch)
        # What the first pass left is a cache if the second, on another batch, leaves the same.
        unsaved = unsaved_state(self.network) | buffers_in(losses)
        counts = write_counts(self.network)
        with preserve_random(), record_nondeterminism(self.not_deterministic):
            network_parts.training_mode(self.network, self._parts)
            item = torch.ones((), dtype=torch.int64, device=self.device)
            self.forward_backward(batch, Count(item, self.sharing.averaged_over))
        self.sharing.check_gradients()
        self.optimizer.zero_grad(set_to_none=True)
        ranks.together(state.check_buffers)
        self._changed_in_passes.update(
            find_changes(counts, write_counts(self.network)), state.changed_parameters()
        )
        self.note_inexact(
            ranks,
            [
                f"no checkpoint holds {name}, which a step changes: make it a buffer of the network"
                for name in find_changes(unsaved, unsaved_state(self.network) | buffers_in(losses))
            ],
        )
        for one in (state, *losses_before):
            one.restore()
        restore_random(random_state, self.generators)

    def probe(self, ranks: Ranks, batch: Batch) -> None:
        """The forward pass that tells the task the shape of the outputs, where none could be made
        when the engine was built. Called by every rank, with the weights in. Raises ConfigError.
        """
        if self.birth.is_spread:
            ranks.together(lambda: self._probe(to_device(batch, self.device)))
            release_parameters(self.network)

    def note_inexact(self, ranks: Ranks, reasons: Sequence[str]) -> None:
        """Remember why the run is not exact on any rank. Called by every rank."""
        for one in ranks.gather(list(reasons)):
            self.inexact += [reason for reason in one if reason not in self.inexact]

    def stable_tensors(self, optimizer_keys: Iterable[str]) -> dict[str, set[str]]:
        """The names, by role in a checkpoint, of what stays as it is until the next optimizer step;
        none if that cannot be relied on.
        """
        # Of rows torch counts no writes
        if self.shards or not self._writes_are_counted or has_modes(self.optimizer):
            return {}
        found = stable_tensors(
            self.network, self.optimizer, optimizer_keys, self._changed_in_passes
        )
        if self.stepper.evaluated_averages():
            del found["model"]  # each save gives back other weights
        return found

    def scaler_state(self) -> dict[str, Any] | None:
        """The loss scaler's state, None without fp16."""
        return (
            None if self.accelerator.scaler is None else dict(self.accelerator.scaler.state_dict())
        )

    def restore_rest(
        self, schedule: Mapping[str, Any] | None, scaler: Mapping[str, Any] | None, step: int
    ) -> None:
        """Put back the state of the schedule, None if it was another, and of the loss scaler, as
        they were after `step` steps.
        """
        if self.schedule is not None:
            restore_schedule(self.schedule, schedule, step)
        if self.accelerator.scaler is not None and scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(scaler))
            self.stepper.forget_scale()

    def _settle(self, ranks: Ranks, batch: Batch) -> None:
        """Try a step, and find out which operations are not deterministic: each rank alone, or all
        with the same micro-batch where no rank has the whole network.
        """
        found = self.not_deterministic
        if self.shards is None:
            settle(ranks, lambda: self._try_step(batch), found)
            return
        settle_in_step(ranks, lambda: self._try_step(batch), found)

    def _try_step(self, batch: Batch) -> None:
        """What a step and an evaluation do with a micro-batch. Raises ConfigError for what the
        user's network, loss or metrics raise.
        """
        task, autocast = self._task, self.accelerator.autocast
        network_parts.training_mode(self.network, self._parts)
        self._try_passes(batch)
        if self.shards is not None:
            self.shards.check_gradients()
        self.optimizer.zero_grad(set_to_none=True)
        self.network.eval()
        with torch.no_grad():
            with explain_errors("network", "an evaluation", batch), autocast():
                outputs = self._as_trained(task.forward(self.network, batch))
            with explain_errors("task", f"the loss and metrics of {kind_of(outputs)}", batch):
                task.loss_sum(outputs, batch)
                IntervalMetrics(task.metrics()).update(task, outputs, batch, 0)
        if self.shards is not None:
            release_parameters(self.network)

    def _try_passes(self, batch: Batch) -> None:
        """Forward and backward; the first time their operations are counted, if they let
        themselves be counted.
        """
        if self.operations is None and self.shards is None and not self._config.train.compile:
            operations = Operations()
            try:
                with operations:
                    self._pass(batch)
            except Exception:  # noqa: BLE001 - once more, without what counts
                self.optimizer.zero_grad(set_to_none=True)
            else:
                self.operations = operations.count
                return
        self._pass(batch)

    def _pass(self, batch: Batch) -> None:
        with explain_errors("network", "a training pass", batch), self.accelerator.autocast():
            outputs = self._as_trained(self._task.forward(self.network, batch))
        with explain_errors("task", f"the loss of {kind_of(outputs)}", batch):
            loss_sum = self._task.loss_sum(outputs, batch)
        with explain_errors("network", "the backward pass", batch):
            self.accelerator.backward(loss_sum)

    def _as_trained(self, outputs: Any) -> Any:
        """As Accelerate gives them: in float32 where it computes in less."""
        return outputs if self.accelerator.mixed_precision == "no" else widen(outputs)

    def _probe(self, batch: Batch) -> None:
        self.network.eval()
        # The trial before the first step names what is not deterministic.
        quiet = record_nondeterminism([])
        attempt = explain_errors("network", "a forward pass", batch)
        with preserve_random(), torch.no_grad(), quiet, attempt:
            outputs = self._task.forward(self.network, batch)
        self._task.fit_to(outputs)
        network_parts.training_mode(self.network, self._parts)


def shapes_of(batch: Batch) -> dict[str, str]:
    """Of its tensors, for messages."""
    return {name: kind_of(one) for name, one in batch.items() if isinstance(one, Tensor)}


def note_shapes(error: Exception, batch: Batch) -> None:
    """Where memory was refused, say for what."""
    if is_out_of_memory(error):
        error.add_note(f"with a micro-batch of {shapes_of(batch)}")


@contextmanager
def explain_errors(where: str, what: str, batch: Batch) -> Iterator[None]:
    """Make one message of what a user's network, loss or metric raises for a micro-batch.

    What is not deterministic, or does not fit into memory, is reported elsewhere. Raises
    ConfigError.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            note_shapes(error, batch)
            raise
        if isinstance(error, RuntimeError) and operation_in(str(error)) is not None:
            raise
        raise ConfigError(
            f"{where}: {what} fails with a micro-batch of {shapes_of(batch)}: "
            f"{type(error).__name__}: "
            f"{first_line(error)} ({origin(error)}). Fix the network, the task, the treatments "
            "before them, or the sizes of the batch."
        ) from error

"""Where a launch goes on: what rank 0 finds in the run directory and decides for all.

Nothing here is a collective.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import components
from harness.checkpoint.commit import set_aside_newer
from harness.checkpoint.history import read_history
from harness.checkpoint.in_memory import copies_directory, newer_copy
from harness.checkpoint.mirror import Machines, complete_copies
from harness.checkpoint.read import (
    LoadedState,
    choose,
    document_errors,
    find_damage,
    load_trainer,
    newest_step,
    read_manifest,
)
from harness.components import target_of
from harness.config.identity import (
    course_changes,
    identity_changes,
    idle_changes,
    once_changes,
    rate_changes,
)
from harness.config.read import read_stored, resolved_yaml
from harness.config.schema import Config
from harness.console import Console
from harness.data.code import changes, code_of, edits
from harness.durable import replace_file
from harness.errors import CheckpointError, ConfigError
from harness.interrupt import PREEMPT, Interruption
from harness.randomness import restore_random, seed_ambient, seed_for
from harness.ranks.ranks import Ranks
from harness.ranks.slowly import together_slowly
from harness.rundir.crashes import FILE as STEP_NOTE
from harness.rundir.crashes import check_crashes
from harness.rundir.lease import Lease
from harness.rundir.outcome import Outcome, read_outcome
from harness.stopping.controller import StopController
from harness.stopping.record import rows_by_column
from harness.stopping.verdict import Verdict
from harness.tasks.task import Task, known_metrics
from harness.training.environment import differences
from harness.training.run import Run


def compare_data(
    config: Config, checkpoint: Path, facts: Mapping[str, Any], data: Mapping[str, str]
) -> None:
    """Raise CheckpointError if the samples are not those that the run began with, or if code of the
    run has changed and run.accept does not name it.

    facts: of the checkpoint's manifest. Manifests from before code was compared on its own, by
    0.1.0, held it in the digests of the data.
    """
    accepted = "code" in config.run.accept
    old = "code" not in facts
    edited = [] if old else edits(facts["code"], code_of(config.specs()))
    had = facts["data"]
    changed = [f"data.{name}" for name in sorted({*had, *data}) if had.get(name) != data.get(name)]
    if changed and not (old and accepted):
        why = f"; changed since: {', '.join(edited)}" if edited else ""
        how = (
            "If only your own code was edited, without another result, set run.accept: [code]. "
            if old and code_of(config.specs())
            else ""
        )
        raise CheckpointError(
            f"{checkpoint}: {', '.join(changed)} no longer gives the samples that the run began "
            f"with, so it cannot go on exactly{why}. {how}"
            "If the files and their settings are the same, another version of fermarsi reads them "
            "otherwise (CHANGELOG.md). "
            "Bring the data back, choose another run.dir, or set run.exactness: none from the "
            "start of a run."
        )
    if edited and not accepted:
        raise CheckpointError(
            f"{checkpoint}: code of the run has changed since: {', '.join(edited)}. The samples "
            "are the same, but whether a step is the same is unknown. Take the change back, or set "
            "run.accept: [code]: the run continues with the new code, and says so."
        )


def restore_rest(loaded: LoadedState | None, run: Run) -> None:
    """What a checkpoint holds besides weights and moments: the history, what the last launch
    still had to do, and the ambient generators as they were; last, so that nothing draws after it.

    On another number of ranks the generators are those of the step's boundary. Called by every
    rank.
    """
    trainer = None if loaded is None else loaded.trainer
    if trainer is not None:
        run.ranks.together(lambda: restore_records(trainer, run))
    elif run.ranks.is_first():
        run.ledger.resume(None)
    if loaded is not None:
        assert run.launch.checkpoint is not None
        with document_errors(run.launch.checkpoint):
            note_changes(loaded, run)
            note_environment(loaded, run)
    seed_ambient(seed_for(run.sampling.seed, "update", run.step - 1))
    if loaded is not None and loaded.rng is not None:
        rng = loaded.rng
        run.ranks.together(lambda: restore_random(rng, run.engine.generators))


def restore_records(trainer: Mapping[str, Any], run: Run) -> None:
    """What `restore_rest` restores from trainer_state.json. No collectives."""
    assert run.launch.checkpoint is not None
    progress = run.progress
    with document_errors(run.launch.checkpoint):
        if run.ranks.is_first():
            run.ledger.resume(trainer["ledger"])
        progress.verdict = restore_history(run.controller, run.launch.checkpoint, trainer["stop"])
        run.losses.restore(trainer["losses"])
        run.train_metrics.restore(trainer["train_metrics"], run.ranks.rank)
        progress.evaluation_due = trainer.get("evaluation_due", False)
        progress.save_s = trainer.get("save_s")
        progress.seams += trainer.get("seams", [])
        if run.pace is not None and trainer.get("pace") is not None:
            run.pace.restore(trainer["pace"])


def restore_history(
    controller: StopController, checkpoint: Path, state: Mapping[str, Any]
) -> Verdict | None:
    """Take back a checkpoint's evaluations and the state that it has of the controller; the
    verdict at the last evaluation. Raises CheckpointError.
    """
    rows = read_history(checkpoint)
    return controller.restore(state, rows_by_column(state) if rows is None else rows)


def note_changes(loaded: LoadedState, run: Run) -> None:
    """Report which settings that decide how the run goes on differ from those that the
    checkpoint was made with.
    """
    assert run.launch.checkpoint is not None
    before = read_stored(run.launch.checkpoint / "config.yaml")
    for change in once_changes(before, run.config):
        run.tracker.warn(f"{run.directory}: no effect on a run that goes on: {change}")
    changes = course_changes(before, run.config)
    if loaded.manifest.world_size != run.ranks.size:
        changes.append(f"processes: {loaded.manifest.world_size} -> {run.ranks.size}")
    if changes:
        run.tracker.event("changes", run.position(), changes=changes)
        run.tracker.console.say(
            f"{run.directory}: changed from step {run.step:,} on: {'; '.join(changes)}"
        )


def note_environment(loaded: LoadedState, run: Run) -> None:
    """Report which code and machines differ from those that wrote the checkpoint, and remember it:
    the run is no longer exact. Called by every rank.
    """
    facts = loaded.manifest.facts
    edited = changes(facts.get("code", run.facts["code"]), run.facts["code"])
    if edited:
        seam = f"other code from step {run.step:,} on ({', '.join(edited)})"
        run.progress.seams.append(seam)
        run.tracker.warn(f"{run.directory}: {seam}")
    found = differences(facts.get("environment", []), run.facts["environment"])
    if found:
        seam = f"other machines from step {run.step:,} on ({'; '.join(found)})"
        run.progress.seams.append(seam)
        run.tracker.warn(f"{run.directory}: {seam}: from here on bits may differ")


SUPERSEDED = (
    "checkpoints",
    "config.yaml",
    "metrics.jsonl",
    "outcome.json",
    "ledger.json",
    "trace.jsonl",
    STEP_NOTE,
)


def take(lease: Lease, console: Console, directory: Path, interruption: Interruption) -> int:
    """Hold the run directory against other launches; returns the number of launches so far. Rank 0
    only. Raises HarnessError.

    From here on a file PREEMPT is a request to this launch; one that is there already was meant for
    an earlier launch.
    """
    launches = lease.take(interruption.check)
    if lease.message:
        console.say(lease.message)
    if not interruption.goes_on:
        (directory / PREEMPT).unlink(missing_ok=True)
    interruption.look_for(directory / PREEMPT)
    return launches


def finished_outcome(config: Config) -> Outcome | None:
    """The outcome of a run that the present settings would end where it ended; None if it goes on
    or has not begun. Rank 0 only.
    """
    outcome = read_outcome(config.run.dir)
    if outcome is None or not outcome.is_finished or config.run.resume not in ("auto", "must"):
        return None
    if outcome.reason == "stop_requested" and not (config.run.dir / "STOP").exists():
        return None
    if outcome.reason == "diverged":
        # With the same settings it would diverge again
        return outcome if read_stored(config.run.dir / "config.yaml") == config else None
    chosen = choose(config.run.dir / "checkpoints", config.run.resume, verify="size")
    if chosen.path is not None:
        refuse_another(read_stored(chosen.path / "config.yaml"), config, chosen.path.name)
    if outcome.reason == "stop_requested":
        return outcome
    if chosen.path is None:
        return None
    task: Task = components.build(config.task, "task")
    controller = StopController(config.stop, known_metrics(task, config.data.evaluated_splits))
    with document_errors(chosen.path):
        verdict = restore_history(controller, chosen.path, load_trainer(chosen.path)["stop"])
    return outcome if verdict is not None and verdict.stops else None


def say_finished(config: Config, outcome: Outcome) -> str:
    """A message: the run is finished, which present settings therefore have no effect, and what to
    do. Rank 0 only.
    """
    directory = config.run.dir
    words = f"{directory}: this run is finished: {outcome.detail}"
    changes = idle_changes(read_stored(directory / "config.yaml"), config)
    more = "Ask for more (stop.*) to go on"
    if not changes:
        return f"{words} {more}."
    return (
        f"{words} These changes have no effect on it:\n  "
        + "\n  ".join(changes)
        + f"\n{more} with them, or train anew: run.dir={free_name(directory)}."
    )


def free_name(directory: Path) -> Path:
    """A directory beside it that is not there yet."""
    number = 2
    while (other := directory.with_name(f"{directory.name}-{number}")).exists():
        number += 1
    return other


def refuse_another(before: Config, config: Config, name: str) -> None:
    """Raise ConfigError if a checkpoint, by its config, is not of this training."""
    other = identity_changes(before, config)
    if other:
        directory = config.run.dir
        raise ConfigError(
            f"{directory}: {name} belongs to another training. What identifies a run has "
            "changed:\n  "
            + "\n  ".join(other)
            + f"\nTake the changes back, or choose another run.dir: run.dir={free_name(directory)}."
        )


@dataclass(frozen=True)
class Start:
    """Where a launch goes on, as rank 0 finds it: `checkpoint` is None at the beginning of a run.

    `notes`: what a person should know; `superseded`: whether an earlier run is in the way; `saved`:
    the newest on the disk, where `checkpoint` may be a copy in memory.
    """

    run_id: str
    checkpoint: str | None
    notes: list[str]
    superseded: bool = False
    saved: str | None = None
    in_memory: bool = False

    @property
    def path(self) -> Path | None:
        """Of the checkpoint."""
        return None if self.checkpoint is None else Path(self.checkpoint)

    @property
    def saved_path(self) -> Path | None:
        return None if self.saved is None else Path(self.saved)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Start":
        return cls(**value)


def agree_on_checkpoint(config: Config, ranks: Ranks) -> Start:
    """Where all ranks resume: each verifies its share of the hashes, and what one finds damaged is
    so for all. Called by every rank. Raises HarnessError.
    """
    damage: dict[str, list[str]] = {}
    if seeks_copies(config):
        directory, machines = ranks.together(copies_directory), Machines.of(ranks)
        step = ranks.decide(lambda: newest_step(config.run.dir / "checkpoints"))
        damage = complete_copies(directory, ranks, machines, step)
    while True:
        chosen = ranks.decide(lambda: find_start(config, damage), Start)
        start, share = chosen, (ranks.rank, ranks.size)
        if chosen.in_memory:  # each machine has its own
            start = replace(chosen, checkpoint=str(directory / Path(chosen.checkpoint or "").name))
            share = (machines.index, machines.count)
        if start.path is None or config.checkpoint.verify == "size":
            return start
        mine = together_slowly(ranks, partial(find_damage, start.path, *share))
        problems = [problem for found in ranks.gather(mine) for problem in found]
        if not problems:
            return start
        damage[chosen.checkpoint or ""] = sorted(problems)


def seeks_copies(config: Config) -> bool:
    """Whether a launch may go on from a copy in memory."""
    return config.checkpoint.in_memory is not None and config.run.resume in ("auto", "must")


def find_start(config: Config, damage: Mapping[str, Sequence[str]] | None = None) -> Start:
    """Choose the checkpoint to resume from, by all but the hashes of its tensors, and by the
    `damage` that these have shown; nothing is written. Rank 0 only. Raises HarnessError.
    """
    directory = config.run.dir
    overwrite = config.run.resume == "never" and config.run.overwrite
    if overwrite and (directory / "checkpoints").exists():
        return Start(secrets.token_hex(4), None, [], superseded=True)
    notes = []
    crash = check_crashes(directory, config.run.max_crashes)
    if crash is not None:
        notes.append(f"warning: {directory}: in the previous launch, {crash}")
    choice = choose(directory / "checkpoints", config.run.resume, verify="size", damage=damage)
    notes += [f"warning: {reason}" for reason in choice.skipped]
    copy: Path | None = None
    if seeks_copies(config):
        copy, troubles = newer_copy(copies_directory(), choice.path, damage or {})
        notes += [f"warning: {reason}" for reason in troubles]
    found = copy or choice.path
    if found is None:
        return Start(secrets.token_hex(4), None, notes)
    before = read_stored(found / "config.yaml")
    check_schedule(before, config, directory)
    refuse_another(before, config, found.name)
    where = "" if copy is None else ", a copy in memory"
    notes.append(f"{directory}: going on from {found.name}{where}")
    saved = None if choice.path is None else str(choice.path)
    with document_errors(found):
        run_id = str(load_trainer(found)["run_id"])
    return Start(run_id, str(found), notes, saved=saved, in_memory=copy is not None)


def prepare_directory(config: Config, start: Start, console: Console) -> None:
    """Make the run directory this launch's: earlier runs and newer checkpoints set aside, the
    resolved config written. Rank 0 only. Raises CheckpointError.
    """
    directory = config.run.dir
    if start.superseded:
        set_aside(directory, console)
    for note in start.notes:
        console.say(note)
    if start.checkpoint is not None:
        checkpoint = Path(start.checkpoint)
        if checkpoint.resolve().parent == (directory / "checkpoints").resolve():
            for name in set_aside_newer(directory / "checkpoints", read_manifest(checkpoint).step):
                console.say(f"warning: {name} is newer and was set aside")
    try:
        replace_file(directory / "config.yaml", resolved_yaml(config), sync=False)
        (directory / "outcome.json").unlink(missing_ok=True)  # it was of an earlier launch
    except OSError as error:
        raise CheckpointError(
            f"{directory}: {error.strerror}. Make the run directory writable or choose another "
            "run.dir."
        ) from error


def schedule_name(config: Config) -> str | None:
    """The schedule's dotted path, None without one."""
    return None if config.schedule is None else target_of(config.schedule)


def check_schedule(before: Config, now: Config, directory: Path) -> None:
    """Refuse changes that a schedule's stored state would make ineffective. Raises ConfigError.

    Torch's schedules store their arguments and compute each rate from the one before; ours are
    functions of the step and the present config.
    """
    own = (schedule_name(now) or "").startswith("harness.schedules.")
    if own or (before.schedule is None and now.schedule is None):
        return
    changed = [] if before.schedule == now.schedule else ["schedule"]
    changed += rate_changes(before, now)
    if changed:
        raise ConfigError(
            f"{directory}: {' and '.join(changed)} changed, which has no effect on a run with a "
            "torch schedule, or with one taken away: the checkpoint holds the rates. "
            "Take the change back, use one of harness.schedules (functions of the step), or begin "
            "another run with run.init_from."
        )


def set_aside(directory: Path, console: Console) -> None:
    """Move what an earlier run left into a directory of its own inside the run directory; nothing
    is deleted. Rank 0 only.
    """
    present = [name for name in SUPERSEDED if (directory / name).exists()]
    if not (directory / "checkpoints").exists():
        return
    number = 1 + sum(1 for _ in directory.glob("superseded-*"))
    target = directory / f"superseded-{number}"
    target.mkdir()
    for name in present:
        os.rename(directory / name, target / name)
    console.say(f"{directory}: the earlier run was moved to {target.name}/")

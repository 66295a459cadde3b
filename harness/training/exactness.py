"""What `exact: true` rests on. docs/exactness.md says how each condition is shown."""

from harness.data.code import places_asked
from harness.training.environment import differences
from harness.training.row_steps import depends_on_rows
from harness.training.run import Run
from harness.wording import some

TESTED_DEVICES = ("cpu", "cuda")


def reasons_against(run: Run) -> list[str]:
    """Why an interrupted run may end with other bits than one never interrupted; none if it is
    exact. The same on every rank.
    """
    if run.config.run.exactness == "none":
        return ["run.exactness is none: fast kernels that may differ from run to run are allowed"]
    engine = run.engine
    reasons = []
    if engine.not_deterministic:
        reasons.append(f"no deterministic kernel for: {', '.join(engine.not_deterministic)}")
    if engine.device.type not in TESTED_DEVICES:
        reasons.append(f"exactness was never tested on {engine.device.type}")
    return [*reasons, *engine.inexact, *run.progress.seams]


def reasons_against_elastic(run: Run) -> list[str]:
    """Why another number of processes may give other bits, found at a launch's start. No
    collectives.
    """
    if run.config.run.exactness != "elastic":
        return []
    reasons = [
        f"{name} keeps a generator of its own: what is drawn depends on which slots a process has"
        for name in run.engine.generators
    ]
    asked = places_asked(run.config.specs())
    if asked:
        reasons.append(f"a result may depend on the process that computes it ({some(asked)})")
    if run.engine.shards is not None:
        dtypes = {one.dtype for one in run.engine.network.parameters() if one.requires_grad}
        found = {
            depends_on_rows(run.config.optimizer, one, run.engine.device)
            for one in sorted(dtypes, key=str)
        }
        reasons += [
            f"{one}, and where a process's rows end depends on the number of processes"
            for one in sorted(found - {""})
        ]
    machines = run.facts["environment"]
    if len(machines) > 1:
        differing = differences(machines[:1], machines[1:])
        reasons.append(f"the processes' machines differ ({'; '.join(differing)})")
    return reasons


def exactness(run: Run) -> tuple[bool, str]:
    """(whether the run is exact, why or why not), for manifests and the outcome."""
    reasons = reasons_against(run)
    if reasons:
        return False, "; ".join(reasons)
    why = "deterministic kernels; order and randomness are functions of seed, epoch and position"
    if run.config.run.exactness == "elastic":
        why += (
            "; slots are added up in a fixed tree: the same bits on any number of processes that "
            f"divides {run.sampling.num_slots}"
        )
    return True, why

"""What `exact: true` rests on. docs/exactness.md says how each condition is shown."""

from harness.training.run import Run

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


def exactness(run: Run) -> tuple[bool, str]:
    """(whether the run is exact, why or why not), for manifests and the outcome."""
    reasons = reasons_against(run)
    if reasons:
        return False, "; ".join(reasons)
    return (
        True,
        "deterministic kernels; order and randomness are functions of seed, epoch and position",
    )

"""A request to stop."""

from harness.stopping.judge import Finding, Judge
from harness.stopping.verdict import Evaluation


class RequestJudge(Judge):
    """Stops at the evaluations for which `made` is set."""

    reason = "stop_requested"
    of_metrics = False

    def __init__(self) -> None:
        self.made = False

    def take(self, evaluation: Evaluation) -> Finding:
        if not self.made:
            return Finding()
        return Finding(f"a stop was requested; it took effect at step {evaluation.step:,}")

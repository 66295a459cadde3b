"""What the age of a run adds to a checkpoint: an evaluation, its verdict and a save, in a run of no
evaluations and in one of 100,000, by turns.

    python benchmarks/history.py [--evaluations 100000] [--repeats 200] [--directory DIR]

The state is a small network, so that nothing hides what the history costs. Targets: at 100,000
evaluations each figure within 10 % of the young run's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stopping import METRICS, SETTINGS, evaluations
from harness.checkpoint.history import read_history
from harness.checkpoint.read import load_trainer
from harness.checkpoint.retention import Retention
from harness.checkpoint.stage import Snapshot
from harness.checkpoint.write import CheckpointStore
from harness.ranks.ranks import Ranks
from harness.stopping.controller import StopController
from harness.stopping.verdict import Evaluation

FIGURES = ("judged_us", "held_ms", "until_done_ms", "process_cpu_ms", "written_kb")


class Training:
    """As much of a run as judges and saves, after some evaluations."""

    def __init__(self, directory: Path, num_evaluations: int, repeats: int) -> None:
        self.directory = directory
        self.controller = StopController(SETTINGS, METRICS)
        drawn = evaluations(1, num_evaluations + repeats + 1)
        for evaluation in drawn[:num_evaluations]:
            self.controller.judge(evaluation)
        self.coming = iter(drawn[num_evaluations:])
        self.store = CheckpointStore(
            directory,
            Ranks(),
            Retention(keep_last=2),
            run_id="b",
            attempt="b",
            fence=lambda: None,
            max_failures=1,
            timeout_s=600.0,
        )
        self.model = {"weight": torch.zeros(150)}

    def go_on(self) -> dict[str, float]:
        """One more evaluation, judged and saved."""
        written = _written_bytes()
        evaluation = next(self.coming)
        begun, busy = time.perf_counter(), time.process_time()
        self.controller.judge(evaluation)
        judged = time.perf_counter() - begun
        self.store.save(self._snapshot(evaluation), None)
        self.store.wait()
        busy = time.process_time() - busy
        (report,) = self.store.reports()
        assert report.error is None, report.error
        return {
            "judged_us": judged * 1e6,
            "held_ms": report.stall_s * 1e3,
            "until_done_ms": report.total_s * 1e3,
            "process_cpu_ms": busy * 1e3,
            "written_kb": (_written_bytes() - written) / 1e3,
        }

    def _snapshot(self, evaluation: Evaluation) -> Snapshot:
        return Snapshot(
            step=evaluation.step,
            epoch=0,
            samples=evaluation.samples,
            reason="schedule",
            exact=True,
            exact_reason="",
            model=self.model,
            optimizer={},
            rng={"torch": torch.get_rng_state()},
            trainer={"stop": self.controller.state()},
            metrics=self.controller.latest_metrics(evaluation.step),
            facts={},
            config_yaml="",
            extra_files={},
            history=self.controller.history(),
        )


def _written_bytes() -> int:
    """By system calls of this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def resumed_ms(training: Training) -> tuple[float, StopController]:
    """Once a launch: to read the history of the last checkpoint and to judge it again."""
    path = training.store.committed()
    assert path is not None
    begun = time.perf_counter()
    controller = StopController(SETTINGS, METRICS)
    rows: Any = read_history(path)
    controller.restore(load_trainer(path)["stop"], rows)
    return (time.perf_counter() - begun) * 1e3, controller


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=Path("runs"))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        young, old = (
            Training(Path(directory, name), count, options.repeats)
            for name, count in (("young", 0), ("old", options.evaluations))
        )
        firsts = [young.go_on(), old.go_on()]
        pairs = [(young.go_on(), old.go_on()) for _ in range(options.repeats)]
        print(f"{options.evaluations:,} evaluations, medians of {options.repeats} saves by turns\n")
        print(f"{'':>16}  {'young':>8}  {'old':>8}  {'ratio':>6}  {'first save of the launch':>25}")
        for name in FIGURES:
            one, other = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
            print(
                f"{name:>16}  {one:>8.2f}  {other:>8.2f}  {other / one:>6.2f}  "
                f"{firsts[0][name]:>11.1f} / {firsts[1][name]:>11.1f}"
            )
        size = old.store.committed()
        assert size is not None
        took_ms, controller = resumed_ms(old)
        assert list(controller.history()) == list(old.controller.history())
        print(
            f"\nhistory.jsonl: {(size / 'history.jsonl').stat().st_size / 1e6:.1f} MB, once; "
            f"read and judged again in {took_ms:,.0f} ms, once a launch"
        )


if __name__ == "__main__":
    main()

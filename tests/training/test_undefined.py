"""A metric that has no meaning on one training interval does not end the run."""

import json
from pathlib import Path

from tests.pool import train_on_ranks

STORM = Path(__file__).parents[1] / "resume" / "storm.yaml"


def test_a_metric_undefined_on_an_interval_is_left_out_and_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = (
        "task={_target_: harness.tasks.Supervised, input: x, target: x, "
        "loss: {_target_: torch.nn.MSELoss, reduction: none}, "
        "metrics: {r2: {_target_: tests.training.undefined_parts.Fickle}}}"
    )
    network = "network={_target_: torch.nn.Linear, in_features: 6, out_features: 6}"
    asked = [f"run.dir={run}", task, network, "data.train.treatments=[]", "schedule=null"]
    asked += ["optimizer={_target_: torch.optim.SGD, lr: 0.01}", "stop.improvement=null"]
    (end,) = train_on_ranks(1, STORM, [*asked, "stop.every.steps=4", "stop.budget.steps=8"])
    assert end.exit_code == 0, end.stderr
    said = "step 4: train/r2: undefined on this interval's training samples, and left out. For more"
    assert said in end.stdout
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second = (record for record in records if record["kind"] == "eval")
    assert "train/r2" not in first
    assert second["train/r2"] == 1.0
    assert first["val/r2"] == second["val/r2"] == 1.0

"""The histories by which tests/stopping/test_good_runs.py shows that what docs/stopping.md
recommends ends no good run early: one run of each config, past its targets and its patience.

Run: python benchmarks/curves/config_curves.py [CONFIG ...]   (half an hour on one core)

Writes configs/NAME.jsonl next to it, a history as `fermarsi replay` reads it. Data that a config is
made from by a script of tests/sources is made first, in runs/; what is not on this machine is left
out.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("configs")
MADE = {
    "activity": ("make_activity.py", "runs/activity_recordings"),
    "docstrings": ("make_docstrings.py", "runs/docstrings.csv.gz"),
    "letters_excel": ("make_letters.py", "runs/letters.xlsx"),
    "thermal": ("make_thermal.py", "runs/thermal_frames"),
    "video_motion": ("make_motion.py", "runs/motion"),
}
# Past their targets; the others are whole
SHORTER = {
    "digits": "epochs=60",
    "digits_seen_and_heard": "epochs=14",
    "docstrings": "epochs=4",
    "shakespeare": "steps=1400",
    "thermal": "epochs=10",
    "video_motion": "epochs=12",
}
CHANCE = "stop.milestones={metric: val/accuracy, at_least: 1.2x chance, by: {epochs: 4}}"
COLUMNS = ("step", "epoch", "samples", "lr")


def record(config: Path, directory: Path) -> bool:
    """Train, and keep what was evaluated; False if it did not run here."""
    script, data = MADE.get(config.stem, ("", ""))
    if script and not (ROOT / data).exists():
        subprocess.run([sys.executable, ROOT / "tests/sources" / script, data], check=True)
    short = [f"stop.budget.{SHORTER[config.stem]}"] if config.stem in SHORTER else []
    run = directory / config.stem
    asked = [f"run.dir={run}", "stop.targets=null", "stop.improvement=null"]
    asked += ["checkpoint={every: null, keep_last: 1}", *short]
    asked += [CHANCE] if "Classification" in config.read_text() else []
    program = [sys.executable, "-m", "harness.train", str(config), *asked]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
        return False
    rows = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "eval":
            kept = {name: row[name] for name in row if name in COLUMNS or name.startswith("val/")}
            kept |= {name: row[name] for name in row if name.startswith("train/")}
            hours = {"hours": row["elapsed_s"] / 3600}
            rows.append({name: _short(value) for name, value in (kept | hours).items()})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (RECORDED / f"{config.stem}.jsonl").write_text(text)
    return True


def _short(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main(names: list[str]) -> None:
    os.chdir(ROOT)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "disabled"}
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for name in names:
            print(name, record(ROOT / "configs" / f"{name}.yaml", Path(root)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))

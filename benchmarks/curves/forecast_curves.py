"""The learning curves that benchmarks/forecast.py judges forecasts by: small runs of ours, of
several config families, learning rates, schedules, networks (some too small), seeds, and shuffled
labels.

Run: python benchmarks/curves/forecast_curves.py [FAMILY ...]   (minutes)

Writes forecast_curves.parquet next to it (text_curves.parquet of the family of text, by which
nothing was chosen), one row a run: its family, its config as JSON, and by
evaluation the epochs, the learning rates, val/loss and, for classifiers, val/accuracy.
"""

import gzip
import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CURVES = Path(__file__).with_name("forecast_curves.parquet")
TEXT_CURVES = CURVES.with_name("text_curves.parquet")
RUNS_A_FAMILY = 54
INTERVALS = 32
TEXT = Path(os.environ.get("FERMARSI_SHAKESPEARE", "../shared/data/tinyshakespeare/input.txt"))
SLOW = ("sklearn.datasets", "torch._dynamo", "torch._inductor", "torchmetrics")
FASHION = Path("/usr/share/datasets/fashion-mnist")


class Arrays:
    """Two thirds of some samples to train, a third to validate: `x` (F,) float32, `label` int64 or
    `y` (1,) float32. `shuffled`: with labels that mean nothing.
    """

    def __init__(self, name: str, part: str, shuffled: bool = False) -> None:
        draw = np.random.default_rng(5)
        x, y = _arrays(name, draw)
        order = draw.permutation(len(x))
        if shuffled:
            y = draw.permutation(y)
        mine = order[: len(x) * 2 // 3] if part == "train" else order[len(x) * 2 // 3 :]
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        self._x = x[mine].astype(np.float32)
        whole = np.issubdtype(y.dtype, np.integer)
        self._key = "label" if whole else "y"
        self._y = y[mine].astype(np.int64) if whole else y[mine, None].astype(np.float32)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self._x[index], self._key: self._y[index]}


def _arrays(name: str, draw: np.random.Generator) -> tuple[Any, Any]:
    from sklearn import datasets

    if name == "digits":
        return datasets.load_digits(return_X_y=True)
    if name == "cancer":
        x, y = datasets.load_breast_cancer(return_X_y=True)
        flipped = draw.random(len(y)) < 0.1
        return x, np.where(flipped, 1 - y, y)
    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
        return x, (y - y.mean()) / y.std()
    if name == "spirals":
        turn, label = draw.uniform(0.5, 3.5, 900), draw.integers(0, 3, 900)
        angle = 2.2 * turn + label * 2 * np.pi / 3
        both = np.stack([turn * np.cos(angle), turn * np.sin(angle)], 1)
        return both + draw.normal(0, 0.12, both.shape), label
    if name == "hastie":
        x, y = datasets.make_hastie_10_2(1500, random_state=5)
        return x, (y > 0).astype(np.int64)
    images, labels = (
        np.frombuffer(gzip.decompress((FASHION / file).read_bytes()), np.uint8, offset=skipped)
        for file, skipped in (
            ("t10k-images-idx3-ubyte.gz", 16),
            ("t10k-labels-idx1-ubyte.gz", 8),
        )
    )
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    return small[:1500], labels[:1500].astype(np.int64)


WIDTHS = {"digits": 64, "cancer": 30, "diabetes": 10, "spirals": 2, "fashion": 196, "hastie": 10}
CLASSES = {"digits": 10, "cancer": 2, "spirals": 3, "fashion": 10, "hastie": 2}
FAMILIES = (*WIDTHS, "shakespeare")


def configs(family: str, text: Path) -> Iterator[dict[str, Any]]:
    """The configs of a family's runs: the same each time."""
    draw = random.Random(family)
    for number in range(RUNS_A_FAMILY):
        rate = 10 ** draw.uniform(-3.8, -1.4)
        shuffled = family != "shakespeare" and draw.random() < 0.12
        width = draw.choice([2, 4, 16, 64])
        schedule = draw.choice(["none", "none", "cosine", "steps"])
        if family == "shakespeare":
            parts = _text_parts(text, width)
        else:
            parts = _array_parts(family, width, shuffled, draw.choice([0.0, 0.0, 0.3]))
        steps = parts.pop("steps")
        optimizer = draw.choice(["AdamW", "AdamW", "SGD"])
        more = {"momentum": 0.9} if optimizer == "SGD" else {}
        rate *= 10 if optimizer == "SGD" else 1
        schedules: dict[str, Any] = {
            "cosine": {"_target_": "harness.schedules.WarmupCosine", "total_steps": steps},
            "steps": {
                "_target_": "torch.optim.lr_scheduler.MultiStepLR",
                "milestones": [steps // 2, steps * 3 // 4],
            },
        }
        yield {
            **parts,
            "run": {"name": f"{family}-{number}", "seed": draw.randrange(1000)},
            "optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": rate, **more},
            "schedule": schedules.get(schedule),
            "stop": {"every": {"steps": steps // INTERVALS}, "budget": {"steps": steps}},
            "checkpoint": {"every": None, "keep_last": 1},
            "log": {"every": {"steps": 1000}},
        }


def _array_parts(family: str, width: int, shuffled: bool, dropout: float) -> dict[str, Any]:
    source = {"_target_": "forecast_curves.Arrays", "name": family, "shuffled": shuffled}
    head = {"_target_": "harness.tasks.Classification", "input": "x", "target": "label"}
    if family not in CLASSES:
        head = {"_target_": "harness.tasks.Regression", "input": "x", "target": "y"}
    dims = [WIDTHS[family], width, CLASSES.get(family, 1)]
    if family == "spirals":
        dims[1:2] = [width, width]
    return {
        "data": {split: {"source": {**source, "part": split}} for split in ("train", "val")},
        "network": {"_target_": "harness.networks.Mlp", "dims": dims, "dropout": dropout},
        "task": head,
        "batch": {"size": 96, "micro_size": 96},
        "evaluation": {"micro_size": 600},
        "steps": INTERVALS * 6,
    }


def _text_parts(text: Path, width: int) -> dict[str, Any]:
    source = {
        "_target_": "harness.sources.text.Bytes",
        "files": str(text),
        "length": 32,
        "held_out": 0.15,
    }
    return {
        "data": {split: {"source": {**source, "part": split}} for split in ("train", "val")},
        "network": {
            "_target_": "harness.networks.Gpt",
            "vocabulary": 128,
            "context": 32,
            "dim": max(4, width),
            "depth": 1,
            "num_heads": 2,
        },
        "task": {"_target_": "harness.tasks.LanguageModelling", "input": "tokens"},
        "batch": {"size": 16, "micro_size": 16},
        "evaluation": {"micro_size": 200},
        "steps": INTERVALS * 6,
    }


def train(config: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """Train in a fork of this process; the curves, None for a run that diverged at once."""
    path = directory / "config.yaml"
    path.write_text(json.dumps({**config, "run": {**config["run"], "dir": str(directory / "run")}}))
    child = os.fork()
    if not child:
        sys.stdout.flush()
        with (directory / "output.txt").open("w") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
        from harness.training.launch import launch

        os._exit(launch(path, []))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 3):
        raise SystemExit((directory / "output.txt").read_text())
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    found = [one for one in map(json.loads, lines) if one["kind"] == "eval"]
    if len(found) < 10:
        return None
    return {
        "family": config["run"]["name"].rpartition("-")[0],
        "config": json.dumps(config),
        **{
            column: [float(one[name]) for one in found] if name in found[0] else None
            for column, name in (
                ("epoch", "epoch"),
                ("lr", "lr"),
                ("loss", "val/loss"),
                ("accuracy", "val/accuracy"),
            )
        },
    }


def prepare() -> None:
    """Load once, for all forks, what a run needs."""
    import torch

    for name in ("harness.networks", "harness.tasks", "harness.training.launch", *SLOW):
        importlib.import_module(name)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "disabled"}


def main(families: list[str]) -> None:
    import pyarrow.parquet as pq

    prepare()
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        text = Path(root) / "text.txt"
        text.write_text(TEXT.read_text()[:40_000])
        for family in families:
            path = TEXT_CURVES if family == "shakespeare" else CURVES
            kept = pq.read_table(path).to_pylist() if path.exists() else []
            kept = [one for one in kept if one["family"] != family]
            for number, config in enumerate(configs(family, text)):
                directory = Path(root) / f"{family}-{number}"
                directory.mkdir()
                row = train(config, directory)
                kept += [row] if row is not None else []
            write(kept, path)
            print(family, len(kept), flush=True)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float32())
    columns = [("family", pa.string()), ("config", pa.string())]
    columns += [(name, numbers) for name in ("epoch", "lr", "loss", "accuracy")]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), path, compression="zstd")


if __name__ == "__main__":
    main(sys.argv[1:] or list(FAMILIES))

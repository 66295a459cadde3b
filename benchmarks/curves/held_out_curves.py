"""More learning curves for benchmarks/forecast.py: small runs of the configs in configs/ whose data
the families of forecast_curves.py do not have (series, sound, clips, tables, thermal images, texts,
pictures with sound). Nothing was chosen by them before they were judged for the first time.

Run: python benchmarks/curves/held_out_curves.py [CONFIG ...]   (minutes a config)

Writes held_out_curves.parquet next to it, as forecast_curves.py does; runs that are in it are not
made again. The data of a config must be there, as its first lines say.
"""

import functools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curves.forecast_curves import INTERVALS, RUNS_A_FAMILY, prepare, train, write

ROOT = Path(__file__).parents[2]
CURVES = Path(__file__).with_name("held_out_curves.parquet")
MODULE = "benchmarks.curves.held_out_curves"
MOST = {"train": 900, "val": 300}
CONFIGS = (
    "activity",
    "spoken_digits",
    "video_motion",
    "letters_excel",
    "thermal",
    "docstrings",
    "digits_seen_and_heard",
)


class Few:
    """Some samples of a config's split, held in memory. `shuffled`: with labels that mean
    nothing.
    """

    def __init__(self, config: str, part: str, shuffled: bool = False) -> None:
        self._samples = _few(config, part)
        self._target = _config(config)["task"]["target"]
        order = np.arange(len(self._samples))
        self._labels = np.random.default_rng(5).permutation(order) if shuffled else order

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._samples[self._labels[index]][self._target]
        return {**self._samples[index], self._target: label}


@functools.cache
def _config(name: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/{name}.yaml"), resolve=True)


@functools.cache
def _few(name: str, part: str) -> list[dict[str, Any]]:
    """Read once, in the process that all runs are forks of."""
    from harness.components import build

    spec = _config(name)["data"][part]["source"]
    source = build(spec, name)
    order = np.random.default_rng(5).permutation(len(source))[: MOST[part]].tolist()
    if hasattr(source, "__getitem__"):
        return [_shrunk(dict(source[index])) for index in order]
    whole = source.__getitems__(order)
    return [_shrunk({key: one[i] for key, one in whole.items()}) for i in range(len(order))]


def _shrunk(sample: dict[str, Any]) -> dict[str, Any]:
    """Sound as the pictures that LogMel and Normalise of its configs make of it, and these and
    clips with a quarter of the pixels, means of four: runs of seconds.
    """
    import torch

    from harness.treatments import LogMel

    if "wave" in sample:
        batch = {"wave": torch.as_tensor(sample["wave"])[None]}
        wave = LogMel(rate_hz=8000, num_mels=40, window=256, hop=128)(batch)["wave"][0]
        sample["wave"] = _quarter((wave.numpy() + 10) / 5)
    if "clip" in sample:
        sample["clip"] = _quarter(np.asarray(sample["clip"])).astype(np.uint8)
    return sample


def _quarter(pixels: np.ndarray) -> np.ndarray:
    """(..., H, W) -> (..., H // 2, W // 2)"""
    height, width = (size // 2 for size in pixels.shape[-2:])
    even = pixels[..., : 2 * height, : 2 * width]
    return even.reshape(*pixels.shape[:-2], height, 2, width, 2).mean((-3, -1)).astype(np.float32)


def _treatments(name: str, part: str) -> list[dict[str, Any]]:
    """Those of the config; of sound, the masks alone."""
    every: list[dict[str, Any]] = _config(name)["data"][part]["treatments"]
    of_waves = ("Gain", "Shift", "LogMel", "Normalise")
    if "wave" not in _few(name, part)[0]:
        return every
    return [one for one in every if one["_target_"].rpartition(".")[2] not in of_waves]


def network(name: str, width: int, dropout: float) -> dict[str, Any]:
    """The config's kind of network, of `width`."""
    place = "harness.networks."
    maps = {"_target_": f"{place}ConvNet", "in_channels": 1, "out_features": None, "pool": False}
    if name == "activity":
        kind = {"_target_": f"{place}Tcn", "in_channels": 6, "out_features": 4, "dropout": dropout}
        return {**kind, "widths": [width, 2 * width]}
    if name == "video_motion":
        kind = {"_target_": f"{place}ClipNet", "in_channels": 1, "out_features": 6}
        return {**kind, "dropout": dropout, "widths": [min(width, 16), min(2 * width, 16)]}
    if name == "letters_excel":
        return {"_target_": f"{place}Mlp", "dims": [16, width, width, 26], "dropout": dropout}
    if name == "docstrings":
        dim = max(8, width)
        shown = _config(name)["network"]["config"]
        sizes = {"hidden_size": dim, "intermediate_size": 2 * dim, "num_attention_heads": 2}
        depth = {"num_hidden_layers": 1, "hidden_dropout_prob": dropout}
        return {**_config(name)["network"], "config": {**shown, **sizes, **depth}}
    few = min(width, 16)
    heard = {**maps, "widths": [few, few, few]}
    if name == "digits_seen_and_heard":
        seen = {**maps, "widths": [few, few]}
        chains = {
            key: {
                "_target_": f"{place}Chain",
                "encoder": encoder,
                "features": {"_target_": f"{place}Mlp", "dims": [size * few, 16]},
            }
            for key, encoder, size in (("image", seen, 4), ("wave", heard, 6))
        }
        head = {"_target_": f"{place}Mlp", "dims": [16, width, 10], "dropout": dropout}
        kind = {"_target_": f"{place}Fuse", "how": "attend", "features": 16}
        return {**kind, "encoders": chains, "head": head}
    encoder, size = (heard, 6) if name == "spoken_digits" else ({**maps, "widths": [few, few]}, 49)
    head = {"_target_": f"{place}Mlp", "dims": [size * few, width, 10], "dropout": dropout}
    return {"_target_": f"{place}Chain", "encoder": encoder, "head": head}


def configs(name: str) -> Iterator[dict[str, Any]]:
    """The configs of a family's runs, drawn as those of forecast_curves.py: the same each time."""
    draw = random.Random(name)
    shown, steps = _config(name), INTERVALS * 6
    for number in range(RUNS_A_FAMILY):
        optimizer, more = draw.choice([("AdamW", {}), ("AdamW", {}), ("SGD", {"momentum": 0.9})])
        rate = 10 ** draw.uniform(-3.8, -1.4) * (10 if optimizer == "SGD" else 1)
        few = {"_target_": f"{MODULE}.Few", "config": name, "shuffled": draw.random() < 0.12}
        schedules: dict[str, Any] = {
            "cosine": {"_target_": "harness.schedules.WarmupCosine", "total_steps": steps},
            "steps": {
                "_target_": "torch.optim.lr_scheduler.MultiStepLR",
                "milestones": [steps // 2, steps * 3 // 4],
            },
        }
        yield {
            "data": {
                part: {
                    "source": {**few, "part": part},
                    "treatments": _treatments(name, part),
                }
                for part in ("train", "val")
            },
            "network": network(name, draw.choice([2, 4, 16, 64]), draw.choice([0.0, 0.0, 0.3])),
            "task": shown["task"],
            "batch": {"size": 48, "micro_size": 48},
            "evaluation": {"micro_size": 150},
            "run": {"name": f"{name}-{number}", "seed": draw.randrange(1000)},
            "optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": rate, **more},
            "schedule": schedules.get(draw.choice(["none", "none", "cosine", "steps"])),
            "stop": {"every": {"steps": steps // INTERVALS}, "budget": {"steps": steps}},
            "checkpoint": {"every": None, "keep_last": 1},
            "log": {"every": {"steps": 1000}},
        }


def main(names: list[str]) -> None:
    os.chdir(ROOT)
    prepare()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for name in names:
            for part in MOST:
                _few(name, part)
            done = {json.loads(one["config"])["run"]["name"] for one in recorded()}
            for config in configs(name):
                if config["run"]["name"] in done:
                    continue
                directory = Path(root) / config["run"]["name"]
                directory.mkdir()
                row = train(config, directory)
                if row is not None:
                    write([*recorded(), row], CURVES)
            print(name, len(recorded()), flush=True)


def recorded() -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(CURVES).to_pylist() if CURVES.exists() else []


if __name__ == "__main__":
    main(sys.argv[1:] or list(CONFIGS))

"""`fermarsi init`: a starter project for a user's own folder or file, which trains at once."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from textwrap import indent
from typing import Any

import yaml  # type: ignore[import-untyped]  # it has no stubs

from harness.commands.init_plans import (
    Plan,
    plan_audio,
    plan_images,
    plan_series,
    plan_table,
    plan_text,
)
from harness.config.read import read_config
from harness.errors import ConfigError, HarnessError, require_choice

KINDS = ("images", "table", "audio", "series", "text")
_LEAST = 10  # samples


def start_project(directory: Path, kind: str, origin: Path, target: str | None = None) -> str:
    """Write a config and a README for the data at `origin` into a new directory; returns what to do
    next. Raises ConfigError, and changes nothing then.
    """
    require_choice("--kind", kind, KINDS)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: is not empty. Give a new directory; nothing was changed.")
    if not origin.exists():
        raise ConfigError(f"--data {origin}: no such file or folder.")
    if target is not None and kind not in ("table", "text"):
        raise ConfigError(f"--target: has no effect on {kind}, whose folders name the classes.")
    makers: Mapping[str, Callable[[], Plan]] = {
        "images": lambda: plan_images(origin),
        "audio": lambda: plan_audio(origin),
        "series": lambda: plan_series(origin),
        "table": lambda: plan_table(origin, target),
        "text": lambda: plan_text(origin, target),
    }
    plan = makers[kind]()
    if plan.num_samples < _LEAST:
        raise ConfigError(f"--data {origin}: {plan.num_samples} samples. Give at least {_LEAST}.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}. Give another directory.") from error
    config = directory / "train.yaml"
    config.write_text(_config_text(plan, directory, origin), encoding="utf-8")
    (directory / "README.md").write_text(_readme(plan, directory, origin), encoding="utf-8")
    try:
        read_config(config)
    except HarnessError:
        config.unlink()
        (directory / "README.md").unlink()
        raise
    notes = "".join(f"\nnote: {note}" for note in plan.notes)
    return (
        f"{config}: {plan.num_samples:,} samples{notes}\nnext: fermarsi train {quote(str(config))}"
    )


def _config_text(plan: Plan, directory: Path, origin: Path) -> str:
    part = 0.7 * plan.num_samples
    size = 2 ** max(2, min(6, int(math.log2(max(4.0, part / 8)))))
    best = {"metric": "val/accuracy"} if plan.classifies else {"metric": "val/mae"}
    sections: list[tuple[str, dict[str, Any]]] = [
        ("", {"run": {"name": directory.resolve().name, "dir": str(directory.resolve() / "run")}}),
        ("", {"network": plan.network, "task": plan.task}),
        (
            f"{size // max(1, size // 4)} micro-batches a step: on as many processes at most",
            {"batch": {"size": size, "micro_size": max(1, size // 4)}},
        ),
        ("", {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01}}),
        (
            "ends when eight epochs in a row gain less than 1 %; see docs/stopping.md",
            {
                "stop": {
                    "every": {"epochs": 1},
                    "improvement": {"metric": "val/loss", "at_least": "1%", "patience": 8},
                    "best": best,
                    "budget": {"epochs": 100},
                },
                "checkpoint": {"every": {"epochs": 1}, "keep_last": 2, "keep_best": 1},
            },
        ),
    ]
    texts = [f"# A starter project for {origin}, by `fermarsi init`: change what you like.\n"]
    for comment, section in sections:
        texts.append((f"# {comment}\n" if comment else "") + _dump(section))
    texts.insert(2, _data_text(plan))
    return "\n".join(texts)


def _data_text(plan: Plan) -> str:
    """The splits, which share a source and treatments by anchors."""
    source = _dump({**plan.source, "part": "train", "split": plan.split})
    others = "".join(
        f"  {name}:\n    source: {{<<: *source, part: {name}}}\n    treatments: *treatments\n"
        for name in ("val", "test")
    )
    return (
        "# the splits: 70 % for training, 20 % to judge by, 10 % for the end\ndata:\n  train:\n"
        f"    source: &source\n{indent(source, ' ' * 6)}"
        f"    treatments: &treatments\n{indent(_dump(list(plan.treatments)), ' ' * 6)}{others}"
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml has no stubs
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(value: Any) -> str:
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=100,
        allow_unicode=True,
    )
    return text


def _readme(plan: Plan, directory: Path, origin: Path) -> str:
    notes = "".join(f"- {note}\n" for note in plan.notes)
    config, run, out = (quote(str(directory / one)) for one in ("train.yaml", "run", "found.csv"))
    allow = quote(f"{origin.resolve().parent}/")
    new = quote("new/*" if origin.is_dir() else f"new{origin.suffix}")
    return f"""# {directory.resolve().name}

A starter project for {origin}.

{notes}
```
fermarsi data check {config}      leaks, odd values, the sizes of classes
fermarsi train {config}           until it no longer pays; again to resume
fermarsi evaluate {run} --split test --allow {allow}
fermarsi predict {run} --split test --out {out} --allow {allow}
fermarsi predict {run} --files {new} --out {out}      new data, without what is to be predicted
fermarsi report {run}             one page with the curves
```
"""

"""Parts that a rule keeps and no split reads."""

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness import components
from harness.checks.report import Findings
from harness.components import TARGET
from harness.data.settings import DataConfig

_RULES = ("split", "rule")  # what sources call theirs
_DATA = ("files", "path", "name", "data_dir", "revision", "split")  # what is read
_SHARED = ("val", "test")


def check_parts(data: DataConfig, findings: Findings) -> None:
    """A share that a rule keeps for "val" or "test" by its default, not by the config, while no
    split reads that part: those samples are used nowhere.
    """
    read: dict[str, set[str]] = {}
    rules: dict[str, Mapping[str, Any]] = {}
    for split in data.names:
        for part, samples, rule in _parts_of(getattr(data, split).source):
            key = json.dumps([*samples, rule], sort_keys=True, default=str)
            read.setdefault(key, set()).add(part)
            rules[key] = rule
    for key, parts in read.items():
        rule = rules[key]
        for part in _SHARED:
            share = _default_share(rule, part)
            if "all" not in parts and part not in parts and part not in rule and share:
                name = components.target_of(rule).rpartition(".")[2]
                message = (
                    f"data: {name} keeps {share:.0%} of the samples for {part!r}, by default, and "
                    f"no split reads it: they are used nowhere. Add a split with part: {part}, or "
                    f"set {part}: 0 in the rule of every split."
                )
                findings.add("unused_parts", data.names, message, 1)


def _parts_of(source: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(part, (source, files), rule) of each component in a spec that reads a part by a rule."""
    for spec in components.components_in(source):
        rule = next((spec[name] for name in _RULES if isinstance(spec.get(name), Mapping)), None)
        if rule is not None and isinstance(spec.get("part"), str) and TARGET in rule:
            # `split` of a table is its rule, of a dataset a name
            named = [spec.get(name) for name in _DATA if not isinstance(spec.get(name), Mapping)]
            inner = rule.get("within")  # of folds
            kept = inner if isinstance(inner, Mapping) and TARGET in inner else rule
            yield spec["part"], (spec.get(TARGET), *named, spec.get("data_files")), kept


def _default_share(rule: Mapping[str, Any], part: str) -> float:
    parameter = inspect.signature(components.find(rule[TARGET])).parameters.get(part)
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, float) else 0.0

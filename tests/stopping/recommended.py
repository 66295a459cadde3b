"""What docs/stopping.md recommends, as it stands there."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[2] / "docs" / "stopping.md"


def recommended(target: str = "val/accuracy") -> list[str]:
    """The block of its own section, as overrides. `target`: what the run's target names, which is
    forecast; without a milestone if that is not accuracy.
    """
    section = DOCS.read_text().partition("## Recommended settings\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    stop: dict[str, Any] = yaml.safe_load(block)["stop"]
    stop["forecast"]["target"] = target
    if target != "val/accuracy":
        del stop["milestones"]
    return [f"stop.{name}={json.dumps(one)}" for name, one in stop.items()]

"""`fermarsi replay`: stop settings tried on a training that has been. No torch, so that it answers at once."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from harness.errors import ConfigError
from harness.history import read_history
from harness.rejudging import replay
from harness.replay_views import comparison, draw, story


def replay_command(
    history: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    sweep: Sequence[str] = (),
    *,
    as_json: bool = False,
    plot: Path | None = None,
) -> int:
    """Print what settings would have decided; the exit code. `config` may be left out for a run's directory. Raises ConfigError."""
    from harness.config import read_stop  # what reads YAML is not needed to replay

    if config is None:
        config = history / "config.yaml"
        if not config.is_file():
            raise ConfigError(f"{history}: no config.yaml in it. Say with --config by which settings to judge.")
    recorded = read_history(history)
    swept: list[dict[str, str]] = [dict(combination) for combination in itertools.product(*map(_swept, sweep))]
    replays = [replay(recorded, read_stop(config, [*overrides, *(f"{key}={value}" for key, value in label.items())]), label) for label in swept]
    if as_json:
        whole = {"sweep": [{"settings": one.label, **one.to_json()} for one in replays]} if sweep else replays[0].to_json()
        print(json.dumps(whole))
    else:
        print("\n".join(comparison(replays, recorded) if sweep else story(replays[0])))
    if plot is not None:
        draw(replays, recorded, plot)
    return 0


def _swept(text: str) -> list[tuple[str, str]]:
    """`a=1,2` -> [("a", "1"), ("a", "2")]; commas inside brackets do not part."""
    key, equals, values = text.partition("=")
    parts = re.findall(r"(?:[^,\[{]|\[[^\]]*\]|\{[^}]*\})+", values)
    if not equals or not key.strip() or not parts:
        raise ConfigError(f"--sweep {text}: not of the form key=value,value. Write for example --sweep stop.improvement.patience=1,3,5.")
    return [(key.strip(), part.strip()) for part in parts]

"""A run directory may be somebody else's and contain links where files are written: nothing is
written, created or deleted through one.
"""

from pathlib import Path

from harness.errors import ConfigError

# Everything that launches and commands write into a run directory, or below that name
WRITTEN = (
    "checkpoints",
    "config.yaml",
    "lease",
    "ledger.json",
    "left_out.json",
    "metrics.jsonl",
    "outcome.json",
    "report.html",
    "stacks",
    "step-in-work",
    "tensorboard",
    "trace.jsonl",
    "treatments.json",
    "wandb",
)


def refuse_links(run: Path) -> None:
    """Raise ConfigError if anything that is written in a run directory is a link."""
    for name in WRITTEN:
        path = run / name
        if path.is_symlink():
            raise ConfigError(
                f"{path}: a link; nothing is written through links in a run directory, which may "
                "be somebody else's. Replace it by what it points to, or set run.dir to a "
                "directory on the other disk."
            )

"""The main job: `accelerate launch harness/train.py CONFIG [key=value ...]`, by path, by `-m
harness.train`, or as `fermarsi train`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts harness/ itself on sys.path, where its modules would hide others: the
    # checkout goes there instead.
    sys.path[:] = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import harness.interrupt  # noqa: F401 - first of all: it notes who the launcher is
    from harness.cli import main

    main(["train", *sys.argv[1:]])

"""BasicMotions as a smart watch would leave it: a CSV file for each recording (from the wheel aeon,
UCR/UEA archive).

    python tests/sources/make_activity.py runs/activity

The wheel is unpacked by `make setup` under .venv/data. Students stood, walked, ran and played
badminton; 80 recordings of ten seconds, at 10 Hz, of
three channels of acceleration and three of a gyroscope: <activity>/<number>.csv. Numbers 0 to 9 are
those that the archive trains on.
"""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
MOTIONS = ROOT / ".venv" / "data" / "aeon" / "datasets" / "data" / "BasicMotions"
CHANNELS = ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]
RATE_HZ = 10


def make(folder: Path) -> None:
    """folder/<activity>/<number>.csv with the columns t and CHANNELS."""
    counts: dict[str, int] = {}
    for part in ("TRAIN", "TEST"):
        for line in (MOTIONS / f"BasicMotions_{part}.ts").read_text().splitlines():
            if line and line[0] not in "#@":
                *channels, activity = line.split(":")
                values = {
                    name: list(map(float, cells.split(",")))
                    for name, cells in zip(CHANNELS, channels, strict=True)
                }
                number = counts.setdefault(activity.lower(), 0)
                counts[activity.lower()] += 1
                path = folder / activity.lower() / f"{number:02}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                times = [step / RATE_HZ for step in range(len(values["acc_x"]))]
                pd.DataFrame({"t": times, **values}).to_csv(path, index=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

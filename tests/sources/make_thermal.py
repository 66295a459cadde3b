"""Pictures as a thermal camera gives them, made from Fashion-MNIST: 16-bit TIFF files of
centikelvin, a folder for each class.

    python tests/sources/make_thermal.py runs/thermal_frames [NUM_TRAIN NUM_TEST]

Needs Debian's and Ubuntu's package dataset-fashion-mnist. Cloth of brightness b is at 18 + 0.24 b
degrees
Celsius: 291.15 to 352.35 K, which is 29115 to 35235 counts.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FASHION = Path("/usr/share/datasets/fashion-mnist")


def centikelvin(brightness: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Counts of a frame of bytes."""
    return (29115 + 24 * brightness.astype(np.uint16)).astype(np.uint16)


def make(folder: Path, num_train: int, num_test: int) -> None:
    """folder/{train,test}/<class>/<number>.tiff: the first samples of each of Fashion-MNIST's
    files. Those that are there already stay.
    """
    from harness.sources.idx import Idx

    for part, name, count in (("train", "train", num_train), ("test", "t10k", num_test)):
        source = Idx(
            str(FASHION / f"{name}-images-idx3-ubyte.gz"),
            str(FASHION / f"{name}-labels-idx1-ubyte.gz"),
        )
        for number in range(count):
            sample = source[number]
            path = folder / part / str(sample["label"]) / f"{number:05}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.fromarray(centikelvin(sample["image"][0])).save(path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    counts = [int(argument) for argument in sys.argv[2:]] or [12_000, 2_000]
    make(Path(sys.argv[1]), *counts)

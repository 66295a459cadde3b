"""Files in the format of MNIST: https://yann.lecun.com/exdb/mnist (archived), "the IDX file
format".
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.order import position_in_class
from harness.sources.source import BatchSource, as_texts

Part = Literal["all", "train", "val"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Directories of data sets that Debian and Ubuntu package
_PACKAGES = {"fashion-mnist": "dataset-fashion-mnist"}


class Idx(BatchSource):
    """Images, and labels if given, from a pair of idx files, gzipped or not.

    A sample: `image` (1, H, W) as stored, usually uint8 in 0 … 255 (scaled
    by harness.treatments.ToFloat), and `label` int64. Further axes are kept.
    `part` holds out a validation part of a training file: of each class, in file order, every
    `val_every`-th sample is "val", the others are "train". Raises DataError for a file that is
    missing, truncated or not an idx file.
    """

    def __init__(
        self, images: str, labels: str | None = None, part: Part = "all", val_every: int = 10
    ) -> None:
        require_choice("part", part, get_args(Part))
        if val_every < 2:
            raise ConfigError(
                f"val_every: {val_every}: at most every second sample can be held out."
            )
        if part != "all" and labels is None:
            raise ConfigError(f"part: {part!r} holds out samples of each class. Give labels too.")
        found = read_idx(Path(images))
        self._images = found[:, None] if found.ndim == 3 else found
        self._labels: NDArray[np.int64] | None = None
        if labels is not None:
            classes = read_idx(Path(labels))
            if classes.ndim != 1 or len(classes) != len(found) or classes.dtype.kind not in "iu":
                raise DataError(
                    f"{labels}: an array {classes.shape} of {classes.dtype}, expected "
                    f"{len(found)} labels for {images}. Give the labels of these images."
                )
            self._labels = classes.astype(np.int64)
        self._rows = np.arange(len(found))
        if part != "all" and self._labels is not None:
            held_out = position_in_class(self._labels) % val_every == val_every - 1
            self._rows = np.flatnonzero(held_out == (part == "val"))

    @staticmethod
    def paths_of(images: str, labels: str | None = None, **_: Any) -> list[Path]:
        """The files that a source with these arguments reads; none is opened."""
        return [Path(path).expanduser() for path in (images, labels) if path is not None]

    def __len__(self) -> int:
        return len(self._rows)

    def known(self) -> dict[str, list[str]]:
        """{label: (N,) texts} if there are labels."""
        return {} if self._labels is None else {"label": as_texts(self._labels[self._rows])}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """{image: (B, 1, H, W), label: (B,)}"""
        rows = self._rows[indices]
        images = {"image": self._images[rows]}
        return images if self._labels is None else {**images, "label": self._labels[rows]}


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an idx file in native byte order; an uncompressed file stays on disk until rows
    are read. Raises DataError.
    """
    path = path.expanduser()
    if not path.is_file():
        hint = "Give the path of an idx file."
        for folder, package in _PACKAGES.items():
            if folder in path.parts:
                hint = f"It is available as a package: apt-get install {package}."
        raise DataError(f"{path}: no such file (looked in {path.absolute().parent}). {hint}")
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    try:
        data = (
            np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
            if compressed
            else np.memmap(path, dtype=np.uint8, mode="r")
        )
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. It may be truncated: download it again."
        ) from error
    if len(data) < 4 or data[0] or data[1] or int(data[2]) not in _DTYPES:
        raise DataError(
            f"{path}: begins with {bytes(data[:4]).hex(' ')}, so it is not an idx file. Give a "
            "file in MNIST's format."
        )
    dtype, num_axes = np.dtype(_DTYPES[int(data[2])]), int(data[3])
    begin = 4 + 4 * num_axes
    shape = [int(length) for length in data[4:begin].view(">u4")] if len(data) >= begin else []
    if num_axes == 0 or len(data) != begin + dtype.itemsize * math.prod(shape):
        raise DataError(
            f"{path}: {len(data)} bytes, which do not match the array {tuple(shape)} of "
            f"{dtype.name} that its header declares. Download it again."
        )
    values: NDArray[Any] = data[begin:].view(dtype).reshape(shape)
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))

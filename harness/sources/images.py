"""Image files, one a sample, with the counts that are in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.cells import Kind
from harness.sources.collection import Collection, Keep
from harness.sources.files import OnError, need, opened
from harness.sources.split import Part, Rule

# Torch can do little with uint16
_DTYPES = {"uint8": np.uint8, "uint16": np.int32, "int32": np.int32, "float32": np.float32}


class Images(Collection):
    """PNG, TIFF, JPEG and other files that Pillow reads, all of one size, channel count and kind of
    number.

    A sample: `image` (C, H, W), and `label` int64 if the path has a {label}. 8-bit counts stay
    uint8; 16-bit ones, as thermal cameras give, become int32 and keep every count; floats stay
    float32. `harness.treatments.ToFloat` or `ToDegrees` makes numbers of them that a network can
    take. What Pillow would round without a word (16 bits in colour) is refused, and so are palettes
    and files of several pages.

    `files`: e.g. `pictures/{label}/*.png`, or `pictures/metadata.csv`, a table that lists them;
    `columns`, e.g. {age: number}, of what is said there are put into samples, as `Collection` says.
    Classes are numbered as in `classes`, or else by name. `keep`: "memory" decodes all at the
    beginning, so that a corrupt file is found then (with `on_error: skip` it is left out and named
    in `skipped`); "disk" looks at heads only and decodes what is read. Raises DataError that names
    the file.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        columns: Mapping[str, Kind] | None = None,
        keep: Keep = "memory",
        on_error: OnError = "stop",
    ) -> None:
        self.reader = ImageReader()
        super().__init__("image", files, part, split, classes, keep, on_error, columns)


class ImageReader:
    """Reads images that are all alike, from files or from bytes; `name` is for messages. Raises
    DataError.
    """

    def __init__(self) -> None:
        _decoder()
        # What all others have to be like
        self._first: tuple[str, tuple[int, int], str] | None = None

    def check(self, file: Path | bytes, name: str) -> None:
        """Refuse an image whose head says that it cannot be kept as it is, or that it is not like
        the first.
        """
        with self._open(file, name) as image:
            self._compare(name, image)

    def read(self, file: Path | bytes, name: str) -> NDArray[Any]:
        """The counts (C, H, W) of an image."""
        with self._open(file, name) as image:
            self._compare(name, image, only_refuse=True)
            try:
                counts = np.asarray(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(
                    f"{name}: cannot be decoded: {error}. It may be cut short."
                ) from error
            self._compare(name, image)  # only what could be decoded can be the first
        # (H, W) or (H, W, C), in the machine's byte order
        counts = counts.astype(_DTYPES[_depth(image.mode)])
        return counts[None] if counts.ndim == 2 else np.ascontiguousarray(counts.transpose(2, 0, 1))

    def _open(self, file: Path | bytes, name: str) -> Any:
        pillow = _decoder()
        try:
            return pillow.open(opened(file))
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DataError(f"{name}: no image: {error}. It may be cut short.") from error

    def _compare(self, name: str, image: Any, *, only_refuse: bool = False) -> None:
        if getattr(image, "n_frames", 1) != 1:
            raise DataError(f"{name}: {image.n_frames} pages or frames. Give one image a file.")
        raw = str([tile[3] for tile in image.tile])
        if _depth(image.mode) not in _DTYPES or (_depth(image.mode) == "uint8" and "16" in raw):
            what = f"an image of mode {image.mode}"
            if "16" in raw:
                what = "16 bits in colour, which Pillow would round to 8"
            raise DataError(
                f"{name}: {what}. Save it as grey of 8 or 16 bits, as 8-bit RGB or RGBA, or as "
                "float TIFF."
            )
        if self._first is None:
            self._first = None if only_refuse else (name, image.size, image.mode)
            return
        first, size, mode = self._first
        if image.size != size or _kind(image.mode) != _kind(mode):
            raise DataError(
                f"{name}: {image.size[0]} x {image.size[1]} {image.mode}, but {first} has "
                f"{size[0]} x {size[1]} {mode}. All images must be alike."
            )


def _decoder() -> Any:
    # Not kept by the source, which has to be able to go to a worker: a module cannot
    return need("PIL.Image", "images", "images")


def _depth(mode: str) -> str:
    """The kind of number that a Pillow mode holds; a mode that is not kept as it is has none."""
    if mode in ("L", "LA", "RGB", "RGBA"):
        return "uint8"
    return {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else mode)


def _kind(mode: str) -> str:
    return "I;16" if mode.startswith("I;16") else mode  # of either byte order

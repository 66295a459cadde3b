"""Image files, one per sample, with their original values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.cells import Kind
from harness.sources.collection import Collection, Keep
from harness.sources.files import OnError, decodable, need
from harness.sources.split import Part, Rule

# Torch supports few operations on uint16
_DTYPES = {"uint8": np.uint8, "uint16": np.int32, "int32": np.int32, "float32": np.float32}


class Images(Collection):
    """PNG, TIFF, JPEG and other files that Pillow reads, all of one size, channel count and data
    type.

    A sample: `image` (C, H, W), and `label` int64 if the path has a {label}. 8-bit values stay
    uint8; 16-bit values, as from thermal cameras, become int32 without loss; floats stay float32.
    `harness.treatments.ToFloat` or `ToDegrees` converts them for a network. Formats that Pillow
    would silently round (16 bits in colour) are rejected, and so are palettes and multi-page files.

    `files`: e.g. `pictures/{label}/*.png`, or `pictures/metadata.csv`, a table that lists them;
    `columns`, e.g. {age: number}, of what is said there are put into samples, as `Collection` says.
    Classes are numbered as in `classes`, or else by name. `keep`: "memory" decodes every
    file at start-up, so that a corrupt file is found then (with `on_error: skip` it is skipped and
    named in `skipped`); "disk" checks headers only and decodes a file when it is read. Raises a
    DataError that names the file.
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
    """Reads images of one size and mode, from files or from bytes; `name` is used in messages.
    Raises DataError.
    """

    def __init__(self) -> None:
        _decoder()
        # The name, size and mode that all others must match
        self._first: tuple[str, tuple[int, int], str] | None = None

    def check(self, file: Path | bytes, name: str) -> None:
        """Refuse an image that, by its header, cannot be read without loss or differs from the
        first.
        """
        with self._open(file, name) as image:
            self._compare(name, image)

    def read(self, file: Path | bytes, name: str) -> NDArray[Any]:
        """The values (C, H, W) of an image."""
        with self._open(file, name) as image:
            self._compare(name, image, only_refuse=True)
            try:
                counts = np.asarray(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(
                    f"{name}: cannot be decoded: {error}. It may be truncated."
                ) from error
            self._compare(name, image)  # only a decodable image can be the first
        # (H, W) or (H, W, C), in the machine's byte order
        counts = counts.astype(_DTYPES[_depth(image.mode)])
        return counts[None] if counts.ndim == 2 else np.ascontiguousarray(counts.transpose(2, 0, 1))

    def _open(self, file: Path | bytes, name: str) -> Any:
        pillow = _decoder()
        try:
            return pillow.open(decodable(file))
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DataError(f"{name}: not an image: {error}. It may be truncated.") from error

    def _compare(self, name: str, image: Any, *, only_refuse: bool = False) -> None:
        if getattr(image, "n_frames", 1) != 1:
            raise DataError(f"{name}: {image.n_frames} pages or frames. Give one image per file.")
        raw = str([tile[3] for tile in image.tile])
        if _depth(image.mode) not in _DTYPES or (_depth(image.mode) == "uint8" and "16" in raw):
            what = f"an image of mode {image.mode}"
            if "16" in raw:
                what = "16 bits in colour, which Pillow would round to 8"
            raise DataError(
                f"{name}: {what}. Save it as 8- or 16-bit greyscale, 8-bit RGB or RGBA, or "
                "float TIFF."
            )
        if self._first is None:
            self._first = None if only_refuse else (name, image.size, image.mode)
            return
        first, size, mode = self._first
        if image.size != size or _kind(image.mode) != _kind(mode):
            raise DataError(
                f"{name}: {image.size[0]} x {image.size[1]} {image.mode}, but {first} has "
                f"{size[0]} x {size[1]} {mode}. All images must have one size and mode."
            )


def _decoder() -> Any:
    # Not kept by the source, which must be picklable for a worker; a module is not
    return need("PIL.Image", "images", "images")


def _depth(mode: str) -> str:
    """The data type of a Pillow mode; for an unsupported mode, the mode itself."""
    if mode in ("L", "LA", "RGB", "RGBA"):
        return "uint8"
    return {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else mode)


def _kind(mode: str) -> str:
    return "I;16" if mode.startswith("I;16") else mode  # of either byte order

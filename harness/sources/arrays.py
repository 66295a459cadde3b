"""Arrays of numbers in NumPy's files: .npy, or one in an .npz."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.files import decodable

ARRAYS = (".npy", ".npz")
_MAGIC = b"\x93NUMPY"


def is_array(file: Path | bytes) -> bool:
    """Whether a file holds an array, by its ending, or its first bytes."""
    if isinstance(file, Path):
        return file.suffix.lower() in ARRAYS
    return file.startswith(_MAGIC)


def load_array(file: Path | bytes, name: str) -> NDArray[Any]:
    """The array of a file, or the only one of an .npz; `name` is for messages. Raises DataError."""
    try:
        opened = decodable(file)
        # NumPy leaves a bad zip file open
        with opened.open("rb") if isinstance(opened, Path) else opened as content:
            loaded = np.load(content, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            with loaded:
                if len(loaded.files) != 1:
                    raise DataError(
                        f"{name}: the arrays {', '.join(loaded.files) or '(none)'}. Save each in "
                        "a file of its own."
                    )
                return np.asarray(loaded[loaded.files[0]])
    # A MemoryError by what a header declares
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{name}: cannot be read: {error}. It may be truncated, or not a numeric array."
        ) from error


def as_image(array: NDArray[Any], name: str, layout: str | None) -> NDArray[Any]:
    """An array (H, W), (H, W, C) or (C, H, W) -> (C, H, W) of the same values as uint8, int32 or
    float32. Raises DataError where there are none, or the layout is not told.
    """
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and layout is not None:
        array = array if layout == "CHW" else array.transpose(2, 0, 1)
    else:
        ways = " Set layout: HWC or CHW." if array.ndim == 3 else ""
        raise DataError(
            f"{name}: an array of {' x '.join(map(str, array.shape)) or 'one number'}, expected "
            f"height x width, or channels too.{ways}"
        )
    kind = array.dtype.kind
    if array.size == 0 or kind not in "buif":
        raise DataError(f"{name}: {array.size} cells of {array.dtype}. Give numbers.")
    is_small = kind == "b" or array.dtype == np.uint8
    narrow: np.dtype[Any] = np.dtype("uint8" if is_small else "float32" if kind == "f" else "int32")
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.ascontiguousarray(array.astype(narrow))
    # Back in an unsigned type, a wrapped number is itself again
    wrapped = kind == "u" and int(array.max()) > np.iinfo(narrow).max
    if wrapped or not np.array_equal(found.astype(array.dtype), array, equal_nan=kind == "f"):
        raise DataError(
            f"{name}: {array.dtype} numbers that {narrow} does not hold exactly. Store the array "
            f"as {narrow}."
        )
    return found

"""Images in NumPy's files have the values that NumPy wrote."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.errors import DataError
from harness.sources.images import ImageReader, Images

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(
    ("array", "layout", "dtype"),
    [
        (DRAW.integers(0, 256, (4, 6)).astype(np.uint8), None, "uint8"),
        (DRAW.integers(0, 256, (4, 6, 3)).astype(np.uint8), "HWC", "uint8"),
        (DRAW.integers(0, 256, (3, 4, 6)).astype(np.uint8), "CHW", "uint8"),
        (DRAW.integers(0, 2, (4, 6)).astype(np.bool_), None, "uint8"),
        (DRAW.integers(-9, 9, (4, 6)).astype(np.int8), None, "int32"),
        (DRAW.integers(0, 2**16, (4, 6)).astype(">u2"), None, "int32"),
        (DRAW.integers(0, 2**31, (4, 6)), None, "int32"),
        (np.asfortranarray(DRAW.normal(size=(4, 6)).astype(np.float32)), None, "float32"),
        (DRAW.normal(size=(4, 6)).astype(np.float16), None, "float32"),
        (np.array([[0.5, np.nan, -np.inf]]), None, "float32"),
    ],
)
def test_arrays_keep_their_values(
    tmp_path: Path, array: NDArray[Any], layout: Any, dtype: str, keep: Any
) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "b.npz", array)
    images = Images(str(tmp_path / "*.np{y,z}"), layout=layout, keep=keep)
    wanted = array[None] if array.ndim == 2 else array
    wanted = wanted.transpose(2, 0, 1) if layout == "HWC" else wanted
    for image in images.__getitems__([0, 1])["image"]:
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, wanted)
    content = (tmp_path / "a.npy").read_bytes()
    np.testing.assert_array_equal(ImageReader(layout=layout).read(content, "it"), wanted)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((3, 4, 3)), r"an array of 3 x 4 x 3, .* Set layout: HWC or CHW"),
        (np.zeros((2, 3, 4, 3)), r"an array of 2 x 3 x 4 x 3, expected height x width"),
        (np.full((2, 2), 0.1), "float64 numbers that float32 does not hold exactly"),
        (np.full((2, 2), 2**31), "int64 numbers that int32 does not hold exactly"),
        (np.full((2, 2), 2**32 - 1, np.uint32), "uint32 numbers that int32 does not hold exactly"),
        (np.full((2, 2), 1j), "4 cells of complex128. Give numbers"),
        (np.array([["a"]]), "1 cells of <U1. Give numbers"),
        (np.zeros((0, 2)), "0 cells of float64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, array: Any, why: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy: {why}"):
        Images(str(tmp_path / "a.npy"))


def test_files_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 9)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.npy: cannot be read: .* truncated"):
        Images(str(tmp_path / "a.npy"))
    with (tmp_path / "a.npy").open("wb") as file:
        head = {"descr": "<f8", "fortran_order": False, "shape": (40_000_000, 4_000_000)}
        np.lib.format.write_array_header_1_0(file, head)
    with pytest.raises(DataError, match=r"a\.npy: cannot be read: Unable to allocate"):
        Images(str(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: cannot be read: Object arrays"):
        Images(str(tmp_path / "a.npy"))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"a\.npz: the arrays x, y\. Save each"):
        Images(str(tmp_path / "a.npz"))
    np.save(tmp_path / "a.npy", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"a\.npy: an array, which has no mode"):
        Images(str(tmp_path / "a.npy"), mode="L")
    np.save(tmp_path / "b.npy", np.zeros((9, 9), np.float32))
    with pytest.raises(DataError, match=r"b\.npy: 9 x 9 float32 in 1 channels, but .*a\.npy has"):
        Images([str(tmp_path / "a.npy"), str(tmp_path / "b.npy")])

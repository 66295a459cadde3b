"""Image files, one per sample, with their original values."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError, require_choice
from harness.sources.arrays import as_image, is_array, load_array
from harness.sources.cells import Kind
from harness.sources.collection import Check, Collection, Keep
from harness.sources.files import OnError, decodable, need
from harness.sources.fitting import Fit, Fitting
from harness.sources.flir import MARK, FlirError, read_thermogram
from harness.sources.mistaken import is_heic, what_is
from harness.sources.pixels import (
    HeaderError,
    check_maximum,
    is_turned,
    layout_of,
    read_netpbm,
    upright,
    why_inexact,
    why_no_picture,
)
from harness.sources.split import Part, Rule
from harness.wording import first_line

Mode = Literal["RGB", "L"]
Layout = Literal["HWC", "CHW"]
Radiometric = Literal["counts", "degC"]
# Torch supports few operations on uint16
_HEAD_BYTES = 1024
_DTYPES = {"uint8": np.uint8, "uint16": np.int32, "int32": np.int32, "float32": np.float32}


class Images(Collection):
    """PNG, TIFF, JPEG, PGM, .npy and other files (docs/data/images.md), all of one size, channel
    count and data type.

    A sample: `image` (C, H, W), upright by its EXIF or XMP, and `label` int64 if the path has a
    {label}. 8-bit values stay uint8; 16-bit values, as from thermal cameras, become int32 without
    loss, and so do those of PGM files with any maximum other than 255; floats stay float32.
    `harness.treatments.ToFloat` or `ToDegrees` converts them for a network. Formats and depths
    whose values Pillow would change (16 bits in colour, 4 bits, 12-bit JPEG 2000) are rejected, and
    so are palettes and multi-page files.

    Images of other sizes are brought to `size`: [H, W], `fit`: "crop" (by default), "pad" or
    "stretch", see `Fitting`. `mode`: "RGB" or "L" converts pictures of 8 bits and less, palettes
    and CMYK as Pillow does; alpha is dropped.

    `layout`: of arrays with three axes (.npy, .npz). `radiometric`: of JPEG files of FLIR cameras,
    "counts" of the sensor (int32, of one camera) or "degC", the temperatures that they stand for
    by the constants in each file (float32).

    `files`: e.g. `pictures/{label}/*.png`, or `pictures/metadata.csv`, a table that lists them;
    `columns`, e.g. {age: number}, are added to samples (see `Collection`).
    Classes are numbered as in `classes`, or else by name. `keep`: "memory" decodes every
    file at start-up, so that a corrupt file is found then (with `on_error: skip` it is skipped and
    named in `skipped`); "disk" checks headers only and decodes a file when it is read; with
    `check`: "first" that of the first file only, and others when they are read. Raises a DataError
    that names the file.
    """

    version = 2  # upright, and the counts of PGM files unchanged

    def __init__(
        self,
        files: str | Sequence[str],
        part: Part = "all",
        split: Rule | None = None,
        classes: Sequence[Any] | None = None,
        columns: Mapping[str, Kind] | None = None,
        size: Sequence[int] | None = None,
        fit: Fit | None = None,
        mode: Mode | None = None,
        keep: Keep = "memory",
        on_error: OnError = "stop",
        layout: Layout | None = None,
        radiometric: Radiometric | None = None,
        check: Check = "all",
    ) -> None:
        self.reader: ImageReader = ImageReader(size, fit, mode, layout, radiometric)
        sized = None if size is None else tuple(size)
        settings = (sized, fit, mode, layout, radiometric)
        super().__init__(
            "image", files, part, split, classes, keep, on_error, columns, settings, check
        )


class ImageReader:
    """Reads images of one size and mode, from files or from bytes, or brings them to `size` and
    `mode`, as `Images` says; `name` is used in messages. Raises ConfigError and DataError.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        fit: Fit | None = None,
        mode: Mode | None = None,
        layout: Layout | None = None,
        radiometric: Radiometric | None = None,
    ) -> None:
        if fit is not None and size is None:
            raise ConfigError(f"fit: {fit!r} has no effect without size. Set size: [H, W].")
        if mode is not None:
            require_choice("mode", mode, get_args(Mode))
        if layout is not None:
            require_choice("layout", layout, get_args(Layout))
        if radiometric is not None:
            require_choice("radiometric", radiometric, get_args(Radiometric))
            if mode is not None:
                raise ConfigError("mode, radiometric: counts have no mode. Remove one of them.")
        self._fitting = None if size is None else Fitting(size, fit or "crop")
        self._mode, self._layout, self._radiometric = mode, layout, radiometric
        self._camera: tuple[str, tuple[float, ...]] | None = None  # of the first file
        self._told = False  # that pictures are in false colours
        _decoder()
        # The name, size and mode that all others must match, and whether it can be converted
        self._first: tuple[str, tuple[int, int], str, bool] | None = None

    def check(self, file: Path | bytes, name: str) -> None:
        """Refuse an image that, by its header, cannot be read without loss or differs from the
        first.
        """
        if self._read_numbers(file, name) is not None:
            return
        with self._open(file, name) as image:
            form = self._accept(name, image)
            try:
                width, height = image.size[::-1] if is_turned(image) else image.size
            except Exception as error:
                raise DataError(
                    f"{name}: its EXIF cannot be read: {error}. It may be truncated."
                ) from error
            self._compare(name, (width, height), *form)

    def read(self, file: Path | bytes, name: str) -> NDArray[Any]:
        """The values (C, H, W) of an image, upright."""
        values = self._read_numbers(file, name)
        if values is None:
            values = self._read_picture(file, name)
        return values if self._fitting is None else self._fitting(values)

    def _read_numbers(self, file: Path | bytes, name: str) -> NDArray[Any] | None:
        """The values of an array, or of a radiometric JPEG if that is wanted."""
        if is_array(file):
            if self._mode is not None:
                raise DataError(f"{name}: an array, which has no mode. Remove mode.")
            values = as_image(load_array(file, name), name, self._layout)
        elif self._radiometric is not None:
            values = self._read_thermogram(file, name)
        else:
            return None
        channels, height, width = values.shape
        self._compare(name, (width, height), f"{values.dtype} in {channels} channels", False)
        return values

    def _read_thermogram(self, file: Path | bytes, name: str) -> NDArray[Any]:
        try:
            data = file if isinstance(file, bytes) else file.read_bytes()
            found = read_thermogram(data)
        except (OSError, FlirError) as error:
            raise DataError(f"{name}: {error}. It may be truncated.") from error
        if found is None:
            raise DataError(
                f"{name}: no counts of a FLIR camera in it. Remove radiometric, or give JPEG files "
                "as the camera writes them."
            )
        if self._radiometric == "degC":
            return found.degrees()[None]
        self._camera = self._camera or (name, found.camera)
        if found.camera != self._camera[1]:
            raise DataError(
                f"{name}: counts of another camera or range than {self._camera[0]}. Set "
                "radiometric: degC."
            )
        return found.counts.astype(np.int32)[None]

    def _read_picture(self, file: Path | bytes, name: str) -> NDArray[Any]:
        with self._open(file, name) as image:
            form = self._accept(name, image)
            try:
                counts = _counts(image, self._mode)
            except HeaderError as error:
                raise DataError(f"{name}: cannot be decoded: {error}") from error
            except Exception as error:
                raise DataError(
                    f"{name}: cannot be decoded: {error}. It may be truncated."
                ) from error
            # Only a decodable image can be the first
            self._compare(name, (counts.shape[1], counts.shape[0]), *form)
        values = counts[None] if counts.ndim == 2 else counts.transpose(2, 0, 1)
        return np.ascontiguousarray(values)

    def _open(self, file: Path | bytes, name: str) -> Any:
        pillow = _decoder()
        try:
            return pillow.open(decodable(file))
        except pillow.UnidentifiedImageError as error:
            if is_heic(file):
                return _open_heic(file, name)
            raise _unopened(file, name, error) from error
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise _unopened(file, name, error) from error

    def _accept(self, name: str, image: Any) -> tuple[str, bool]:
        """The mode of an image that can be read without loss, and whether it can be converted to
        another, checked only if it differs from that of the first.
        """
        self._tell_false_colours(name, image)
        try:
            pages = 1 if image.format in ("MPO", "HEIF") else getattr(image, "n_frames", 1)
        except Exception as error:
            raise DataError(f"{name}: not an image: {error}. It may be truncated.") from error
        if pages != 1:
            raise DataError(f"{name}: {pages} pages or frames. Give one image per file.")
        why: str | None = f"an image of mode {image.mode}"
        if self._mode is not None:
            why = why_no_picture(image)
        elif _depth(image.mode) in _DTYPES:
            why = why_inexact(image)
        if why is not None:
            also = "" if self._mode or why_no_picture(image) else ", or set mode: RGB or L"
            raise DataError(
                f"{name}: {why}. Save it as 8- or 16-bit greyscale, 8-bit RGB or RGBA, or "
                f"float TIFF{also}."
            )
        if self._mode is not None:
            return self._mode, True
        mode = layout_of(image) if image.format == "PPM" else str(image.mode)
        other = self._first is None or _kind(mode) != _kind(self._first[2])
        return mode, other and why_no_picture(image) is None

    def _tell_false_colours(self, name: str, image: Any) -> None:
        segments = getattr(image, "applist", ())
        if self._told or not any(data.startswith(MARK) for _, data in segments):
            return
        self._told = True
        warnings.warn(
            f"{name}: holds the counts of a thermal camera; its picture is in false colours, on a "
            "scale of its own. To read counts or temperatures: radiometric: counts or degC.",
            stacklevel=2,
        )

    def _compare(self, name: str, size: tuple[int, int], mode: str, convertible: bool) -> None:
        if self._first is None:
            self._first = name, size, mode, convertible
        first, others, other, both = self._first
        if self._fitting is not None:
            size = others
        if size != others or _kind(mode) != _kind(other):
            ways = []
            if size != others:
                ways.append("Set size: [H, W], with fit: crop, pad or stretch.")
            if _kind(mode) != _kind(other):
                can = both and convertible
                ways.append("Set mode: RGB or L." if can else "Give images of one mode only.")
            raise DataError(
                f"{name}: {size[0]} x {size[1]} {mode}, but {first} has "
                f"{others[0]} x {others[1]} {other}. All images must have one size and mode. "
                f"{' '.join(ways)}"
            )


def _counts(image: Any, mode: Mode | None) -> NDArray[Any]:
    """(H, W) or (H, W, C), upright, in the machine's byte order."""
    netpbm = None
    if image.format == "PPM":
        image.fp.seek(0)
        netpbm = read_netpbm(image.fp.read())
    if mode is not None:
        picture = upright(image)
        if picture.mode in ("P", "PA"):
            picture = picture.convert("RGBA")
        converted: NDArray[Any] = np.asarray(picture.convert(mode))
        return converted
    if netpbm is not None:
        return netpbm
    counts: NDArray[Any] = np.asarray(upright(image))
    unsigned = image.format == "TIFF" and 1 in image.tag_v2.get(339, (1,))
    if image.mode == "I" and unsigned and counts.min(initial=0) < 0:
        raise ValueError(f"counts above {2**31 - 1}")
    return counts.astype(_DTYPES[_depth(image.mode)])


def _unopened(file: Path | bytes, name: str, error: Exception) -> DataError:
    if (what := what_is(file, "image")) is not None:
        return DataError(f"{name}: not a supported image, but {what}")
    if (why := _header_mistake(file)) is not None:
        return DataError(f"{name}: cannot be decoded: {why}")
    return DataError(f"{name}: not an image: {error}. It may be truncated.")


def _open_heic(file: Path | bytes, name: str) -> Any:
    heif = need("pillow_heif", "images", f"{name}: a HEIC photo")
    try:
        return heif.HeifImageFile(decodable(file))
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:
        why = first_line(error).rstrip(".")
        raise DataError(
            f"{name}: a HEIC photo that cannot be read: {why}. It may be truncated."
        ) from error


def _header_mistake(file: Path | bytes) -> str | None:
    """Why Pillow cannot open an image, by its header; None if the header does not tell."""
    try:
        with BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
            check_maximum(opened.read(_HEAD_BYTES))
    except HeaderError as error:
        return str(error)
    except OSError:
        return None
    return None


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

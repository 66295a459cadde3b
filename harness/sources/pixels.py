"""Which image files Pillow reads with exactly the values that they hold, and a reader of Netpbm
files, whose values it would rescale.

docs/data/images.md lists these formats; tests compare each of them with another reader.
"""

import re
import struct
from os import SEEK_CUR, SEEK_END
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_ORIENTATION = 274
# EXIF 2.32, section 4.6.4 -> the numbers of Pillow's Image.Transpose
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
# Pillow's modes and the layouts that it reads them from without changing a value
_LAYOUTS = {
    "PNG": ("L", "LA", "RGB", "RGBA", "I;16B"),
    "JPEG": ("L", "RGB"),
    "MPO": ("L", "RGB"),  # JPEG, and further pictures after the first
    "BMP": ("L", "BGR", "BGRX", "BGRA"),
    "TGA": ("L", "BGR", "BGRA"),
    "WEBP": ("RGB", "RGBX", "RGBA"),
    "GIF": ("L",),
    "AVIF": ("RGB", "RGBA"),
    "HEIF": ("L", "RGB", "RGBA"),  # .heic, the main picture of several
    "SGI": ("L", "R", "RGB", "RGBA"),  # R: in planes
    "PCX": ("L", "RGB;L"),
    "QOI": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "PPM": ("L", "RGB", "I;16", "RGB;16", "F;32F", "F;32BF"),
}
# TIFF: photometric interpretation (1: 0 is black, 2: RGB, 6: YCbCr), sample format (1: unsigned, 2:
# signed, 3: float), bits, extra samples (2: alpha). Where 0 is white, Pillow inverts some depths
_TIFF = {
    *((1, (1,), (bits,), ()) for bits in (8, 12, 16, 32)),
    *((1, (2,), (bits,), ()) for bits in (16, 32)),
    (1, (3,), (32,), ()),
    (1, (1,), (8, 8), (2,)),
    (2, (1,), (8,) * 3, ()),
    (2, (1,), (8,) * 4, ()),
    (2, (1,), (8,) * 4, (2,)),
    (6, (1,), (8,) * 3, ()),
}
EXACT_FORMATS = {*_LAYOUTS, "TIFF"}  # Pillow's names
_PICTURES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_NETPBM = re.compile(rb"P([2356])" + 3 * (_GAP + rb"(\d{1,9})") + rb"\s")
_PNG_TEXTS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


class HeaderError(ValueError):
    """A Netpbm file is not as its header says; the message says what to do."""


def layout_of(image: Any) -> str:
    """How the values lie in the file of an opened image, in Pillow's words for raw modes.

    That of Netpbm files is what `read_netpbm` gives.
    """
    if (maximum := _netpbm_maximum(image)) is not None:
        grey, colour = ("L", "RGB") if maximum == 255 else ("I;16", "RGB;16")
        return grey if _head(image, 2) in (b"P2", b"P5") else colour
    arguments = image.tile[0][3] if image.tile else None
    if image.format in ("GIF", "JPEG2000") or not arguments:
        return str(image.mode)
    return str(arguments if isinstance(arguments, str) else arguments[0])


def why_inexact(image: Any) -> str | None:
    """Why the values of an opened image could differ from those in its file; None if not."""
    layout = layout_of(image)
    if "16" in layout and image.format != "PPM" and not layout.startswith("I"):
        return "16 bits in colour, which Pillow would round to 8"
    if image.format == "TIFF":
        tags = image.tag_v2
        depths, formats = tuple(tags.get(258, (1,))), tuple(dict.fromkeys(tags.get(339, (1,))))
        form = (tags.get(262, 0), formats, depths, tuple(tags.get(338, ())))
        if layout in ("I;16BS", "I;32BS", "F;32BF") and image.tile[0][0] == "libtiff":
            return "a compressed big-endian TIFF, whose bytes Pillow would swap twice"
        if form in _TIFF and tags.get(266, 1) == 1:
            return None
        return (
            f"a TIFF of {' + '.join(map(str, depths))} bits (photometric interpretation {form[0]}, "
            f"sample format {', '.join(map(str, formats))}), which Pillow does not read unchanged"
        )
    if layout not in _LAYOUTS.get(image.format, ()):
        what = f"mode {image.mode}" + (f" from {layout}" if layout != image.mode else "")
        return f"a {image.format} image of {what}, which Pillow does not read unchanged"
    return _why_other_depth(image, {16 if "16" in layout else 8})


def why_no_picture(image: Any) -> str | None:
    """Why an opened image is none of 8 bits that can be converted to a mode; None if not.

    Palettes, fewer bits and the values of Netpbm files up to a maximum below 255 are brought to
    their full range, as a picture is meant.
    """
    maximum = _netpbm_maximum(image)
    if "16" in layout_of(image) if maximum is None else maximum > 255:
        return "16 bits, which a mode would round to 8"
    if image.mode not in _PICTURES or image.format not in (*_LAYOUTS, "TIFF"):
        return f"a {image.format} image of mode {image.mode}, which is not converted"
    return _why_other_depth(image, {8})


def _why_other_depth(image: Any, wanted: set[int]) -> str | None:
    depths_in = _DEPTHS_IN.get(image.format)
    if depths_in is not None and (found := depths_in(image)) != wanted:
        bits = " and ".join(map(str, sorted(found))) or "unknown"
        return f"a {image.format} image of {bits} bits, which Pillow would rescale"
    return None


def read_netpbm(data: bytes) -> NDArray[Any] | None:
    """The values in a PGM or PPM file as they are, (H, W) or (H, W, 3): uint8 if its maximum is
    255, int32 if it is another; None for another format.

    https://netpbm.sourceforge.net/doc/pgm.html. Raises HeaderError.
    """
    head = _NETPBM.match(data)
    if head is None:
        return None
    check_maximum(data)
    kind, width, height, maximum = (int(word) for word in head.groups())
    shape = (height, width) if kind in (2, 5) else (height, width, 3)
    count = int(np.prod(shape))
    rest = data[head.end() :]
    if kind in (2, 3):
        values = np.array([int(word) for word in re.sub(rb"#[^\n\r]*", b"", rest).split()])
        surplus = f"{len(values) - count} more follow" if len(values) > count else ""
    else:
        dtype = np.dtype(">u2" if maximum > 255 else "u1")
        end = min(count, len(rest) // dtype.itemsize) * dtype.itemsize
        values = np.frombuffer(rest[:end], dtype)
        left = rest[count * dtype.itemsize :]
        surplus = f"{len(left)} more bytes follow" if left.strip() else ""
    if surplus:
        raise HeaderError(
            f"its header declares {count} values, and {surplus}. Give one image per file, with "
            "nothing after it."
        )
    if len(values) < count:
        raise HeaderError(
            f"its header declares {count} values, and it holds only {len(values)}. It may be "
            "truncated."
        )
    if count and values.max() > maximum:
        raise HeaderError(
            f"it holds {values.max()}, but its header declares at most {maximum}. Correct one of "
            "them."
        )
    return values[:count].reshape(shape).astype(np.uint8 if maximum == 255 else np.int32)


def check_maximum(data: bytes) -> None:
    """Raise HeaderError if data begin as a PGM or PPM whose values cannot be read by its header."""
    head = _NETPBM.match(data)
    if head is not None and not 1 <= int(head[4]) < 2**16:
        raise HeaderError(f"its header declares a maximum of {head[4].decode()}. Correct it.")


def is_turned(image: Any) -> bool:
    """Whether an opened image lies on its side, by its EXIF or XMP; decoded only if it is a PNG
    that says so after its pixels.
    """
    # Pillow gives the size of a TIFF as it is after turning
    if image.format == "TIFF":
        return False
    if image.format == "PNG" and _has_late_texts(image.fp):
        image.load()
    # PNG's own method would decode
    exif = super(type(image), image).getexif() if image.format == "PNG" else image.getexif()
    return exif.get(_ORIENTATION) in (5, 6, 7, 8)


def upright(image: Any) -> Any:
    """An opened image, decoded, turned and mirrored by its EXIF or XMP.

    `ImageOps.exif_transpose` would write all of the EXIF anew, and fail for tags of odd types.
    """
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _has_late_texts(file: BinaryIO) -> bool:
    """Whether a PNG has texts or EXIF after its pixels."""
    offset, late = file.tell(), False
    file.seek(8)
    seen = False
    while not late and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        seen = seen or kind == b"IDAT"
        late = seen and kind in _PNG_TEXTS
        file.seek(length + 4, SEEK_CUR)
    file.seek(offset)
    return late


def _head(image: Any, length: int) -> bytes:
    offset = image.fp.tell()
    image.fp.seek(0)
    head: bytes = image.fp.read(length)
    image.fp.seek(offset)
    return head


def _netpbm_maximum(image: Any) -> int | None:
    """The maximum that an opened PGM or PPM file declares; None for another format."""
    found = _NETPBM.match(_head(image, 4096)) if image.format == "PPM" else None
    return None if found is None else int(found[4])


def _box(image: Any, wanted: bytes, length: int) -> bytes:
    """The first `length` bytes in the first box of a kind, at the top of the file of an opened
    image; empty if there is none. ISO 14496-12, section 4.2, and ISO 15444-1, annex I.4.
    """
    file, at = image.fp, 0
    offset, size = file.tell(), file.seek(0, SEEK_END)
    found = b""
    while not found and at < size:
        file.seek(at)
        head = file.read(16)
        begin = 16 if head[:4] == b"\0\0\0\1" else 8
        end = int.from_bytes(head[8:16] if begin == 16 else head[:4], "big") or size - at
        if end < begin:
            break
        if head[4:8] == wanted:
            file.seek(at + begin)
            found = file.read(min(length, end - begin))
        at += end
    file.seek(offset)
    return found


def _avif_depths(image: Any) -> set[int]:
    """The bits of the AV1 pictures in an AVIF file: AV1-ISOBMFF, section 2.3.3."""
    head = _box(image, b"meta", 2**24)  # with profiles of colours
    ends = [found.end() for found in re.finditer(b"av1C", head)]
    return {8 if not head[at + 2] & 0x40 else 12 if head[at + 2] & 0x20 else 10 for at in ends}


def _jpeg2000_depths(image: Any) -> set[int]:
    """The bits of the components, signed ones and those of fewer pixels as 0: ISO 15444-1, annex
    A.5.1.
    """
    head = _box(image, b"jp2c", 2**16) or _head(image, 2**16)  # or the codestream alone
    if not head.startswith(b"\xff\x4f\xff\x51"):
        return set()
    count = int.from_bytes(head[40:42], "big")
    found = [head[42 + 3 * number :][:3] for number in range(count)]
    return {one[0] + 1 if one[1:] == b"\1\1" and one[0] < 128 else 0 for one in found}


def _heif_depths(image: Any) -> set[int]:
    return {image.info["bit_depth"]}


def _sgi_depths(image: Any) -> set[int]:
    """Byte 3 of the header: the SGI Image File Format, version 1.00."""
    return {8 * _head(image, 4)[3]}


_DEPTHS_IN = {
    "AVIF": _avif_depths,
    "HEIF": _heif_depths,
    "JPEG2000": _jpeg2000_depths,
    "SGI": _sgi_depths,
}

"""What an unreadable file really is, by its first bytes."""

import re
from io import BytesIO
from pathlib import Path
from typing import Literal

Kind = Literal["image", "sound", "film", "table"]

# Git LFS, docs/spec.md: lines of keys and values, below 1,024 bytes
_POINTER = re.compile(
    rb"version https://[\w.-]+/spec/v1\n(?:ext-.*\n)*oid sha256:[0-9a-f]+\nsize [0-9]+\n?\Z"
)
_HEAD_BYTES = 1024
_PAGE = "a web page, not the file. Was its download refused? Download it again."
_BEGINNINGS = (
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (
        b"\xd0\xcf\x11\xe0",
        "an encrypted workbook, or one in the old .xls format. Remove its password, and save it as "
        ".xlsx.",
    ),
    (b"%pdf", "a PDF. Extract its content."),
    (b"\x1f\x8b", "compressed by gzip. Unpack it: gunzip."),
    (b"pk\x03\x04", "a zip archive. Unpack it, and give the files in it."),
)
_OFFICE = (b"[Content_Types].xml", b"docProps/", b"xl/")  # members of Office Open XML
_FILMS = (
    (b"\x30\x26\xb2\x75", "a WMA or WMV file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
)
_HEIC = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}


def what_is(file: Path | bytes, wanted: Kind) -> str | None:
    """What a file is that should be of the kind `wanted`, and what to do with it; None if it is not
    recognised, or is of that kind.
    """
    try:
        with file.open("rb") if isinstance(file, Path) else BytesIO(file) as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return None
    if (brands := _brands(head)) is not None:
        if brands & _AVIF:
            return None if wanted == "image" else "an AVIF picture. Give a file of another kind."
        if head[8:12] in _HEIC:
            return None if wanted == "image" else "a HEIC photo. Give a file of another kind."
        return _film("an MP4 or M4A file", wanted)
    for begin, what in _FILMS:
        if head.startswith(begin):
            return _film(what, wanted)
    if _POINTER.match(head):
        return "a pointer of Git LFS, not the file itself. Fetch it: git lfs pull."
    if head.startswith(b"PK") and any(part in head for part in _OFFICE):
        return "a document of Excel or another Office program. Give it its own ending, e.g. .xlsx."
    begun = head.lstrip().lower()
    return next((what for begin, what in _BEGINNINGS if begun.startswith(begin)), None)


def is_heic(file: Path | bytes) -> bool:
    """Whether a file is a HEIC photo."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    else:
        head = file[:_HEAD_BYTES]
    return head[8:12] in _HEIC and not (_brands(head) or _AVIF) & _AVIF


def _brands(head: bytes) -> set[bytes] | None:
    """The brands of a file of the family of MP4; None for another."""
    # ISO 14496-12, section 4.3: the size of the box, "ftyp", a brand, its version, other brands
    size = int.from_bytes(head[:4], "big")
    if head[4:8] != b"ftyp" or size >= 2**16:  # a larger size is the letters of a text
        return None
    return {head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4))}


def _film(what: str, wanted: Kind) -> str | None:
    """What to do with a film, or the sound of one, which PyAV reads."""
    if wanted in ("film", "sound"):
        return None
    return f"{what}, which is not read here. Give a file of another kind."


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        return _POINTER.match(file.read(_HEAD_BYTES)) is not None

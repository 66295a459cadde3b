"""What a file that cannot be read as it should really is, by its first bytes."""

from io import BytesIO
from pathlib import Path

_SOUND = "Convert its sound: ffmpeg -i IN -vn OUT.flac."
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself. Fetch it: git lfs pull.",
    ),
    (b"<!DOCTYPE", "a web page, not the file. Was its download refused? Download it again."),
    (b"<html", "a web page, not the file. Was its download refused? Download it again."),
    (
        b"\xd0\xcf\x11\xe0",
        "an encrypted workbook, or one of the old format .xls. Remove its password, and save it as "
        ".xlsx.",
    ),
    (b"%PDF", "a PDF. Extract what it shows."),
    (b"\x30\x26\xb2\x75", f"a WMA or WMV file, which is not read here. {_SOUND}"),
    (b"\x1aE\xdf\xa3", f"a Matroska or WebM file, which is not read here. {_SOUND}"),
    (b"\x1f\x8b", "compressed by gzip. Unpack it: gunzip."),
    (b"PK\x03\x04", "a zip archive. Unpack it, and give the files in it."),
)
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def what_is(file: Path | bytes) -> str | None:
    """A file of another kind, in words, and what to do with it; None if it is not recognised."""
    try:
        with file.open("rb") if isinstance(file, Path) else BytesIO(file) as opened:
            head = opened.read(64)
    except OSError:
        return None
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIC:
            return "a HEIC photo, which is not read. Convert it to JPEG or PNG."
        return f"an MP4 or M4A file, which is not read here. {_SOUND}"
    return next((what for begin, what in _BEGINNINGS if head.lstrip().startswith(begin)), None)


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(64).startswith(_BEGINNINGS[0][0])

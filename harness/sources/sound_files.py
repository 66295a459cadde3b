"""The length that a sound file declares: libsndfile reads what is left of a truncated one to its
end without an error, in most formats.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO, Literal

# libsndfile's names of the formats whose length is known, here or to its decoder
FORMATS = (
    *("WAV", "WAVEX", "RF64", "W64", "AIFF", "SVX", "AU", "CAF", "NIST"),
    *("OGG", "FLAC", "MP3"),
)


@dataclass(frozen=True)
class _Chunks:
    """How the chunks of a format follow each other from `start` on: a name, a size, the content,
    filled up to a multiple of `align`. `within`: bytes of name and size that the size counts.
    """

    start: int
    name_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    within: int
    align: int


_RIFF = _Chunks(12, 4, 4, "little", 0, 2)
_BY_MAGIC = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"RIFX": _Chunks(12, 4, 4, "big", 0, 2),
    b"FORM": _Chunks(12, 4, 4, "big", 0, 2),  # AIFF, AIFF-C, 8SVX
    b"riff": _Chunks(40, 16, 8, "little", 24, 8),  # W64, whose names are 16 bytes
    b"caff": _Chunks(8, 4, 8, "big", 0, 1),
}
_SOUND = (b"data", b"SSND", b"BODY")
_MOST_CHUNKS = 10_000
_MP3_HEAD_BYTES = 256
# What is written to a pipe, the length unknown: all bits, or as SoX does
_UNKNOWN = {4: 0x7FFF_F000, 8: 1 << 62}


def is_cut(recording: Path | bytes) -> bool:
    """Whether a file is shorter than it declares."""
    with recording.open("rb") if isinstance(recording, Path) else BytesIO(recording) as file:
        length = file.seek(0, SEEK_END)
        file.seek(0)
        head = file.read(1024)
        if head[:4] == b"OggS":
            return _is_cut_ogg(file, length)
        return _whole_length(file, head, length) > length + 1  # 1: a missing pad byte


def _whole_length(file: BinaryIO, head: bytes, length: int) -> int:
    """The minimum length of a complete file, by its header; 0 if that is unknown."""
    magic = head[:4]
    if magic in (b".snd", b"dns."):  # AU
        order: Literal["little", "big"] = "big" if magic == b".snd" else "little"
        begin, size = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
        return 0 if size >= _UNKNOWN[4] else begin + size
    if magic == b"NIST":  # SPHERE: a text of the header's length and lines of name, type, value
        names = dict(re.findall(rb"^(\w+) -(?:i|s\d+) (\d+)$", head, re.MULTILINE))
        counts = (b"channel_count", b"sample_count", b"sample_n_bytes")
        sizes = [int(names.get(name, b"0")) for name in counts]
        packed = b"embedded" in head  # by shorten: smaller than its samples
        return 0 if packed or not head[8:15].strip().isdigit() else int(head[8:15]) + prod(sizes)
    chunks = _BY_MAGIC.get(magic)
    return (
        0 if chunks is None else max(_whole(head, chunks), _sound_end(file, head, length, chunks))
    )


def _whole(head: bytes, chunks: _Chunks) -> int:
    """The length that the outermost chunk declares."""
    if head[:4] == b"caff":
        return 0
    if head[:4] == b"RF64":  # EBU Tech 3306: the true sizes follow in "ds64"
        return int.from_bytes(head[20:28], "little") + 8 if head[12:16] == b"ds64" else 0
    at = chunks.name_bytes
    size = int.from_bytes(head[at : at + chunks.size_bytes], chunks.order)
    known = size < _UNKNOWN[chunks.size_bytes]
    return size + (0 if chunks.within else 8) if known else 0


def _sound_end(file: BinaryIO, head: bytes, length: int, chunks: _Chunks) -> int:
    """Where the chunk with the sound ends."""
    offset, begin = chunks.start, chunks.name_bytes + chunks.size_bytes
    for _ in range(_MOST_CHUNKS):
        file.seek(offset)
        found = file.read(begin)
        if len(found) < begin or offset >= length:
            return 0
        size = int.from_bytes(found[chunks.name_bytes :], chunks.order)
        if found[:4] in _SOUND:
            if head[:4] == b"RF64" and size == 2**32 - 1:
                size = int.from_bytes(head[28:36], "little")
            return (
                offset + begin + size - chunks.within if size < _UNKNOWN[chunks.size_bytes] else 0
            )
        offset += begin + size - chunks.within
        offset += -offset % chunks.align
    return 0


def is_unmeasured_mp3(recording: Path | bytes) -> bool:
    """Whether an MP3 file does not declare how many frames it has, or goes on after them:
    libsndfile guesses their number from the first ones, and reads no more.
    """
    with recording.open("rb") if isinstance(recording, Path) else BytesIO(recording) as file:
        begin, head = 0, file.read(_MP3_HEAD_BYTES)
        while head[:3] == b"ID3" and len(head) >= 10:
            # ID3v2.4.0, sections 3.1 and 6.2: seven bits a byte
            has_footer = head[5] & 0x10
            begin += 10 + int("".join(f"{byte & 0x7F:07b}" for byte in head[6:10]), 2)
            begin += 10 if has_footer else 0
            file.seek(begin)
            head = file.read(_MP3_HEAD_BYTES)
        if not is_mp3_frame(head):
            return False
        # By the encoders Xing and LAME, in a first frame of silence
        tag = re.search(rb"(?:Xing|Info)\0\0\0(.)(.{8})", head[:64], re.DOTALL)
        if tag is None or not tag[1][0] & 1:
            return True
        if not tag[1][0] & 2:
            return False
        file.seek(begin + int.from_bytes(tag[2][4:], "big"))
        return is_mp3_frame(file.read(4))


def is_mp3_frame(head: bytes) -> bool:
    """Whether a frame of MPEG audio, layer III, may begin so (ISO 11172-3, section 2.4.1.3)."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] < 0xF0


def _is_cut_ogg(file: BinaryIO, length: int) -> bool:
    file.seek(max(0, length - 65_307))  # the largest page there can be
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    # RFC 3533, section 6: flags (4: the last page of a stream), and from byte 26 the number
    # of segments and the length of each.
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return not (whole and page[5] & 4)

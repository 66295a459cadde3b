"""MP3 files that do not declare their length; the sound that was encoded says what is in them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from harness.sources.audio import Recordings, WaveReader

RATE, SECONDS = 16000, 6


def wave() -> NDArray[np.float32]:
    """(T,): loud at first and later soft, which takes fewer bits a second."""
    noise = np.random.default_rng(0).normal(0, 0.1, SECONDS * RATE)
    smooth = np.convolve(noise, np.hanning(9) / 4, "same")
    return (smooth * np.where(np.arange(len(smooth)) < RATE, 1, 0.2)).astype(np.float32)


def with_art(data: bytes) -> bytes:
    """Behind a picture, of which some bytes look like frames."""
    content = b"\0image/jpeg\0\3\0" + b"\xff\xfb\x90\x64" * 500
    picture = b"APIC" + len(content).to_bytes(4, "big") + b"\0\0" + content
    size = bytes((len(picture) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + picture + data


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    soundfile.write(path, wave(), RATE, format="MP3", bitrate_mode="VARIABLE")
    return path.read_bytes()


def undeclared(data: bytes) -> bytes:
    """Without the frame that holds the number of frames."""
    assert b"Xing" in data[:64] or b"Info" in data[:64]
    return data[data.index(data[:2], 64) :]


def begins_at(found: NDArray[np.float32], original: NDArray[np.float32]) -> int:
    """Where the original begins in what was found; fails if it is not there to its end."""
    size = 2 ** int(np.ceil(np.log2(len(found) + len(original))))
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(original, size))
    delay = int(np.fft.irfft(spectrum, size)[: len(found)].argmax())
    cut = found[delay : delay + len(original)]
    assert len(cut) > len(original) - 1200, "up to its last frame"
    for part in np.array_split(np.arange(len(cut)), SECONDS):
        assert np.corrcoef(cut[part], original[part])[0, 1] > 0.95
    return delay


def test_an_mp3_is_read_to_its_end_whether_it_declares_it_or_not(
    tmp_path: Path, declared: bytes
) -> None:
    """libsndfile/libsndfile#1001 and #1086: the number of frames is guessed from the first ones."""
    files = {
        "declared": declared,
        "undeclared": undeclared(declared),
        "declared_art": with_art(declared),
        "undeclared_art": with_art(with_art(undeclared(declared))),
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(data)
        found = WaveReader(RATE, 1).whole(path, name)
        assert begins_at(found[0], wave()) < 3000, name
        assert (WaveReader(RATE, 1).whole(data, name) == found).all()
        both = [
            Recordings(str(path), RATE, 0.5, hop_s=0.5, keep=keep) for keep in ("memory", "disk")
        ]
        assert len(both[0]) == len(both[1]) == -(-found.shape[1] // 8000)
        assert (both[0][len(both[0]) - 1]["wave"] == both[1][len(both[1]) - 1]["wave"]).all()
    (tmp_path / "first.mp3").write_bytes(undeclared(declared))
    assert soundfile.info(tmp_path / "first.mp3").frames < 4 * RATE, "the guess"


def test_of_joined_mp3s_all_are_read(tmp_path: Path, declared: bytes) -> None:
    """As `cat a.mp3 b.mp3` and some recorders write them."""
    (tmp_path / "two.mp3").write_bytes(declared + undeclared(declared))
    found = WaveReader(RATE, 1).whole(tmp_path / "two.mp3", "two")[0]
    first = begins_at(found[: SECONDS * RATE + 3000], wave())
    assert begins_at(found[first + SECONDS * RATE :], wave()) < 3000


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff"])
def test_bytes_that_begin_as_a_picture_of_mp3_do_are_no_matter_elsewhere(
    tmp_path: Path, name: str
) -> None:
    soundfile.write(tmp_path / name, wave(), RATE)
    assert WaveReader(RATE, 1).whole(tmp_path / name, name).shape == (1, SECONDS * RATE)

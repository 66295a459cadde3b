"""A disk or a network that fails is not a file that is wrong: no sample is skipped for it."""

import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import DataError
from harness.sources.audio import Recordings
from harness.sources.images import Images
from harness.sources.series import Series
from harness.sources.tables import Table
from harness.sources.text import Characters
from harness.sources.video import Clips

# A plain file to stat, whose read() fails with EIO
FAULT = Path("/proc/self/mem")
Read = Callable[[str], Any]


def table(where: str) -> Table:
    return Table(where, on_error="skip")


def series(where: str) -> Series:
    return Series(where, ["a"], 1, 1, on_error="skip")


READERS: dict[str, Read] = {
    **dict.fromkeys(("csv", "csv.gz", "jsonl", "parquet", "xlsx", "xls", "ods"), table),
    **dict.fromkeys(("edf", "h5", "hea"), series),
    **dict.fromkeys(("png", "pgm", "tiff", "npz"), lambda at: Images(at, on_error="skip")),
    "jpg": lambda at: Images(at, on_error="skip", keep="disk"),
    "flac": lambda at: Recordings(at, 8000, 1.0, on_error="skip"),
    "m4a": lambda at: Recordings(at, 8000, 1.0, on_error="skip", keep="disk"),
    "mp4": lambda at: Clips(at, 2, on_error="skip"),
}


@pytest.fixture(autouse=True)
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


needs_fault = pytest.mark.skipif(not FAULT.exists(), reason="needs the memory of Linux as a file")


@needs_fault
# Pillow leaves a file open whose first bytes cannot be read
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")
@pytest.mark.parametrize("ending", READERS)
def test_a_file_behind_a_failing_disk_is_never_skipped(
    tmp_path: Path, ending: str, paused: list[float]
) -> None:
    (tmp_path / f"a.{ending}").symlink_to(FAULT)
    (tmp_path / f"b.{ending}").write_bytes(b'"\xff')
    what = rf"^{tmp_path}/a\.{ending}: .*Input/output error.* is not skipped"
    with pytest.raises(DataError, match=what):
        READERS[ending](str(tmp_path / f"*.{ending}"))
    assert sum(paused) == 5
    (tmp_path / f"a.{ending}").unlink()
    paused.clear()
    with pytest.raises(DataError, match=rf"^1 of 1 files skipped: {tmp_path}/b\.{ending}"):
        READERS[ending](str(tmp_path / f"*.{ending}"))
    assert sum(paused) == 0


@needs_fault
def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"a\.txt: Input/output error\. Make the file readable"):
        Characters(str(tmp_path / "a.txt"), 2)


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2000))


def picture(path: Path) -> None:
    Image.new("L", (2, 2)).save(path)


@needs_fault
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("a.png", picture, lambda at: Images(at, on_error="skip")),
        ("a.wav", sound, lambda at: Recordings(at, 8000, 0.1, on_error="skip")),
        ("a.csv", lambda path: path.write_text("a\n1\n"), table),
        ("a.npy", lambda path: np.save(path, np.ones((3, 1))), series),
    ],
)
def test_a_disk_that_comes_back_costs_no_sample(
    tmp_path: Path, name: str, write: Callable[[Path], Any], read: Read, monkeypatch: Any
) -> None:
    path = tmp_path / name
    path.symlink_to(FAULT)

    def repair(pause_s: float) -> None:
        if pause_s:
            path.unlink(missing_ok=True)
            write(path)

    monkeypatch.setattr(time, "sleep", repair)
    assert len(read(str(path))) > 0
    assert read(str(path)).skipped == []

"""`check: first`: recordings and films that a table lists are looked at when they are read; images
in test_images.py.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from harness.errors import ConfigError, DataError
from harness.sources.audio import Recordings
from harness.sources.video import Clips
from tests.data.test_readings import assert_same
from tests.sources.make_motion import write

NAMES = ("c", "a", "d", "b", "e")  # not in the order of paths


def make_table(folder: Path, ending: str) -> str:
    rows = [f"{name}{ending},k{at % 2},{at}" for at, name in enumerate(NAMES)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,age", *rows]) + "\n")
    return str(folder / "metadata.csv")


def record(path: Path, rate_hz: int = 8000, frames: int = 500) -> None:
    wave = np.random.default_rng(ord(path.stem)).uniform(-0.5, 0.5, frames)
    soundfile.write(path, wave, rate_hz)


def make_sounds(folder: Path) -> partial[Recordings]:
    for at, name in enumerate(NAMES):
        record(folder / f"{name}.wav", frames=300 + 100 * at)
    files = make_table(folder, ".wav")
    return partial(Recordings, files, 8000, 0.05, columns={"age": "number"}, keep="disk")


def film(path: Path, frames: int = 9, width: int = 24) -> None:
    noise = np.random.default_rng(ord(path.stem)).integers(0, 256, (frames, 16, width), np.uint8)
    write(path, noise, "ffv1", "gray")


def make_films(folder: Path) -> partial[Clips]:
    for at, name in enumerate(NAMES):
        film(folder / f"{name}.mkv", frames=7 + at)
    files = make_table(folder, ".mkv")
    of_file = partial(Clips, files, frames=3, stride=2, clips="first", keep="disk")
    return partial(of_file, columns={"age": "number"})


def spoil_sounds(folder: Path) -> dict[int, str]:
    (folder / "c.wav").write_bytes(b"no sound")
    record(folder / "d.wav", rate_hz=16000)
    return {2: r"c\.wav: not a sound file", 3: r"d\.wav: 16000 Hz, expected 8000 Hz"}


def spoil_films(folder: Path) -> dict[int, str]:
    (folder / "c.mkv").write_bytes(b"no film")
    film(folder / "d.mkv", frames=4)
    film(folder / "e.mkv", width=32)
    return {
        2: r"c\.mkv: cannot be decoded as video",
        3: r"d\.mkv: 4 frames; a clip needs 5\. Remove the file",
        4: r"e\.mkv: 32 x 16, but .*a\.mkv has 24 x 16",
    }


@pytest.mark.parametrize(
    ("make", "spoil"), [(make_sounds, spoil_sounds), (make_films, spoil_films)]
)
def test_a_later_file_that_is_broken_is_refused_when_it_is_read(
    tmp_path: Path,
    make: Callable[[Path], partial[Any]],
    spoil: Callable[[Path], dict[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, looked = make(tmp_path), list[Path]()
    kind = opened.func
    check, table = kind._check, Path(opened.args[0])

    def look(self: Any, path: Path) -> Any:
        looked.append(path)
        return check(self, path)

    monkeypatch.setattr(kind, "_check", look)
    whole = opened()
    samples = [whole[at] for at in range(len(NAMES))]
    assert len(looked) == len(NAMES)
    looked.clear()
    assert_same(opened(check="first"), whole)
    assert [path.stem for path in looked] == ["a"]

    broken = spoil(tmp_path)
    with pytest.raises(DataError):
        opened()
    first = opened(check="first")
    assert len(first) == len(NAMES)
    settings = {"files": str(table), **opened.keywords}
    assert first.paths() == kind.paths_of(**settings, check="first") == [table]
    assert len(kind.paths_of(**settings)) == 1 + len(NAMES)
    for at, sample in enumerate(samples):
        if at in broken:
            with pytest.raises(DataError, match=broken[at]):
                first[at]
        else:
            found = first[at]
            assert found["label"] == sample["label"]
            assert found["age"] == sample["age"]
            name = "wave" if "wave" in sample else "clip"
            np.testing.assert_array_equal(found[name], sample[name])


def test_it_is_refused_where_the_number_of_samples_follows_from_lengths(tmp_path: Path) -> None:
    sounds, films = make_sounds(tmp_path), make_films(tmp_path)
    rest = "depends on its length, so all files have to be looked at. Remove check, and set "
    rest += "data.store, which keeps what was read; or "
    with pytest.raises(ConfigError) as error:
        sounds(check="first", hop_s=0.03)
    assert str(error.value) == (
        f"check: first, hop_s: how many samples a file gives {rest}remove hop_s, for the beginning "
        "of each recording."
    )
    with pytest.raises(ConfigError) as error:
        films(check="first", clips="every")
    assert str(error.value) == (
        f"check: first, clips: every: how many samples a file gives {rest}set clips: first."
    )
    for opened in (sounds, films):
        for other in ({"keep": "memory"}, {"on_error": "skip"}):
            with pytest.raises(
                ConfigError, match="check: first needs keep: disk and on_error: sto"
            ):
                opened(check="first", **other)
        with pytest.raises(ConfigError, match="check"):
            opened(check="last")

"""Windows of long recordings, their channels, and sound in the containers of films."""

import importlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.errors import ConfigError, DataError
from harness.sources.audio import Recordings, WaveReader
from harness.sources.images import Images
from harness.sources.split import ByValue
from tests.checks.planted import looked_at

RATE = 8000


def noise(seconds: float, channels: int = 1, rate: int = RATE, seed: int = 0) -> NDArray[Any]:
    """(T, C)"""
    generator = np.random.default_rng(seed)
    return generator.uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)


def write(path: Path, wave: NDArray[Any], rate: int = RATE) -> Path:
    soundfile.write(path, wave, rate)
    return path


def windows(source: Recordings) -> NDArray[Any]:
    found: NDArray[Any] = source.__getitems__(list(range(len(source))))["wave"]
    return found


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_recording_without_sound_is_named_or_left_out(tmp_path: Path, keep: Any) -> None:
    write(tmp_path / "a.wav", noise(1))
    write(tmp_path / "b.wav", noise(0))
    options: dict[str, Any] = {"rate_hz": RATE, "seconds": 0.5, "hop_s": 0.5, "keep": keep}
    with pytest.raises(DataError, match=r"b\.wav: it contains no sound"):
        Recordings(f"{tmp_path}/*.wav", **options)
    with pytest.warns(UserWarning, match=r"1 of 2 files skipped: .*b\.wav"):
        assert len(Recordings(f"{tmp_path}/*.wav", on_error="skip", **options)) == 2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=3),
    st.integers(1, 90),
    st.integers(1, 120),
)
def test_windows_hold_every_sample_of_a_recording(
    tmp_path: Path, lengths: list[int], length: int, hop: int
) -> None:
    for old in tmp_path.glob("*.wav"):
        old.unlink()
    waves = [noise(count / 100, rate=100, seed=count) for count in lengths]
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{number}.wav", wave, 100, subtype="FLOAT")
    options: dict[str, Any] = {"rate_hz": 100, "seconds": length / 100, "hop_s": hop / 100}
    both = [Recordings(f"{tmp_path}/*.wav", keep=keep, **options) for keep in ("memory", "disk")]
    cut = windows(both[0])
    assert (cut == windows(both[1])).all()
    known = both[0].known()
    assert known == both[1].known()
    for number, wave in enumerate(waves):
        mine = [row for row, path in enumerate(known["path"]) if path.endswith(f"/{number}.wav")]
        for place, row in enumerate(mine):
            begin, stop = int(known["start"][row]), int(known["stop"][row])
            assert begin == place * hop
            padded = np.zeros(length, np.float32)
            padded[: stop - begin] = wave[begin:stop, 0]
            assert (cut[row, 0] == padded).all()
        assert int(known["start"][mine[-1]]) < len(wave)
        assert hop > length or int(known["stop"][mine[-1]]) == len(wave)


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
def test_a_window_is_the_same_from_memory_and_from_the_disk(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", noise(2.5, 2))
    for resample, rate in ((False, RATE), (True, 6000)):
        options: dict[str, Any] = {"rate_hz": rate, "seconds": 0.4, "hop_s": 0.3}
        options |= {"channels": "mono", "resample": resample}
        both = [windows(Recordings(str(path), keep=keep, **options)) for keep in ("memory", "disk")]
        assert both[0].shape == (8, 1, round(0.4 * rate))
        assert (both[0] == both[1]).all()


def test_windows_of_one_recording_stay_in_one_part_and_are_known_to_checks(tmp_path: Path) -> None:
    for label in "ab":
        for take in range(4):
            write(tmp_path / f"{label}_{take}.wav", noise(1.3, seed=10 * ord(label) + take))
    rule = ByValue("take", test=[3], val=[2])
    options: dict[str, Any] = {"rate_hz": RATE, "seconds": 0.5, "hop_s": 0.25, "split": rule}
    parts = {
        part: Recordings(f"{tmp_path}/{{label}}_{{take}}.wav", part=part, **options)
        for part in ("train", "val")
    }
    assert [len(source) for source in parts.values()] == [20, 10]
    labels = parts["val"].__getitems__(list(range(10)))["label"].tolist()
    assert labels == [0] * 5 + [1] * 5
    off = {"missing_classes": "off", "constant": "off"}
    task = {"_target_": "harness.tasks.Classification", "input": "wave", "target": "label"}
    assert not looked_at(tmp_path, parts, task=task, **off).findings
    again = Recordings(f"{tmp_path}/{{label}}_{{take}}.wav", part="train", **options)
    found = looked_at(tmp_path, {"train": parts["train"], "val": again}, task=task, **off).findings
    assert {"overlaps", "shared_groups", "duplicates"} == {one.check for one in found}


def test_mono_is_the_mean_of_all_channels(tmp_path: Path) -> None:
    waves = {1: noise(0.2), 2: noise(0.2, 2), 6: noise(0.2, 6)}
    for channels, wave in waves.items():
        soundfile.write(tmp_path / f"{channels}.wav", wave, RATE, subtype="FLOAT")
    source = Recordings(f"{tmp_path}/*.wav", rate_hz=RATE, seconds=0.2, channels="mono")
    for row, wave in zip(windows(source), waves.values(), strict=True):
        assert row[0] == pytest.approx(wave.mean(axis=1), abs=1e-6)
    with pytest.raises(DataError, match=r"2\.wav: 2 channels, expected 1\. Set channels, e\.g\. m"):
        Recordings(str(tmp_path / "2.wav"), rate_hz=RATE, seconds=0.2)
    for channels in ("stereo", 0):
        with pytest.raises(ConfigError, match=r"channels: .*: give their number, or mono"):
            WaveReader(RATE, 1, channels)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hop_s, align: 0 and start"):
        Recordings(str(tmp_path / "1.wav"), rate_hz=RATE, seconds=1, hop_s=0)
    with pytest.raises(ConfigError, match=r"hop_s, align: 0\.5 and centre"):
        Recordings(str(tmp_path / "1.wav"), rate_hz=RATE, seconds=1, hop_s=0.5, align="centre")


CODECS = {
    "a.m4a": ("aac", 16000),
    "b.mp4": ("aac", 16000),
    "c.webm": ("libopus", 48000),
    "d.wma": ("wmav2", 44100),
    "e.mka": ("pcm_s16le", 16000),
}


def chirp(rate: int) -> NDArray[Any]:
    """(2, T): a second that rises, softer on the right."""
    time = np.arange(rate) / rate
    wave = 0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time) * np.minimum(1, 8 * time)
    return np.stack([wave, wave / 2]).astype(np.float32)


def encode(path: Path) -> Path:
    """The chirp, by PyAV."""
    codec, rate = CODECS[path.name]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout, stream.bit_rate = "stereo", 128_000
        frame = av.AudioFrame.from_ndarray(chirp(rate), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        to = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=rate)
        for one in [*to.resample(frame), *to.resample(None)]:
            container.mux(stream.encode(one))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", CODECS)
def test_sound_of_films_containers_is_what_ffmpeg_reads(tmp_path: Path, name: str) -> None:
    path, rate = encode(tmp_path / name), CODECS[name][1]
    for file in (path, path.read_bytes()):
        wave = WaveReader(rate, 1, channels=2).whole(file, name)
        assert wave.dtype == np.float32
        # WMA does not say how much silence an encoder put before the sound
        if not name.endswith(".wma"):
            assert wave.shape[1] >= rate
            off = np.abs(wave[:, : rate - 2000] - chirp(rate)[:, : rate - 2000])
            assert (off.mean() < 0.003, off.max() < 0.1) == (True, True)
        try:
            decoder = importlib.import_module("torchcodec.decoders").AudioDecoder
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"needs torchcodec, with ffmpeg's libraries: {error}")
        theirs = decoder(str(path)).get_all_samples()
        assert theirs.sample_rate == rate
        count = theirs.data.shape[1]  # it may leave out the last block
        assert wave.shape[1] - count in (0, 2048)
        assert wave[:, :count] == pytest.approx(theirs.data.numpy(), abs=1e-6)
    disk, memory = (
        windows(Recordings(str(path), rate, 0.3, channels="mono", keep=keep, hop_s=0.2))
        for keep in ("disk", "memory")
    )
    assert (disk == memory).all()
    assert disk.shape[0] >= 4


@pytest.mark.parametrize("name", CODECS)
def test_sound_in_a_container_that_was_cut_is_refused_wherever(tmp_path: Path, name: str) -> None:
    data = encode(tmp_path / name).read_bytes()
    for share in (0.05, 0.5, 0.9, 0.999):
        (tmp_path / f"cut_{name}").write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match=f"cut_{name}: (truncated|cannot be decoded|not a sou)"):
            Recordings(f"{tmp_path}/cut_*", CODECS[name][1], 0.5, channels=2, keep="disk")


def test_a_film_without_sound_and_another_rate_are_named(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"silent\.mp4: .*it has no sound, only video"):
        Recordings(str(silent), RATE, 1)
    path = encode(tmp_path / "a.m4a")
    with pytest.raises(DataError, match=r"a\.m4a: 16000 Hz, expected 8000 Hz\. Set resample"):
        Recordings(str(path), RATE, 1, channels=2)
    resampled = Recordings(str(path), RATE, 1, channels=2, resample=True)[0]["wave"]
    assert np.abs(resampled[:, :6000] - chirp(RATE)[:, :6000]).mean() < 0.003


def test_sound_and_pictures_of_one_folder_are_read_by_their_own_sources(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for take in range(3):
            write(tmp_path / label / f"{take}.wav", noise(0.2, seed=take))
            Image.new("L", (4, 4), take).save(tmp_path / label / f"{take}.png")
    (tmp_path / "a" / "notes.txt").write_text("of both")
    sound = Recordings(f"{tmp_path}/{{label}}/*.wav", RATE, 0.2)
    pictures = Images(f"{tmp_path}/{{label}}/*.png")
    assert len(sound) == len(pictures) == 6
    assert sound.known()["label"] == pictures.known()["label"]
    # The wrong kind by a pattern that takes all: named, or skipped and counted
    with pytest.raises(DataError, match=r"a/0\.png: not a sound file"):
        Recordings(f"{tmp_path}/{{label}}/*", RATE, 0.2)
    with pytest.warns(UserWarning, match="7 of 13 files skipped"):
        kept = Recordings(f"{tmp_path}/{{label}}/*", RATE, 0.2, on_error="skip")
    assert (len(kept), len(kept.skipped)) == (6, 7)
    assert windows(kept).tolist() == windows(sound).tolist()


@pytest.mark.parametrize("count", [700, pytest.param(100_000, marks=pytest.mark.torture)])
def test_one_broken_file_of_many_is_named_or_skipped(tmp_path: Path, count: int) -> None:
    data = write(tmp_path / "first.wav", noise(0.01)).read_bytes()
    (tmp_path / "many").mkdir()
    for number in range(count):
        whole = number != 123
        (tmp_path / "many" / f"{number:05}.wav").write_bytes(data if whole else data[:-60])
    files = f"{tmp_path}/many/*.wav"
    if count < 10_000:
        with pytest.raises(DataError, match=r"00123\.wav: truncated.* on_error: skip"):
            Recordings(files, RATE, 0.01)
    with pytest.warns(UserWarning, match=f"1 of {count} files skipped: .*00123"):
        source = Recordings(files, RATE, 0.01, keep="disk", on_error="skip")
    assert len(source) == count - 1
    [message] = source.skipped
    assert "00123.wav: truncated" in message

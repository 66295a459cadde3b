"""Recordings of sound."""

import io
import pickle
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from harness.errors import ConfigError, DataError
from harness.sources.audio import Recordings, WaveReader
from harness.sources.split import ByGroup, ByValue

DIGITS = Path(__file__).parents[3] / "shared" / "data" / "fsdd" / "recordings"
CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
RATE = 8000


def tone(hertz: float, seconds: float, rate: int = RATE, channels: int = 1) -> NDArray[np.float64]:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave / (channel + 1) for channel in range(channels)], axis=1)


def record(path: Path, wave: NDArray[np.float64], rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def tones(folder: Path, ending: str = ".wav") -> str:
    for label, hertz in (("high", 880), ("low", 220)):
        for speaker in "ab":
            for take in range(3):
                record(
                    folder / label / f"{speaker}_{take}{ending}",
                    tone(hertz + 10 * take, 0.2 + 0.1 * take),
                )
    return str(folder / "{label}" / ("{speaker}_{take}" + ending))


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg"])
def test_sound_is_decoded_and_brought_to_one_length(tmp_path: Path, ending: str, keep: Any) -> None:
    source = Recordings(tones(tmp_path, ending), rate_hz=RATE, seconds=0.3, keep=keep)
    assert source.classes == ["high", "low"]
    batch = source.__getitems__([0, 5, 11])
    assert batch["wave"].shape == (3, 1, 2400)
    assert batch["wave"].dtype == np.float32
    assert batch["label"].tolist() == [0, 0, 1]
    assert (source[11]["wave"] == batch["wave"][2]).all()
    close = 0.05 if ending == ".ogg" else 1e-4  # Vorbis is lossy
    assert batch["wave"][0, 0, :1600] == pytest.approx(tone(880, 0.2)[:, 0], abs=close)
    assert (batch["wave"][0, 0, 1600:] == 0).all()
    assert batch["wave"][2, 0] == pytest.approx(tone(240, 0.3)[:, 0], abs=close)


def test_a_recording_is_cut_and_filled_up_in_the_middle_when_asked(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", np.arange(10)[:, None] / 100)
    for frames, expected in ((4, [3, 4, 5, 6]), (13, [0, 0, *range(1, 10), 0, 0])):
        wave = Recordings(str(tmp_path / "a.wav"), RATE, frames / RATE, align="centre")[0]["wave"]
        if frames == 13:
            assert wave.shape == (1, 13)
            assert wave[0, 1:11] == pytest.approx(np.arange(10) / 100, abs=1e-4)
        else:
            assert wave[0] == pytest.approx(np.array(expected) / 100, abs=1e-4)


def test_another_rate_is_refused_or_brought_to_the_one_asked_for(tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", tone(300, 1.0, 11025), 11025)
    with pytest.raises(
        DataError,
        match=rf"^{path}: 11025 Hz, expected 8000 Hz\. Set resample: true, or change rate_hz",
    ):
        Recordings(str(path), RATE, 1.0)
    wave = Recordings(str(path), RATE, 1.0, resample=True)[0]["wave"][0]
    assert wave[100:-100] == pytest.approx(tone(300, 1.0)[100:-100, 0], abs=5e-3)


def test_channels_are_kept_and_have_to_be_as_many_as_asked_for(tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", tone(300, 0.1, channels=2))
    wave = Recordings(str(path), RATE, 0.1, channels=2)[0]["wave"]
    assert wave.shape == (2, 800)
    assert wave[1] == pytest.approx(wave[0] / 2, abs=1e-4)
    with pytest.raises(DataError, match=rf"^{path}: 2 channels, expected 1"):
        Recordings(str(path), RATE, 0.1)


def test_speakers_and_takes_make_the_split(tmp_path: Path) -> None:
    files = tones(tmp_path)
    by_take = Recordings(files, RATE, 0.2, part="test", split=ByValue("take", test=[0]))
    assert {path.stem for path in by_take.files.paths} == {"a_0", "b_0"}
    groups = [
        Recordings(files, RATE, 0.2, part=part, split=ByGroup("speaker", val=0.5, test=0)).files
        for part in ("train", "val")
    ]  # type: ignore[arg-type]
    assert {len(set(group.fields["speaker"])) for group in groups} == {1}
    assert set(groups[0].paths).isdisjoint(groups[1].paths)


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize(
    ("left", "what"),
    [(0.0, "not a sound file"), (0.5, "cannot be decoded|truncated: it ends|not a sound file")],
)
def test_a_corrupt_recording_among_many_is_named_or_left_out_and_counted(
    tmp_path: Path, ending: str, left: float, what: str, keep: Any
) -> None:
    if keep == "disk" and ending == ".flac" and left:
        pytest.skip(
            "the header of a FLAC file does not show that its end is missing; decoding does"
        )
    files = tones(tmp_path, ending)
    bad = tmp_path / "low" / f"a_1{ending}"
    bad.write_bytes(bad.read_bytes()[: int(left * bad.stat().st_size)])
    with pytest.raises(
        DataError, match=rf"^{bad}: ({what}).* Or skip such files with on_error: skip"
    ):
        Recordings(files, RATE, 0.2, keep=keep)
    with pytest.warns(UserWarning, match=rf"^1 of 12 files skipped: {bad}: ({what})"):
        source = Recordings(files, RATE, 0.2, keep=keep, on_error="skip")
    assert len(source) == 11
    assert len(source.skipped) == 1
    assert np.bincount(source.__getitems__(list(range(11)))["label"]).tolist() == [6, 5]


@pytest.mark.parametrize("ending", [".wav", ".ogg"])
def test_a_recording_that_was_cut_anywhere_is_not_taken_for_a_shorter_one(
    tmp_path: Path, ending: str
) -> None:
    path = record(tmp_path / f"a{ending}", np.random.default_rng(0).normal(0, 0.1, (30_001, 1)))
    whole = path.read_bytes()
    assert len(Recordings(str(path), RATE, 1.0)) == 1
    for left in range(len(whole) - 2, 0, -len(whole) // 40):
        path.write_bytes(whole[:left])
        with pytest.raises(DataError, match=rf"^{path}: "):
            Recordings(str(path), RATE, 1.0)


def test_sources_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    source = Recordings(tones(tmp_path), RATE, 0.2, keep="disk")
    sent = pickle.loads(pickle.dumps(source))
    assert (sent[3]["wave"] == source[3]["wave"]).all()


def test_a_recording_that_breaks_while_it_is_read_from_the_disk_is_named(tmp_path: Path) -> None:
    source = Recordings(tones(tmp_path), RATE, 0.2, keep="disk")
    source.files.paths[3].write_bytes(b"gone")
    with pytest.raises(DataError, match=rf"^{source.files.paths[3]}: not a sound file"):
        source.__getitems__([0, 3])


def test_silence_without_length_and_numbers_that_are_no_sound_are_refused(tmp_path: Path) -> None:
    empty = record(tmp_path / "empty.wav", np.empty((0, 1)))
    with pytest.raises(DataError, match=rf"^{empty}: it contains no sound"):
        Recordings(str(empty), RATE, 1.0)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: it contains NaN or infinite values"):
        Recordings(str(tmp_path / "nan.wav"), RATE, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"align": "end"}, r"^align: 'end' is neither"),
        ({"keep": "cloud"}, r"^keep: 'cloud' is neither"),
        ({"seconds": 0}, r"^rate_hz, seconds: 8000 and 0"),
    ],
)
def test_a_mistake_in_the_settings_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recordings(**{"files": "a.wav", "rate_hz": RATE, "seconds": 1.0, **arguments})


@pytest.mark.skipif(not DIGITS.is_dir(), reason=f"needs the spoken digits in {DIGITS}")
def test_the_spoken_digits_are_split_as_usual() -> None:
    files = str(DIGITS / "{label}_{speaker}_{take}.wav")
    rule = ByValue("take", test=[0, 1, 2, 3, 4], val=[5, 6, 7, 8, 9])
    for part, count in (("train", 2400), ("val", 300), ("test", 300)):
        source = Recordings(files, RATE, 1.0, part=part, split=rule, keep="disk")  # type: ignore[arg-type]
        assert len(source) == count
        assert (
            np.bincount([int(label) for label in source.files.fields["label"]]).tolist()
            == [count // 10] * 10
        )
        assert len(set(source.files.fields["speaker"])) == 6
    assert source.classes == [str(digit) for digit in range(10)]
    assert source[0]["wave"].std() > 0.001


MP3 = [("MP3", "MPEG_LAYER_III")]
CUTTABLE = [
    (kind, subtype)
    for kind in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "SVX", "AU", "CAF", "NIST", "FLAC", "MP3")
    for subtype in soundfile.available_subtypes(kind)
    # Which libsndfile writes, and reads again
    if soundfile.check_format(kind, subtype)
    and not (
        subtype.startswith("DWVW") or (subtype.startswith("MPEG") and (kind, subtype) not in MP3)
    )
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "subtype"), CUTTABLE)
def test_a_file_of_any_format_is_whole_or_refused(tmp_path: Path, kind: str, subtype: str) -> None:
    """Written by libsndfile, cut at many places."""
    sound = np.random.default_rng(0).uniform(-0.4, 0.4, (RATE // 2, 1)).astype(np.float32)
    path = tmp_path / "it"
    soundfile.write(path, sound, RATE, format=kind, subtype=subtype)
    whole = path.read_bytes()
    reader = WaveReader(RATE, 0.5)
    assert reader.read(path, "it").shape == (1, RATE // 2)
    for share in (0.02, 0.2, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        what = r"(truncated: it ends|not a sound|cannot be|\d+ frames, but|it contains no sound)"
        with pytest.raises(DataError, match=rf"^it: {what}"):
            reader.read(path, "it")


@pytest.mark.parametrize("order", ["little", "big"])
def test_au_and_rifx_of_both_byte_orders_are_measured(order: Any) -> None:
    sound = np.random.default_rng(0).uniform(-0.4, 0.4, (RATE // 2, 1))
    for kind in ("AU", "WAV"):
        file = io.BytesIO()
        soundfile.write(file, sound, RATE, format=kind, subtype="PCM_16", endian=order.upper())
        assert WaveReader(RATE, 0.5).check(file.getvalue(), "it") == RATE // 2
        with pytest.raises(DataError, match=r"^it: truncated: it ends before the length"):
            WaveReader(RATE, 0.5).check(file.getvalue()[:-600], "it")


def test_a_file_that_was_written_to_a_pipe_has_no_length_to_compare(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full((RATE // 2, 1), 0.25), RATE, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    at = data.index(b"data") + 4
    for size in (2**32 - 1, 0x7FFF_F000):  # as ffmpeg and SoX write it
        data[4:8] = data[at : at + 4] = size.to_bytes(4, "little")
        assert (WaveReader(RATE, 0.5).read(bytes(data), "it") == 0.25).all()


def test_a_format_that_does_not_say_its_length_is_refused_by_name() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((RATE, 1)), RATE, format="VOC", subtype="PCM_16")
    with pytest.raises(
        DataError, match=r"^it: VOC .*whether such a file is whole .* Convert it to"
    ):
        WaveReader(RATE, 1.0).check(file.getvalue(), "it")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
@pytest.mark.parametrize("name", ["cut_rf64.wav", "cut_rifx.wav"])
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_cut_recordings_are_not_filled_up_with_silence(name: str, keep: Any) -> None:
    path = CASES / "cut_rf64" / name
    with pytest.raises(
        DataError, match=rf"{name}: truncated: it ends before the length it declares"
    ):
        Recordings(str(path), 44100, 5, channels=2, keep=keep)


def test_floats_beyond_one_are_kept_and_told_once(tmp_path: Path) -> None:
    for number in range(3):
        wave = np.full((RATE, 1), 1.25 + number, np.float32)
        soundfile.write(tmp_path / f"{number}.wav", wave, RATE, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"0\.wav: sound up to 1\.25, beyond \[-1, 1\]") as told:
        source = Recordings(str(tmp_path / "*.wav"), RATE, 1.0)
    assert len(told) == 1
    assert source[2]["wave"].max() == 3.25


def test_a_header_that_a_recorder_did_not_finish_is_told(tmp_path: Path) -> None:
    whole = tmp_path / "a.wav"
    soundfile.write(whole, np.full(800, 0.5), 8000, subtype="PCM_16")
    content = bytearray(whole.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = bytes(4)
    (tmp_path / "b.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.wav: it contains no sound by its header.*ffmpeg"):
        Recordings(str(tmp_path / "b.wav"), 8000, 0.1)
    with av.open(str(tmp_path / "b.wav")) as given:  # as ffmpeg does
        frames = [frame.to_ndarray().ravel() for frame in given.decode(audio=0)]
    assert np.concatenate(frames).tolist() == [16384] * 800

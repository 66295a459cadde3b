"""Clips of video files: the very frames that are asked for, whichever library decodes them."""

import gc
import importlib
import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from harness.data.feed import evaluation_batches
from harness.data.split import Split
from harness.errors import ConfigError, DataError
from harness.sources.decoders import _upright, read_frames
from harness.sources.split import ByGroup
from harness.sources.video import Clips
from tests.pool import command, train_on_ranks
from tests.sources.make_motion import MOTIONS, make, motion, write

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases" / "data"
# codec, pixels, ending, options: without loss, with B-frames, with groups that lean on the one
# before, with times in AVI, with no times at all.
KINDS = [
    ("ffv1", "gray", "mkv", {}),
    ("libx264", "yuv420p", "mp4", {"g": "10", "bf": "2"}),
    ("libx264", "yuv420p", "mkv", {"g": "8", "bf": "3", "x264-params": "open-gop=1"}),
    ("libvpx-vp9", "yuv420p", "webm", {"g": "12"}),
    ("mpeg4", "yuv420p", "avi", {"g": "10", "bf": "2"}),
    ("libx264", "yuv420p", "ts", {"g": "10", "bf": "2"}),
    ("libx264", "yuv420p", "h264", {"g": "10"}),
    ("libvpx", "yuv420p", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("gif", "rgb8", "gif", {}),
    ("libx264", "yuv420p", "mkv", {"x264-params": "interlaced=1"}),
]


def frames_of(path: Path) -> NDArray[np.uint8]:
    return read_frames(path, range)[1]


def by_torchcodec(path: Path) -> NDArray[np.uint8]:
    """All frames as torchcodec gives them, another reader than that of the sources."""
    try:
        codec = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:  # it finds no ffmpeg here
        pytest.skip(f"needs torchcodec, with ffmpeg's libraries: {error}")
    decoder = codec.VideoDecoder(str(path), dimension_order="NHWC")
    frames: NDArray[np.uint8] = decoder.get_frames_in_range(0, len(decoder)).data.numpy()
    return frames


def numbered(count: int, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """(T, H, W): each frame shows its number in binary, as eight upright bars from the left."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    return (
        np.repeat(np.repeat(bits, width // 8, axis=1)[:, None], height, axis=1).astype(np.uint8)
        * 200
        + 20
    )


def numbers_in(frames: NDArray[Any]) -> list[int]:
    """(T, H, W) -> the number that each frame shows."""
    columns = frames.mean(axis=1) > 120
    width = columns.shape[1] // 8
    return [int(number) for number in (columns[:, width // 2 :: width] << np.arange(8)).sum(axis=1)]


@pytest.mark.parametrize(
    ("codec", "pixels", "ending", "options"),
    KINDS,
    ids=[f"{one[0]}-{one[2]}-{at}" for at, one in enumerate(KINDS)],
)
def test_every_frame_is_the_one_that_was_asked_for(
    tmp_path: Path, codec: str, pixels: str, ending: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / f"a.{ending}", numbered(60), codec, pixels, options)
    count, frames = read_frames(path, range)
    assert (count, numbers_in(frames[..., 0])) == (60, list(range(60)))
    for wanted in ([41], [9, 10, 11], [3, 30, 59], [25, 27, 29, 31], [55], [17, 40]):
        found = read_frames(path, lambda count, wanted=wanted: wanted)[1]  # type: ignore[misc] # bound at once
        assert numbers_in(found[..., 0]) == wanted


@pytest.mark.parametrize(
    ("codec", "pixels", "ending", "options"),
    KINDS[:4],
    ids=[f"{codec}-{ending}" for codec, _, ending, _ in KINDS[:4]],
)
def test_torchcodec_gives_the_same_bytes_where_it_gives_the_right_frames(
    tmp_path: Path, codec: str, pixels: str, ending: str, options: dict[str, str]
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 34, 50, 3), dtype=np.uint8)
    frames[:, ::2] = frames[:, 1::2]
    path = write(
        tmp_path / f"a.{ending}",
        frames if pixels != "gray" else frames[..., 0],
        codec,
        pixels,
        options,
    )
    count, one = read_frames(path, range)
    assert (count, one.shape) == (20, (20, 34, 50, 3))
    # In colour too: both leave it to the same arithmetic of ffmpeg's
    assert (one == by_torchcodec(path)).all()


# Display matrices a, b, c, d, and what they make of the frames (T, H, W, 3) that are stored
TURNS: dict[tuple[int, int, int, int], Callable[[NDArray[Any]], NDArray[Any]]] = {
    (1, 0, 0, 1): lambda stored: stored,
    (0, -1, 1, 0): lambda stored: np.rot90(stored, 1, (1, 2)),
    (0, 1, -1, 0): lambda stored: np.rot90(stored, -1, (1, 2)),
    (-1, 0, 0, -1): lambda stored: stored[:, ::-1, ::-1],
    (-1, 0, 0, 1): lambda stored: stored[:, :, ::-1],
    (1, 0, 0, -1): lambda stored: stored[:, ::-1],
    (0, 1, 1, 0): lambda stored: stored.swapaxes(1, 2),
    (0, -1, -1, 0): lambda stored: stored[:, ::-1, ::-1].swapaxes(1, 2),
}


def turn(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write a display matrix into the track of an MP4 file."""

    def packed(*values: float) -> bytes:
        return struct.pack(">9i", *(round(value * 2**16) for value in values))

    data, plain = path.read_bytes(), packed(1, 0, 0, 0, 1, 0, 0, 0, 2**14)
    assert data.count(plain) == 2  # of the film and of the track
    at = data.rindex(plain)
    path.write_bytes(data[:at] + packed(a, b, 0, c, d, 0, 0, 0, 2**14) + data[at + 36 :])


@pytest.mark.parametrize("matrix", TURNS)
def test_a_film_is_turned_and_mirrored_as_it_says(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    frames = numbered(6)
    frames[:, :7] = 128
    path = write(tmp_path / "a.mp4", frames, "libx264", "yuv420p")
    stored = frames_of(path)
    turn(path, *matrix)
    assert np.array_equal(frames_of(path), TURNS[matrix](stored))
    if matrix[0] == matrix[3] and matrix[1] == -matrix[2]:  # it turns, but does not mirror
        assert np.array_equal(frames_of(path), by_torchcodec(path))


def test_a_display_matrix_is_found_by_its_type_whatever_iterating_gives() -> None:
    matrix = np.array([0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30], np.int32).tobytes()
    stored = numbered(1)[0]
    frame = SimpleNamespace(  # PyAV 19 iterates over types, 18 over side data
        side_data={av.sidedata.sidedata.Type.DISPLAYMATRIX: matrix},
        to_ndarray=lambda **_: stored,
    )
    assert np.array_equal(_upright(av, frame), np.rot90(stored, -1))


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_an_error_of_the_code_does_not_blame_the_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind("of the code")

    path = write(tmp_path / "a.mkv", numbered(3))
    monkeypatch.setattr("harness.sources.decoders._upright", fail)
    with pytest.raises(kind, match="of the code"):
        frames_of(path)


def test_a_film_that_is_aslant_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(6), "libx264", "yuv420p")
    turn(path, 0.7071, 0.7071, -0.7071, 0.7071)
    with pytest.raises(
        DataError, match=r"a\.mp4: .* rotated by an angle that is not a multiple of 90 degrees"
    ):
        frames_of(path)


def test_of_several_streams_the_one_is_read_that_ffmpeg_would_choose(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        for height, width in ((16, 24), (32, 48)):
            stream: Any = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = av.stream.Disposition.default if height == 32 else 0
        for frame in numbered(12):
            for stream, step in zip(container.streams, (2, 1), strict=True):
                pixels = np.ascontiguousarray(frame[::step, ::step])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray")))
        for stream in container.streams:
            container.mux(stream.encode())
    frames = frames_of(path)
    assert frames.shape == (12, 32, 48, 3)
    assert np.array_equal(frames, by_torchcodec(path))


def test_sound_without_a_film_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(DataError, match=r"a\.mp4: .* it has no video, only audio"):
        frames_of(path)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
def test_no_colour_of_an_interlaced_film_leaks_from_one_field_into_the_other() -> None:
    """Each field converted for itself, as if it were a film of half the height."""
    path = CASES / "interlaced" / "inter.mp4"
    frames = frames_of(path)[:3]
    with av.open(str(path)) as container:
        for frame, found in zip(container.decode(video=0), frames, strict=False):
            assert frame.interlaced_frame
            planes = frame.to_ndarray()  # (H + H / 2, W): Y, then U and V of half the size
            height, width = frame.height, frame.width
            luma = planes[:height]
            chroma = planes[height:].reshape(2, height // 2, width // 2)
            for parity in (0, 1):
                lines = np.repeat(np.repeat(chroma[:, parity::2], 2, axis=1), 2, axis=2)
                blue, red = lines.astype(float) - 128
                grey = (luma[parity::2].astype(float) - 16) * 255 / 219
                field = found[parity::2].astype(float)
                # ITU-R BT.709: what is left of red and blue without the grey is chroma alone
                assert abs(field[..., 0] - (grey + 1.7927 * red).clip(0, 255)).mean() < 1
                assert abs(field[..., 2] - (grey + 2.1124 * blue).clip(0, 255)).mean() < 1


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_clips_are_cut_by_stride_and_step_and_say_where_they_are_from(
    tmp_path: Path, keep: Any
) -> None:
    for label, name, count in (("b", "long", 23), ("a", "short", 13)):
        write(tmp_path / label / f"{name}.mkv", numbered(count), "ffv1", "gray")
    source = Clips(
        str(tmp_path / "{label}/{name}.mkv"), frames=4, stride=3, step=5, grey=True, keep=keep
    )
    batch = source.__getitems__([3, 0, 1, 2])
    assert (batch["clip"].shape, batch["clip"].dtype) == ((4, 1, 4, 32, 48), np.uint8)
    assert [numbers_in(clip[0]) for clip in batch["clip"]] == [
        [10, 13, 16, 19],
        [0, 3, 6, 9],
        [0, 3, 6, 9],
        [5, 8, 11, 14],
    ]
    assert batch["label"].tolist() == [1, 0, 1, 1]
    assert (source[3]["clip"] == batch["clip"][0]).all()
    known = source.known()
    assert (known["name"], known["start"], known["stop"]) == (
        ["short", "long", "long", "long"],
        ["0", "0", "5", "10"],
        ["10", "10", "15", "20"],
    )
    assert known["recording"] == [
        str(path) for path in (source.paths()[0], *[source.paths()[1]] * 3)
    ]
    first = Clips(str(tmp_path / "*/*.mkv"), frames=4, stride=3, clips="first", keep=keep)
    assert [numbers_in(clip[2]) for clip in first.__getitems__([0, 1])["clip"]] == [
        [0, 3, 6, 9]
    ] * 2
    assert len(Clips(str(tmp_path / "*/*.mkv"), frames=4, keep=keep)) == 3 + 5  # side by side
    for part in ("train", "test"):  # whole files
        cut = Clips(
            str(tmp_path / "*/{name}.mkv"),
            frames=4,
            part=part,
            split=ByGroup("name", val=0, test=0.5),
            keep=keep,
        )  # type: ignore[arg-type]
        assert len(set(cut.known()["recording"])) == 1


def test_colours_come_in_their_order_and_a_size_may_be_set(tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, :16] = (200, 100, 20)
    path = write(tmp_path / "a.mkv", frames, "ffv1", "yuv444p")
    clip = Clips(str(path), frames=2)[1]["clip"]
    assert clip.shape == (3, 2, 32, 48)
    # RGB to YUV and back, each in whole numbers
    assert abs(clip[:, :, 0, 0].astype(int) - [[200], [100], [20]]).max() <= 2
    small = Clips(str(path), frames=2, size=[8, 12])[1]["clip"]
    assert small.shape == (3, 2, 8, 12)
    assert (small[:, :, 1, 1] == clip[:, :, 0, 0]).all()
    grey = Clips(str(path), frames=2, grey=True)[0]["clip"]
    assert abs(grey[0, 0, 0, 0].astype(float) - clip[:, 0, 0, 0] @ [0.299, 0.587, 0.114]) <= 0.5


def test_bad_films_are_named_or_left_out_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.mkv", numbered(12), "ffv1", "gray")
    whole, bad = (tmp_path / "0.mkv").read_bytes(), tmp_path / "0.mkv"
    films = {
        "truncated: it ends before the length it declares": whole[: len(whole) // 2],
        "cannot be decoded as video": b"no film at all" * 20,
        "5 frames; a clip needs 8": write(
            tmp_path / "s" / "a.mkv", numbered(5), "ffv1", "gray"
        ).read_bytes(),
        "not a video, but": b"PK\x03\x04" + bytes(80),
        "64 x 32, but .*48 x 32. Set size, or give": write(
            tmp_path / "s" / "b.mkv", numbered(12, 32, 64), "ffv1", "gray"
        ).read_bytes(),
    }
    for keep in ("memory", "disk"):
        for what, content in films.items():
            bad.write_bytes(content)
            # The first one is what the others are measured by
            named = tmp_path / ("1.mkv" if "Set size" in what else "0.mkv")
            with pytest.raises(
                DataError,
                match=(
                    rf"^{named}: .*{what if 'Set size' not in what else ', but'}"
                    r".*Or skip such files with on_error: skip"
                ),
            ):
                Clips(str(tmp_path / "*.mkv"), frames=8, keep=keep)
            if "Set size" not in what:
                with pytest.warns(UserWarning, match=rf"^1 of 4 files skipped: {bad}: {what}"):
                    assert (
                        len(Clips(str(tmp_path / "*.mkv"), frames=8, keep=keep, on_error="skip"))
                        == 3
                    )


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "mpeg4"), ("avi", "mjpeg"), ("webm", "libvpx-vp9")]
)
def test_a_film_that_was_cut_short_is_refused_at_any_length(
    tmp_path: Path, ending: str, codec: str
) -> None:
    # Its index at the begin, so that what is left could be played
    options = {"movflags": "+faststart"} if ending == "mp4" else {}
    whole = write(
        tmp_path / f"whole.{ending}",
        numbered(30),
        codec,
        "yuvj420p" if codec == "mjpeg" else "yuv420p",
        options,
    ).read_bytes()
    assert len(Clips(str(tmp_path / f"whole.{ending}"), frames=30)) == 1
    for share in (0.3, 0.6, 0.9, 0.99):
        (tmp_path / f"cut.{ending}").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            DataError, match=r"cut\.\w+: (truncated: it ends|cannot be decoded as video)"
        ):
            Clips(str(tmp_path / f"cut.{ending}"), frames=2, keep="disk")


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
@pytest.mark.filterwarnings("ignore:1 of 2 files skipped")
def test_a_frame_in_which_the_decoder_concealed_errors_is_named(
    tmp_path: Path, ending: str, codec: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    moving = np.stack([np.roll(noise, 2 * at, 1) for at in range(24)])
    path = write(tmp_path / f"a.{ending}", moving, codec, "yuv420p", {"g": "100", "bf": "0"})
    shutil.copy(path, tmp_path / f"b.{ending}")
    with av.open(str(path)) as film:
        at, size = [(one.pos, one.size) for one in film.demux(video=0) if one.size][9]
    content = bytearray(path.read_bytes())
    content[at + size // 3 : at + size // 3 + 40] = bytes(range(1, 41))
    path.write_bytes(content)
    files = str(tmp_path / f"*.{ending}")
    with pytest.raises(DataError, match=rf"^{path}: frame 9: damaged, and the decoder concealed"):
        Clips(files, frames=24)
    assert len(Clips(files, frames=24, on_error="skip")) == 1
    late = Clips(files, frames=2, step=22, keep="disk")
    assert late[0]["clip"].shape == (3, 2, 64, 96), "what lies before the damage is read"
    with pytest.raises(DataError, match=rf"{path}: frame 9: damaged"):
        late[1]


def test_a_film_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", numbered(4), "ffv1", "gray16le")
    with pytest.raises(
        DataError,
        match=(
            r"a\.mkv: its pixel format \(gray16le\) has more than 8 bits, which would be "
            r"rounded\. Convert it to 8 bits: ffmpeg"
        ),
    ):
        Clips(str(path), frames=2)


def test_settings_that_make_no_clip_are_refused() -> None:
    for settings, what in (
        ({"frames": 0}, "at least 1"),
        ({"frames": 2, "clips": "last"}, "every or first"),
        ({"frames": 2, "clips": "first", "step": 3}, "step is for every only"),
        ({"frames": 2, "size": [3]}, "give \\[height, width\\]"),
        ({"frames": 2, "keep": "cloud"}, "neither memory nor disk"),
    ):
        with pytest.raises(ConfigError, match=what):
            Clips("a.mkv", **settings)


def test_without_the_decoder_one_message_says_what_to_install() -> None:
    code = """import sys
sys.modules["av"] = None
from harness.sources.video import Clips
Clips("x.mp4", 2)"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "DataError: video needs av, which is not installed" in ended.stderr
    assert "Install it: pip install 'fermarsi[video]'." in ended.stderr


def test_no_thread_outlives_the_reading_of_a_film(tmp_path: Path) -> None:
    """A data worker that is forked with one of them waits for it, for ever, when it is freed."""
    path = write(tmp_path / "a.mp4", numbered(12), "libx264", "yuv420p")
    gc.collect()
    before = len(list(Path("/proc/self/task").iterdir()))
    kept = frames_of(path)
    assert len(kept) == 12
    assert len(list(Path("/proc/self/task").iterdir())) == before


def test_clips_come_from_workers_as_from_the_process_itself(tmp_path: Path) -> None:
    import torch

    make(tmp_path, 12)
    source = Clips(str(tmp_path / "{label}/*.mkv"), frames=4, stride=2, keep="disk")
    split = Split(source, [], "data.val", lambda batch: None)
    alone, forked = (
        [
            batch["clip"]
            for _, batch in evaluation_batches(split, 8, 0, 1, torch.device("cpu"), workers)
        ]
        for workers in (0, 2)
    )
    assert len(alone) == 5
    assert all(torch.equal(one, other) for one, other in zip(alone, forked, strict=True))
    assert (pickle.loads(pickle.dumps(source))[5]["clip"] == source[5]["clip"]).all()


def test_no_frame_of_the_motions_says_what_moves_how() -> None:
    for kind, opposite in (("left", "right"), ("up", "down"), ("clockwise", "anticlockwise")):
        forth, back = motion(kind, 5, noise=0), motion(opposite, 5, noise=0)
        assert (forth[::-1] == back).all()  # the same frames, in the other order
        assert len({frame.tobytes() for frame in forth}) == len(forth)
    middle = [
        np.mean([motion(kind, seed, noise=0)[11:13] for seed in range(20)]) for kind in MOTIONS
    ]
    assert max(middle) - min(middle) < 2


def test_the_config_of_motions_trains(tmp_path: Path) -> None:
    make(tmp_path / "motion", 96)
    overrides = [
        f"run.dir={tmp_path / 'run'}",
        "stop.budget.epochs=1",
        "data.train.source.step=24",
        "network.widths=[8,16]",
    ]
    ends = train_on_ranks(
        2,
        ROOT / "configs" / "video_motion.yaml",
        overrides,
        env={"FERMARSI_MOTION": str(tmp_path / "motion")},
    )
    assert [one.exit_code for one in ends] == [0, 0]
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["samples"] >= 64


@pytest.mark.soak
def test_motions_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "motion", 1200)
    overrides, env = [f"run.dir={tmp_path / 'run'}"], {"FERMARSI_MOTION": str(tmp_path / "motion")}
    assert [
        one.exit_code
        for one in train_on_ranks(
            2, ROOT / "configs" / "video_motion.yaml", overrides, env=env, timeout_s=900
        )
    ] == [0, 0]
    evaluated = command(
        "evaluate", tmp_path / "run", "--split", "test", "--json", "--allow", "/", timeout_s=300
    )
    assert json.loads(evaluated.stdout)["accuracy"] >= 0.93

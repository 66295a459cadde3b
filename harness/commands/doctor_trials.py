"""What `fermarsi doctor` tries out: a collective of two processes, and decoding."""

import os
import socket
import subprocess
import sys
import tempfile
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.commands.finding import Finding
from harness.errors import HarnessError
from harness.wording import first_line

_RANK = """
from harness.ranks.ranks import Ranks
from harness.training.parallel import start_accelerator
start_accelerator("no", "none", 60.0)
ranks = Ranks.join(60.0)
print(ranks.gather(ranks.rank))
"""
_LIMIT_S = 180.0  # importing torch twice on a busy machine


def try_collective() -> Finding:
    """Two processes of this machine that meet as those of a launch do, and say who is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    # Where there are not two GPUs, as on one with --cpu
    import torch

    few = torch.cuda.device_count() < 2
    here |= {"ACCELERATE_USE_CPU": "true"} if few else {}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            env={**os.environ, **here, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [one.communicate(timeout=_LIMIT_S) for one in ranks]
    except subprocess.TimeoutExpired:
        told = [("", "no answer")]
    finally:
        for one in ranks:
            one.kill()
            one.communicate()
    over = "gloo" if few else "NCCL"
    if [out.strip() for out, _ in told] == ["[0, 1]"] * 2:
        return Finding("two processes", f"met over {over}")
    reason = next(
        (err.strip().splitlines()[-1] for _, err in told if err.strip()), "no reason given"
    )
    to_do = "one process works; for several see GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO and firewalls"
    return Finding("two processes", f"did not meet over {over}: {reason}", to_do)


def try_decoders() -> list[Finding]:
    """Files of each kind, written here and read by our sources."""
    tries: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
        "images": ("PIL", "images", _image),
        "sound": ("soundfile", "audio", _sound),
        "video": ("av", "video", _video),
        "Excel": ("openpyxl", "tables", _excel),
        "Parquet": ("pyarrow", "", _parquet),
    }
    return [_decode(kind, *one) for kind, one in tries.items()]


def _decode(kind: str, module: str, extra: str, read: Callable[[Path], Any]) -> Finding:
    install = f"pip install 'fermarsi[{extra}]' if you need {kind}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(Path(folder))
        except ImportError as error:
            return Finding(kind, f"{error.name or module} is missing (optional)", install)
        except (HarnessError, OSError, RuntimeError, ValueError) as error:
            return Finding(kind, f"a file made here is not read: {first_line(error)}", install)
    return Finding(kind, f"read: {found}")


def _image(folder: Path) -> str:
    from harness.sources.images import Images

    rows = b"".join(b"\0" + bytes([value] * 24) for value in range(8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = (8).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (folder / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    image = Images(files=str(folder / "one.png"))[0]["image"]
    if image.shape != (3, 8, 8) or int(image[0, 7, 0]) != 7:
        raise ValueError(f"other pixels than were written, {image.shape}")
    return "PNG"


def _sound(folder: Path) -> str:
    from harness.sources.audio import Recordings

    values = (np.sin(np.arange(800) / 10) * 20000).astype("<i2")
    with wave.open(str(folder / "one.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(values.tobytes())
    found = ["WAV"]
    import soundfile  # type: ignore[import-untyped]  # it has no stubs

    for kind in ("FLAC", "OGG", "MP3"):
        soundfile.write(folder / f"one.{kind.lower()}", values, 8000, format=kind)
        found.append(kind)
    for kind in found:
        Recordings(files=str(folder / f"one.{kind.lower()}"), rate_hz=8000, seconds=0.05)[0]
    return ", ".join(found)


def _video(folder: Path) -> str:
    import av

    from harness.sources.video import Clips

    with av.open(str(folder / "one.mp4"), "w") as file:
        stream: Any = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * level, np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    Clips(files=str(folder / "one.mp4"), frames=4)[0]
    return "MP4"


def _excel(folder: Path) -> str:
    import pandas as pd

    return _table(folder / "one.xlsx", lambda path: pd.DataFrame(_ROWS).to_excel(path, index=False))


def _parquet(folder: Path) -> str:
    import pandas as pd

    return _table(folder / "one.parquet", lambda path: pd.DataFrame(_ROWS).to_parquet(path))


_ROWS = {"x": [0.5, 1.5], "y": [1.0, 2.0]}


def _table(path: Path, write: Callable[[Path], None]) -> str:
    from harness.sources.tables import Table

    write(path)
    if Table(files=str(path), features=["x", "y"])[1]["features"].tolist() != [1.5, 2.0]:
        raise ValueError("other numbers than were written")
    return path.suffix

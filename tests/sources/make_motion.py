"""Clips whose class is a motion that no single frame shows: a blot that goes left, right, up or
down, or turns one way or the other.

    python tests/sources/make_motion.py runs/motion [NUM_FILES]

A file a clip, runs/motion/<class>/<number>.mkv: 24 frames of 32 x 32 in grey, without loss (FFV1).
In every class a frame is a blot of random form at a random place and angle, in noise; only what
comes before and after differs. Played backwards, a clip is one of the opposite class.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Scipy has no stubs
from scipy.ndimage import gaussian_filter, map_coordinates  # type: ignore[import-untyped] # see above

# Cells a frame to the right and down, degrees a frame: 1 each, 12.
MOTIONS = {
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "clockwise": (0, 0, 12),
    "anticlockwise": (0, 0, -12),
}
FRAMES, SIZE, RADIUS = 24, 32, 9


def motion(kind: str, seed: int, noise: float = 12.0) -> NDArray[np.uint8]:
    """(T, H, W): the blot, the place and the angle of the seed in the middle of the time.

    What leaves at one side comes in at the other.
    """
    draw = np.random.default_rng(seed)
    field = gaussian_filter(draw.normal(size=(2 * RADIUS + 1, 2 * RADIUS + 1)), 2.0)
    rows, columns = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    blot = (field > np.median(field)) & (rows**2 + columns**2 < RADIUS**2)
    across, down = draw.uniform(0, SIZE, 2)
    angle = draw.uniform(0, 360)
    speeds = MOTIONS[kind]
    frames = np.empty((FRAMES, SIZE, SIZE))
    for number in range(FRAMES):
        time = number - (FRAMES - 1) / 2
        left, top, turned = (
            across + speeds[0] * time,
            down + speeds[1] * time,
            np.deg2rad(angle + speeds[2] * time),
        )
        x, y = ((np.arange(SIZE) - place + SIZE / 2) % SIZE - SIZE / 2 for place in (left, top))
        along = np.cos(turned) * x[None] + np.sin(turned) * y[:, None]
        beside = np.cos(turned) * y[:, None] - np.sin(turned) * x[None]
        frames[number] = map_coordinates(
            blot.astype(np.float64), [beside + RADIUS, along + RADIUS], order=1
        )
    counts: NDArray[np.uint8] = np.clip(
        40 + 160 * frames + noise * draw.normal(size=frames.shape), 0, 255
    ).astype(np.uint8)
    return counts


def write(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "ffv1",
    pixels: str = "gray",
    options: dict[str, str] | None = None,
) -> Path:
    """frames: (T, H, W), or (T, H, W, 3) in RGB.

    The codec's own options are, e.g., {"g": "10"}: a key frame every 10.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for frame in frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(frame, format="gray" if frame.ndim == 2 else "rgb24")
                )
            )
        container.mux(stream.encode())
    return path


def make(folder: Path, num_files: int) -> None:
    """folder/<class>/<number>.mkv, the classes in turn. Those that are there already stay."""
    for number in range(num_files):
        kind = list(MOTIONS)[number % len(MOTIONS)]
        path = folder / kind / f"{number:05}.mkv"
        if not path.exists():
            write(path, motion(kind, number))


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1200)

"""Pictures of mixed sizes and modes, beside what Pillow and torchvision make of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from harness.errors import ConfigError, DataError
from harness.sources.hub import Hub
from harness.sources.images import ImageReader, Images

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
SMOOTH = np.stack(
    [np.add.outer(np.arange(60), 2 * np.arange(90)), *np.indices((60, 90))], axis=2
).astype(np.uint8)
BILINEAR = Image.Resampling.BILINEAR


def written(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def by_pillow(image: Image.Image, size: tuple[int, int], fit: str) -> NDArray[Any]:
    height, width = size
    if fit == "crop":
        return np.asarray(ImageOps.fit(image, (width, height), BILINEAR))
    if fit == "pad":
        return np.asarray(ImageOps.pad(image, (width, height), BILINEAR))
    return np.asarray(image.resize((width, height), BILINEAR))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(30, 30), (40, 90), (120, 180), (7, 50), (60, 90)])
def test_a_picture_is_fitted_as_pillow_fits_it(fit: Any, size: tuple[int, int]) -> None:
    image = Image.fromarray(SMOOTH)
    found = ImageReader(size, fit).read(written(image), "it").transpose(1, 2, 0)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    wanted = by_pillow(image, size, fit).astype(int)
    # Pillow crops before it resizes, so edges differ by part of a pixel
    assert np.median(abs(found - wanted)) <= 1
    assert (abs(found - wanted) > 6).mean() < 0.08
    if size == (60, 90):
        assert (found == SMOOTH).all()


def test_counts_of_sixteen_bits_are_fitted_too() -> None:
    counts = np.add.outer(1000 * np.arange(20), 500 * np.arange(40)).astype(np.uint16)
    found = ImageReader((10, 20), "stretch").read(written(Image.fromarray(counts)), "it")
    assert (found.dtype, found.shape) == (np.int32, (1, 10, 20))
    means = counts.reshape(10, 2, 20, 2).mean(axis=(1, 3))
    assert abs(found[0][2:-2, 2:-2] - means[2:-2, 2:-2]).max() <= 2


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository")
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_an_ordinary_folder_of_mixed_sizes_is_read(keep: Any) -> None:
    files = str(CASES / "x_mixed_sizes" / "pics/{label}/*.png")
    with pytest.raises(DataError, match=r"Set size: \[H, W\], with fit: crop, pad or stretch"):
        Images(files, keep=keep)
    source = Images(files, size=[64, 96], keep=keep)
    batch = source.__getitems__([0, 1, 2])
    assert batch["image"].shape == (3, 3, 64, 96)
    assert batch["label"].tolist() == [0, 0, 1]
    for path, image in zip(source.files.paths, batch["image"], strict=True):
        with Image.open(path) as opened:
            wanted = by_pillow(opened, (64, 96), "crop").astype(int)
        assert abs(image.transpose(1, 2, 0) - wanted).mean() < 4


def palette() -> Image.Image:
    return Image.fromarray(SMOOTH).quantize(16)


PICTURES: dict[str, bytes] = {
    "grey": written(Image.fromarray(SMOOTH[..., 0])),
    "grey of 4 bits": written(palette().convert("L").quantize(9)),
    "black and white": written(Image.fromarray(SMOOTH[..., 0]).convert("1")),
    "palette": written(palette()),
    "palette with alpha": written(palette(), transparency=3),
    "grey with alpha": written(Image.fromarray(SMOOTH[..., :2], "LA")),
    "colour": written(Image.fromarray(SMOOTH)),
    "colour with alpha": written(Image.fromarray(SMOOTH).convert("RGBA")),
}


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_mode_is_what_torchvision_makes_of_it(kind: str, mode: Any) -> None:
    from torchvision.io import ImageReadMode, decode_png

    data = PICTURES[kind]
    found = ImageReader(mode=mode).read(data, "it")
    read = {"RGB": ImageReadMode.RGB, "L": ImageReadMode.GRAY}[mode]
    wanted = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), read).numpy()
    assert found.shape == wanted.shape
    # libpng's weights of red, green and blue are others than ITU-R BT.601's, which Pillow has
    assert abs(found.astype(int) - wanted).max() <= (12 if mode == "L" else 0)


def test_ink_becomes_light() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    data = written(Image.frombytes("CMYK", (8, 8), ink.tobytes()), "TIFF")
    found = ImageReader(mode="RGB").read(data, "it").transpose(1, 2, 0)
    light = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert abs(found - light).max() <= 1
    with pytest.raises(DataError, match=r"mode CMYK\. .* or set mode: RGB or L"):
        ImageReader().read(data, "it")


def test_photos_are_turned_before_they_are_fitted() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = written(Image.fromarray(np.rot90(SMOOTH).copy()), exif=exif)
    plain = ImageReader((30, 45)).read(written(Image.fromarray(SMOOTH)), "it")
    assert (ImageReader((30, 45), mode="RGB").read(data, "it") == plain).all()


def test_counts_are_not_rounded_by_a_mode() -> None:
    counts = written(Image.fromarray(np.full((4, 4), 4000, np.uint16)))
    for use in (ImageReader(mode="L").read, ImageReader(mode="RGB").check):
        with pytest.raises(DataError, match=r"^it: 16 bits, which a mode would round to 8\."):
            use(counts, "it")
    floats = written(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"a TIFF image of mode F, which is not converted"):
        ImageReader(mode="L").read(floats, "it")


def test_the_hub_reads_pictures_in_the_same_way(tmp_path: Path) -> None:
    for number, size in enumerate(((9, 12), (12, 9))):
        (tmp_path / "ab"[number]).mkdir()
        image = Image.fromarray(SMOOTH[: size[0], : size[1]])
        (image if number else image.convert("L")).save(tmp_path / "ab"[number] / "1.png")
    hub = Hub(str(tmp_path), image=ImageReader((6, 6), mode="RGB"))
    source = Images(str(tmp_path / "{label}/*.png"), size=[6, 6], mode="RGB")
    both = [one.__getitems__([0, 1])["image"] for one in (hub, source)]
    assert both[0].shape == (2, 3, 6, 6)
    assert (both[0] == both[1]).all()
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(ConfigError, match=r"^image: csv has no image column"):
        Hub("csv", data_files=str(tmp_path / "a.csv"), image=ImageReader())


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"fit": "pad"}, r"^fit: 'pad' has no effect without size"),
        ({"size": [3]}, r"^size: \[3\]: give \[height, width\]"),
        ({"size": [0, 3]}, r"^size: \[0, 3\]"),
        ({"size": [3, 3], "fit": "fill"}, r"^fit: 'fill' is not one of crop, pad, stretch"),
        ({"mode": "CMYK"}, r"^mode: 'CMYK' is neither RGB nor L"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Images("a.png", **settings)

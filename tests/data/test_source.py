"""The contract of sources and treatments: what is documented is what is asked for."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.source import (
    ArrayReader,
    BatchReader,
    BatchTreatment,
    ClassNames,
    CompositeSource,
    Decoder,
    EarlyLearner,
    FileFinder,
    FilesBeside,
    InvertibleTreatment,
    KnownColumns,
    Learner,
    OwnNumbers,
    OwnOrder,
    PlainTreatment,
    RandomTreatment,
    ResultVersion,
    SeekableStream,
    SkippedFiles,
    Source,
    SourceFiles,
    StatefulStream,
    Stream,
    TrainingTreatment,
    as_columns,
    gather_of,
    known_of,
    learns,
    paths_from_settings,
    paths_of,
    read_together,
    skipped_of,
    sources_of,
    takes_seeds,
    training_only,
    version_of,
)

ROOT = Path(__file__).parents[2]

# Required and optional members, exactly those that docs/sources.md and docs/treatments.md list
SOURCE_MEMBERS = (
    Source,
    Stream,
    SeekableStream,
    StatefulStream,
    BatchReader,
    ArrayReader,
    KnownColumns,
    OwnNumbers,
    ClassNames,
    Decoder,
    SourceFiles,
    FileFinder,
    SkippedFiles,
    CompositeSource,
    OwnOrder,
    ResultVersion,
)
TREATMENT_MEMBERS = (
    PlainTreatment,
    RandomTreatment,
    Learner,
    EarlyLearner,
    BatchTreatment,
    TrainingTreatment,
    ClassNames,
    Decoder,
    InvertibleTreatment,
    FilesBeside,
    FileFinder,
    ResultVersion,
)


def members_of(protocols: tuple[type, ...]) -> set[str]:
    """The names that protocols declare, and the parameters that mark a treatment."""
    names: set[str] = set()
    for protocol in protocols:
        for name, value in vars(protocol).items():
            if name.startswith("_") and not (name.endswith("__") and name in DUNDERS):
                continue
            names.add(name)
            if name == "__call__":
                names |= set(inspect.signature(value).parameters) - {"self", "batch"}
    return names


DUNDERS = {"__len__", "__getitem__", "__getitems__", "__call__", "__iter__"}


def documented(page: str) -> set[str]:
    """The names in the first cells of the table that is headed `member`."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("| member |")) + 2
    rows = lines[begin : next(at for at in range(begin, len(lines)) if not lines[at])]
    return {name for row in rows for name in re.findall(r"`(\w+)", row.split("|")[1])}


@pytest.mark.parametrize(
    ("page", "protocols"), [("sources.md", SOURCE_MEMBERS), ("treatments.md", TREATMENT_MEMBERS)]
)
def test_the_page_lists_exactly_what_the_protocols_declare(
    page: str, protocols: tuple[type, ...]
) -> None:
    assert documented(page) == members_of(protocols)


def test_only_the_contract_looks_for_optional_parts() -> None:
    names = "|".join(members_of(SOURCE_MEMBERS) | members_of(TREATMENT_MEMBERS))
    asks = re.compile(rf"(?:hasattr|getattr)\([^)]*\"(?:{names})\"")
    asking = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "harness").rglob("*.py")
        if asks.search(path.read_text())
    }
    # The engine asks a schedule; the export keys of a tree; the others networks
    others = ["training/engine", "commands/export", "api/config", "objects"]
    assert asking == {"harness/data/source.py", *(f"harness/{name}.py" for name in others)}


class Least:
    """A source with the required parts alone."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.float32(index)}


def test_a_source_without_optional_parts_has_their_documented_meaning() -> None:
    source = Least()
    assert as_columns(read_together(source, [2, 0])) == {"x": [2.0, 0.0]}
    assert gather_of(source) is None
    assert known_of(source) == {}
    assert skipped_of(source) == ()
    assert paths_of(source) is None
    assert paths_from_settings(Least, {}) is None
    assert sources_of(source) == {}
    assert version_of(Least) == 1


def test_a_treatment_without_optional_parts_has_their_documented_meaning() -> None:
    def treat(batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def draw(batch: dict[str, Any], *, seeds: Any) -> dict[str, Any]:
        return batch

    assert not takes_seeds(treat)
    assert takes_seeds(draw)
    assert not training_only(treat)
    assert not learns(treat)
    assert version_of(treat) == 1

"""docs/config.md is the schema's own account of itself."""

from pathlib import Path

from docs.config_reference import reference
from harness.config.mistakes import ANY_KEY, known_fields


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text() == reference(), "run `python docs/config_reference.py > docs/config.md`"


def test_every_key_is_explained() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("| |")] == []
    for keys in known_fields():
        name = ".".join(str(key) for key in keys)
        assert any(row.startswith((f"| `{name}` |", f"| `{keys[-1]}` |")) for row in rows), name
    assert ("stop", "targets", ANY_KEY, "at_least") in known_fields()

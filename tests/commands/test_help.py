"""What each command says of itself."""

from typing import Any

from typer.main import get_command

from harness.cli import app
from harness.commands.export import SUFFIXES
from harness.commands.init import KINDS
from harness.data.settings import SPLITS
from harness.search.study import PRUNERS, SAMPLERS
from harness.wording import own_version
from tests.pool import command


def commands(found: Any, name: str) -> dict[str, Any]:
    if not hasattr(found, "commands"):
        return {name: found}
    inner = [commands(one, f"{name} {key}") for key, one in found.commands.items()]
    return {key: one for group in inner for key, one in group.items()}


def test_every_command_shows_an_example_of_itself() -> None:
    found = commands(get_command(app), "fermarsi")
    assert len(found) > 20
    examples = {name: one.epilog or "" for name, one in found.items()}
    lacking = [one for one in found if not examples[one].startswith(f"Example: {one} ")]
    assert not lacking


def test_shells_offer_the_values_of_options() -> None:
    found, offered = commands(get_command(app), "fermarsi"), {}
    for name, one in found.items():
        with one.make_context(name, [], resilient_parsing=True) as context:
            for parameter in one.params:
                known = parameter.shell_complete(context, "")
                words = tuple(word.value for word in known if word.type == "plain")
                if words:
                    offered[name.removeprefix("fermarsi "), parameter.name] = words
                    begun = parameter.shell_complete(context, "t")
                    assert [word.value for word in begun] == [w for w in words if w[0] == "t"]
    splits = dict.fromkeys(
        [("evaluate", "split"), ("predict", "split"), ("data suspects", "split")], SPLITS
    )
    assert offered == splits | {
        ("data show", "split"): SPLITS,
        ("init", "kind"): KINDS,
        ("export", "to"): tuple(SUFFIXES),
        ("sweep", "sampler"): SAMPLERS,
        ("sweep", "prune"): PRUNERS,
    }


def test_the_version_and_the_completion_of_shells() -> None:
    assert command("--version").stdout == f"fermarsi {own_version()}\n"
    shown = command("--help").stdout
    assert "Train for as long as it pays" in shown
    assert "--install-completion" in shown

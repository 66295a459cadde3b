"""Code that a user's modules reach through packages, folders and files that do not parse."""

from pathlib import Path

import pytest

from tests.resume.test_code import CONFIG, SOURCE, Project

HELPER = "scale = 1.0\n"


def into(project: Project, files: dict[str, str], target: str) -> None:
    for name, text in files.items():
        path = project.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (project.folder / "c.yaml").write_text(CONFIG.replace("mine.Rows", target))


def entries(project: Project) -> set[str]:
    return {path.parent.name for path in (project.folder / "store").glob("*/manifest.json")}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"own_a/__init__.py": ""}, "from own_a import helper"),
        ({"own_a/__init__.py": ""}, "from . import helper"),
        ({"own_a/__init__.py": ""}, "import own_a\nfrom own_a import helper"),
        ({}, "from own_a import helper"),
        ({}, "from own_a.helper import scale\nfrom own_a import helper"),
    ],
    ids=["by name", "relative", "package first", "folder", "folder by name"],
)
def test_code_in_a_package_of_the_users_own_counts(
    project: Project, files: dict[str, str], line: str
) -> None:
    source = SOURCE.replace("from mine_helper import scale", line).replace(
        "* scale", "* helper.scale"
    )
    into(project, {**files, "own_a/rows.py": source, "own_a/helper.py": HELPER}, "own_a.rows.Rows")
    project.launch()
    (project.folder / "own_a" / "helper.py").write_text("scale = 2.0 / 2.0\n")
    end = project.launch(code=2)
    assert "code of the run has changed since: own_a.helper" in end.stderr


def test_a_module_that_does_not_parse_is_code_as_well(project: Project) -> None:
    line = "try:\n    import own_old\nexcept SyntaxError:\n    own_old = None\n"
    into(project, {"mine.py": line + SOURCE, "own_old.py": 'print "hello"\n'}, "mine.Rows")
    project.launch()
    (project.folder / "own_old.py").write_text('print "good-bye"\n')
    end = project.launch(code=2)
    assert "code of the run has changed since: own_old" in end.stderr


TREATMENT = """
from mine_helper import scale
class Scaled:
    training_only = False
    def __call__(self, batch):
        return {**batch, "x": batch["x"] * scale}
"""


def test_the_store_is_built_anew_for_code_that_a_treatment_imports(project: Project) -> None:
    project.write("mine", SOURCE.replace("from mine_helper import scale", "scale = 1.0"))
    project.write("own_treatment", TREATMENT)
    stored = [f"data.store={{dir: {project.folder / 'store'}}}"]
    stored.append("data.train.treatments=[{_target_: own_treatment.Scaled}]")
    project.launch(*stored)
    for text, built in (("scale = 1.0  # as before\n", 0), ("scale = 2.0\n", 1)):
        project.write("mine_helper", text)
        before = entries(project)
        again = [f"run.dir={project.folder / str(built)}", "stop.budget.steps=4"]
        project.launch(*stored, *again)
        assert len(entries(project) - before) == built

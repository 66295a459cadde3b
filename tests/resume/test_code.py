"""Code that changes between two launches: named, never silently taken, and with a way on."""

import json
from pathlib import Path

import pytest

from harness.checkpoint.read import list_checkpoints
from harness.data.code import changes, code_of
from tests.pool import Launched, train_on_ranks

SOURCE = """
import numpy as np
from mine_helper import scale
class Rows:
    def __init__(self, n=60, seed=0):
        g = np.random.default_rng(seed)
        self.x = g.normal(size=(n, 4)).astype(np.float32) * scale
        self.c = g.integers(0, 3, n)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        return {"x": self.x[i], "label": int(self.c[i])}
"""
CONFIG = """
run: {name: c, seed: 1}
data: {train: {source: {_target_: mine.Rows}}, val: {source: {_target_: mine.Rows, seed: 1}}}
network: {_target_: harness.networks.Mlp, dims: [4, 8, 3]}
task: {_target_: harness.tasks.Classification, input: x, target: label}
batch: {size: 12, micro_size: 6}
optimizer: {_target_: torch.optim.SGD, lr: 0.1}
stop: {every: {steps: 4}, budget: {steps: 4}}
"""


class Project:
    """A user's modules `mine` and `mine_helper`, and a run of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 4
        (folder / "c.yaml").write_text(CONFIG)
        self.write("mine", SOURCE)
        self.write("mine_helper", "scale = 1.0\n")

    def write(self, module: str, text: str) -> None:
        (self.folder / f"{module}.py").write_text(text)

    def launch(self, *more: str, code: int = 0) -> Launched:
        """Go on for four more steps."""
        asked = [f"run.dir={self.folder / 'run'}", f"stop.budget.steps={self.steps}", *more]
        path = {"PYTHONPATH": str(self.folder)}
        (end,) = train_on_ranks(1, self.folder / "c.yaml", asked, env=path)
        assert end.exit_code == code, end.stderr
        self.steps += 4 * (code == 0)
        return end

    def exact(self) -> tuple[bool, str]:
        last = list_checkpoints(self.folder / "run" / "checkpoints")[-1].manifest
        assert last is not None
        said = json.loads((self.folder / "run" / "outcome.json").read_text())
        assert (said["exact"], said["exact_reason"]) == (last.exact, last.exact_reason)
        return last.exact, last.exact_reason


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path)


def test_what_changes_nothing_is_no_change(project: Project) -> None:
    project.launch()
    project.write(
        "mine", '"""A docstring."""\n' + SOURCE.replace("n=60", "n = 60") + "# a comment\n"
    )
    project.launch()
    assert project.exact()[0]


def test_changed_code_is_named_and_accepted_only_when_asked(project: Project) -> None:
    project.launch()
    project.write("mine_helper", "scale = 2.0 / 2.0\n")  # imported by what the config names
    end = project.launch(code=2)
    assert "code of the run has changed since: mine_helper. The samples are the same" in end.stderr
    assert "run.accept: [code]" in end.stderr
    end = project.launch("run.accept=[code]")
    assert "other code from step 4 on (mine_helper)" in end.stdout
    assert project.exact() == (False, "other code from step 4 on (mine_helper)")
    project.launch()
    assert project.exact() == (False, "other code from step 4 on (mine_helper)"), "for good"


def test_a_source_that_numbers_its_results_anew_gives_other_samples(project: Project) -> None:
    """As harness.sources.images.Images does since it turns photos upright."""
    project.write("mine", SOURCE.replace("class Rows:", "class Rows:\n    version = 1"))
    project.launch()
    project.write("mine", SOURCE.replace("class Rows:", "class Rows:\n    version = 2"))
    end = project.launch("run.accept=[code]", code=2)
    assert "data.train, data.val no longer gives the samples that the run began with" in end.stderr
    assert "another version of fermarsi reads them otherwise (CHANGELOG.md)" in end.stderr


def test_changed_samples_are_not_accepted_as_code(project: Project) -> None:
    project.launch()
    project.write("mine_helper", "scale = 2.0\n")
    end = project.launch("run.accept=[code]", code=2)
    assert "data.train, data.val no longer gives the samples" in end.stderr
    assert "changed since: mine_helper" in end.stderr


def test_the_harness_is_no_user_s_code_and_packages_count_by_version() -> None:
    specs = [{"_target_": "harness.networks.Mlp"}, {"_target_": "timm.create_model"}]
    found = code_of(specs)
    assert list(found) == ["timm"]
    assert changes(found, {"timm": "0.1"}) == [f"timm {found['timm']} -> 0.1"]
    assert changes({"a": "code 1"}, {"a": "code 2"}) == ["a"]

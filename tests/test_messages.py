"""Messages that no other test brings about: what is wrong, and what to do."""

import ast
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness import components
from harness.api.record import read_run
from harness.checkpoint.export import export
from harness.checkpoint.files import translate_errors
from harness.checkpoint.manifest import join_pieces, parse_manifest
from harness.checkpoint.read import step_names
from harness.commands.forecast import forecast_command
from harness.commands.replay import replay_command
from harness.commands.report import write_report
from harness.commands.sweep import objective
from harness.commands.track import sync_run
from harness.config.parts import PartConfig
from harness.config.read import read_config
from harness.errors import CheckpointError, ConfigError, DataError, HarnessError
from harness.ranks.ranks import Ranks
from harness.rundir.outcome import write_outcome
from harness.search.space import split_values
from harness.sources import workbook
from harness.sources.hub import Hub
from harness.sources.paired import Paired
from harness.sources.series import Series
from harness.training.optimizer import check_options
from harness.training.parts import freeze
from harness.training.warm_start import read_weights, rename
from harness.treatments.tables import Impute
from harness.treatments.tokens import Pad, Tokenise
from tests.test_console import outcome_of

SMALL = Path(__file__).parent / "training" / "small.yaml"


def fail_on_disk() -> None:
    with translate_errors("writing"):
        raise OSError(28, "No space left on device", "x/y")


def piece(dtype: str) -> dict[str, Any]:
    return {"name": "w", "dtype": dtype, "shape": [2], "key": "w", "file": "f", "rows": None}


def component(target: str) -> Callable[[], Any]:
    return lambda: components.build({"_target_": target}, "network")


def config(*overrides: str) -> Callable[[], Any]:
    return lambda: read_config(SMALL, overrides)


def bomb(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/a.xml", "x" * 100)
    return workbook.check_workbook(path)


class Numbered:
    """Two samples whose label is no integer."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.zeros(3, np.float32), "label": 0.5, "wave": np.zeros(2, np.float32)}


# (what raises, type, its words); HERE is an empty directory, FILE a file of one word in it
CASES: list[tuple[Callable[[Path, Path], Any], type[HarnessError], str]] = [
    (lambda here, file: component("collections.abc.Sized")(), ConfigError,
     "collections.abc.Sized is abstract and cannot be instantiated. Give a concrete subclass."),
    (lambda here, file: component("torch.nn.Qqqqq")(), ConfigError,
     "the module torch.nn has no Qqqqq. Check the spelling."),
    (lambda here, file: read_config(file), ConfigError,
     "word.yaml:2: not valid YAML: did not find expected node content. Fix the file."),
    (lambda here, file: config("parts={first: {}}")(), ConfigError,
     "parts.first: sets nothing; give one of freeze, lr, weight_decay, init_from."),
    (lambda here, file: config("tracking.backends=[wandb]")(), ConfigError,
     "backends names wandb, which needs a project: set tracking.wandb.project."),
    (lambda here, file: config("log.show=f1")(), ConfigError,
     "log.show: 'f1' is not allowed. Give a list."),
    (lambda here, file: freeze(nn.ReLU(), {}), ConfigError,
     "network: the network has no parameter that is trained. Leave something to train."),
    (lambda here, file: check_options(
        torch.optim.Rprop(nn.Linear(1, 1).parameters()), {"body": PartConfig(weight_decay=0.1)}),
     ConfigError, "parts.body.weight_decay: Rprop has no weight_decay. Leave it out, or use"),
    (lambda here, file: export(here, here / "out"), CheckpointError, "Export another checkpoint."),
    (lambda here, file: step_names(file), CheckpointError,
     "word.yaml: Not a directory. Fix the disk or its permissions."),
    (lambda here, file: fail_on_disk(), CheckpointError,
     "x/y: writing failed: No space left on device. Make room on that disk."),
    (lambda here, file: parse_manifest(b"{}"), CheckpointError, "manifest.json: not a fermarsi"),
    (lambda here, file: join_pieces([piece("F32"), piece("F64")]), CheckpointError,
     "w: ranks hold it with different dtypes or shapes."),
    (lambda here, file: forecast_command(here), ConfigError,
     "no config.yaml in it. Give the settings with --config."),
    (lambda here, file: replay_command(here), ConfigError,
     "no config.yaml in it. Give the settings with --config."),
    (lambda here, file: write_report(here), ConfigError,
     "no metrics.jsonl with records. Give the directory of a run"),
    (lambda here, file: sync_run(here), ConfigError,
     "no metrics.jsonl of a run. Give the directory of a run, e.g. runs/digits."),
    (lambda here, file: read_run(here), ConfigError,
     "no config.yaml in it. Give the directory of a run."),
    (lambda here, file: write_outcome(here / "gone", outcome_of()), CheckpointError,
     "No such file or directory, so it cannot say that the budget is spent. Fix the disk"),
    (lambda here, file: split_values("[1,2"), ConfigError, "[1,2: ] is missing. Close what is"),
    (lambda here, file: objective(config("data.val=null")()), ConfigError,
     "stop.best: no metric to compare runs by. Give stop.best.metric."),
    (lambda here, file: bomb(here / "a.xlsx"), DataError,
     "its members unpack to more than 10 bytes. Give the table as .parquet or .csv."),
    (lambda here, file: Paired({"image": Numbered(), "wave": Numbered()}), DataError,
     "sources.image: 'label' is float64 (), expected one integer per sample. Set by."),
    (lambda here, file: Series(str(file), ["a"], 2, 1, sort=True), ConfigError,
     "sort, duplicates: without time, rows have no order. Set time."),
    (lambda here, file: read_weights(file, "run.init_from", Ranks()), CheckpointError,
     "Give a run, a checkpoint or a safetensors file."),
    (lambda here, file: rename(["a.w"], {"b.": ""}, "x", "init_prefix"),
     CheckpointError, "x: init_prefix: none of its names begins with 'b.' (a.w). Look at the"),
    (lambda here, file: Pad(value=300)({"tokens": [torch.zeros(2, dtype=torch.uint8)]}),
     DataError, "tokens: value: 300: uint8 cannot hold it. Give another one."),
    (lambda here, file: Tokenise(file=str(here / "gone.json")).finish(), DataError,
     "gone.json: No such file or directory. Give a tokenizer.json, or a folder with one."),
]  # fmt: skip


def test_each_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MAX_XML_BYTES", 10)
    here, file = tmp_path / "here", tmp_path / "word.yaml"
    here.mkdir()
    file.write_text("a: [")
    unsaid = []
    for case, kind, words in CASES:
        try:
            case(here, file)
        except kind as error:
            if words not in str(error):
                unsaid.append((words, str(error)))
        else:
            unsaid.append((words, "nothing was raised"))
    assert unsaid == []


def test_a_gap_without_channels_cannot_be_marked() -> None:
    fill = Impute(0.0, mark=True, key="x")
    with pytest.raises(
        DataError, match=r"x: .2,. has no channels, so mark cannot add any. Join it"
    ):
        fill({"x": torch.tensor([1.0, float("nan")])})


def test_columns_of_a_dataset_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"a": [1.0, float("inf")], "b": [{"c": 1}, {"c": 2}]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "d")
    path = str(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"columns: .* uses a name twice. Rename one."):
        Hub(path, columns={"a": "x", "b": "x"})
    with pytest.raises(ConfigError, match=r"d was saved without splits. Remove split;"):
        Hub(path, split="train")
    with pytest.raises(DataError, match=r"row 2, column 'a': infinite. Correct it."):
        Hub(path, columns={"a": "x"})[1]
    with pytest.raises(DataError, match=r"is neither numeric nor text. Remove it from columns."):
        Hub(path, columns={"b": "x"})[0]


def texts_in(node: ast.AST) -> Iterator[str]:
    """The texts in a piece of source, with § for what is put into them."""
    for one in ast.walk(node):
        if isinstance(one, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "§" for part in one.values
            )
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def words_in_a_row(text: str) -> set[tuple[str, ...]]:
    """All of three words that follow each other; patterns and what is put in lie between."""
    found = set()
    for piece in re.split(r"§|\.[*+]", re.sub(r"\\(.)", r"\1", text)):
        words = re.findall(r"[A-Za-z][\w'-]*", piece)
        found |= set(zip(words, words[1:], words[2:], strict=False))
    return found


def test_some_words_of_every_message_stand_in_a_test() -> None:
    """A message that nobody has tried may never be reached, or not be one (a tokenizer that was
    "not the tokenizer.json of a tokenizer" because a package was missing). Three words in a row of
    each have to stand in a test: it need not quote the rest.
    """
    root = Path(__file__).parents[1]
    kinds = {one.__name__ for one in (HarnessError, *HarnessError.__subclasses__())}
    tried: set[tuple[str, ...]] = set()
    for path in (root / "tests").rglob("*.py"):
        tried.update(*map(words_in_a_row, texts_in(ast.parse(path.read_text()))))
    untried = []
    for path in sorted((root / "harness").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in kinds:
                said = set().union(*map(words_in_a_row, texts_in(call)))
                if said and not said & tried:
                    untried.append(f"{path.relative_to(root)}:{call.lineno}")
    assert untried == [], "write a test for what raises these, or do not raise it"

"""Messages of rare mistakes and of machines that lack something: what is wrong, and what to do."""

import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from harness import components, objects
from harness.api import training as api_training
from harness.bounded import parse_json
from harness.checkpoint import exact_json
from harness.checkpoint.format import placement_of, spec_of
from harness.checkpoint.manifest import dump_manifest
from harness.checkpoint.read import load_trainer
from harness.checkpoint.state import optimizer_tensors
from harness.commands import folds, predict, suspects, sweep
from harness.commands.checkpoints import list_run
from harness.commands.data import prune_store
from harness.commands.init import start_project
from harness.commands.launch import _processes_here
from harness.commands.sweep import places_of
from harness.commands.trace import compare
from harness.commands.track import _sync
from harness.commands.trained import in_precision, open_split
from harness.config.read import read_config
from harness.data.notebook import digest_of
from harness.data.preparing import split_config
from harness.data.split import Split
from harness.data.store import EntrySource, _fill, _plain
from harness.durable import write_json
from harness.errors import CheckpointError, ConfigError, DataError, HarnessError, RankError
from harness.hidden import Reference
from harness.metrics.states import _dtype
from harness.schedules import Plateau
from harness.search.study import Study
from harness.sources.audio import Recordings
from harness.sources.hub import Hub
from harness.sources.images import Images
from harness.sources.mixtures import _require_alike
from harness.sources.series import Series
from harness.sources.tables import Table
from harness.stopping.settings import StopSettings
from harness.training import parallel
from harness.training.companions import companions
from harness.training.evaluation import require_defined
from harness.training.schedule import build_schedule
from harness.training.stepper import Stepper
from harness.treatments.audio import LogMel
from harness.treatments.tokens import Tokenise

SMALL = Path(__file__).parent / "training" / "small.yaml"


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def without(module: str, function: Callable[[], Any]) -> Callable[..., Any]:
    """With a module that is not installed."""

    def call(here: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            return function()

    return call


def with_(owner: Any, name: str, value: Any, function: Callable[[], Any]) -> Callable[..., Any]:
    def call(here: Path) -> Any:
        with changed(owner, name, value):
            return function()

    return call


def table(here: Path, name: str, **columns: Any) -> Path:
    pd.DataFrame(columns).to_csv(here / name, index=False)
    return here / name


def folders(here: Path, *names: str, suffix: str = ".wav", content: bytes = b"") -> Path:
    for name in names:
        (here / "all" / name).mkdir(parents=True, exist_ok=True)
        (here / "all" / name / f"1{suffix}").write_bytes(content)
    return here / "all"


def schedule_of(**methods: Any) -> Any:
    made = type("Made", (), methods)
    module = types.ModuleType("made_here")
    module.Made = lambda optimizer: made()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "made_here", module)
        return build_schedule({"_target_": "made_here.Made"}, adam())


def adam(dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    return torch.optim.Adam(nn.Linear(1, 1).to(dtype).parameters())


def read(*overrides: str) -> Any:
    return read_config(SMALL, overrides)


def two_stores(here: Path) -> Any:
    paths = []
    for name in "ab":
        paths.append(here / f"{name}.yaml")
        paths[-1].write_text(f"base: {SMALL}\ndata: {{store: {{dir: {here / name}}}}}\n")
    return prune_store(paths)


def entry(here: Path, **manifest: Any) -> Any:
    write_json(here / "manifest.json", manifest, sync=False)
    return EntrySource(here)


def odd_optimizer(owner: Any, state: Any) -> Any:
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    names = {optimizer.param_groups[0]["params"][0]: "w"}
    optimizer.state[next(iter(names)) if owner is None else owner] = state
    return optimizer_tensors(optimizer, names)


def wave(here: Path) -> Path:
    (here / "a.wav").write_bytes(b"PK\x03\x04" + bytes(60))
    return here / "a.wav"


def gone(here: Path) -> Any:
    """Results of a sweep or folds whose directory was removed."""

    def write(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    return SimpleNamespace(
        directory=here / "gone",
        write_parquet=write,
        folds=[],
        metric="loss",
        missing=str,
        summary=dict,
        without_mean=tuple,
    )


class BrokenPool(ThreadPoolExecutor):
    def __init__(self, processes: int, context: object) -> None:
        super().__init__(1)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return super().submit(self.die)

    def die(self) -> None:
        raise BrokenProcessPool("killed")


def train_share(here: Path) -> None:
    (here / "config.yaml").write_text(SMALL.read_text())
    ended = SimpleNamespace(returncode=1, stderr="traceback\nboom\n")
    with changed(suspects.subprocess, "run", lambda *args, **kwargs: ended):
        suspects._train(SimpleNamespace(path=here), {}, here / "share")  # type: ignore[arg-type]


def judge_many() -> None:
    task = SimpleNamespace(
        forward=lambda network, batch: batch["y"],
        predictions=lambda outputs, batch: {"probability": outputs},
    )
    trained = SimpleNamespace(
        config=SimpleNamespace(task={"target": "y"}),
        network=nn.ReLU(),
        task=task,
        micro_size=2,
        device=torch.device("cpu"),
        num_workers=0,
    )
    batches = [(0, {"y": torch.zeros(2, 3)})]
    with (
        changed(suspects, "fit_task", lambda *both: None),
        changed(suspects, "evaluation_batches", lambda *args: batches),
    ):
        suspects._judge(trained, None)  # type: ignore[arg-type]


DEEP = b"[" * 100_000 + b"]" * 100_000
SPLIT = read().data

# (what raises, given an empty directory; its type; its words)
Cases = list[tuple[Callable[[Path], Any], type[HarnessError], str]]
CASES: Cases = [
    (with_(api_training, "_run", lambda arguments: (1, None), lambda: api_training.launch(SMALL)),
     RankError, "the launch ended with exit code 1: see above."),
    (lambda here: exact_json.loads(b"[" * 700 + b"]" * 700, "trainer_state.json"),
     CheckpointError, "trainer_state.json: nested too deeply."),
    (with_(sys, "byteorder", "big", lambda: placement_of({})), CheckpointError,
     "checkpoints are little-endian and this machine is not. Use another machine."),
    (lambda here: spec_of(torch.zeros(2, device="meta"), "model.w"), CheckpointError,
     "cannot hold this tensor. Keep it in another type or layout."),
    (lambda here: odd_optimizer(7, {}), CheckpointError,
     "a state for a int that is not a parameter of the network's. Use another optimizer."),
    (lambda here: odd_optimizer(None, {"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}),
     CheckpointError, "two tensors of its state are called a.b/w. Use another optimizer."),
    (lambda here: load_trainer(here), CheckpointError, "Resume from another checkpoint."),
    (lambda here: list_run(here, "size"), CheckpointError,
     "no checkpoints. Give a run directory, e.g. runs/digits."),
    (two_stores, ConfigError, "the configs name several stores. Prune one store at a time."),
    (lambda here: compare(here, None), ConfigError, "no trace. Train with log.trace=true."),
    (with_(torch.cuda, "device_count", lambda: 1, lambda: places_of(2, 1, cpu=False)),
     ConfigError, "--at-once 2, --processes 1: torch sees 1 GPUs here, one a process. Give fewer."),
    (with_(torch.cuda, "device_count", lambda: 1, lambda: _processes_here(2, cpu=False)),
     ConfigError, "--processes 2: torch sees 1 GPUs here, one a process. Give fewer."),
    (lambda here: start_project(here / "p", "images", table(here, "a.csv", x=[1])), ConfigError,
     "give a folder, with a folder for each class in it."),
    (lambda here: start_project(here / "p", "table", table(here, "a.csv", x=[1, 2], y=[1, 2]), "y"),
     ConfigError, "2 samples. Give at least"),
    (lambda here: start_project(here / "p", "table", table(
        here, "a.csv", y=[1, 2, 3] * 9, id=[f"n{n}" for n in range(27)]), "y"),
     ConfigError, "no column to predict y from (id is left out"),
    (lambda here: start_project(here / "p", "audio", folders(here, "a", "b", content=b"x")),
     ConfigError, "Remove it, or make it a WAV file."),
    (lambda here: start_project(here / "p", "series", folders(
        here, "a", "b", suffix=".csv", content=b"x\na\n")), ConfigError,
     "no column of numbers. Give a header and numbers below it."),
    (lambda here: without("soundfile", lambda: start_project(
        here / "p", "audio", folders(here, "a", "b")))(here), ConfigError,
     "--kind audio needs soundfile: pip install 'fermarsi[audio]'."),
    (lambda here: predict._read_source("3"), ConfigError, "--source: give a component, e.g."),
    (lambda here: predict._read_source("{_target_: torch.nn.Qqq}"), ConfigError,
     "--source._target_: the module torch.nn has no Qqq."),
    (lambda here: in_precision(nn.ReLU(), "fp16", torch.device("cpu")), ConfigError,
     "the run was evaluated in fp16, which needs a CUDA device"),
    (lambda here: open_split(None, "dev"), ConfigError,  # type: ignore[arg-type]  # not looked at
     "split: no such split: dev. There are train, val and test."),
    (lambda here: components.build(
        {"_target_": "torch.nn.Linear", "in_features": Reference("${secret:NO_SUCH}"),
         "out_features": 1}, "network"),
     ConfigError, "NO_SUCH is not set in the environment. Set it."),
    (lambda here: read("run.resume=never", "run.init_from=null", "run.init_prefix={a: b}"),
     ConfigError, "no effect without run.init_from; set that too, or remove it"),
    (lambda here: read("run.resume=runs/x", "run.init_from=y"), ConfigError,
     "which never starts a new run; leave one of them out"),
    (lambda here: digest_of(type("Net", (), {"__module__": "__main__"})), ConfigError,
     "Define it in a cell or a file."),
    (lambda here: split_config(SPLIT, "test"), ConfigError,
     "data.test: the config has no such split. Give data.test.source."),
    (lambda here: Split(iter(()), [], "data.train", print), DataError,  # type: ignore[arg-type]
     "data.train.source: a tuple_iterator has no length. Give it __len__()"),
    (lambda here: entry(here, format=99), DataError,
     "format 99 of another version of fermarsi. Delete it: it will be built again."),
    (lambda here: _plain(3.5, "x", "data.train"), DataError,
     "data.train: x: a float cannot be kept in a store. Convert it to"),
    (lambda here: _fill(here / "s", {"a/b": []}), DataError,
     "'a/b' is not a valid column name in a store. Rename it in the source."),
    (lambda here: _fill(here / "s", {"a": [np.zeros((1, 2, 3)), np.zeros((1, 2, 4))]}), DataError,
     "samples differ in dtype or in an axis other than the first. Give them one shape."),
    (lambda here: _dtype("quux"), CheckpointError, "train_metrics: there is no dtype 'quux'."),
    (lambda here: objects.take("network", "m.Net", "0", "0"), ConfigError,
     "this process does not have it. Give it: fermarsi.load(run, network=...)."),
    (lambda here: Plateau(adam(), "loss", patience=2, mode="min", at_least="2 se"), ConfigError,
     "a schedule is not told standard errors. Give a gain like 0.01 or a share like 1%."),
    (without("optuna", lambda: Study(Path("none"), None)), ConfigError,  # type: ignore[arg-type]
     "fermarsi sweep needs Optuna, which is not installed: pip install 'fermarsi[search]'."),
    (without("tokenizers", lambda: Tokenise(file="x").finish()), ConfigError,
     "Tokenise needs tokenizers, which is not installed: pip install 'fermarsi[text]'."),
    (lambda here: Images(files="x", mode="quux"), ConfigError, "mode: 'quux' is neither RGB nor"),
    (lambda here: Images(files="x", layout="quux"), ConfigError, "layout: 'quux' is"),
    (lambda here: Recordings(files="x", rate_hz=0, seconds=1), ConfigError,
     "rate_hz, seconds: 0 and 1 give an empty wave. Increase them."),
    (lambda here: Recordings(files=str(wave(here)), rate_hz=8000, seconds=1)[0], DataError,
     "a.wav: not a supported sound file, but"),
    (lambda here: Series(str(table(here, "a.csv", t=[0.0, 1, 2], a=[1, 2, 3])), ["a"], 2, 1,
     time="t", rate_hz=1000), DataError, "but rate_hz is 1000. If these are ms, set time_unit"),
    (lambda here: Series("x", ["a"], 2, 1, gaps="quux"), ConfigError, "gaps: 'quux' is"),
    (lambda here: Table(str(table(here, "a_{k}.csv", x=[1])), ["x"], {"k": "number"}),
     ConfigError, "columns.k: a field of the path is text. Set its kind to text."),
    (lambda here: Table(str(table(here, "a.csv", x=[1])), ["x"], separator=",", decimal=","),
     ConfigError, "Set separator to another character, e.g. ';'."),
    (lambda here: LogMel(rate_hz=8000, lowest_hz=9000), ConfigError,
     "9000 to 4000.0: required are 0 <= lowest < highest <= 4000"),
    (lambda here: require_defined({"f1": float("nan")}, 1.0, "data.val"), DataError,
     "data.val: f1 is undefined on this split"),
    (lambda here: companions(
        StopSettings.model_validate({"budget": {"steps": 9}, "milestones": [
            {"metric": "val/f1", "at_least": "2x chance", "by": {"steps": 3}}]}),
        object(), {"val": {}}), ConfigError,  # type: ignore[arg-type]  # a task without chance
     "object.chance gives nothing for it, though the task's infos say has_chance."),
    (lambda here: schedule_of(), ConfigError,
     "schedule: made_here.Made has no step, state_dict, load_state_dict. A schedule has the"),
    (lambda here: schedule_of(
        step=lambda self, metrics: None, state_dict=dict, load_state_dict=print), ConfigError,
     "needs metrics at each step, but a schedule is stepped once per optimizer step"),
    (lambda here: Stepper(adam(torch.float16), torch.amp.GradScaler("cpu"), None), ConfigError,
     "fp16 scales the gradients of float32 weights, and the network has 2 parameters in float16."),
    (lambda here: dump_manifest(SimpleNamespace(problems=lambda: ["w"], step=3)),  # type: ignore[arg-type]
     CheckpointError, "step 3: ranks do not hold the same state: w."),
    (lambda here: folds.write(gone(here)), ConfigError,
     "folds.html: No such file or directory. Make the directory writable."),
    (lambda here: sweep.write(gone(here)), ConfigError,
     "sweep.html: No such file or directory. Make the directory writable."),
    (with_(predict, "ProcessPoolExecutor", BrokenPool,
           lambda: predict._write_together(None, Path(), [0, 1], 2)),  # type: ignore[arg-type]
     RankError, "a process was killed, perhaps for want of memory. Run the same command again"),
    (lambda here: train_share(here), DataError, "--folds: the training of share failed: boom"),
    (lambda here: judge_many(), ConfigError,
     "'y' has several classes a sample; suspect labels are found for one class a sample."),
    (lambda here: _sync(SimpleNamespace(name="tensorboard", abandon=print), None, []), ConfigError,  # type: ignore[arg-type]
     "Fix this and sync again."),
    (lambda here: Hub._file(SimpleNamespace(path="d"), None, "image", 0), DataError,  # type: ignore[arg-type]
     "d: row 1, column 'image': empty. Remove the row."),
    (lambda here: _require_alike({"a": {"x": np.zeros((2, 3))}, "b": {"x": np.zeros(2)}}),
     DataError, "b: 'x' is float64 with 0 axes, and that of a float64 with 1. Read both alike."),
    (with_(parallel, "Accelerator", lambda **given: SimpleNamespace(device=torch.device("mps")),
           lambda: parallel.start_accelerator("no", "none", 60.0)), ConfigError,
     "this machine's device is mps, which lacks float64: losses and metrics could not be summed"),
]  # fmt: skip


def unsaid(cases: Cases, directory: Path) -> list[tuple[str, str]]:
    """The words of those that do not say them, and what they say."""
    found = []
    for number, (case, kind, words) in enumerate(cases):
        here = directory / str(number)
        here.mkdir()
        try:
            case(here)
        except kind as error:
            if words not in str(error):
                found.append((words, str(error)))
        except Exception as error:  # noqa: BLE001 - all are told at once
            found.append((words, repr(error)))
        else:
            found.append((words, "nothing was raised"))
    return found


def test_each_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    assert unsaid(CASES, tmp_path) == []
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)

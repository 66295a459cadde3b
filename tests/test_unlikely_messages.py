"""Messages of what hardly ever happens: what is wrong, and what to do."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import torch
from torch import nn

from harness.api.model import Model
from harness.checkpoint import in_memory
from harness.checkpoint.manifest import FORMAT, FORMAT_VERSION, _document, _own_hash, parse_manifest
from harness.commands import elastic_launch, export, suggest, suspects, trained
from harness.commands.forecast import forecasts
from harness.commands.init import start_project
from harness.commands.report import write_report
from harness.config.schedules import check_schedule_length
from harness.console import Console
from harness.data import store
from harness.errors import CheckpointError, ConfigError, DataError, LeavingError, RankError
from harness.metrics.states import _Sum
from harness.networks import Mlp
from harness.search.folds import Dealing, fold_overrides
from harness.sources import open_document
from harness.sources.audio import WaveReader
from harness.sources.container_sound import read_container
from harness.sources.device_files import _select
from harness.sources.hub import Hub
from harness.sources.images import Images
from harness.sources.series import Series
from harness.sources.streams import MixedStream
from harness.sources.tables import Table
from harness.stopping.history import History, read_history
from harness.stopping.settings import StopSettings
from harness.tasks import Classification
from harness.tracking import tracker
from harness.tracking.records import read_records
from harness.training import build, ending, launch, loop, optimizer, parallel, resume
from tests.test_rare_messages import SMALL, Cases, adam, changed, read, unsaid
from tests.training.test_evaluation import Flowers, evaluations

Anything = cast("Callable[..., Any]", SimpleNamespace)  # with what is looked at alone


class Samples(SimpleNamespace):
    """A split of nine, with what is looked at alone."""

    def __len__(self) -> int:
        return 9


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def deep_manifest() -> bytes:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, "metrics": deep}
    return _document({**body, "sha256": _own_hash(body)})


def machine(**gathering: Any) -> Any:
    found = elastic_launch.ElasticLaunch([], {}, 1, 2, 1, "node-a", 29500, 4, 1)
    found._gathering = Anything(**gathering)
    found._asked_s = 0.0
    return found


def no_store() -> None:
    with changed(elastic_launch, "Gathering", raising(ConnectionError("refused"))):
        machine().run()


def export_words() -> None:
    split = Samples(where="data.val", fetch=lambda *args, **kwargs: {})
    found = Anything(config=read(), task=Anything(forward=lambda network, batch: network("a word")))
    with changed(export, "open_split", lambda *both: split):
        export.examples_of(found, nn.Identity())


def no_metrics(here: Path) -> History:
    return read_history(saved(here / "a.jsonl", b'{"step": 1, "epoch": 1.0}\n{"step": 2}\n'))


def unwritable_report(here: Path) -> None:
    saved(here / "config.yaml", SMALL.read_bytes())
    saved(here / "metrics.jsonl", b'{"kind": "train", "step": 1, "train/loss": 1.0}\n')
    (here / "report.html").mkdir()
    write_report(here)


def odd_columns() -> None:
    batches: list[tuple[int, dict[str, Any]]] = [
        (0, {"x": torch.zeros(2, 3)}),
        (1, {"y": torch.zeros(2, 3)}),
    ]
    split: Any = Samples(where="data.train")
    with changed(store, "evaluation_batches", lambda *args: batches):
        store._next_shard(split, 0, 0, lambda: None, lambda *args: None)


def sums(*shapes: tuple[int, ...]) -> _Sum:
    found = _Sum("total", torch.zeros(()))
    for shape in shapes:
        found.take(Anything(total=torch.zeros(shape)), 1)
    return found


def listed(here: Path) -> None:
    for name, header in (("a", "file_name,label"), ("b", "file_name,kind,label")):
        (here / name).mkdir()
        saved(here / name / "list.csv", f"{header}\n1.png{',x' * header.count(',')}\n".encode())
    Images(files=str(here / "*" / "list.csv"))


def silent_film(path: Path) -> Path:
    """Matroska with a picture, and a stream of sound in which there is none."""
    import av

    with av.open(str(path), "w") as container:
        container.add_stream("flac", rate=48000, layout="mono")
        video = container.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux([*video.encode(picture), *video.encode(None)])
    return path


def sound(path: Path, *rates_hz: int) -> Path:
    """AAC as radio stations send it, in pieces of these rates."""
    import av

    content = b""
    for rate_hz in rates_hz:
        with av.open(str(path), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate_hz, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = rate_hz
            container.mux([*stream.encode(frame), *stream.encode(None)])
        content += path.read_bytes()
    return saved(path, content)


def hub(here: Path, **given: Any) -> Hub:
    import datasets

    datasets.Dataset.from_dict({"a": [1.0, 1e300]}).save_to_disk(here / "d")
    return Hub(str(here / "d"), columns={"a": "x"}, **given)


def encrypted_workbook(here: Path) -> None:
    """BIFF8: the beginning of a file, and that a password is needed."""
    begin = struct.pack("<HHHHHHII", 0x809, 16, 0x600, 5, 0x0DBB, 0x07CC, 0, 6)
    saved(here / "a.xls", begin + struct.pack("<HHHHH", 0x2F, 6, 0, 0, 0))
    Table(str(here / "a.xls"), ["x"])


def large_document(here: Path) -> None:
    with zipfile.ZipFile(here / "a.ods", "w") as book:
        book.writestr("content.xml", "x" * 100)
    with changed(open_document, "MAX_XML_BYTES", 10):
        open_document.check_document(here / "a.ods")


def unwritable_records(here: Path) -> None:
    with changed(tracker, "cut_back", raising(PermissionError(13, "Permission denied"))):
        records = tracker.Tracker(here, Console(enabled=False), enabled=True)
        records.begin(read().tracking, Anything(), 0)


def unreadable_records(here: Path) -> None:
    (here / "metrics.jsonl").mkdir()
    next(read_records(here / "metrics.jsonl"))


def abandoned() -> None:
    asked = Anything(check=raising(LeavingError("asked to stop")))
    build.training_patience(read(), Anything(size=2, rank=1), asked).check()


def unsaved_end(here: Path) -> None:
    kept = Anything(last_checkpoint=lambda: None)
    run = Anything(store=kept, launch=Anything(saved=None), step=7, directory=here)
    verdict = Anything(stops=True, reason="budget", detail="the budget is spent")
    ending.outcome_of(run, verdict)


def differing_verdicts() -> None:
    ranks = Anything(
        heartbeat=Anything(enter=print),
        decide=lambda function: function(),
        gather=lambda verdict: [verdict, "stop"],
        together=lambda function: function(),
    )
    run = Anything(
        ranks=ranks,
        ledger=Anything(hours=lambda: 0.1),
        engine=Anything(learning_rate=lambda: 0.1),
        config=Anything(run=Anything(paranoid=True)),
        controller=Anything(judge=lambda *one, requested: Anything(to_json=lambda: "go on")),
        step=3,
        epoch=1.0,
        samples=9,
    )
    with changed(loop, "is_extra", lambda run: False):
        loop.judge(run, ({}, {}), loop.Request.NONE)


def changed_beta() -> None:
    before, now = adam(), adam()
    fresh = [{**group, "betas": (0.5, 0.9)} for group in now.param_groups]
    before.param_groups[0]["params"] = now.param_groups[0]["params"]
    optimizer.adopt_changes(now, before, fresh, ["betas"])


def sparse_gradients() -> None:
    network = nn.Embedding(3, 2, sparse=True)
    network(torch.tensor([1])).sum().backward()
    parallel.require_gradients(network.named_parameters(), of_all=True)


def unwritable_directory(here: Path) -> None:
    (here / "config.yaml").mkdir()
    config = read(f"run.dir={here}")
    resume.prepare_directory(config, resume.Start("1", None, []), Console(enabled=False))


def nothing_to_evaluate() -> None:
    source, task = Flowers(4), Classification("x", "label", ignore_index=-1)
    source.label[:] = -1
    evaluations(Mlp([8, 5]), source, task, 2, keep=False)


def odd_attribute(here: Path, scale: Any) -> None:
    with h5py.File(here / "a.h5", "w") as file:
        file["x"] = np.arange(4)
        file["x"].attrs["scale_factor"] = scale
    Series(str(here / "a.h5"), ["x"], 2, 1)


def no_memory(here: Path) -> None:
    with changed(in_memory, "MEMORY", here), in_memory.held_copies():
        pass


class FailOnRecompileLimitHit(Exception):  # noqa: N818 - as torch names it
    """In place of torch._dynamo's, which is slow to import."""


def reworded() -> None:
    raise launch.worded(
        FailOnRecompileLimitHit(), Anything(rank=1, heartbeat=Anything(step=2, phase=""))
    )


BUDGET = StopSettings.model_validate({"budget": {"steps": 9}})
CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": 5}

CASES: Cases = [
    (lambda here: Model._fields(Anything(_trained=Anything(task=None)), [1]), ConfigError,
     "predict: the network has several inputs. Give a mapping {field: array}."),
    (lambda here: parse_manifest(deep_manifest()), CheckpointError,
     "manifest.json: nested too deeply."),
    (lambda here: no_store(), RankError,
     "machine 1: the store of this launch at node-a:29500: refused. Is that machine 0, its port"),
    (lambda here: export_words(), ConfigError,
     "network: it is given other things than tensors. Export a part of it."),
    (lambda here: list(forecasts(no_metrics(here), BUDGET, None)), ConfigError,
     "a.jsonl: no metric to forecast. Name one with --metric."),
    (lambda here: suggest._metric(no_metrics(here), BUDGET), ConfigError,
     "a.jsonl: no metric to judge by. Give stop.best.metric."),
    (lambda here: start_project(here / "p", "table", saved(here / "a.parquet", b"x")), ConfigError,
     "a.parquet: cannot be read: "),
    (unwritable_report, ConfigError, "Is a directory. Make the run directory writable."),
    (lambda here: suspects._require_classes(Anything(path=here, config=Anything(
        task={"_target_": "harness.tasks.Regression", "target": "y"}))), ConfigError,
     "its task is harness.tasks.Regression; suspect labels are found for a"),
    (lambda here: trained._task(Anything(task={"_target_": "torch.nn.ReLU"})), ConfigError,
     "so it is not a task. The checkpoint is not from a training of this version."),
    (lambda here: check_schedule_length(CYCLE, 10), ConfigError,
     "schedule.total_steps: the schedule ends after 5 steps, but the budget after 10"),
    (lambda here: odd_columns(), DataError, "on have y; before: x."),
    (lambda here: store.EntrySource.known(Anything(path=here, _known={"files": 1})), DataError,
     "Delete it: it will be built again."),
    (lambda here: sums((2,), (3,)), ConfigError,
     "SimpleNamespace.total has the shape (2,) in one micro-batch and (3,) in another"),
    (lambda here: sums((2,)).merge(Anything(gather=lambda mine: [mine, [[3]]])), ConfigError,
     "the state total has the shapes [[2], [3]] on different ranks: it cannot be summed."),
    (lambda here: fold_overrides(
        read("data.val=null", "data.train.source={_target_: harness.sources.tables.Table, files: a,"
             " columns: [x], part: train}"), Dealing(2), 0), ConfigError,
     "data.val: there is none to measure a fold by. Add it, with part: val."),
    (no_memory, ConfigError, "checkpoint.in_memory: there is no file system in memory at "),
    (lambda here: nothing_to_evaluate(), DataError,
     "flowers: nothing to evaluate: every target is ignored. Give a split with at least one item."),
    (lambda here: odd_attribute(here, [1.0, 2.0]), DataError,
     "a.h5: /x: its scale_factor or add_offset has several values. Correct the attribute."),
    (lambda here: odd_attribute(here, "much"), DataError,
     "a.h5: /x: its scale_factor is no number"),
    (listed, DataError, "list.csv: its columns differ from those of"),
    (lambda here: read_container(sound(here / "a.aac", 16000, 32000), "a.aac"), DataError,
     "a.aac: its rate or channels change midway. Convert it to FLAC."),
    (lambda here: read_container(silent_film(here / "a.mkv"), "a.mkv"), DataError,
     "a.mkv: it contains no sound. Remove it."),
    (lambda here: read_container(here / "gone.m4a", "gone.m4a"), DataError,
     "gone.m4a: cannot be read: "),
    (lambda here: _select(here / "a.edf", ["a", "a"], None, []), DataError,
     "a.edf: two signals are called 'a'. Rename one of them."),
    (lambda here: hub(here)[1], DataError,
     "infinite, or too large for float32. Correct or rescale it."),
    (lambda here: hub(here, audio=WaveReader(8000, 1.0)), ConfigError,
     "has no sound column among a. Remove it."),
    (lambda here: Hub._file(
        Anything(path="d"), {"bytes": None, "path": "gone.png"}, "image", 0), DataError,
     "gone.png: no such file (named by row 1 of d). Add the file, or remove the row."),
    (encrypted_workbook, DataError, "a.xls: an encrypted workbook. Remove its password."),
    (large_document, DataError, "a.ods: too large, unpacked. Give the table as .parquet or .csv."),
    (lambda here: MixedStream({"a": [{"x": 1}], "b": []}, {"a": 1, "b": 1}), ConfigError,
     "sources.b: it is empty. Leave it out."),
    (unreadable_records, ConfigError,
     "metrics.jsonl: cannot be read: not a regular file. Make it a readable file."),
    (unwritable_records, CheckpointError,
     "metrics.jsonl: Permission denied. Make the run directory writable or choose another"),
    (lambda here: abandoned(), LeavingError,
     "asked to stop, while rank 1 waits for its samples: the next launch goes on from"),
    (unsaved_end, CheckpointError,
     "the training is over (budget: the budget is spent) and the checkpoint of its last step 7"),
    (lambda here: differing_verdicts(), RankError,
     "step 3: ranks [1] reached another verdict than rank 0: stop against go on. Tell us"),
    (lambda here: changed_beta(), ConfigError,
     "optimizer.betas changed, which has no effect: the schedule sets it at each step."),
    (lambda here: sparse_gradients(), ConfigError,
     "network: the gradients of weight are sparse, which are neither clipped nor summed"),
    (unwritable_directory, CheckpointError, "Is a directory. Make the run directory writable"),
    (lambda here: reworded(), ConfigError,
     "rank 1, step 2: train.compile: the network met more than"),
]  # fmt: skip


def test_each_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    assert unsaid(CASES, tmp_path) == []

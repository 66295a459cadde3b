"""`fermarsi data suspects`: labels of a split that are probably wrong, by confident learning
(C. Northcutt, L. Jiang & I. Chuang, "Confident learning: estimating uncertainty in dataset labels",
JAIR 70, 2021; by cleanlab).
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from harness.checkpoint.manifest import MANIFEST
from harness.commands.page import figure_settings, page, section
from harness.commands.pictures import TABLE, gallery, is_picture
from harness.commands.show import write_errors
from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.components import TARGET
from harness.config.document import to_yaml
from harness.config.read import read_values
from harness.data.columns import read_samples
from harness.data.feed import evaluation_batches
from harness.data.source import known_of
from harness.data.split import Split
from harness.durable import replace_file
from harness.errors import ConfigError, DataError
from harness.sources.files import need
from harness.training.evaluation import evaluation_mode

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 120  # pictures of a page
_TRAIN = Path(__file__).parents[1] / "train.py"
_ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Suspects:
    """The suspect labels of a split of `num_samples`, the most suspect first, as a table with a row
    each: sample, what is known of it, label, suggested, and the probabilities of both.
    """

    checkpoint: Path
    split: str
    num_samples: int
    table: "pd.DataFrame"
    written: Sequence[Path]
    note: str

    def to_json(self) -> dict[str, Any]:
        rows = self.table[["sample", "label", "suggested", "probability"]]
        found = rows.to_dict("records")
        return {"split": self.split, "num_samples": self.num_samples, "suspects": found}

    def page(self) -> Iterator[str | Table]:
        share = len(self.table) / self.num_samples
        yield (
            f"{self.checkpoint}: {len(self.table):,} of {self.num_samples:,} labels of "
            f"{self.split} ({share:.1%}) are suspect{self.note}"
        )
        if len(self.table):
            table = Table("label", "suggested", "samples")
            for (label, suggested), count in _confusions(self.table).most_common(10):
                table.add_row(label, suggested, f"{count:,}")
            yield table
        yield from (f"{path}: written" for path in self.written)


def find_suspects(
    path: Path, name: str, folds: int | None, out: Path | None, allow: Sequence[str] = ()
) -> Suspects:
    """The suspect labels of a split by a run's best checkpoint, or a checkpoint, written to `out`
    (.csv; by default in the run) and, with pictures, to a page beside it.

    folds: train as many networks by the run's config, each on the other shares of data.train, and
    judge each share by the network that has not learned from it. Raises HarnessError.
    """
    need("cleanlab", "labels", "data suspects")
    if folds is not None and name != "train":
        raise ConfigError(f"--folds: data.{name} is not trained on. Remove it.")
    out = _out(path, name, out)
    trained = load_trained(path, allow)
    split = open_split(trained, name)
    _require_classes(trained)
    if folds is None:
        labels, probabilities = _judge(trained, split)
        by_itself = "; the network has learned from them and may repeat them: --folds 5 avoids that"
        note = by_itself if name == "train" else ""
    else:
        labels, probabilities = _judge_folds(trained, split, name, folds, allow)
        note = f", by {folds} networks that had not learned from them"
    rows = suspect_rows(labels, probabilities)
    table = _table(trained, split, rows, labels, probabilities)
    html = out.with_suffix(".html")
    found = Suspects(trained.path, name, int((labels >= 0).sum()), table, (out, html), note)
    with write_errors("--out", out):
        replace_file(out, table.to_csv(index=False), sync=False)
        replace_file(html, _page(found, split), sync=False)
    return found


def suspect_rows(labels: NDArray[np.int64], probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """labels (N,), below 0 if there is none; probabilities (N, C) -> rows of suspect labels, the
    most suspect first.

    As many as the calibrated confident joint says are wrong, of those that the network would label
    otherwise, with the least probability of their label. Raises DataError.
    """
    from cleanlab.count import (  # type: ignore[import-untyped]  # it has no stubs
        num_label_issues,
    )

    has = np.flatnonzero(labels >= 0)
    if not np.isfinite(probabilities[has]).all():
        raise DataError("the network gives probabilities that are NaN. Train another one.")
    if len(np.unique(labels[has])) < 2:
        raise DataError("all labels are the same: there is nothing to compare.")
    of, probable = labels[has], probabilities[has]
    count = num_label_issues(of, probable, estimation_method="off_diagonal_calibrated")
    doubted = np.flatnonzero(probable.argmax(1) != of)
    order = np.argsort(probable[doubted, of[doubted]], kind="stable")
    rows: NDArray[np.int64] = has[doubted[order[:count]]]
    return rows


def _out(path: Path, name: str, out: Path | None) -> Path:
    if out is None:
        if (path / MANIFEST).exists():
            raise ConfigError(f"--out: {path} is a checkpoint, which is not changed. Give a file.")
        out = path / f"suspects_{name}.csv"
    if out.suffix != ".csv":
        raise ConfigError(f"--out: {out}: give a name that ends in .csv.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out}: there is no directory {out.parent}. Create it.")
    return out


def _require_classes(trained: TrainedNetwork) -> None:
    spec = trained.config.task
    if not isinstance(spec.get("target"), str) or not str(spec[TARGET]).endswith("Classification"):
        raise ConfigError(
            f"{trained.path}: its task is {spec[TARGET]}; suspect labels are found for a "
            "harness.tasks.Classification with one class a sample."
        )


def _judge(trained: TrainedNetwork, split: Split) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Labels (N,), -1 if ignored, and probabilities (N, C), in the order of the split."""
    fit_task(trained, split)
    target = str(trained.config.task["target"])
    labels: list[NDArray[np.int64]] = []
    probabilities: list[NDArray[Any]] = []
    with evaluation_mode(trained.network), torch.no_grad():
        for _, batch in evaluation_batches(
            split, trained.micro_size, 0, 1, trained.device, trained.num_workers
        ):
            outputs = trained.task.forward(trained.network, batch)
            found = trained.task.predictions(outputs, batch)["probability"]
            if found.ndim != 2 or batch[target].ndim != 1:
                raise ConfigError(
                    f"task: {target!r} has several classes a sample; suspect labels are found for "
                    "one class a sample."
                )
            labels.append(batch[target].cpu().numpy())
            probabilities.append(found.float().cpu().numpy())
    ignored = trained.config.task.get("ignore_index")
    of_all = np.concatenate(labels).astype(np.int64)
    return np.where(of_all == ignored, -1, of_all), np.concatenate(probabilities)


def _judge_folds(
    trained: TrainedNetwork, split: Split, name: str, folds: int, allow: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The same by networks that are trained for it."""
    spec = dict(trained.config.data.train.source)
    labels = np.full(len(split), -1, np.int64)
    found: NDArray[Any] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for fold in range(folds):
            of_fold = {TARGET: "harness.sources.folds.Fold", "source": spec, "fold": fold}
            directory = Path(folder) / f"fold-{fold}"
            _train(trained, {**of_fold, "folds": folds}, directory)
            judge = load_trained(directory, allow)
            held_out = open_split(judge, name, {**of_fold, "folds": folds, "held_out": True})
            rows = held_out.source.rows  # type: ignore[attr-defined] # of a Fold
            labels[rows], probabilities = _judge(judge, held_out)
            if found is None:
                found = np.zeros((len(split), probabilities.shape[1]), np.float32)
            found[rows] = probabilities
    assert found is not None
    return labels, found


def _train(trained: TrainedNetwork, source: Mapping[str, Any], directory: Path) -> None:
    """A training by the run's config, but for its source, in a process of its own."""
    tree = dict(read_values(trained.path / "config.yaml"))
    data = {**tree["data"], "train": {**tree["data"]["train"], "source": dict(source)}}
    data.pop("test", None)
    run = {**tree["run"], "dir": str(directory), "resume": "auto"}
    config = directory.with_suffix(".yaml")
    config.write_text(to_yaml({**tree, "data": data, "run": run, "tracking": {}}))
    environment = {key: value for key, value in os.environ.items() if key not in _ALONE}
    ended = subprocess.run(
        [sys.executable, str(_TRAIN), str(config)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DataError(f"--folds: the training of {directory.name} failed: {last[0]}")


def _table(
    trained: TrainedNetwork,
    split: Split,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
) -> "pd.DataFrame":
    import pandas as pd

    suggested = probabilities[rows].argmax(1)
    names = np.array(trained.class_names or range(probabilities.shape[1]), dtype=np.str_)
    own = ("sample", "label", "suggested", "probability", "probability_suggested")
    known = {
        f"known_{name}" if name in own else name: [texts[row] for row in rows.tolist()]
        for name, texts in known_of(split.source).items()
    }
    return pd.DataFrame(
        {
            "sample": rows,
            **known,
            "label": names[labels[rows]],
            "suggested": names[suggested],
            "probability": probabilities[rows, labels[rows]].astype(np.float64),
            "probability_suggested": probabilities[rows, suggested].astype(np.float64),
        }
    )


def _confusions(table: "pd.DataFrame") -> Counter[tuple[str, str]]:
    return Counter(zip(table["label"], table["suggested"], strict=True))


def _page(found: Suspects, split: Split) -> str:
    """The page with the most suspect samples as the source gives them."""
    table = found.table[:SHOWN]
    rows = table["sample"].tolist()
    summary = next(iter(found.page()))
    pairs = [[*pair, f"{count:,}"] for pair, count in _confusions(found.table).most_common()]
    sections = [
        section("<p class=reason>{{ text }}</p>", text=summary),
        section(TABLE, head=["label", "suggested", "samples"], rows=pairs),
    ]
    if rows:
        samples = read_samples(split.source, rows, split.where)
        captions = [
            f"{row}: {label} > {suggested} {probability:.0%}"
            for row, label, suggested, probability in zip(
                rows,
                table["label"],
                table["suggested"],
                table["probability_suggested"],
                strict=True,
            )
        ]
        shown = [name for name, cells in samples.items() if is_picture(cells[0])]
        with figure_settings():
            sections += [
                section("<h2>{{ name }}</h2>{{ drawn }}", name=name, drawn=drawn)
                for name in shown
                for drawn in [gallery(captions, list(samples[name]), f"suspect {name}")]
            ]
        cells = table.astype(str).to_numpy().tolist()
        if not shown:
            named = [name for name in samples if name not in table]
            cells = [
                [*row, *(str(samples[name][at]) for name in named)] for at, row in enumerate(cells)
            ]
            sections.append(section(TABLE, head=[*table.columns, *named], rows=cells))
        else:
            sections.append(section(TABLE, head=list(table.columns), rows=cells))
    return page(f"fermarsi: suspect labels of {found.split}", sections)

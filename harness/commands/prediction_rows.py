"""The predictions of a trained network as tables, one row per sample: names of files and classes,
what is true, numbers in their own unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.commands.trained import TrainedNetwork
from harness.data.feed import evaluation_batches
from harness.data.preparing import build_treatments
from harness.data.source import inverse_of, key_of, known_of, own_numbers_of, training_only
from harness.data.split import Split
from harness.data.store import EntrySource
from harness.data.texts import NumberTexts, Texts
from harness.errors import DataError
from harness.randomness import preserve_random, seed_ambient, seed_for
from harness.tasks.task import targets_of
from harness.training.evaluation import evaluation_mode

if TYPE_CHECKING:
    import pandas as pd

ROWS = 16_384  # of a table, about
Invert = Callable[[Tensor], Tensor]


class PredictionTables:
    """The predictions of a split in tables of about ROWS rows, in the source's order: the index of
    each sample, what the source knows of it (such as its path), its targets, if it has them, and
    the task's predictions; classes by their names where the run has names, numbers in the unit of
    the data where the treatments of the config's split `name` can be undone.
    """

    def __init__(self, trained: TrainedNetwork, split: Split, name: str = "val") -> None:
        self._trained = trained
        self._split = split
        size = trained.micro_size
        self.count = -(-len(split) // (max(1, ROWS // size) * size))
        described = split.source
        if isinstance(described, EntrySource) and described.open is not None:
            described = described.open()  # an entry has no numbers but float32
        self._known = {key: _column(texts) for key, texts in known_of(described).items()}
        self._numbers = own_numbers_of(described)
        self._of = targets_of(trained.task)
        own = getattr(trained.task, "target", None)
        self._own = own if isinstance(own, str) else ""
        self._targets = list(dict.fromkeys([*self._of.values(), *filter(None, [self._own])]))
        self.not_invertible: list[str] = []  # targets that nothing changes back
        self._undo: dict[str, Sequence[Invert]] = {}
        treatments = build_treatments(trained.config.data, name, trained.learned)
        for target in {*self._of.values()} - trained.classes.keys():
            own_ones = [one for one in treatments if key_of(one) == target]
            inverses = [inverse_of(one) for one in own_ones if not training_only(one)]
            found = [one for one in reversed(inverses) if one is not None]
            if len(found) == len(inverses):
                self._undo[target] = found
            else:
                self.not_invertible.append(target)

    def table(self, number: int) -> "pd.DataFrame":
        """One of them. Raises DataError."""
        import pandas as pd

        tables = [
            pd.DataFrame(self._with_known(dict(self._flat(columns))))
            for columns in self._columns(number)
        ]
        return pd.concat(tables, ignore_index=True)

    def __iter__(self) -> "Iterator[pd.DataFrame]":
        return map(self.table, range(self.count))

    def _columns(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The columns of each micro-batch, by name."""
        trained, size = self._trained, self._trained.micro_size
        batches = evaluation_batches(
            self._split, size, number, self.count, trained.device, trained.num_workers
        )
        with preserve_random(), evaluation_mode(trained.network), torch.no_grad():
            for block, batch in batches:
                seed_ambient(seed_for(0, "evaluation forward", block))
                outputs = trained.task.forward(trained.network, batch)
                columns = trained.task.predictions(outputs, batch)
                true = {
                    target: batch[target]
                    for target in self._targets
                    if target not in columns and isinstance(batch.get(target), Tensor)
                }
                count = len(next(iter(columns.values())))
                rows = torch.arange(block * size, block * size + count)
                yield {"sample": rows, **true, **columns}

    def _with_known(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns, with what is known of these samples behind their index, as known_NAME where
        a column has that name; the column of a target says itself what is known of it, a number as
        the source has it.
        """
        rows = columns["sample"]
        own = self._numbers(rows)
        known = {**{name: of(rows) for name, of in self._known.items()}, **own}
        others = {
            f"known_{name}" if name in columns else name: values
            for name, values in known.items()
            if name not in self._targets or name not in columns
        }
        true = {name: own[name] for name in columns if name in self._undo and name in own}
        return {"sample": rows, **others, **columns, **true}

    def _flat(self, columns: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
        """Columns (B,) and (B, 1) as they are, but for those of classes that have names; (B, C) as
        C columns, more axes as lists. A number that is none of a class, such as -100, has an empty
        name.
        """
        of = {**{one: one for one in self._targets}, **self._of}
        for name, values in columns.items():
            target = of.get(name, "")
            if values.is_floating_point():
                wide = values.dtype == torch.float64
                values = _inverted(values if wide else values.float(), self._undo.get(target, ()))
            array = values.cpu().numpy()
            array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
            names = self._trained.classes.get(target or self._own, ())
            if array.ndim == 2:
                ends = names if len(names) == array.shape[1] else range(array.shape[1])
                yield from ((f"{name}_{end}", array[:, at]) for at, end in enumerate(ends))
            elif array.ndim == 1 and array.dtype.kind in "iu" and names and target:
                named = np.array([*names, ""], dtype=object)
                yield name, named[np.where((array >= 0) & (array < len(names)), array, len(names))]
            else:
                yield name, array if array.ndim == 1 else list(array.tolist())


def _column(texts: Sequence[str]) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    """What gives some of a known column, numbers as such, without all of it in memory."""
    if isinstance(texts, NumberTexts):
        return lambda rows: np.asarray(texts.values[rows])
    if isinstance(texts, Texts):
        return lambda rows: np.array(list(texts.take(rows)), dtype=object)
    whole = np.array(texts, dtype=object)
    return lambda rows: whole[rows]


def _inverted(values: Tensor, inverses: Sequence[Invert]) -> Tensor:
    """values: (B, ...) in the unit of the data, in float64 if there is anything to undo."""
    shape, values = values.shape, values.cpu() if inverses else values
    for invert in inverses:
        try:
            values = invert(values)
        except DataError:  # (B, T) for a target (B, 1, T), or the other way round
            values = invert(values[:, None])
    return values.reshape(shape)

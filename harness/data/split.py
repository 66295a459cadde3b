"""From a source to micro-batches on the device: whole micro-batches are fetched, treated and
checked in DataLoader workers.

A DataLoader here has no state worth saving: what it yields is a function of the slot numbers it is
asked for. So its look-ahead, its workers and their number cannot matter.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.source import (
    Batch,
    Source,
    Treatment,
    array_of,
    as_columns,
    gather_of,
    has_length,
    read_together,
    some_of,
    sources_of,
    takes_seeds,
    training_only,
)
from harness.errors import DataError, HarnessError
from harness.randomness import preserve_random, seed_ambient

FINGERPRINT_SAMPLES = 32


class Split:
    """A source with its treatments: indices in, a checked micro-batch of CPU tensors out.

    `where` names it in messages, e.g. `data.train`.
    """

    def __init__(
        self,
        source: Source,
        treatments: Sequence[Treatment],
        where: str,
        check: Callable[[Batch], None],
    ) -> None:
        self.source = source
        self.where = where
        self.check = check
        self.treatments = tuple(treatments)
        self._treatments = [(treatment, takes_seeds(treatment)) for treatment in treatments]
        # The store's: no list is made on the way
        self._gather = gather_of(source)
        self.draws = any(draws for _, draws in self._treatments)
        # Ours never touch the ambient generators; to set and restore them takes longer than to
        # gather a micro-batch.
        self._ambient = not all(_is_ours(component) for component in (source, *treatments))
        if not has_length(source):
            raise DataError(
                f"{where}.source: a {type(source).__name__} has no length. Give it __len__() and "
                "__getitem__(index), e.g. by reading a stream into files first."
            )
        if len(source) == 0:
            raise DataError(
                f"{where}.source: the split is empty. Give a source with at least one sample."
            )

    def __len__(self) -> int:
        return len(self.source)

    def fetch(
        self,
        indices: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        ambient_seed: int,
        *,
        training: bool,
        preserve: bool = True,
    ) -> Batch:
        """indices, seeds: (B,) -> {name: (B, ...) tensor}.

        preserve: leave the ambient generators as they were, which takes longer than to gather a
        small micro-batch; False where they are seeded anew before anybody draws from them.

        Raises DataError that says where.
        """
        try:
            with preserve_random() if self._ambient and preserve else nullcontext():
                # For code that draws without being given seeds
                if self._ambient:
                    seed_ambient(ambient_seed)
                batch = _as_batch(self._read(indices))
                for treatment, draws in self._treatments:
                    if training or not training_only(treatment):
                        batch = treatment(batch, seeds=seeds) if draws else treatment(batch)
                self.check(batch)
        except HarnessError as error:
            raise type(error)(f"{self.where}: {error}") from error
        except Exception as error:
            shown = ", ".join(map(str, indices[:4].tolist()))
            raise DataError(
                f"{self.where}: {type(error).__name__} while reading samples "
                f"{shown}{', …' if len(indices) > 4 else ''}: {error}"
            ) from error
        return batch

    def fingerprint(self) -> str:
        """A digest of the number of samples and of some of them, spread over the split, as an
        evaluation gets them. Raises DataError.
        """
        indices = some_of(self.source, FINGERPRINT_SAMPLES)
        digest = hashlib.sha256(str(len(self)).encode())
        for name, value in sorted(
            self.fetch(indices, indices.astype(np.uint64), 0, training=False).items()
        ):
            digest.update(name.encode())
            digest.update(
                array_of(f"{self.where}: {name}", value).tobytes()
                if isinstance(value, Tensor)
                else repr(value).encode()
            )
        return digest.hexdigest()

    def _read(self, indices: NDArray[np.int64]) -> Any:
        if self._gather is not None:
            return self._gather(indices)
        return read_together(self.source, indices.tolist())


def _is_ours(component: object) -> bool:
    """Whether a source or treatment is of this package, with the sources inside of it."""
    return type(component).__module__.startswith("harness.") and all(
        map(_is_ours, sources_of(component).values())
    )


def _as_batch(read: Any) -> Batch:
    """A batch of arrays, or a list of samples, as a dict of tensors (B, ...); what has no numbers
    stays a list.
    """
    return {name: _as_tensor(values) for name, values in as_columns(read).items()}


def _as_tensor(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, list) and values and isinstance(values[0], Tensor | np.ndarray):
        # Ragged: a treatment has to make one shape of them
        if len({value.shape for value in values}) > 1:
            return [torch.as_tensor(value) for value in values]
        if isinstance(values[0], Tensor):
            return torch.stack(values)
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        return values
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())

"""The contract of sources and treatments: everything that either may offer, and the only module
that looks for it.

All but the first protocol of each kind are optional. The functions below define what the absence
of an optional member means.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.sampling import Order
from harness.errors import DataError

Batch = dict[str, Any]


Treatment = Callable[..., Batch]


class Source(Protocol):
    """A source of samples: the required members."""

    def __len__(self) -> int:
        """The number of samples, N."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The sample at `index`, 0 <= index < N: {name: array (...), number or text}."""
        ...


class Stream(Protocol):
    """A source without a length, instead of `__len__` and `__getitem__`."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """All samples in one order, anew from the first each time; may be endless."""
        ...


class SeekableStream(Protocol):
    """A stream that goes to any sample without reading those before."""

    def seek(self, position: int) -> None:
        """Make the next `__iter__` begin with the sample at `position`, however far that is."""
        ...


class StatefulStream(Protocol):
    """A stream that can be read on from where it was, as those of `datasets` and torchdata."""

    def state_dict(self) -> Any:
        """The state before the next sample of the present iteration, as JSON values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Make the next `__iter__` begin in that state."""
        ...


class BatchReader(Protocol):
    """A source that reads several samples at once faster than one by one."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """B indices -> {name: (B, ...) array or list of B}, or a list of B samples."""
        ...


class ArrayReader(Protocol):
    """A source that accepts indices as an array, like the store; micro-batches prefer it to
    `__getitems__`.
    """

    def gather(self, indices: NDArray[np.int64]) -> Batch:
        """indices: (B,) -> {name: (B, ...) tensor, or a list of B}."""
        ...


class KnownColumns(Protocol):
    """A source that knows columns of its samples without reading them."""

    def known(self) -> Mapping[str, Sequence[str]]:
        """{column: (N,) texts}, e.g. the fields of file names."""
        ...


Numbers = Callable[[NDArray[np.int64]], Mapping[str, NDArray[Any]]]


class OwnNumbers(Protocol):
    """A source that gives numbers in float32, and can tell them as its files have them."""

    def own_numbers(self) -> Numbers:
        """A function of indices (B,): {column: (B,) float64, or int64 where all are whole}."""
        ...


class ClassNames(Protocol):
    """A source or treatment that numbers classes by names, which the run then keeps."""

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """{column: names in the order of their numbers}."""
        ...


class FilesBeside(Protocol):
    """A treatment or task with files that other programs look for beside a network's weights."""

    def files_beside(self) -> Mapping[str, str]:
        """{file name: text}, e.g. a tokenizer.json; they lie in each checkpoint."""
        ...


class Decoder(Protocol):
    """A source or treatment whose numbers stand for text, such as tokens."""

    def decode(self, column: str, values: NDArray[Any]) -> str | None:
        """The text of a sample's numbers (T,); None for columns that it does not make."""
        ...


class SourceFiles(Protocol):
    """A source that lists the files it reads; their bytes identify its content."""

    def paths(self) -> Sequence[Path] | None:
        """Every file that samples depend on; None if that is unknown."""
        ...


class FileFinder(Protocol):
    """A source whose class lists the files from its settings alone, so that a source whose samples
    are in the store need not be built; or a treatment that learns from files.
    """

    def paths_of(self, **settings: Any) -> Sequence[Path]:
        """A class or static method: the constructor's settings -> what `paths` would give."""
        ...


class SkippedFiles(Protocol):
    """A source that may skip files it cannot read."""

    @property
    def skipped(self) -> Sequence[str]:
        """One message for each skipped file."""
        ...


class CompositeSource(Protocol):
    """A source that reads from others: it counts as foreign code if one of them does."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """The inner sources, by names of its choice."""
        ...


class OwnOrder(Protocol):
    """A source whose samples come in an order of its own in training."""

    @property
    def order(self) -> Order | None:
        """Which sample comes at which position of a training; None: shuffled in each epoch."""
        ...


class InvertibleTreatment(Protocol):
    """A treatment of one array that can be undone, so that predictions of a target are written in
    the target's own unit.
    """

    @property
    def key(self) -> str:
        """The name of the array that it treats."""
        ...

    def invert(self, values: Any) -> Any:
        """values: a tensor of what the treatment gives, (B,) or (B, C, ...) -> what it was given,
        as float64.
        """
        ...


class ResultVersion(Protocol):
    """A source or treatment whose class numbers the versions of its results."""

    @property
    def version(self) -> int:
        """A class attribute, 1 by default; increasing it makes the store rebuild its entries."""
        ...


class PlainTreatment(Protocol):
    """A deterministic treatment: the required members."""

    def __call__(self, batch: Batch) -> Batch:
        """{name: (B, ...) tensor, or a list of B} -> the same after the treatment."""
        ...


class RandomTreatment(Protocol):
    """A random treatment, recognised by its parameter `seeds`."""

    def __call__(self, batch: Batch, *, seeds: NDArray[np.uint64]) -> Batch:
        """seeds: (B,), one per sample, from which all randomness must be derived."""
        ...


class Learner(Protocol):
    """An object that learns from the training split before the first step: a treatment, recognised
    by `observe` and `finish`, or by a task. What it learned is in every checkpoint.
    """

    def observe(self, batch: Batch) -> None:
        """Receives a micro-batch of the training split; each sample comes once, in order."""
        ...

    def finish(self) -> None:
        """Called after the last micro-batch. Raises DataError if nothing was observed."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What was learned, as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` returned, instead of learning."""
        ...


class EarlyLearner(Protocol):
    """A treatment that may learn from less than the whole training split."""

    @property
    def ready(self) -> bool:
        """Whether it wants no more samples: the rest of the split is not read for it."""
        ...


class BatchTreatment(Protocol):
    """A treatment whose result for a sample depends on the others of its micro-batch, so that it is
    never kept in the store.
    """

    @property
    def of_batch(self) -> bool:
        """True if it does."""
        ...


class TrainingTreatment(Protocol):
    """A treatment that evaluations and predictions may skip."""

    @property
    def training_only(self) -> bool:
        """True if it is applied in training only."""
        ...


def has_length(source: Any) -> bool:
    """Whether a source knows its number of samples; one that does not is a stream."""
    return hasattr(source, "__len__")


def can_seek(stream: Any) -> bool:
    """Whether a stream goes to any sample."""
    return hasattr(stream, "seek")


def has_state(stream: Any) -> bool:
    """Whether a stream can be read on from where it was."""
    return hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")


def read_together(source: Source, indices: Sequence[int]) -> Any:
    """B samples: {name: (B, ...)} or a list of B samples, as the source returns them."""
    if (gather := gather_of(source)) is not None:
        return gather(np.asarray(indices, dtype=np.int64))
    together = getattr(source, "__getitems__", None)
    if together is None:
        return [source[index] for index in indices]
    return together(list(indices))


def as_columns(read: Any) -> Mapping[str, Any]:
    """What `read_together` gave, as {name: column of B}. Raises DataError for samples that are not
    all mappings with the same names.
    """
    if isinstance(read, Mapping):
        return read
    for sample in read:
        if not isinstance(sample, Mapping):
            raise DataError(
                f"the source gives a sample that is a {type(sample).__name__}, not a mapping of "
                'names. Return e.g. {"image": image, "label": label}.'
            )
        if sample.keys() != read[0].keys():
            raise DataError(
                f"the source gives samples of different names: {', '.join(map(str, read[0]))} and "
                f"{', '.join(map(str, sample))}. Give each sample the same ones."
            )
    return {name: [sample[name] for sample in read] for name in read[0]}


def array_of(name: str, values: Any) -> NDArray[Any]:
    """A tensor of samples as an array. Raises DataError for a type that numpy lacks."""
    try:
        array: NDArray[Any] = values.contiguous().numpy()
    except TypeError as error:
        kind = str(values.dtype).removeprefix("torch.")
        raise DataError(
            f"{name}: samples hold {kind}, which cannot be hashed or stored. Convert them to "
            "float32 in the source; train.precision: bf16 computes in bfloat16."
        ) from error
    return array


def gather_of(source: Source) -> Callable[[NDArray[np.int64]], Batch] | None:
    """The source's `gather`, or None."""
    gather: Callable[[NDArray[np.int64]], Batch] | None = getattr(source, "gather", None)
    return gather


def known_of(source: Any) -> Mapping[str, Sequence[str]]:
    """{column: (N,) texts} without reading samples; {} if the source knows no columns."""
    known: Mapping[str, Sequence[str]] = source.known() if hasattr(source, "known") else {}
    return known


def own_numbers_of(source: Any) -> Numbers:
    """Numbers of samples as the source's files have them, which may be read once more; of no column
    if it does not tell. Raises DataError.
    """
    found: Numbers = source.own_numbers() if hasattr(source, "own_numbers") else lambda _: {}
    return found


def class_names_of(owner: Any) -> dict[str, list[str]]:
    """{column: names in the order of their numbers} of a source or treatment; {} without any."""
    names = owner.class_names() if hasattr(owner, "class_names") else {}
    return {column: list(map(str, of)) for column, of in names.items()}


def key_of(treatment: Any) -> str | None:
    """The name of the one array that a treatment treats; None if it does not tell."""
    key: str | None = getattr(treatment, "key", None)
    return key


def inverse_of(treatment: Any) -> Callable[[Any], Any] | None:
    """What undoes a treatment; None if nothing does."""
    invert: Callable[[Any], Any] | None = getattr(treatment, "invert", None)
    return invert


def files_beside_of(owner: Any) -> Mapping[str, str]:
    """{file name: text} of a treatment or task for beside the weights; {} without any."""
    files: Mapping[str, str] = owner.files_beside() if hasattr(owner, "files_beside") else {}
    return files


def decoded(owner: Any, column: str, values: NDArray[Any]) -> str | None:
    """The text of a sample's numbers, by a source or treatment; None if it knows none."""
    text: str | None = owner.decode(column, values) if hasattr(owner, "decode") else None
    return text


def skipped_of(source: Any) -> Sequence[str]:
    """Messages about the files that a source skipped; () if none."""
    skipped: Sequence[str] = getattr(source, "skipped", ())
    return skipped


def sources_of(source: Any) -> Mapping[str, Any]:
    """The sources that a source reads from; {} if none."""
    sources: Mapping[str, Any] = getattr(source, "sources", {})
    return sources


def order_of(source: Any) -> Order | None:
    """The order that a source gives to its samples in training; None if it gives none."""
    order: Order | None = getattr(source, "order", None)
    return order


def may_have_order(target: Any) -> bool:
    """Whether the source that a target builds may have an order of its own; those of our classes
    say so by their class.
    """
    is_ours = inspect.isclass(target) and target.__module__.startswith("harness.")
    return not is_ours or hasattr(target, "order")


def paths_of(source: Any) -> Sequence[Path] | None:
    """The files that a source reads; None if it does not list them."""
    return source.paths() if hasattr(source, "paths") else None


def paths_from_settings(target: Any, settings: Mapping[str, Any]) -> Sequence[Path] | None:
    """The files that a source with these settings would read; None if its class lists none."""
    return target.paths_of(**settings) if hasattr(target, "paths_of") else None


def version_of(target: Any) -> Any:
    """The version of the results of a source or treatment; 1 by default."""
    return getattr(target, "version", 1)


def takes_seeds(treatment: Treatment) -> bool:
    """Whether a treatment is random, so that it needs a seed for each sample."""
    return "seeds" in inspect.signature(treatment).parameters


def training_only(treatment: Any) -> bool:
    """Whether evaluations and predictions skip a treatment."""
    return bool(getattr(treatment, "training_only", False))


def is_ready(treatment: Any) -> bool:
    """Whether a treatment that learns wants no more samples."""
    return bool(getattr(treatment, "ready", False))


def of_batch(treatment: Any) -> bool:
    """Whether a sample's result depends on the others of its micro-batch."""
    return bool(getattr(treatment, "of_batch", False))


def learns(treatment: Any) -> bool:
    """Whether a treatment, or its class, learns from the training split."""
    return hasattr(treatment, "observe") and hasattr(treatment, "finish")


def some_of(source: Any, most: int) -> NDArray[np.int64]:
    """At most `most` indices, evenly spread over a source; of a stream the first."""
    if hasattr(source, "mark"):
        return np.arange(min(most, len(source)), dtype=np.int64)
    size = len(source)
    rows = np.linspace(0, size - 1, min(most, size)).astype(np.int64)
    return rows[np.diff(rows, prepend=-1) > 0]


def mark_of(source: Any) -> Mapping[str, Any] | None:
    """Where a stream was last read, as JSON values; None if it is none, or cannot tell."""
    mark = getattr(source, "mark", None)
    return None if mark is None else mark.to_json()

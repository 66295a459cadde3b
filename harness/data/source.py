"""The contract of sources and treatments: all that either may offer, and the only place that asks
for it.

Every part but the first protocol of each kind is optional. A part that is absent has the meaning
that the function which asks for it gives.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError

Batch = dict[str, Any]


Treatment = Callable[..., Batch]


class Source(Protocol):
    """Where samples come from; all that a source has to offer."""

    def __len__(self) -> int:
        """The number of samples, N."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The sample at `index`, 0 <= index < N: {name: array (...), number or text}."""
        ...


class BatchReader(Protocol):
    """A source that reads many samples faster than one by one."""

    def __getitems__(self, indices: list[int]) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """B indices -> {name: (B, ...) array or list of B}, or a list of B samples."""
        ...


class ArrayReader(Protocol):
    """A source that takes indices as an array, as the store does; preferred to `__getitems__`
    for micro-batches.
    """

    def gather(self, indices: NDArray[np.int64]) -> Batch:
        """indices: (B,) -> {name: (B, ...) tensor, or a list of B}."""
        ...


class KnownColumns(Protocol):
    """A source that knows columns of its samples without reading them."""

    def known(self) -> Mapping[str, Sequence[str]]:
        """{column: (N,) texts}, e.g. the fields of file names."""
        ...


class SourceFiles(Protocol):
    """A source that names the files it reads; their bytes identify its content."""

    def paths(self) -> Sequence[Path]:
        """Every file that samples follow from."""
        ...


class FileFinder(Protocol):
    """A source whose class names the files from its settings alone, so that content already in
    the store need not be opened.
    """

    def paths_of(self, **settings: Any) -> Sequence[Path]:
        """A class or static method: the constructor's settings -> what `paths` would give."""
        ...


class SkippedFiles(Protocol):
    """A source that may leave out files it cannot read."""

    @property
    def skipped(self) -> Sequence[str]:
        """One message for each file left out."""
        ...


class CompositeSource(Protocol):
    """A source that reads from others: it counts as foreign code if one of them does."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """The sources inside of it, by a name of its own choice."""
        ...


class ResultVersion(Protocol):
    """A source or a treatment whose class counts the changes of its results."""

    @property
    def version(self) -> int:
        """A class attribute, 1 without one; raising it makes the store build anew."""
        ...


class PlainTreatment(Protocol):
    """A treatment that draws nothing; all that a treatment has to offer."""

    def __call__(self, batch: Batch) -> Batch:
        """{name: (B, ...) tensor, or a list of B} -> the same, treated."""
        ...


class RandomTreatment(Protocol):
    """A treatment that draws: it is known by its parameter `seeds`."""

    def __call__(self, batch: Batch, *, seeds: NDArray[np.uint64]) -> Batch:
        """seeds: (B,), one a sample, from which all randomness has to come."""
        ...


class Learner(Protocol):
    """What learns from the training split before the first step: a treatment, known by `observe`
    and `finish`, or a part of a task; what it learned is in every checkpoint.
    """

    def observe(self, batch: Batch) -> None:
        """A micro-batch of the training split; each sample comes once, in order."""
        ...

    def finish(self) -> None:
        """After the last micro-batch. Raises DataError if there was nothing to learn from."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What was learned, as JSON can hold it."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, instead of learning."""
        ...


class TrainingTreatment(Protocol):
    """A treatment that evaluations and predictions may leave out."""

    @property
    def training_only(self) -> bool:
        """True if only training applies it."""
        ...


# Required and optional parts, exactly those that docs/sources.md and docs/treatments.md list
SOURCE_PARTS = (
    Source,
    BatchReader,
    ArrayReader,
    KnownColumns,
    SourceFiles,
    FileFinder,
    SkippedFiles,
    CompositeSource,
    ResultVersion,
)
TREATMENT_PARTS = (PlainTreatment, RandomTreatment, Learner, TrainingTreatment, ResultVersion)


def read_together(source: Source, indices: Sequence[int]) -> Any:
    """B samples: {name: (B, ...)} or a list of B samples, as the source gives them."""
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


def gather_of(source: Source) -> Callable[[NDArray[np.int64]], Batch] | None:
    """The source's `gather`; None if it has none."""
    gather: Callable[[NDArray[np.int64]], Batch] | None = getattr(source, "gather", None)
    return gather


def known_of(source: Any) -> Mapping[str, Sequence[str]]:
    """{column: (N,) texts} without reading a sample; {} if the source knows nothing."""
    known: Mapping[str, Sequence[str]] = source.known() if hasattr(source, "known") else {}
    return known


def skipped_of(source: Any) -> Sequence[str]:
    """Messages about the files a source left out; () if it leaves none out."""
    skipped: Sequence[str] = getattr(source, "skipped", ())
    return skipped


def sources_of(source: Any) -> Mapping[str, Any]:
    """The sources that a source reads from; {} if it reads from none."""
    sources: Mapping[str, Any] = getattr(source, "sources", {})
    return sources


def paths_of(source: Any) -> Sequence[Path] | None:
    """The files a source reads; None if it does not tell."""
    return source.paths() if hasattr(source, "paths") else None


def paths_from_settings(target: Any, settings: Mapping[str, Any]) -> Sequence[Path] | None:
    """The files that a source of these settings would read; None if its class does not tell."""
    return target.paths_of(**settings) if hasattr(target, "paths_of") else None


def version_of(target: Any) -> Any:
    """The version of a source's or a treatment's results; 1 if it has none."""
    return getattr(target, "version", 1)


def takes_seeds(treatment: Treatment) -> bool:
    """Whether a treatment draws: what it is given then is a seed for each sample."""
    return "seeds" in inspect.signature(treatment).parameters


def training_only(treatment: Any) -> bool:
    """Whether evaluations and predictions leave a treatment out."""
    return bool(getattr(treatment, "training_only", False))


def learns(treatment: Any) -> bool:
    """Whether a treatment, or its class, learns from the training split."""
    return hasattr(treatment, "observe") and hasattr(treatment, "finish")

"""From a config's data section to splits: what treatments learn from the training split, what is
done once and kept, what is left for every epoch.

One list of treatments, three stages:

    fit      a treatment that has `observe` and `finish` learns from the training split, as the
             treatments before it give it, once a run
    once     what source and treatments give up to the first online one is kept in the store, if
             `data.store` names one
    online   treatments from the first one on that draws (takes `seeds`, or is for training only),
             depends on the micro-batch or is marked `_stage_: online`

Rank 0 prepares; every rank opens what it prepared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import components
from harness.components import STAGE, TARGET, without_stage
from harness.data.content import Hashes, digest, identity
from harness.data.feed import Patience, evaluation_batches
from harness.data.settings import DataConfig, SplitConfig
from harness.data.shelf import READINGS, Shelf, shelved
from harness.data.source import (
    Batch,
    Treatment,
    array_of,
    has_length,
    is_ready,
    learns,
    of_batch,
    paths_from_settings,
    paths_of,
    skipped_of,
    takes_seeds,
    training_only,
)
from harness.data.split import Split
from harness.data.store import EntrySource, Store
from harness.data.streams import StreamSource
from harness.durable import read_json, write_json
from harness.errors import ConfigError, HarnessError

MEMO = "content.json"


FIT_SAMPLES = 256  # a micro-batch that a treatment learns from


VERSION = 1  # of what a key is made of


Spec = Mapping[str, Any]


@dataclass(frozen=True)
class TreatmentState:
    """What a treatment of the training split learned."""

    treatment: Spec
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Preparation:
    """By split: `keys`, digests of all that its samples follow from, and `stored`, the paths of
    entries of the store.
    """

    keys: Mapping[str, str]
    stored: Mapping[str, str]
    learned: Sequence[TreatmentState]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preparation":
        return cls(
            value["keys"], value["stored"], [TreatmentState(**one) for one in value["learned"]]
        )


@dataclass
class Feedback:
    """How a preparation reports progress and can be interrupted."""

    say: Callable[[str], None] = field(default=lambda text: None)
    check_leave: Callable[[], None] = field(default=lambda: None)
    progress: Callable[[str, int, int], None] = field(default=lambda what, done, of: None)


class Sources:
    """The sources of a config by split, each built when it is first asked for: the store may make
    that unnecessary.

    shelf: where their readings are kept, by default in the store if there is one. `readings`: by
    split, the keys of those that its source uses.
    """

    def __init__(self, config: DataConfig, shelf: Shelf | None = None) -> None:
        self._config = config
        self._built: dict[str, Any] = {}
        self.readings: dict[str, list[str]] = {}
        if shelf is None and config.store is not None and config.store.dir.is_dir():
            shelf = store_shelf(config.store.dir, Feedback())
        self._shelf = shelf

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            if self._shelf is not None:
                self._shelf.used.clear()
            with shelved(self._shelf):
                source = open_source(split_config(self._config, name), name)
            self.readings[name] = [] if self._shelf is None else sorted(self._shelf.used)
            if isinstance(source, StreamSource) and self._config.store is not None:
                raise ConfigError(
                    f"data.store: data.{name}.source is a stream, which is not kept. Remove "
                    "data.store, or read the stream into files."
                )
            self._built[name] = source
        return self._built[name]


def store_shelf(
    directory: Path, feedback: Feedback, *, make: bool = True, otherwise: Shelf | None = None
) -> Shelf:
    """The shelf of a store, which is made if it is not there. Raises ConfigError."""
    hashes = Hashes(_make_directory(directory) / MEMO)
    return Shelf(
        directory / READINGS,
        lambda paths: hashes.of(paths, feedback.check_leave),
        is_kept=True,
        make=make,
        otherwise=otherwise,
        check_leave=feedback.check_leave,
        progress=feedback.progress,
    )


def open_source(split: SplitConfig, name: str) -> Any:
    """A split's source; of a stream, its first `samples`. Raises ConfigError and DataError."""
    where = f"data.{name}"
    source = components.build(split.source, f"{where}.source")
    if has_length(source):
        if split.samples is not None:
            raise ConfigError(
                f"{where}.samples: has no effect: the source has {len(source):,} samples. Remove "
                "it; harness.sources.mixtures.Subset chooses some of them."
            )
        return source
    if split.samples is None:
        raise ConfigError(
            f"{where}.source: a {type(source).__name__} has no length, so it is a stream. Set "
            f"{where}.samples, how many samples count as an epoch or are evaluated; or give it "
            "__len__() and __getitem__(index)."
        )
    return StreamSource(source, split.samples, f"{where}.source", repeats=name == "train")


def split_config(config: DataConfig, name: str) -> SplitConfig:
    """A split's section. Raises ConfigError if the config has none."""
    split: SplitConfig | None = getattr(config, name)
    if split is None:
        raise ConfigError(f"data.{name}: the config has no such split. Give data.{name}.source.")
    return split


def prepare(
    config: DataConfig,
    names: Sequence[str],
    sources: Sources,
    learned: Sequence[TreatmentState] | None,
    memo: Path,
    feedback: Feedback,
    *,
    build: bool = True,
) -> Preparation:
    """Fit the treatments that learn (`learned`: what those of an earlier launch learned), and
    build what the store lacks if `build`. Rank 0 only.

    memo: the directory where hashes of files are remembered if there is no store. Raises
    ConfigError and DataError; `feedback.check_leave` may raise too.
    """
    store = None if config.store is None else Store(config.store.dir)
    hashes = Hashes((memo if store is None else _make_directory(store.directory)) / MEMO)
    content = {
        name: _content(
            split_config(config, name).source,
            sources,
            name,
            hashes,
            feedback,
            in_full=store is not None,
        )
        for name in names
    }
    if learned is None:
        learned = _fit_or_recall(config, content, sources, store, hashes, feedback)
    keys, stored = {}, {}
    for name in names:
        split = split_config(config, name)
        treatments = build_treatments(config, name, learned)
        # Without the code: its changes are compared and reported separately.
        identities = [identity(spec, code=False) for spec in (split.source, *split.treatments)]
        known = [asdict(one) for one in learned]
        keys[name] = digest([VERSION, content[name], identities[0], identities[1:], known])
        if store is not None:
            num_once = count_once(split.treatments, treatments)
            used = [asdict(one) for one in learned if one.treatment in split.treatments[:num_once]]
            once = [identity(spec) for spec in split.treatments[:num_once]]
            key = digest([VERSION, content[name], identity(split.source), once, used])[:32]
            path = store.find(key)
            if path is None and not build:
                continue
            if path is None:
                path = _build_entry(
                    config, name, store, key, sources, treatments[:num_once], feedback
                )
            stored[name] = str(path)
    return Preparation(keys, stored, learned)


def _build_entry(
    config: DataConfig,
    name: str,
    store: Store,
    key: str,
    sources: Sources,
    treatments: Sequence[Treatment],
    feedback: Feedback,
) -> Path:
    """The store's new entry of a split: its source under the treatments that are done once."""
    feedback.say(f"data.{name}: building {store.directory / key}")
    split, source = split_config(config, name), sources[name]
    made_of = {
        "split": name,
        "source": dict(split.source),
        "treatments": [dict(spec) for spec in split.treatments[: len(treatments)]],
        "left_out": list(skipped_of(source)),
        "readings": sources.readings[name],
    }

    def tell(done: int, of: int) -> None:
        feedback.progress(f"data.{name}", done, of)

    whole = Split(source, treatments, f"data.{name}", _no_check)
    return store.build(key, whole, made_of, config.few_workers, feedback.check_leave, tell)


def open_splits(
    config: DataConfig,
    names: Sequence[str],
    sources: Sources,
    prepared: Preparation,
    check: Callable[[Batch], None],
) -> dict[str, Split]:
    """The named splits, ready to be read.

    Called by every rank. Raises ConfigError and DataError.
    """
    splits = {}
    for name in names:
        split, treatments = (
            split_config(config, name),
            build_treatments(config, name, prepared.learned),
        )
        path = prepared.stored.get(name)
        done = 0 if path is None else count_once(split.treatments, treatments)
        splits[name] = Split(
            sources[name] if path is None else EntrySource(Path(path)),
            treatments[done:],
            f"data.{name}",
            check,
        )
    return splits


def build_treatments(
    config: DataConfig, name: str, learned: Sequence[TreatmentState]
) -> list[Treatment]:
    """A split's treatments, those that learn with what an equal one of the training split learned.

    Raises ConfigError if there is none.
    """
    treatments: list[Treatment] = []
    left = list(learned)
    for index, spec in enumerate(split_config(config, name).treatments):
        where = f"data.{name}.treatments[{index}]"
        treatment = components.build(without_stage(spec), where)
        if learns(treatment):
            found = next(
                (one for one in left if without_stage(one.treatment) == without_stage(spec)), None
            )
            if found is None:
                raise ConfigError(
                    f"{where}: {spec[TARGET]} learns from the training split, and "
                    "data.train.treatments has no identical one. "
                    "Use the same treatments in both, e.g. by a YAML anchor (&name and *name)."
                )
            left.remove(found)
            treatment.restore(found.state)
        treatments.append(treatment)
    return treatments


def fit(config: DataConfig, sources: Sources, feedback: Feedback) -> list[TreatmentState]:
    """What the treatments of the training split learn from it, one after another.

    Raises DataError.
    """
    learned: list[TreatmentState] = []
    ready: list[Treatment] = []
    for index, spec in enumerate(config.train.treatments):
        where = f"data.train.treatments[{index}]"
        treatment = components.build(without_stage(spec), where)
        if learns(treatment):
            before = Split(sources["train"], ready, "data.train", _no_check)
            blocks = evaluation_batches(
                before,
                FIT_SAMPLES,
                0,
                1,
                torch.device("cpu"),
                config.few_workers,
                patience=Patience(check=feedback.check_leave),
            )
            while not is_ready(treatment) and (found := next(blocks, None)) is not None:
                block, batch = found
                feedback.check_leave()
                treatment.observe(batch)
                feedback.progress(where, min(len(before), (block + 1) * FIT_SAMPLES), len(before))
            treatment.finish()
            learned.append(TreatmentState(dict(spec), treatment.state()))
        ready.append(treatment)
    return learned


def _fit_or_recall(
    config: DataConfig,
    content: Mapping[str, str],
    sources: Sources,
    store: Store | None,
    hashes: Hashes,
    feedback: Feedback,
) -> Sequence[TreatmentState]:
    """As `fit`, or what an earlier run left in the store for the same data and treatments."""
    train = config.train
    if store is None or not any(learns(components.find(spec[TARGET])) for spec in train.treatments):
        return fit(config, sources, feedback)
    made_of = [
        VERSION,
        content["train"],
        identity(train.source),
        [identity(spec) for spec in train.treatments],
    ]
    files = [path for spec in train.treatments for path in _files_of(spec) or ()]
    key = digest([*made_of, hashes.of(files)] if files else made_of)[:32]
    path = store.directory / f"learned-{key}.json"
    if not path.exists():
        learned = fit(config, sources, feedback)
        write_json(path, [asdict(one) for one in learned], sync=True)
    return [TreatmentState(**one) for one in read_json(path)]


def count_once(specs: Sequence[Spec], treatments: Sequence[Treatment]) -> int:
    """How many treatments come before the first online one."""
    for count, (spec, treatment) in enumerate(zip(specs, treatments, strict=True)):
        only_online = (training_only(treatment), takes_seeds(treatment), of_batch(treatment))
        if spec.get(STAGE) == "online" or any(only_online):
            return count
    return len(specs)


def _files_of(spec: Spec) -> Sequence[Path] | None:
    """The files of a source or treatment with these settings; None if its class lists none."""
    settings = {key: value for key, value in without_stage(spec).items() if key != TARGET}
    return paths_from_settings(components.find(spec[TARGET]), settings)


def _content(
    spec: Spec, sources: Sources, name: str, hashes: Hashes, feedback: Feedback, *, in_full: bool
) -> str:
    """A digest of what a source reads: of its files' bytes if it tells which, else of its samples,
    all of them if `in_full`.
    """
    try:
        paths = _files_of(spec)
        if paths is not None:
            return hashes.of(paths, feedback.check_leave)
    except HarnessError as error:
        raise type(error)(f"data.{name}.source: {error}") from error
    source = sources[name]
    paths = paths_of(source)
    if paths is not None:
        return hashes.of(paths, feedback.check_leave)
    if not in_full:
        return ""
    whole = Split(source, (), f"data.{name}", _no_check)
    rows = []
    for _, batch in evaluation_batches(whole, FIT_SAMPLES, 0, 1, torch.device("cpu"), 0):
        feedback.check_leave()
        rows.append({key: _bytes(f"data.{name}: {key}", value) for key, value in batch.items()})
    return digest(rows)


def _bytes(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return digest([str(value.dtype), list(value.shape), array_of(name, value).tobytes().hex()])
    return digest(
        [
            _bytes(name, item) if isinstance(item, torch.Tensor | np.ndarray) else item
            for item in value
        ]
    )


def _make_directory(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data.store.dir: {directory}: {error.strerror}. Choose a writable directory."
        ) from error
    return directory


def _no_check(batch: Batch) -> None:
    """Samples are checked where they are used."""

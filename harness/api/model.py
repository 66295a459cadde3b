"""A trained network, and what it says of new data."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness import components
from harness.api.config import plain
from harness.commands.evaluate import SplitMetrics, evaluate_trained
from harness.commands.new_samples import PLACE, source_of_files, without_targets
from harness.commands.prediction_rows import PredictionTables
from harness.commands.trained import TrainedNetwork, fit_task, load_trained, open_split
from harness.components import TARGET
from harness.data.preparing import build_treatments, split_config
from harness.errors import ConfigError, HarnessError
from harness.objects import Objects, present
from harness.sources.given import Arrays
from harness.sources.tables import Table
from harness.wording import first_line

if TYPE_CHECKING:
    import pandas as pd


class Model:
    """A trained network with all that belongs to it, from `load`.

    `path`: of its checkpoint; `network`: the torch module, in evaluation mode; `class_names`: in
    the order of their numbers, () where there are none; `config`: of its run.
    """

    def __init__(self, trained: TrainedNetwork) -> None:
        self._trained = trained
        self.path = trained.path
        self.config = trained.config
        self.network: nn.Module = trained.network
        self.class_names = tuple(trained.class_names)

    @property
    def device(self) -> torch.device:
        return self._trained.device

    def treatments(self, split: str = "val") -> Sequence[Any]:
        """Those of a split, with what they learned, in their order."""
        return build_treatments(self.config.data, split, self._trained.learned)

    def predict(self, inputs: Any = None, *, split: str = "val") -> "pd.DataFrame":
        """One row a sample, in the order given: its index, what is known of it, its true value if
        there is one, and the task's predictions; classes by their names, probabilities by class.

        inputs: a file, or several, read as the split's source reads its own; a pandas frame, whose
        rows are samples and whose index stays, with the columns that the run's table has; a
        mapping {field: (N, ...) array}, or one array for the network's only input, as the source
        would give them; or None: the split itself. The split's treatments are applied. Raises
        HarnessError.
        """
        with ExitStack() as stack:
            stack.enter_context(_told())
            source = None if inputs is None else stack.enter_context(self._source(inputs, split))
            opened = open_split(self._trained, split, source)
            fit_task(self._trained, opened)
            import pandas as pd

            tables = list(PredictionTables(self._trained, opened, split))
            found = pd.concat(tables, ignore_index=True)
        if isinstance(inputs, pd.DataFrame):
            added = [one for one in ("path", "row") if one not in inputs.columns]
            found = found.drop(columns=added, errors="ignore").set_index(inputs.index)
        paths = [path.absolute() for path in _paths(inputs)]
        if paths and "path" in found:
            # A source sorts its files, and skips some with on_error: skip
            place_of = {path: place for place, path in reversed(list(enumerate(paths)))}
            order = [place_of[Path(path).absolute()] for path in found["path"]]
            found = found.iloc[sorted(range(len(order)), key=order.__getitem__)]
            found = found.reset_index(drop=True)
            found["sample"] = range(len(found))
        return found

    def evaluate(self, split: str = "val") -> SplitMetrics:
        """The metrics on a split of the run's config; `values` by name. Raises HarnessError."""
        return evaluate_trained(self._trained, split)

    @contextmanager
    def _source(self, inputs: Any, split: str) -> Iterator[Mapping[str, Any]]:
        """The component of a source that has these samples."""
        import pandas as pd

        spec = split_config(self.config.data, split).source
        target = components.find(spec[TARGET])
        paths = _paths(inputs)
        if isinstance(inputs, pd.DataFrame) and target is Table:
            with tempfile.TemporaryDirectory(prefix="fermarsi-") as directory:
                file = Path(directory) / "frame.parquet"
                try:
                    inputs.to_parquet(file, index=False)
                except (TypeError, ValueError) as error:  # Arrow's are of these kinds
                    raise ConfigError(
                        f"predict: the frame is no table: {first_line(error)}. Give columns of "
                        "one kind each, under different names."
                    ) from error
                known = without_targets(self._trained, spec, list(inputs.columns))
                yield {**known, **PLACE, "files": str(file)}
        elif paths:
            yield source_of_files(self._trained, split, [str(path.absolute()) for path in paths])
        else:
            objects = Objects()
            source = plain(Arrays(**self._fields(inputs)), ("predict",), objects)
            with present(objects):
                yield source

    def _fields(self, inputs: Any) -> Mapping[str, Any]:
        """Samples by field."""
        import pandas as pd

        if isinstance(inputs, pd.DataFrame):
            return {str(name): inputs[name].to_numpy() for name in inputs.columns}
        if isinstance(inputs, Mapping):
            return inputs
        field = getattr(self._trained.task, "input", None)
        if not isinstance(field, str):
            raise ConfigError(
                "predict: the network has several inputs. Give a mapping {field: array}."
            )
        return {field: inputs}


def load(
    run: str | PathLike[str],
    *,
    network: nn.Module | None = None,
    device: str | torch.device | None = None,
    allow: Sequence[str] = (),
) -> Model:
    """The network of a run, its best, or of a checkpoint, with its treatments and class names.

    network: one of the class that was given to the training as an object; weights come from the
    run, and it stays as it is. device: a GPU if there is one. allow: dotted prefixes of your own
    code that the run names, and directories of files, as --allow: a run may be somebody else's.
    Raises HarnessError.
    """
    objects = Objects()
    if network is not None:
        plain(network, ("network",), objects)
    place = None if device is None else _usable(device)
    with present(objects):
        return Model(load_trained(Path(run), allow, place))


def evaluate(
    run: str | PathLike[str],
    split: str = "val",
    *,
    network: nn.Module | None = None,
    device: str | torch.device | None = None,
    allow: Sequence[str] = (),
) -> SplitMetrics:
    """The metrics of a run's best checkpoint, or of a checkpoint, on a split of its config; as
    `load(...).evaluate(split)`. Raises HarnessError.
    """
    return load(run, network=network, device=device, allow=allow).evaluate(split)


@contextmanager
def _told() -> Iterator[None]:
    """Messages of inputs name them as the caller does."""
    try:
        yield
    except HarnessError as error:
        frame = re.sub(r"--source: \S*/frame\.parquet", "predict: the frame", str(error))
        raise type(error)(frame.replace("--source", "predict")) from error


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"device: {device} cannot be used here: {first_line(error)}. Give cpu, or leave it out."
        ) from error


def _paths(inputs: Any) -> list[Path]:
    """The files, if that is what the inputs are."""
    if isinstance(inputs, str | PathLike):
        return [Path(fspath(inputs))]
    if isinstance(inputs, list | tuple) and inputs:
        return [Path(one) for one in inputs if isinstance(one, str | PathLike)]
    return []

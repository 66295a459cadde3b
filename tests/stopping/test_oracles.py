"""The same histories given to others' early stopping, where settings coincide, and the known
differences; docs/stopping.md explains them.

Values and deltas are eighths and odd sixteenths, so that all sums are exact and no gain lies on the
very edge: there the others ask for more than the delta, where `at_least` asks for at least it.
"""

import math
import warnings
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.stopping.controller import StopController
from harness.stopping.settings import StopSettings
from harness.stopping.verdict import Evaluation, MetricInfo, Mode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these packages warn of on being imported is theirs
    from ignite.engine import Engine
    from ignite.handlers import EarlyStopping as IgniteEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
    from transformers import EarlyStoppingCallback

eighths = st.integers(-16, 16).map(lambda number: number / 8)
positive_eighths = st.integers(1, 32).map(lambda number: number / 8)
histories = st.lists(eighths, max_size=15)
deltas = st.sampled_from([0.0, 1 / 16, 3 / 16, 5 / 16])
patiences = st.integers(1, 5)
modes = st.sampled_from(["max", "min"])


def ours(
    values: Sequence[float], mode: Mode, at_least: float | str, patience: int, metric: str = "val/x"
) -> int | None:
    """Index of the evaluation at which `from: best` stops, by whatever reason."""
    settings = StopSettings.model_validate(
        {"improvement": {"metric": metric, "at_least": at_least, "patience": patience}}
    )
    controller = StopController(settings, {metric: MetricInfo(mode)})
    for index, value in enumerate(values):
        if controller.judge(
            Evaluation(index + 1, index + 1.0, index + 1, 0.0, {metric: value})
        ).stops:
            return index
    return None


def lightning(values: Sequence[float], mode: Mode, min_delta: float, patience: int) -> int | None:
    callback = LightningEarlyStopping("x", min_delta=min_delta, patience=patience, mode=mode)
    for index, value in enumerate(values):
        stops, _ = callback._evaluate_stopping_criteria(torch.tensor(value, dtype=torch.float64))
        if stops:
            return index
    return None


def ignite(
    values: Sequence[float],
    mode: Mode,
    threshold: float,
    patience: int,
    *,
    relative: bool = False,
    cumulative: bool = True,
) -> int | None:
    engine = Engine(lambda *_: None)
    scores = iter(values)
    handler = IgniteEarlyStopping(
        patience,
        lambda _: next(scores),
        engine,
        threshold=threshold,
        cumulative=cumulative,
        threshold_mode="rel" if relative else "abs",
        mode=mode,
    )
    for index in range(len(values)):
        handler(engine)
        if engine.should_terminate:
            return index
    return None


def keras(values: Sequence[float], mode: Mode, min_delta: float, patience: int) -> int | None:
    """What the documentation of keras.callbacks.EarlyStopping says: epochs in a row with no
    improvement by more than min_delta on the best.
    """
    best, wait = None, 0
    for epoch, value in enumerate(values):
        better = best is None or (
            value - min_delta > best if mode == "max" else value + min_delta < best
        )
        best, wait = (value, 0) if better else (best, wait + 1)
        if wait and wait >= patience:
            return epoch
    return None


def transformers(
    values: Sequence[float], mode: Mode, threshold: float, patience: int
) -> int | None:
    """The callback, and the best metric as Trainer keeps it: any strict gain."""
    callback = EarlyStoppingCallback(patience, threshold)
    arguments, state = (
        SimpleNamespace(greater_is_better=mode == "max"),
        SimpleNamespace(best_metric=None),
    )
    for index, value in enumerate(values):
        # Theirs
        callback.check_metric_value(arguments, state, None, value)  # type: ignore[no-untyped-call] # see above
        if callback.early_stopping_patience_counter >= patience:
            return index
        if state.best_metric is None or (
            value > state.best_metric if mode == "max" else value < state.best_metric
        ):
            state.best_metric = value
    return None


@given(histories, modes, deltas, patiences)
def test_lightning_stops_where_we_stop(
    values: list[float], mode: Mode, delta: float, patience: int
) -> None:
    assert lightning(values, mode, delta, patience) == ours(values, mode, delta, patience)


@given(histories, modes, deltas, patiences)
def test_ignite_stops_where_we_stop(
    values: list[float], mode: Mode, delta: float, patience: int
) -> None:
    assert ignite(values, mode, delta, patience) == ours(values, mode, delta, patience)


@given(st.lists(positive_eighths, max_size=15), modes, st.sampled_from([3, 7, 11, 19]), patiences)
def test_ignite_stops_where_we_stop_by_shares_of_positive_values(
    values: list[float], mode: Mode, percent: int, patience: int
) -> None:
    assert ignite(values, mode, percent / 100, patience, relative=True) == ours(
        values, mode, f"{percent}%", patience
    )


@given(histories, modes, deltas, patiences)
def test_keras_stops_where_we_stop(
    values: list[float], mode: Mode, delta: float, patience: int
) -> None:
    assert keras(values, mode, delta, patience) == ours(values, mode, delta, patience)


@given(histories, modes, patiences)
def test_transformers_stops_where_we_stop_without_a_threshold(
    values: list[float], mode: Mode, patience: int
) -> None:
    assert transformers(values, mode, 0.0, patience) == ours(values, mode, 0.0, patience)


@given(st.lists(eighths | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=8), patiences)
def test_lightning_also_ends_at_a_loss_that_is_lost(values: list[float], patience: int) -> None:
    assert lightning(values, "min", 0.0, patience) == ours(values, "min", 0.0, patience, "val/loss")


# -- where they differ


def test_a_gain_of_exactly_the_delta_counts_for_us_alone() -> None:
    values = [0.5, 0.625]
    assert ours(values, "max", 0.125, 1) is None
    assert (
        lightning(values, "max", 0.125, 1)
        == ignite(values, "max", 0.125, 1)
        == keras(values, "max", 0.125, 1)
        == 1
    )


def test_a_share_of_a_negative_value_moves_the_wrong_way_in_ignite() -> None:
    rising = [-8.0, -7.9, -6.0]
    assert ours(rising, "max", "10%", 1) == 1  # 1.25 % better where 10 % was asked
    # Its bar is at -8.8, below the best
    assert ignite(rising, "max", 0.1, 1, relative=True) is None
    falling = [-8.0, -9.0]
    assert ours(falling, "min", "10%", 1) is None
    assert ignite(falling, "min", 0.1, 1, relative=True) is None
    worse = [-8.0, -7.5]
    assert ours(worse, "min", "10%", 1) == 1
    # Worse by 6 %, taken for an improvement
    assert ignite(worse, "min", 0.1, 1, relative=True) is None


def test_slow_progress_that_adds_up_counts_only_where_the_reference_stands_still() -> None:
    creeping = [0.0, 0.125, 0.25, 0.375]
    assert ours(creeping, "max", 3 / 16, 2) is None
    assert lightning(creeping, "max", 3 / 16, 2) is None
    assert ignite(creeping, "max", 3 / 16, 2, cumulative=False) == 2
    assert transformers(creeping, "max", 3 / 16, 2) == 2


def test_a_first_nan_stays_the_best_in_keras_and_counts_as_a_gain_in_ignite() -> None:
    assert ours([math.nan, 1.0, 2.0, 3.0], "max", 0.0, 2) is None
    assert keras([math.nan, 1.0, 2.0, 3.0], "max", 0.0, 2) == 2  # nothing is above NaN
    assert ours([3.0, math.nan, 2.0, 1.0], "max", 0.0, 2) == 2
    # NaN is not at or below the best, nor is anything at or below NaN
    assert ignite([3.0, math.nan, 2.0, 1.0], "max", 0.0, 2) is None

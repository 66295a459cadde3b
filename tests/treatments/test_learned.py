"""What treatments learn from the training split: as scikit-learn does, exactly, and whatever the
micro-batches.
"""

import json
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder, StandardScaler

from harness.data.source import learns
from harness.errors import ConfigError, DataError
from harness.treatments.learned import Rescale, Standardise, exact_sums
from harness.treatments.tables import Encode, Impute

NUMERIC: list[Callable[[], Any]] = [
    Standardise,
    Rescale,
    lambda: Rescale(-1, 2, clip=True),
    lambda: Impute("mean"),
    lambda: Impute("median", mark=True),
    lambda: Impute("most_frequent"),
]
NUMBERS = (
    st.floats(-(2.0**100), 2.0**100, width=32)
    | st.integers(-3, 3).map(float)
    | st.just(float("nan"))
)
ROWS = st.integers(1, 3).flatmap(
    lambda width: st.lists(
        st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=30
    )
)


def learned(treatment: Any, *batches: Any, key: str = "features") -> Any:
    for batch in batches:
        treatment.observe({key: batch})
    treatment.finish()
    return treatment


def table(seed: int = 0, count: int = 50, missing: float = 0.2) -> NDArray[np.float32]:
    """(count, 4): of other sizes and places in each column, the second one constant, the third one
    of few numbers.
    """
    draw = np.random.default_rng(seed)
    rows = draw.normal([0, 0, 0, 1e5], [1, 0, 2, 1e-1], (count, 4))
    rows[:, 1], rows[:, 2] = 7, np.rint(rows[:, 2])
    rows[draw.random(rows.shape) < missing] = np.nan
    return rows.astype(np.float32)


def rows_with_some(rows: list[list[float]]) -> torch.Tensor | None:
    """The rows as a tensor, unless a column has no number at all."""
    values = torch.tensor(rows)
    return None if bool(values.isnan().all(dim=0).any()) else values


def parts_of(values: torch.Tensor, data: st.DataObject) -> list[torch.Tensor]:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(values) - 1)), max_size=5)))
    return [part for part in values.tensor_split(cuts) if len(part)]


# -- as others do


def test_standardising_is_what_scikit_learn_does() -> None:
    rows = table()
    oracle = StandardScaler().fit(rows.astype(np.float64))
    found = learned(Standardise(), torch.from_numpy(rows))
    assert found.state()["mean"] == pytest.approx(oracle.mean_.tolist(), rel=1e-12)
    # The last one: 1e-1 at 1e5, where scikit-learn rounds
    assert found.state()["std"] == pytest.approx(oracle.scale_.tolist(), rel=1e-6)
    new = table(1)
    after = found({"features": torch.from_numpy(new), "label": 3})
    assert after["features"].dtype == torch.float32
    assert after["label"] == 3
    np.testing.assert_allclose(
        after["features"].numpy(), oracle.transform(new.astype(np.float64)), rtol=1e-5, atol=1e-5
    )


def test_rescaling_is_what_scikit_learn_does() -> None:
    rows, new = table(), table(1)
    for low, high, clip in ((0.0, 1.0, False), (-1.0, 2.0, True)):
        oracle = MinMaxScaler((low, high), clip=clip).fit(rows.astype(np.float64))
        after = learned(Rescale(low, high, clip), torch.from_numpy(rows))(
            {"features": torch.from_numpy(new)}
        )["features"]
        np.testing.assert_allclose(
            after.numpy(), oracle.transform(new.astype(np.float64)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("value", ["mean", "median", "most_frequent"])
def test_imputing_is_what_scikit_learn_does(value: Any) -> None:
    rows, new = table(), table(1)
    oracle = SimpleImputer(strategy=value).fit(rows.astype(np.float64))
    found = learned(Impute(value), torch.from_numpy(rows))
    assert found.state()["value"] == pytest.approx(oracle.statistics_.tolist(), rel=1e-12)
    np.testing.assert_allclose(
        found({"features": torch.from_numpy(new)})["features"].numpy(),
        oracle.transform(new),
        rtol=1e-6,
    )


@given(st.lists(st.text(max_size=3), min_size=1, max_size=30))
def test_encoding_is_what_scikit_learn_does(texts: list[str]) -> None:
    cells = np.array(texts, dtype=object)[:, None]
    oracle = OrdinalEncoder().fit_transform(cells)[:, 0]
    encode = learned(Encode("c"), texts[: len(texts) // 2], texts[len(texts) // 2 :], key="c")
    assert encode({"c": texts})["c"].tolist() == oracle.astype(int).tolist()


# -- exactly, and whatever the micro-batches


@given(st.lists(st.floats(-1e90, 1e90), max_size=40), st.integers(1, 3))
def test_sums_are_exact(values: list[float], width: int) -> None:
    columns = np.array(values[: len(values) // width * width], dtype=np.float64).reshape(-1, width)
    expected = [
        sum((Fraction(value) for value in column), Fraction()) for column in columns.T.tolist()
    ]
    assert [Fraction(total, 2**1074) for total in exact_sums(columns)] == expected


@given(ROWS, st.data())
def test_mean_and_deviation_are_those_of_exact_arithmetic(
    rows: list[list[float]], data: st.DataObject
) -> None:
    values = rows_with_some(rows)
    if values is None:
        return
    state = learned(Standardise(), *parts_of(values, data)).state()
    for column, mean, std in zip(values.T, state["mean"], state["std"], strict=True):
        numbers = [Fraction(number) for number in column[~column.isnan()].double().tolist()]
        exact = sum(numbers) / len(numbers)
        variance = float(sum((number - exact) ** 2 for number in numbers) / len(numbers))
        assert mean == float(exact)
        assert std == (variance**0.5 if variance > 0 else 1.0)


@pytest.mark.parametrize("make", NUMERIC)
@given(rows=ROWS, data=st.data())
def test_what_is_learned_does_not_depend_on_micro_batches(
    make: Callable[[], Any], rows: list[list[float]], data: st.DataObject
) -> None:
    values = rows_with_some(rows)
    if values is None:
        return
    whole, parted = learned(make(), values), learned(make(), *parts_of(values, data))
    assert whole.state() == parted.state()


@given(
    st.lists(st.lists(st.floats(-1e50, 1e50), min_size=2, max_size=2), min_size=2, max_size=20),
    st.randoms(),
)
def test_numbers_of_float64_far_from_zero_are_standardised_in_any_order(
    rows: list[list[float]], random: Any
) -> None:
    # Seconds since 1970, a little apart
    values = torch.tensor(rows, dtype=torch.float64) * 1e-45 + 1.7e9
    state = learned(Standardise(), values).state()
    order = list(range(len(rows)))
    random.shuffle(order)
    assert learned(Standardise(), *values[order].split(3)).state() == state
    for column, std in zip(values.T.tolist(), state["std"], strict=True):
        numbers = [Fraction(number) for number in column]
        exact = (
            float(
                sum((number - sum(numbers) / len(numbers)) ** 2 for number in numbers)
                / len(numbers)
            )
            ** 0.5
        )
        assert std == pytest.approx(exact if exact else 1.0, rel=1e-15)


@pytest.mark.parametrize("make", [*NUMERIC, lambda: Encode("features")])
def test_what_was_learned_is_restored_from_json_to_the_bit(make: Callable[[], Any]) -> None:
    texts = isinstance(make(), Encode)
    batch: Any = {"features": ["a", "ü", "", "b"] if texts else torch.from_numpy(table())}
    one = learned(make(), batch["features"])
    other = pickle.loads(pickle.dumps(make()))  # as a loader's worker gets it
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    found, expected = other(batch)["features"], one(batch)["features"]
    assert torch.equal(found.nan_to_num(-5), expected.nan_to_num(-5))


def test_each_channel_of_series_and_images_and_a_single_column_have_their_own_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((40, 3, 20), (40, 2, 5, 6)):
        values = (
            torch.randn(shape, generator=draw) * 3
            + torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2)) * 10
        )
        after = learned(Standardise(), values)({"features": values})["features"]
        axes = tuple(axis for axis in range(len(shape)) if axis != 1)
        assert after.mean(axes).tolist() == pytest.approx([0] * shape[1], abs=1e-6)
        assert after.std(axes, correction=0).tolist() == pytest.approx([1] * shape[1], rel=1e-6)
    counts = torch.tensor([1, 2, 3, 6])
    assert learned(Standardise("n"), counts, key="n")({"n": counts})["n"].tolist() == pytest.approx(
        [-1.0690, -0.5345, 0, 1.6036], abs=1e-4
    )
    series = torch.tensor([[[1.0, float("nan")], [float("nan"), 5.0]]])
    assert learned(Impute("mean"), series)({"features": series})["features"].tolist() == [
        [[1, 1], [5, 5]]
    ]


def test_a_channel_that_never_changes_is_not_divided() -> None:
    found = learned(Standardise(), torch.full((9, 1), 0.1))
    assert found({"features": torch.tensor([[0.1], [1.1]])})[
        "features"
    ].flatten().tolist() == pytest.approx([0, 1])
    assert (
        learned(Rescale(2, 3), torch.full((9, 1), 0.1))({"features": torch.tensor([[0.1]])})[
            "features"
        ].item()
        == 2
    )


def test_a_category_that_training_does_not_have_is_refused_or_another() -> None:
    encode = learned(Encode("c"), ["red", "blue"], key="c")
    with pytest.raises(
        DataError,
        match=(
            r"^c: 'green' is not one of the categories blue, red\. Add samples of it to the "
            r"training split, or set others"
        ),
    ):
        encode({"c": ["green"]})
    assert learned(Encode("c", others=True), ["red", "blue"], key="c")({"c": ["green", "red"]})[
        "c"
    ].tolist() == [2, 1]
    with pytest.raises(DataError, match=r"^Encode needs 'c' as text; samples have label"):
        Encode("c", optional=True).observe({"label": torch.zeros(1)})


def test_only_what_is_not_given_is_learned() -> None:
    assert [learns(one) for one in (Encode("c"), Impute("median"), Standardise(), Rescale())] == [
        True
    ] * 4
    assert [learns(one) for one in (Encode("c", ["a"]), Impute(0), Impute([1, 2]))] == [False] * 3


@pytest.mark.parametrize("make", NUMERIC)
def test_a_column_without_any_number_is_named(make: Callable[[], Any]) -> None:
    empty = torch.tensor([[1.0, float("nan")], [2.0, float("nan")]])
    with pytest.raises(
        DataError,
        match=(
            r"^channel or column 1 \(from 0\) of features: no values in the training split to "
            r"learn from"
        ),
    ):
        learned(make(), empty, empty)
    with pytest.raises(DataError, match=r"^features: no values in the training split"):
        make().finish()
    with pytest.raises(DataError, match=r"^features: a value is infinite or above 1e\+100"):
        make().observe({"features": torch.tensor([[float("inf")]])})
    with pytest.raises(
        DataError, match=r"^features: \(1, 3\) does not have the 2 channels or columns of "
    ):
        learned(make(), torch.zeros(4, 2))({"features": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescale(1, 1), r"^low, high: 1 and 1: low must be less than high"),
        (
            lambda: Impute("mode"),
            r"^value: 'mode' is neither a number nor one of mean, median, most_frequent",
        ),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_in_the_settings_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

"""Who writes what: everything once, and nobody much more than the others."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.checkpoint import layout
from harness.checkpoint.format import Spec
from harness.checkpoint.layout import Piece, Share, assign, divide, find_aliases, sources_of
from harness.ranks.rows import cut_rows

shapes = st.lists(st.integers(0, 40), max_size=3).map(
    lambda shape: (shape[0] * 97, *shape[1:]) if shape else ()
)
specs = st.builds(Spec, st.sampled_from(["F32", "BF16", "I64", "BOOL"]), shapes)
states = st.dictionaries(st.text("abc.", min_size=1, max_size=4), specs, max_size=12)
many_ranks = st.integers(1, 9)


def pieces(shares: list[Share], role: str) -> dict[str, list[tuple[int, int]]]:
    """For each tensor, the stretches of rows that shares hold, in order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for share in shares:
        for piece in share.pieces[role]:
            found.setdefault(piece.name, []).append(piece.rows or (0, piece.whole.num_rows))
    return {name: sorted(stretches) for name, stretches in found.items()}


def covers_once(stretches: list[tuple[int, int]], num_rows: int) -> bool:
    return [begin for begin, _ in stretches] == [
        0,
        *(end for _, end in stretches[:-1]),
    ] and stretches[-1][1] == num_rows


@given(states, states, many_ranks)
def test_every_row_is_in_exactly_one_share(
    model: dict[str, Spec], optimizer: dict[str, Spec], num_ranks: int
) -> None:
    original, layout.CUT_BYTES = layout.CUT_BYTES, 256
    try:
        shares = assign(model, optimizer, num_ranks)
    finally:
        layout.CUT_BYTES = original
    assert len(shares) == num_ranks
    for role, specs in (("model", model), ("optimizer", optimizer)):
        found = pieces(shares, role)
        assert found.keys() == specs.keys()
        assert all(covers_once(found[name], spec.num_rows) for name, spec in specs.items())
    assert all(piece.rows is None for share in shares for piece in share.pieces["model"])


@given(states, states, many_ranks)
def test_no_share_exceeds_the_mean_by_more_than_what_cannot_be_cut(
    model: dict[str, Spec], optimizer: dict[str, Spec], num_ranks: int
) -> None:
    original, layout.CUT_BYTES = layout.CUT_BYTES, 256
    try:
        shares = assign(model, optimizer, num_ranks)
    finally:
        layout.CUT_BYTES = original
    atoms = [spec.size_bytes for spec in model.values()]
    atoms += [
        spec.size_bytes // spec.num_rows if spec.size_bytes >= 256 else spec.size_bytes
        for spec in optimizer.values()
    ]
    mean = sum(spec.size_bytes for spec in [*model.values(), *optimizer.values()]) / num_ranks
    assert max(share.size_bytes for share in shares) <= mean + max(atoms, default=0)


@given(states, states, st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_rows_of_sharded_tensors_come_from_ranks_that_hold_them(
    model: dict[str, Spec],
    optimizer: dict[str, Spec],
    num_replicas: int,
    num_shards: int,
    whole_model: bool,
) -> None:
    num_ranks = num_replicas * num_shards
    held = {
        (role, name): cut_rows(
            spec.num_rows,
            (num_replicas, num_shards),
            (False, True),
            tuple(range(num_ranks)),
            num_ranks,
        )
        for role, specs in (("model", model), ("optimizer", optimizer))
        for name, spec in specs.items()
        if spec.size_bytes
    }
    original, layout.CUT_BYTES = layout.CUT_BYTES, 256
    try:
        shares = assign(model, optimizer, num_ranks, held, whole_model=whole_model)
    finally:
        layout.CUT_BYTES = original
    for role, specs in (("model", model), ("optimizer", optimizer)):
        found = pieces(shares, role)
        assert found.keys() == specs.keys()
        assert all(covers_once(found[name], spec.num_rows) for name, spec in specs.items())
    for writer, share in enumerate(shares):
        for role in ("model", "optimizer"):
            for piece in share.pieces[role]:
                if (role, piece.name) not in held:
                    continue
                rows = held[role, piece.name]
                sources = sources_of(piece, writer, rows)
                bounds = [(one.first, one.last) for one in sources]
                first, last = piece.rows or (0, piece.whole.num_rows)
                assert covers_once([(a - first, b - first) for a, b in bounds], last - first)
                assert all(
                    rows[one.rank][0] <= one.first < one.last <= rows[one.rank][1]
                    for one in sources
                )
                if role == "optimizer" or not whole_model:
                    assert {one.rank for one in sources} == {writer}
                else:
                    assert piece.rows is None


@given(states, states, many_ranks)
def test_the_shares_do_not_depend_on_the_order_of_names(
    model: dict[str, Spec], optimizer: dict[str, Spec], num_ranks: int
) -> None:
    assert assign(
        dict(reversed(model.items())), dict(reversed(optimizer.items())), num_ranks
    ) == assign(model, optimizer, num_ranks)


@given(st.integers(2, 64), st.integers(1, 30), st.integers(1, 200))
def test_the_shares_of_a_transformer_with_adam_are_balanced(
    num_ranks: int, num_layers: int, width: int
) -> None:
    width *= 16
    model = {"embed": Spec("BF16", (8 * width, width))}
    for layer in range(num_layers):
        shapes = {"attention": (3 * width, width), "mlp": (4 * width, width), "norm": (width,)}
        model |= {f"{layer}.{name}": Spec("BF16", shape) for name, shape in shapes.items()}
    optimizer = {
        f"{state}/{name}": Spec("F32", spec.shape)
        for name, spec in model.items()
        for state in ("exp_avg", "exp_avg_sq")
    }
    sizes = [share.size_bytes for share in assign(model, optimizer, num_ranks)]
    mean = sum(sizes) / num_ranks
    # What is small is not worth a cut
    forbids = max(spec.size_bytes for spec in model.values()) > mean or mean < 20 * layout.CUT_BYTES
    assert forbids or max(sizes) <= 1.05 * mean


@given(states, st.integers(1, 5))
def test_a_share_is_divided_into_parts_of_about_the_same_size(
    state: dict[str, Spec], count: int
) -> None:
    whole = [Piece(name, spec) for name, spec in state.items()]
    parts = divide(whole, count)
    assert sorted(piece.key for part in parts for piece in part) == sorted(state)
    assert all(parts)
    assert len(parts) <= count
    sizes = [sum(piece.spec.size_bytes for piece in part) for part in parts]
    assert max(sizes, default=0) <= sum(sizes) / count + max(
        (spec.size_bytes for spec in state.values()), default=0
    )


def test_tied_weights_and_only_they_are_aliases() -> None:
    weight, other = torch.zeros(4, 3), torch.zeros(4, 3)
    tensors = {
        "a": weight,
        "b": other,
        "c": weight.detach(),
        "part": weight[:2],
        "turned": weight.t(),
        "empty": weight[:0],
        "empty2": weight[:0],
    }
    assert find_aliases(tensors) == {"c": "a"}

"""Our files against the safetensors library, both ways."""

from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor

from harness.checkpoint.format import Spec, bytes_of, known_dtype, placement_of, spec_of
from harness.errors import CheckpointError
from tests.checkpoint.examples import assert_same

DTYPES = [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
DTYPES += [
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
]
DTYPES += [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any dtype and shape, empty ones and scalars too; any bits that the dtype allows."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    return (
        torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)
        if raw
        else torch.empty(shape, dtype=dtype)
    )


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)


def written(tensors: dict[str, Tensor]) -> bytes:
    placement = placement_of({name: spec_of(tensor, name) for name, tensor in tensors.items()})
    data = bytearray(placement.size_bytes)
    data[: len(placement.head)] = placement.head
    for name, tensor in tensors.items():
        data[placement.begins[name] : placement.begins[name] + tensor.nbytes] = bytes_of(
            tensor.contiguous()
        )
    return bytes(data)


@given(st.dictionaries(names, tensors(), max_size=6))
def test_safetensors_reads_what_we_write(state: dict[str, Tensor]) -> None:
    with NamedTemporaryFile() as file:
        file.write(written(state))
        file.flush()
        with safe_open(file.name, "pt") as opened:
            # No mapping
            assert_same({name: opened.get_tensor(name) for name in opened.keys()}, state)  # noqa: SIM118 - see above


@given(st.dictionaries(names, tensors(), min_size=1, max_size=6))
def test_safetensors_lays_the_same_tensors_out_in_as_many_bytes(state: dict[str, Tensor]) -> None:
    ours, theirs = (
        written(state),
        save_bytes({name: tensor.clone() for name, tensor in state.items()}, {"format": "pt"}),
    )
    assert len(ours) - int.from_bytes(ours[:8], "little") == len(theirs) - int.from_bytes(
        theirs[:8], "little"
    )


@given(
    st.dictionaries(names, tensors(), max_size=6).flatmap(
        lambda state: st.tuples(st.just(state), st.permutations(list(state)))
    )
)
def test_equal_tensors_give_equal_bytes_in_whatever_order_they_come(
    pair: tuple[dict[str, Tensor], list[str]],
) -> None:
    state, order = pair
    assert written({name: state[name] for name in order}) == written(state)


@given(st.dictionaries(names, tensors(), min_size=1, max_size=6))
def test_every_tensor_is_aligned(state: dict[str, Tensor]) -> None:
    placement = placement_of({name: spec_of(tensor, name) for name, tensor in state.items()})
    assert all(
        placement.begins[name] % tensor.dtype.itemsize == 0 for name, tensor in state.items()
    )


def test_safe_open_reads_a_slice_and_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(written({"a": torch.arange(10.0)}))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("a")[3:5].tolist() == [3.0, 4.0]


UNFIT = [
    3,
    [1.0],
    torch.zeros(2, device="meta"),
    torch.eye(2).to_sparse(),
    torch.zeros(2, dtype=torch.complex128),
]


@pytest.mark.parametrize("thing", UNFIT, ids=["int", "list", "meta", "sparse", "complex128"])
def test_what_safetensors_cannot_hold_is_refused_by_name(thing: object) -> None:
    with pytest.raises(CheckpointError, match=r"^model layer\.weight: "):
        spec_of(thing, "model layer.weight")


def test_a_spec_counts_rows_and_bytes() -> None:
    assert Spec("F32", (4, 3)).size_bytes == 48
    assert Spec("F32", (4, 3)).rows(2) == Spec("F32", (2, 3))
    assert Spec("BF16", ()).num_rows == 1
    assert known_dtype("F8_E4M3")
    assert not known_dtype("F4")

"""Norms of many gradients are torch's own, to the bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.training.norms import Norms


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 1200), st.integers(1, 24)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_norms_are_those_of_torch(sizes: list[tuple[int, int]], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    norms = Norms()
    for _ in range(2):  # the second time with other gradients of as many parameters
        shapes = [size for size, count in sizes for _ in range(count)]
        order = torch.randperm(len(shapes), generator=draw).tolist()
        gradients = [
            torch.randn(2 * shapes[index], generator=draw)[:: 1 + index % 2][: shapes[index]]
            * 10.0 ** float(torch.randint(-30, 18, (), generator=draw))
            for index in order
        ]
        if seed % 5 == 0:
            gradients[0][0] = [torch.inf, torch.nan][seed % 2]
        expected = torch.stack(torch._foreach_norm(gradients))
        found = norms.of(gradients)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_matrices_in_any_layout_and_gradients_of_another_kind() -> None:
    torch.manual_seed(1)
    norms = Norms()
    matrices = [torch.randn(5, 7) for _ in range(9)] + [torch.randn(7, 5).T for _ in range(9)]
    for gradients in (matrices, [one.double() for one in matrices], matrices[:3]):
        assert torch.equal(norms.of(gradients), torch.stack(torch._foreach_norm(gradients)))

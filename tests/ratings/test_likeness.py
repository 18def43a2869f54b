"""Kernels over items: a table and what is computed are the same thing."""

import pytest
import torch

from palate.ratings.likeness import ContentKernels, KernelTable, Likeness

ITEMS = 12


@pytest.fixture(scope="module")
def computed() -> ContentKernels:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(ITEMS, dim, generator=generator, dtype=torch.float64) for dim in (3, 5)]
    units = [each / each.norm(dim=1, keepdim=True) for each in vectors]
    units[1][4] = 0  # an item of which this is not known
    return ContentKernels(tuple(units))


def test_a_table_of_what_is_computed_answers_the_same(computed: ContentKernels) -> None:
    everything = torch.arange(ITEMS)
    table = KernelTable(computed.between(everything, everything))
    assert (table.num_items, table.num_kernels) == (computed.num_items, computed.num_kernels) == (ITEMS, 5)
    left, right = torch.tensor([[0, 4, 7], [11, 2, 2]]), torch.tensor([[1, 4], [2, 9]])
    likenesses: tuple[Likeness, Likeness] = (table, computed)
    for ask in (
        lambda kernels: kernels.between(left[0], right[1]),
        lambda kernels: kernels.among(left, right),
        lambda kernels: kernels.own(left),
    ):
        found = [ask(kernels) for kernels in likenesses]
        torch.testing.assert_close(found[0], found[1])


def test_a_pair_is_like_what_its_cosines_say(computed: ContentKernels) -> None:
    first, second = ((each[3] @ each[8]).item() for each in computed.vectors)
    found = computed.between(torch.tensor([3]), torch.tensor([8]))[0, 0]
    expected = [first, 2.718281828 ** ((first - 1) / 0.3), second, 2.718281828 ** ((second - 1) / 0.3), first * second]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_every_kernel_is_a_covariance(computed: ContentKernels) -> None:
    everything = torch.arange(ITEMS)
    for kernel in computed.between(everything, everything).unbind(-1):
        assert torch.linalg.eigvalsh(kernel).min() > -1e-9

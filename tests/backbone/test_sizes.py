"""Sizes: the ladder of parameters that their names promise."""

from itertools import pairwise

import pytest

from palate.backbone.plan_memory import count_parameters
from palate.backbone.sizes import SIZES, find_size
from palate.errors import ConfigError

PROMISED = {"small": 1e7, "base": 1e8, "large": 1e9, "xl": 1e10}


@pytest.mark.parametrize(("name", "promised"), PROMISED.items())
def test_a_size_has_the_parameters_of_its_name(name: str, promised: float) -> None:
    assert count_parameters(SIZES[name], 1000).sequence == pytest.approx(promised, rel=0.06)


def test_tiny_has_at_most_a_million() -> None:
    assert 5e5 < count_parameters(SIZES["tiny"], 1000).sequence <= 1e6


def test_items_do_not_change_the_sequence_side() -> None:
    small, large = (count_parameters(SIZES["tiny"], number) for number in (10, 10**8))
    assert small.sequence == large.sequence
    assert large.item_table == 10**8 * SIZES["tiny"].dim
    assert large.item_bias == 10**8


def test_sizes_grow_and_heads_do_not_shrink() -> None:
    for less, more in pairwise(SIZES.values()):
        assert less.dim < more.dim
        assert less.num_layers < more.num_layers
        assert less.dim // less.num_heads <= more.dim // more.num_heads


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*tiny, small"):
        find_size("huge")

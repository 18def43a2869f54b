"""Ids and indices."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.vocabulary import Vocabulary
from palate.errors import DataError

SHOP = Vocabulary(("85123A", "85123B", "71053"))


def test_index_is_the_position() -> None:
    found = SHOP.index(["71053", "85123A", "71053"])
    assert found.dtype == np.int64
    assert found.tolist() == [2, 0, 2]
    assert SHOP.index([]).tolist() == []
    assert (SHOP.get("85123B"), SHOP.get("x"), len(SHOP), "71053" in SHOP, "x" in SHOP) == (
        1,
        None,
        3,
        True,
        False,
    )


def test_an_unknown_id_is_named_with_its_neighbours() -> None:
    with pytest.raises(DataError, match=r"^unknown id '85123C' .*nearest known: '85123[AB]', '85123[AB]'$"):
        SHOP.index(["71053", "85123C"])
    with pytest.raises(DataError, match=r"no known id is similar"):
        SHOP.index(["Q"])


def test_the_search_for_neighbours_stays_quick() -> None:
    large = Vocabulary(tuple(f"item-{number:07d}" for number in range(200_000)))
    start = time.perf_counter()
    with pytest.raises(DataError):
        large.index(["item-x"])
    assert time.perf_counter() - start < 2


@given(st.lists(st.text(), unique=True))
def test_json_round_trip(ids: list[str]) -> None:
    vocabulary = Vocabulary(tuple(ids))
    back = Vocabulary.from_json(vocabulary.to_json())
    assert back == vocabulary
    assert back.index(ids).tolist() == list(range(len(ids)))


@pytest.mark.parametrize("text", ["{", '{"a": 0}', "[1]", '["a", "a"]'])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^vocabulary: "):
        Vocabulary.from_json(text)

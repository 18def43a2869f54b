"""Ranking beside the obvious way: score every item, sort, take."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.data.episodes import History
from palate.errors import ConfigError
from palate.meta.head import Items, scoring_rows, search_rows
from palate.recommend.ranking import Evidence, rank_all, rank_by_index, sample_histories
from palate.recommend.retrieval import RetrievalConfig, build_index

NUM = 30
GENERATOR = torch.Generator().manual_seed(0)
ITEMS = Items(*(torch.randn(*shape, generator=GENERATOR) for shape in ((NUM, 4), (NUM, 3), (NUM,), (NUM,))))
ROWS = scoring_rows(ITEMS)
INDEX = build_index(search_rows(ITEMS).numpy(), RetrievalConfig(kind="exact"))


def fast(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"state": 4, "delta": 4, "prior": 4}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return {**weights, "popularity": torch.tensor(0.5)}


def evidence_of(seed: int) -> Evidence:
    """Some items that the person's events say something of."""
    rng = np.random.default_rng(seed)
    named = np.sort(rng.choice(NUM, seed % 9, replace=False))
    return named, rng.normal(0, 3, len(named)).astype(np.float32)


def by_hand(weights: dict[str, torch.Tensor], evidence: Evidence, allowed: set[int], k: int) -> list[int]:
    scores, added = [], dict(zip(*(part.tolist() for part in evidence), strict=True))
    for item in allowed:
        features, vector, bias, popularity = (column[item] for column in ITEMS)
        in_context = vector @ weights["state"][:3] + bias * weights["state"][3]
        value = in_context + features @ (weights["delta"] + weights["prior"]) + popularity * weights["popularity"]
        scores.append((-float(value) - added.get(item, 0.0), item))
    return [item for _, item in sorted(scores)[:k]]


@given(
    st.integers(0, 50), st.integers(1, 40), st.sets(st.integers(0, NUM - 1)), st.none() | st.sets(st.integers(0, 29))
)
def test_the_best_that_may_be_listed(seed: int, k: int, excluded: set[int], allowed: set[int] | None) -> None:
    mask = None if allowed is None else np.isin(np.arange(NUM), list(allowed))
    weights, left = fast(seed), (set(range(NUM)) if allowed is None else allowed) - excluded
    named = np.array(sorted(excluded), np.int64)
    evidence = evidence_of(seed)
    places, scores = rank_all(ROWS, weights, k, evidence=evidence, allowed=mask, excluded=named)
    assert places.tolist() == by_hand(weights, evidence, left, k)
    assert (np.diff(scores) <= 0).all()
    found, values = rank_by_index(INDEX, weights, k, evidence=evidence, allowed=mask, excluded=named)
    assert found.tolist() == places.tolist()
    np.testing.assert_allclose(values, scores, atol=1e-5)


def test_scores_of_one_list_are_not_those_of_the_next() -> None:
    none, first = (
        np.zeros(0, np.int64),
        rank_all(ROWS, fast(1), 5, evidence=evidence_of(5), allowed=None, excluded=np.arange(9)),
    )
    rank_all(ROWS, fast(1), 5, evidence=evidence_of(5), allowed=None, excluded=none)
    again = rank_all(ROWS, fast(1), 5, evidence=evidence_of(5), allowed=None, excluded=np.arange(9))
    np.testing.assert_array_equal(first[1], again[1])
    with pytest.raises(ConfigError):
        rank_all(ROWS, fast(1), 0, evidence=evidence_of(5), allowed=None, excluded=none)


def test_every_other_sample_has_few_events() -> None:
    histories = [History(np.arange(20), np.arange(20.0), np.zeros(0, np.int64)) for _ in range(100)]
    sample = sample_histories(histories, 50)
    assert [place for place, _ in sample] == list(range(0, 100, 2))
    assert [len(history.items) for _, history in sample[1::2]] == [20] * 25
    assert [len(history.items) for _, history in sample[0:18:2]] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert sample_histories([], 50) == []

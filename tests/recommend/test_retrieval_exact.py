"""The exact scan against the obvious one: the bound loses nothing, and is tight."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.metrics import NO_ITEM, top_k
from palate.recommend.retrieval import RetrievalConfig, build_index, exact
from palate.recommend.retrieval.exact import ExactScan


def scan(
    vectors: np.ndarray, biases: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The answer as anyone would write it: all scores, and `top_k` of the allowed ones."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64) + biases).astype(np.float32)
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    ranked = top_k(scores[None], k)[0]
    return ranked, np.where(ranked == NO_ITEM, np.float32(-np.inf), scores[ranked])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(1, 2500),
    width=st.integers(1, 70),
    k=st.integers(1, 60),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
    levels=st.sampled_from([0, 2, 40]),
    share=st.sampled_from([None, 0.1, 0.7]),
)
def test_the_exact_scan_loses_nothing(
    seed: int, num_items: int, width: int, k: int, spread: float, scale: float, levels: int, share: float | None
) -> None:
    """Also where norms differ by orders of magnitude, where rounding makes ties, and where filters leave few."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num_items, width)) * rng.lognormal(0, spread, (num_items, 1))
    biases, query = rng.normal(size=num_items), rng.normal(size=width) * scale
    if levels:
        vectors, biases, query = (np.rint(levels * part / np.abs(part).max()) for part in (vectors, biases, query))
    vectors, biases, query = (part.astype(np.float32) for part in (vectors * scale, biases * scale, query))
    allowed = None if share is None else rng.random(num_items) < share
    items, scores = build_index(vectors, RetrievalConfig(kind="exact"), biases=biases).search(
        query[None], k, allowed=allowed
    )
    best, values = scan(vectors, biases, query, k, allowed)
    np.testing.assert_array_equal(items[0], best)
    np.testing.assert_array_equal(scores[0], values)


def test_the_exact_list_is_that_of_a_plain_float32_scan() -> None:
    """Whole numbers are exact in float32 in any order, and tie often; elsewhere only the last bit may differ."""
    rng = np.random.default_rng(3)
    vectors, queries = (rng.integers(-9, 10, size).astype(np.float32) for size in ((5000, 16), (20, 16)))
    found = build_index(vectors).search(queries, 30)
    np.testing.assert_array_equal(found.items, top_k(queries @ vectors.T, 30))
    vectors, queries = (rng.normal(size=size).astype(np.float32) for size in ((5000, 16), (20, 16)))
    np.testing.assert_array_equal(build_index(vectors).search(queries, 30).items, top_k(queries @ vectors.T, 30))


def test_the_exact_scan_names_few_candidates() -> None:
    """The bound must be tight enough that ranking again costs nothing; a bound of infinity would pass all above."""
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(size, 64)).astype(np.float32) for size in (20_000, 10))
    engine = ExactScan(vectors, np.zeros(20_000, np.float32))
    assert np.mean([len(engine.candidates(query, 10, 1, None)) for query in queries]) < 60


def test_without_exact_integer_products_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, biases, queries = (rng.normal(size=size).astype(np.float32) for size in ((3000, 12), 3000, (60, 12)))
    expected = build_index(vectors, biases=biases).search(queries, 10)
    right = torch._int_mm
    exact._integers_are_exact.cache_clear()
    with monkeypatch.context() as patch:  # a processor that saturates
        patch.setattr(torch, "_int_mm", lambda rows, query: right(rows, query).clamp(-32_768, 32_767))
        found = build_index(vectors, biases=biases).search(queries, 10)
        assert not exact._integers_are_exact()
    exact._integers_are_exact.cache_clear()
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)

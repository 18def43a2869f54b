"""Ranking metrics against hand-computed answers and against slow loops; top-k against a full stable sort."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palate.errors import ConfigError, DataError, NumericalError
from palate.metrics import (
    NO_ITEM,
    RANKING_METRICS,
    average_precision_at_k,
    coverage_at_k,
    graded_ndcg_at_k,
    hit_rate_at_k,
    hit_rate_of_ranks,
    mae,
    matched_average_precision_at_k,
    matched_precision_at_k,
    mrr_at_k,
    ndcg_at_k,
    ndcg_of_ranks,
    precision_at_k,
    recall_at_k,
    rmse,
    target_ranks,
    top_k,
)

# Two people, six items. The first one's hits are at places 2 and 3 of 4, one relevant item is missed;
# the second one's list has an empty place and no hit.
RANKED = np.array([[4, 0, 2, 1], [5, 3, NO_ITEM, 0]])
RELEVANT = np.array([[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 0]], dtype=bool)


def test_known_answers() -> None:
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    gained = 1 / math.log2(3) + 1 / math.log2(4)
    np.testing.assert_allclose(precision_at_k(RANKED, RELEVANT, 4), [2 / 4, 0])
    np.testing.assert_allclose(recall_at_k(RANKED, RELEVANT, 4), [2 / 3, 0])
    np.testing.assert_allclose(hit_rate_at_k(RANKED, RELEVANT, 4), [1, 0])
    np.testing.assert_allclose(ndcg_at_k(RANKED, RELEVANT, 4), [gained / best, 0])
    np.testing.assert_allclose(mrr_at_k(RANKED, RELEVANT, 4), [1 / 2, 0])
    np.testing.assert_allclose(average_precision_at_k(RANKED, RELEVANT, 4), [(1 / 2 + 2 / 3) / 3, 0])


def test_known_answers_at_a_shorter_cut_off() -> None:
    best = 1 + 1 / math.log2(3)
    np.testing.assert_allclose(precision_at_k(RANKED, RELEVANT, 2), [1 / 2, 0])
    np.testing.assert_allclose(recall_at_k(RANKED, RELEVANT, 2), [1 / 3, 0])
    np.testing.assert_allclose(ndcg_at_k(RANKED, RELEVANT, 2), [1 / math.log2(3) / best, 0])
    np.testing.assert_allclose(average_precision_at_k(RANKED, RELEVANT, 2), [(1 / 2) / 2, 0])
    np.testing.assert_allclose(mrr_at_k(RANKED, RELEVANT, 1), [0, 0])


def test_an_empty_place_is_a_miss_even_where_the_last_item_is_relevant() -> None:
    relevant = np.array([[False, True]])
    assert hit_rate_at_k(np.array([[NO_ITEM, 0]]), relevant).tolist() == [0.0]
    assert mrr_at_k(np.array([[NO_ITEM, 1]]), relevant).tolist() == [0.5]


def test_errors_of_ratings() -> None:
    predicted, actual = np.array([1.0, 2.0, 5.0]), np.array([2, 2, 1])
    assert mae(predicted, actual) == pytest.approx(5 / 3)
    assert rmse(predicted, actual) == pytest.approx(math.sqrt(17 / 3))
    with pytest.raises(DataError, match="no event"):
        mae(np.zeros(0), np.zeros(0))
    with pytest.raises(NumericalError, match="event 1 "):
        rmse(np.array([1.0, np.nan]), np.array([1.0, 1.0]))


def test_unsigned_ratings_do_not_wrap_around() -> None:
    assert mae(np.array([1], dtype=np.uint8), np.array([3], dtype=np.uint8)) == 2.0


def test_coverage_counts_each_listed_item_once() -> None:
    assert coverage_at_k(np.array([[0, 1], [1, NO_ITEM]]), 8) == 2 / 8
    assert coverage_at_k(np.array([[0, 1], [0, NO_ITEM]]), 8, k=1) == 1 / 8
    with pytest.raises(DataError, match="catalogue has 0"):
        coverage_at_k(np.array([[NO_ITEM]]), 0)


@pytest.mark.parametrize("metric", RANKING_METRICS.values(), ids=RANKING_METRICS.keys())
class TestEveryRankingMetric:
    def test_perfect_list_scores_one(self, metric) -> None:
        assert metric(np.array([[2, 0]]), np.array([[True, False, True]])).tolist() == [1.0]

    def test_no_hit_scores_zero(self, metric) -> None:
        assert metric(np.array([[1, NO_ITEM]]), np.array([[True, False, True]])).tolist() == [0.0]

    def test_default_cut_off_is_the_whole_list(self, metric) -> None:
        np.testing.assert_array_equal(metric(RANKED, RELEVANT), metric(RANKED, RELEVANT, 4))
        np.testing.assert_array_equal(metric(RANKED[:, :2], RELEVANT), metric(RANKED, RELEVANT, 2))

    def test_refuses_what_would_score_wrongly(self, metric) -> None:
        relevant = RELEVANT.copy()
        relevant[1] = False
        with pytest.raises(DataError, match=r"user row 1 has no relevant item \(1 such rows of 2\)"):
            metric(RANKED, relevant, 4)
        with pytest.raises(DataError, match="user row 0 lists an item twice"):
            metric(np.array([[4, 4, 0, 1], [5, 3, NO_ITEM, NO_ITEM]]), RELEVANT, 4)
        with pytest.raises(DataError, match=r"user row 1 lists an item outside 0\.\.5"):
            metric(np.array([[4], [6]]), RELEVANT, 1)
        with pytest.raises(DataError, match=r"user row 0 lists an item outside 0\.\.5"):
            metric(np.array([[-2], [3]]), RELEVANT, 1)
        with pytest.raises(ConfigError, match="the lists have 4 places"):
            metric(RANKED, RELEVANT, 5)
        with pytest.raises(ConfigError, match="cut-off is 0"):
            metric(RANKED, RELEVANT, 0)


def slow_metrics(ranked: list[int], relevant: set[int], k: int) -> dict[str, float]:
    """Every ranking metric of one person, written out place by place."""
    hits = [item in relevant for item in ranked[:k]]
    gain = sum(1 / math.log2(place + 1) for place, hit in enumerate(hits, 1) if hit)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    first = next((place for place, hit in enumerate(hits, 1) if hit), None)
    precisions = [sum(hits[:place]) / place for place, hit in enumerate(hits, 1) if hit]
    return {
        "precision": sum(hits) / k,
        "recall": sum(hits) / len(relevant),
        "hit_rate": float(any(hits)),
        "ndcg": gain / ideal,
        "mrr": 1 / first if first else 0.0,
        "average_precision": sum(precisions) / min(k, len(relevant)),
    }


@given(seed=st.integers(0, 2**32 - 1), num_items=st.integers(1, 12), k=st.integers(1, 12))
def test_vectorised_metrics_equal_the_slow_ones(seed: int, num_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    relevant = rng.random((3, num_items)) < 0.4
    relevant[:, rng.integers(num_items)] = True
    ranked = top_k(np.where(rng.random((3, num_items)) < 0.2, -np.inf, rng.random((3, num_items))), k)
    slow = [
        slow_metrics(row.tolist(), set(np.flatnonzero(rel).tolist()), k)
        for row, rel in zip(ranked, relevant, strict=True)
    ]
    for name, metric in RANKING_METRICS.items():
        np.testing.assert_allclose(metric(ranked, relevant, k), [row[name] for row in slow], err_msg=name)


def slow_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    lists = np.full((len(scores), k), NO_ITEM)
    for user, row in enumerate(scores):
        order = sorted((-score, item) for item, score in enumerate(row.tolist()) if score > -math.inf)
        for place, (_, item) in enumerate(order[:k]):
            lists[user, place] = item
    return lists


@given(
    # Few distinct values, so that most rows tie at the last place.
    scores=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf]),
    ),
    k=st.integers(1, 11),
)
def test_top_k_equals_a_full_sort(scores: np.ndarray, k: int) -> None:
    np.testing.assert_array_equal(top_k(scores, k), slow_top_k(scores, k))


def test_top_k_on_a_wide_catalogue_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, (40, 700)).astype(np.float64)
    np.testing.assert_array_equal(top_k(scores, 20), slow_top_k(scores, 20))


def test_top_k_leaves_its_input_alone() -> None:
    scores = np.array([[1.0, 3.0, 2.0]])
    top_k(scores, 2)
    assert scores.tolist() == [[1.0, 3.0, 2.0]]


def test_top_k_refuses_nan_and_names_the_row() -> None:
    with pytest.raises(NumericalError, match="user row 1 holds NaN"):
        top_k(np.array([[0.0, 1.0], [np.nan, 1.0], [np.nan, np.nan]]), 1)
    with pytest.raises(ConfigError, match="cut-off is 0"):
        top_k(np.zeros((1, 2)), 0)


def matched_by_hand(scores: np.ndarray, values: np.ndarray, k: int) -> tuple[float, float]:
    """Lists, one item after the other, as the few-shot studies' code goes about it."""
    free = sorted(values.tolist(), reverse=True)[:k]
    hits, total = 0, 0.0
    listed = sorted(range(len(scores)), key=lambda item: -scores[item])[:k]
    for place, item in enumerate(listed, start=1):
        if values[item] in free:
            free.remove(values[item])
            hits += 1
            total += hits / place
    return hits / k, total / k


@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-3, 3), unique=True),
    st.integers(1, 8),
    st.integers(0, 2**31),
)
def test_matched_metrics_equal_the_loop(scores: np.ndarray, k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(1, 6, len(scores)).astype(np.float64)
    precision, average = matched_by_hand(scores, values, k)
    assert matched_precision_at_k(scores, values, k) == pytest.approx(precision)
    assert matched_average_precision_at_k(scores, values, k) == pytest.approx(average)


def test_graded_answers_by_hand() -> None:
    values = np.array([5.0, 3.0, 1.0, 4.0])
    scores = np.array([0.1, 0.9, 0.8, 0.2])  # listed: 3, 1, 4, 5
    gains = 2**values - 1
    dcg = 7 + 1 / math.log2(3) + 15 / math.log2(4)
    ideal = 31 + 15 / math.log2(3) + 7 / math.log2(4)
    assert graded_ndcg_at_k(scores, gains, 3) == pytest.approx(dcg / ideal)
    assert graded_ndcg_at_k(values, gains, 3) == pytest.approx(1.0)
    assert graded_ndcg_at_k(scores, np.zeros(4), 3) == 0.0
    # Of the three highest, 5 4 3, the list 3 1 4 finds two: at places 1 and 3.
    assert matched_precision_at_k(scores, values, 3) == pytest.approx(2 / 3)
    assert matched_average_precision_at_k(scores, values, 3) == pytest.approx((1 / 1 + 2 / 3) / 3)
    # A listed 0 matches one of the zeros among the highest, as in the code of those studies.
    assert matched_precision_at_k(np.array([1.0, 0.5, 0.2]), np.array([0.0, 1.0, 0.0]), 2) == 1.0


@pytest.mark.parametrize("metric", [graded_ndcg_at_k, matched_precision_at_k, matched_average_precision_at_k])
def test_one_list_that_cannot_be_judged_is_refused(metric: Callable[..., float]) -> None:
    with pytest.raises(NumericalError, match="a score is NaN"):
        metric(np.array([0.0, np.nan]), np.ones(2), 2)
    with pytest.raises(DataError, match="no item to rank"):
        metric(np.zeros(0), np.zeros(0), 2)
    with pytest.raises(ConfigError):
        metric(np.zeros(2), np.zeros(2), 0)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12))
def test_metrics_of_ranks_equal_those_of_lists_without_ties(seed: int, num_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(num_items, dtype=np.float64), (4, 1)), axis=1)
    targets = rng.integers(0, num_items, 4)
    removed = rng.random((4, num_items)) < 0.3
    removed[np.arange(4), targets] = False
    relevant = np.arange(num_items) == targets[:, None]
    for taken_out in (None, removed):
        ranked = top_k(scores if taken_out is None else np.where(taken_out, -np.inf, scores), k)
        ranks = target_ranks(scores, targets, taken_out)
        assert hit_rate_of_ranks(ranks, k).tolist() == hit_rate_at_k(ranked, relevant).tolist()
        np.testing.assert_allclose(ndcg_of_ranks(ranks, k), ndcg_at_k(ranked, relevant))


def test_ties_stand_above_the_target() -> None:
    scores = np.array([[1.0, 2.0, 1.0, 1.0], [-np.inf, -np.inf, 0.0, -np.inf]])
    targets = np.array([0, 1])
    assert target_ranks(scores, targets).tolist() == [3, 3]
    # The removed item leaves the list; a target that is marked itself stays in.
    removed = np.array([[True, True, False, True], [True, True, False, False]])
    assert target_ranks(scores, targets, removed).tolist() == [1, 2]


def test_target_ranks_refuse_what_cannot_be_ranked() -> None:
    scores = np.zeros((2, 3))
    with pytest.raises(DataError, match=r"user row 1 asks for item 3; expected 0..2"):
        target_ranks(scores, np.array([0, 3]))
    with pytest.raises(DataError, match="user row 0 asks for item -1"):
        target_ranks(scores, np.array([-1, 0]))
    scores[1, 2] = np.nan
    with pytest.raises(NumericalError, match="user row 1 holds NaN"):
        target_ranks(scores, np.array([0, 0]))
    with pytest.raises(ConfigError, match="cut-off is 0"):
        ndcg_of_ranks(np.array([0]), 0)
    with pytest.raises(ConfigError, match="cut-off is 0"):
        hit_rate_of_ranks(np.array([0]), 0)

"""Re-ranking by maximal marginal relevance, against the definition written out in loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import ConfigError, NumericalError
from palate.meta.head import metric
from palate.metrics import NO_ITEM, top_k
from palate.recommend import Recommender
from palate.recommend.diversity import diversify

seeds = st.integers(0, 10_000)


def world(seed: int, num_items: int = 24, num_features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_items, num_features))
    return rng.normal(size=num_items), rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_definition(scores: np.ndarray, directions: np.ndarray, k: int, diversity: float) -> list[int]:
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    picked: list[int] = [int(scores.argmax())]
    while len(picked) < min(k, len(scores)):
        rest = [item for item in range(len(scores)) if item not in picked]
        marginal = [
            (1 - diversity) * relevance[item]
            - diversity * max(float(directions[item] @ directions[other]) for other in picked)
            for item in rest
        ]
        picked.append(rest[int(np.argmax(marginal))])
    return picked


@given(seed=seeds, k=st.integers(1, 30), diversity=st.floats(0.01, 1.0))
def test_it_is_the_definition(seed: int, k: int, diversity: float) -> None:
    scores, directions = world(seed)
    listed = diversify(scores[None], directions, k, diversity)[0]
    assert listed[listed != NO_ITEM].tolist() == by_definition(scores, directions, k, diversity)
    assert len(listed) == k


@given(seed=seeds, k=st.integers(1, 30))
def test_no_diversity_is_the_best_list(seed: int, k: int) -> None:
    scores, directions = world(seed)
    np.testing.assert_array_equal(diversify(scores[None], directions, k, 0.0), top_k(scores[None], k))


@given(seed=seeds, diversity=st.floats(0.0, 1.0))
def test_the_order_of_the_candidates_says_nothing(seed: int, diversity: float) -> None:
    scores, directions = world(seed)
    order = np.random.default_rng(seed + 1).permutation(len(scores))
    listed = diversify(scores[None], directions, 8, diversity)[0]
    shuffled = diversify(scores[order][None], directions[order], 8, diversity)[0]
    assert order[shuffled].tolist() == listed.tolist()


@given(seed=seeds, short=st.integers(1, 10), diversity=st.floats(0.0, 1.0))
def test_a_shorter_list_is_the_start_of_a_longer_one(seed: int, short: int, diversity: float) -> None:
    scores, directions = world(seed)
    longer = diversify(scores[None], directions, 20, diversity)[0]
    np.testing.assert_array_equal(diversify(scores[None], directions, short, diversity)[0], longer[:short])


@given(seed=seeds, diversity=st.floats(0.0, 1.0), num_lists=st.integers(2, 12))
def test_lists_together_are_lists_alone(seed: int, diversity: float, num_lists: int) -> None:
    """Few lists and many take different ways to the cosines."""
    _, directions = world(seed)
    scores = np.random.default_rng(seed).normal(size=(num_lists, len(directions)))
    together = diversify(scores, directions, 5, diversity)
    for row in range(num_lists):
        np.testing.assert_array_equal(diversify(scores[row : row + 1], directions, 5, diversity)[0], together[row])


def test_what_may_not_be_listed_never_is() -> None:
    scores, directions = world(3)
    scores[5:] = -np.inf
    some, none = diversify(np.stack([scores, np.full_like(scores, -np.inf)]), directions, 8, 0.5)
    assert sorted(some[:5].tolist()) == [0, 1, 2, 3, 4]
    assert (some[5:] == NO_ITEM).all()
    assert (none == NO_ITEM).all()


def test_twins_do_not_stand_side_by_side() -> None:
    scores = np.array([[1.0, 0.99, 0.5, 0.0]])
    directions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert diversify(scores, directions, 2, 0.5).tolist() == [[0, 2]]
    assert diversify(scores, directions, 2, 0.0).tolist() == [[0, 1]]


def test_full_diversity_breaks_ties_by_score() -> None:
    scores = np.array([[0.0, 3.0, 1.0, 2.0]])
    directions = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert diversify(scores, directions, 3, 1.0).tolist() == [[1, 3, 2]]


def test_equal_scores_are_told_apart_by_likeness_alone() -> None:
    directions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert diversify(np.zeros((1, 3)), directions, 3, 0.5).tolist() == [[0, 2, 1]]


def test_items_of_a_list_grow_less_alike_with_diversity(model: Recommender) -> None:
    weighted = model.items.features * metric(model.params)
    directions = torch.nn.functional.normalize(weighted, dim=1).numpy()
    similarity = []
    for diversity in (0.0, 0.2, 0.5, 1.0):
        alike = []
        for taste in ("garden", "kitchen", "toys"):
            history = model.adapt([f"{taste}-{place:02}" for place in range(4)]).history
            scores = model.score_many([history], model.encode_profile(None)[None])
            listed = diversify(scores, directions, 10, diversity)[0]
            cosine = directions[listed] @ directions[listed].T
            alike.append((cosine.sum() - 10) / 90)
        similarity.append(float(np.mean(alike)))
    assert similarity == sorted(similarity, reverse=True)
    assert similarity[-1] < 0.7 * similarity[0]


def test_mistakes_are_named() -> None:
    scores, directions = world(1)
    for diversity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="diversity"):
            diversify(scores[None], directions, 5, diversity)
    with pytest.raises(ConfigError):
        diversify(scores[None], directions, 0, 0.5)
    scores[2] = np.nan
    with pytest.raises(NumericalError):
        diversify(scores[None], directions, 5, 0.5)

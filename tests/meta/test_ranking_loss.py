"""The outer loss against loops over pairs, and what seen items may do in it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from palate.meta.objectives import ranking_loss, smooth_ndcg_loss
from palate.metrics import ndcg_at_k


def by_loops(scores: np.ndarray, relevant: np.ndarray, allowed: np.ndarray) -> float:
    """Rank the items that may be listed, then go through every pair of the best 100."""
    ranked = [item for item in np.argsort(-scores) if allowed[item]][:100]
    places = min(10, int(allowed.sum()))
    ideal = sum(1 / math.log2(place + 2) for place in range(places))
    discount = [1 / math.log2(place + 2) if place < 10 else 0.0 for place in range(len(ranked))]
    total = 0.0
    for place, item in enumerate(ranked):
        for other_place, other in enumerate(ranked):
            if relevant[item] and not relevant[other]:
                swap = abs(discount[place] - discount[other_place]) / ideal
                total += swap * math.log1p(math.exp(-(scores[item] - scores[other])))
    return total


def loss_of(scores: list[float], relevant: list[int], seen: tuple[int, ...] = ()) -> float:
    hits, allowed = torch.zeros(len(scores)), torch.ones(len(scores))
    hits[relevant] = 1.0
    allowed[list(seen)] = 0.0
    return ranking_loss(torch.tensor(scores), hits, allowed).item()


def test_known_answer() -> None:
    # Three items; the relevant one is second. Discounts: 1, 1/log2(3), 1/2.
    second, third = 1 / math.log2(3), 0.5
    ideal = 1 + second + third
    above = (1 - second) / ideal * math.log1p(math.exp(1.0))  # the item above it has a score higher by 1
    below = (second - third) / ideal * math.log1p(math.exp(-2.0))  # the one below, lower by 2
    assert loss_of([3.0, 2.0, 0.0], [1]) == pytest.approx(above + below, rel=1e-6)


def test_nothing_to_list_costs_nothing() -> None:
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([1.0, 0.0]), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(scores.grad, torch.zeros(2))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 130))
def test_it_equals_the_loops(seed: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num_items)
    relevant = rng.random(num_items) < 0.2
    allowed = relevant | (rng.random(num_items) < 0.8)
    loss = ranking_loss(*(torch.from_numpy(part.astype(np.float64)) for part in (scores, relevant, allowed)))
    assert loss.item() == pytest.approx(by_loops(scores, relevant, allowed), rel=1e-5, abs=1e-9)


def test_a_seen_item_competes_with_nobody_however_high_its_score() -> None:
    base = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5]
    assert loss_of([9.0, *base], [4], seen=(0,)) == pytest.approx(loss_of(base, [3]), rel=1e-6)
    assert loss_of([9.0, *base], [4]) > loss_of(base, [3])


def test_a_seen_item_gets_no_gradient() -> None:
    scores = torch.tensor([5.0, 1.0, 0.5, 0.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0.0, 0, 1, 0]), torch.tensor([0.0, 1, 1, 1]))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0] == 0
    assert gradient[2] < 0 < gradient[1]


def test_lifting_a_relevant_item_lowers_the_loss() -> None:
    values = [loss_of([2.0, 1.0, 0.0, score], [3]) for score in (-1.0, 0.5, 1.5, 2.5, 6.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.02


@pytest.mark.parametrize("relevant", [[], [0, 1, 2, 3]])
def test_without_a_pair_there_is_nothing_to_learn(relevant: list[int]) -> None:
    assert loss_of([0.3, 0.2, 0.1, 0.0], relevant) == 0


def test_items_beyond_the_hundredth_do_not_count() -> None:
    scores = -torch.arange(150.0)

    def loss(place: int) -> Tensor:
        hits = torch.zeros(150)
        hits[place] = 1.0
        return ranking_loss(scores, hits, torch.ones(150))

    assert loss(100) == 0
    assert loss(99) > 0


class TestSmoothNdcg:
    def test_it_is_ndcg_where_scores_are_far_apart(self) -> None:
        """Twelve items, each far above the next on the scale of the spread's tenth: ranks are whole numbers."""
        scores = -torch.arange(12.0, dtype=torch.float64)
        for relevant in ([0], [3], [0, 4, 7], [1, 2, 9]):
            hits = torch.zeros(12, dtype=torch.float64)
            hits[relevant] = 1.0
            wanted = ndcg_at_k(np.arange(10)[None], hits.bool()[None].numpy())[0]
            assert smooth_ndcg_loss(scores, hits, torch.ones_like(scores)).item() == pytest.approx(1 - wanted, abs=0.12)

    @settings(max_examples=60)
    @given(st.integers(0, 10_000), st.integers(2, 130))
    def test_it_equals_the_loops(self, seed: int, num_items: int) -> None:
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=num_items)
        relevant = rng.random(num_items) < 0.2
        allowed = relevant | (rng.random(num_items) < 0.8)
        assume(allowed.any())
        ranked = [item for item in np.argsort(-scores) if allowed[item]][:100]
        spread = math.sqrt(np.var(scores[ranked]) + 1e-12)
        gain = 0.0
        for item in ranked:
            ahead = [
                1 / (1 + math.exp(-(scores[other] - scores[item]) / (0.1 * spread)))
                for other in ranked
                if other != item
            ]
            rank = 1 + sum(ahead)
            if relevant[item]:
                gain += 1 / (1 + math.exp(-2 * (10.5 - rank))) / math.log2(1 + rank)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(10, int(relevant.sum())))) or 1.0
        loss = smooth_ndcg_loss(*(torch.from_numpy(part.astype(np.float64)) for part in (scores, relevant, allowed)))
        assert loss.item() == pytest.approx(1 - gain / ideal, abs=1e-6)

    def test_people_with_many_later_items_weigh_no_more_than_others(self) -> None:
        scores = -torch.arange(60.0)
        few, many = torch.zeros(60), torch.zeros(60)
        few[:3], many[:40] = 1.0, 1.0
        # Both lists are as good as can be: ranks are smooth, so that something is left, of no more for the many.
        losses = [smooth_ndcg_loss(scores, hits, torch.ones(60)).item() for hits in (few, many)]
        assert 0 <= losses[1] <= losses[0] < 0.25

    def test_the_unit_of_the_scores_has_no_part(self) -> None:
        scores, hits = torch.randn(50, dtype=torch.float64), (torch.rand(50) < 0.2).double()
        one, other = (smooth_ndcg_loss(scores * unit, hits, torch.ones(50).double()) for unit in (1.0, 40.0))
        assert one.item() == pytest.approx(other.item(), abs=1e-6)

    def test_a_seen_item_gets_no_gradient(self) -> None:
        scores = torch.tensor([5.0, 1.0, 0.95, 0.0], requires_grad=True)
        loss = smooth_ndcg_loss(scores, torch.tensor([0.0, 0, 1, 0]), torch.tensor([0.0, 1, 1, 1]))
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient[0] == 0
        assert gradient[2] < 0 < gradient[1]

    def test_nothing_to_list_has_no_gradient(self) -> None:
        scores = torch.tensor([1.0, 2.0], requires_grad=True)
        smooth_ndcg_loss(scores, torch.tensor([1.0, 0.0]), torch.zeros(2)).backward()
        assert torch.equal(scores.grad, torch.zeros(2))

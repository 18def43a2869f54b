"""The outer loss against loops over pairs, and what seen items may do in it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palate.meta.objectives import ranking_loss


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

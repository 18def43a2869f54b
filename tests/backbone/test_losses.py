"""Target weights by hand; both losses against loops over rows, targets and items."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palate.backbone.losses import full_softmax_loss, future_weights, sampled_softmax_loss

NUM_ITEMS, WIDTH, DIM = 7, 5, 4


class Case(NamedTuple):
    """What a loss reads; rows are (person, position) pairs."""

    states: Tensor
    vectors: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor
    seen: Tensor


def case(places: list[int], lengths: list[int], decay: float, seed: int = 0) -> Case:
    """Distinct items for each row, item 0 as padding, what is before the position seen."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.zeros(len(places), WIDTH, dtype=torch.int64)
    seen = torch.zeros(len(places), NUM_ITEMS, dtype=torch.bool)
    for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
        targets[row, :length] = torch.randperm(NUM_ITEMS, generator=generator)[:length]
        seen[row, targets[row, :place]] = True
    return Case(
        torch.randn(len(places), DIM, generator=generator),
        torch.randn(NUM_ITEMS, DIM, generator=generator),
        torch.randn(NUM_ITEMS, generator=generator),
        targets,
        future_weights(torch.tensor(places), torch.tensor(lengths), WIDTH, decay),
        seen,
    )


class TestFutureWeights:
    def test_known_answer(self) -> None:
        weights = future_weights(torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3]), 4, 0.5)
        expected = [[4 / 7, 2 / 7, 1 / 7, 0], [0, 2 / 3, 1 / 3, 0], [0, 0, 1, 0]]
        torch.testing.assert_close(weights, torch.tensor(expected))

    def test_decay_0_is_the_next_item_alone(self) -> None:
        weights = future_weights(torch.tensor([0, 1]), torch.tensor([3, 3]), 3, 0.0)
        assert weights.tolist() == [[1, 0, 0], [0, 1, 0]]
        nearly = future_weights(torch.tensor([0, 1]), torch.tensor([3, 3]), 3, 1e-6)
        torch.testing.assert_close(nearly, weights, atol=2e-6, rtol=0)

    def test_decay_1_is_uniform_over_the_future(self) -> None:
        weights = future_weights(torch.tensor([0, 2]), torch.tensor([4, 4]), 5, 1.0)
        assert weights.tolist() == [[0.25, 0.25, 0.25, 0.25, 0], [0, 0, 0.5, 0.5, 0]]

    @given(st.integers(0, 11), st.integers(1, 12), st.integers(0, 8), st.floats(0, 1))
    def test_a_row_sums_to_one_over_its_own_future(self, place: int, ahead: int, padding: int, decay: float) -> None:
        length = place + ahead
        (weights,) = future_weights(torch.tensor([place]), torch.tensor([length]), length + padding, decay)
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        assert (weights[:place] == 0).all()
        assert (weights[length:] == 0).all()
        assert (weights.diff()[place : length - 1] <= 0).all()


def log_softmax_of(logit: float, others: list[float]) -> float:
    return logit - math.log(sum(math.exp(other) for other in others))


def logits_of(row: int, given: Case) -> list[float]:
    return [
        float(sum(given.states[row, d] * given.vectors[item, d] for d in range(DIM)) + given.bias[item])
        for item in range(NUM_ITEMS)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_full_loss_equals_a_loop(decay: float) -> None:
    given = case([0, 1, 2, 3], [5, 4, 3, 4], decay)
    total = 0.0
    for row in range(4):
        logits = logits_of(row, given)
        open_items = [logits[item] for item in range(NUM_ITEMS) if not given.seen[row, item]]
        for event in range(WIDTH):
            weight = given.weights[row, event].item()
            if weight > 0:
                total -= weight * log_softmax_of(logits[int(given.targets[row, event])], open_items)
    assert full_softmax_loss(*given).item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_sampled_loss_equals_a_loop(decay: float) -> None:
    given = case([0, 1, 2, 3, 0], [5, 4, 3, 4, 2], decay, seed=1)
    negatives, log_rate = torch.tensor([0, 3, 3, 6, 1, 0]), torch.linspace(-2, 1, NUM_ITEMS)
    total = 0.0
    for row in range(5):
        logits = logits_of(row, given)
        future = [event for event in range(WIDTH) if given.weights[row, event] > 0]
        own = {int(given.targets[row, event]) for event in future}
        against = [
            logits[item] - log_rate[item].item()
            for item in negatives.tolist()
            if item not in own and not given.seen[row, item]
        ]
        for event in future:
            logit = logits[int(given.targets[row, event])]
            total -= given.weights[row, event].item() * log_softmax_of(logit, [logit, *against])
    assert sampled_softmax_loss(*given, negatives, log_rate).item() == pytest.approx(total / 5, rel=1e-5)


def test_with_every_item_once_the_sampled_loss_is_the_full_one() -> None:
    # One target a row: with more, the sampled loss leaves a row's other targets out of the denominator.
    given = case([0, 1, 2, 3], [5, 4, 3, 4], decay=0.0)
    sampled = sampled_softmax_loss(*given, torch.arange(NUM_ITEMS), torch.zeros(NUM_ITEMS))
    torch.testing.assert_close(sampled, full_softmax_loss(*given))


def test_a_target_never_counts_against_itself_where_padding_repeats_it() -> None:
    # Padding holds item 0, and so does the row's one target.
    states, vectors, bias = torch.randn(1, DIM), torch.randn(NUM_ITEMS, DIM), torch.zeros(NUM_ITEMS)
    targets, weights = torch.tensor([[0, 0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0, 0]])
    seen = torch.zeros(1, NUM_ITEMS, dtype=torch.bool)
    loss = sampled_softmax_loss(
        states, vectors, bias, targets, weights, seen, torch.tensor([0, 0]), torch.zeros(NUM_ITEMS)
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sampled", [False, True])
def test_what_a_row_has_seen_pulls_at_nothing(sampled: bool) -> None:
    given = case([2, 3], [4, 5], decay=0.5)
    vectors = given.vectors.clone().requires_grad_()
    more = (torch.arange(NUM_ITEMS), torch.zeros(NUM_ITEMS)) if sampled else ()
    loss = (sampled_softmax_loss if sampled else full_softmax_loss)(*given._replace(vectors=vectors), *more)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert torch.isfinite(gradient).all()
    for item in range(NUM_ITEMS):
        assert bool(gradient[item].abs().sum() > 0) == bool((~given.seen[:, item]).any())


def test_a_sample_of_seen_items_alone_costs_nothing_and_has_a_gradient() -> None:
    given = case([2, 2], [4, 4], decay=0.5)
    given = given._replace(seen=torch.ones(2, NUM_ITEMS, dtype=torch.bool))
    states = given.states.clone().requires_grad_()
    loss = sampled_softmax_loss(*given._replace(states=states), torch.arange(NUM_ITEMS), torch.zeros(NUM_ITEMS))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, states)
    assert torch.isfinite(gradient).all()


def test_the_sampled_gradient_points_where_the_full_one_does() -> None:
    given = case([0, 1, 2, 3], [5, 4, 3, 4], decay=0.0, seed=2)
    vectors = given.vectors.clone().requires_grad_()
    given = given._replace(vectors=vectors)
    (full,) = torch.autograd.grad(full_softmax_loss(*given), vectors)
    probability = torch.linspace(1, 4, NUM_ITEMS)
    probability = probability / probability.sum()
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros_like(full)
    for _ in range(200):
        negatives = torch.multinomial(probability, 64, replacement=True, generator=generator)
        loss = sampled_softmax_loss(*given, negatives, (probability * 64).log())
        mean += torch.autograd.grad(loss, vectors)[0] / 200
    cosine = (mean * full).sum() / (mean.norm() * full.norm())
    assert cosine > 0.995
    # Without the correction, the often drawn items are pushed away too hard.
    assert (mean.norm() / full.norm()).item() == pytest.approx(1, abs=0.1)

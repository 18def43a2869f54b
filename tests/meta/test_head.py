"""The shared head against its formula, term by term in numpy; the ridge in its primal form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.meta.head import Head, Items, Layout, Profile, Support, make_head
from palate.meta.learner import Params

NUM_ITEMS, NUM_FEATURES, DIM = 20, 4, 3


def head() -> Head:
    return make_head("ridge", NUM_FEATURES, 2)


def world() -> tuple[Params, Items, Profile]:
    torch.manual_seed(0)
    features, in_context = torch.randn(NUM_ITEMS, NUM_FEATURES), torch.randn(NUM_ITEMS, DIM + 1)
    items = Items(features, in_context[:, :DIM], in_context[:, DIM], torch.randn(NUM_ITEMS))
    layout = Layout(torch.zeros(NUM_FEATURES), torch.tensor([0.0, 1, 1, 0]), torch.zeros(NUM_FEATURES), 2)
    params = head().params(layout, items)
    for name in ("gates", "fixed.prior.bias", "fixed.prior.profile"):
        params[name] = torch.randn_like(params[name])
    return params, items, Profile(torch.randn(2), torch.randn(DIM))


def support_of(items: Items, chosen: list[int], state: Tensor) -> Support:
    mask = torch.tensor([1.0] * len(chosen) + [0.0])
    return Support(items.features[[*chosen, 0]] * mask[:, None], mask.clone(), mask, state, torch.tensor(0.0))


def mean_of(params: Params, profile: Profile) -> np.ndarray:
    mean = params["fixed.prior.bias"].numpy() + profile.features.numpy() @ params["fixed.prior.profile"].numpy()
    return mean * np.array([0, 1, 1, 0])


def ridge_by_hand(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Primal form, every precision 1, noise variance 2."""
    system = rows.T @ rows / 2 + np.eye(NUM_FEATURES)
    return np.linalg.solve(system, rows.T @ (1 - rows @ mean) / 2)


@pytest.mark.parametrize("returning", [0.0, 1.0])
@pytest.mark.parametrize("chosen", [[], [3], [3, 8, 1]])
def test_the_score_is_the_sum_of_its_four_terms(chosen: list[int], returning: float) -> None:
    params, items, profile = world()
    state = torch.randn(DIM) if chosen else profile.state
    support = support_of(items, chosen, state)._replace(returning=torch.tensor(returning))
    adapted = head().adapt(params, head().prior(params, profile), support)
    scores = head().score(params, adapted, items)

    features, vectors = items.features.numpy(), items.vectors.numpy()
    n = len(chosen)
    inputs = np.array([1, float(n == 0), math.log(1 + n), 1 / (1 + n), returning])
    trust_state, trust_delta = np.log1p(np.exp(params["gates"].numpy() @ inputs))
    in_context = vectors @ state.numpy() + items.bias.numpy()
    moved = features @ ridge_by_hand(features[chosen], mean_of(params, profile))
    mean = mean_of(params, profile)
    expected = (
        trust_state * in_context / in_context.std()
        + (trust_delta * moved / moved.std() if chosen else 0.0)
        + features @ mean  # on the features that have one
        + params["popularity"].item() * items.popularity.numpy()
    )
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_prior_is_the_list_before_any_event() -> None:
    params, items, profile = world()
    prior = head().prior(params, profile)
    nothing = head().adapt(params, prior, support_of(items, [], profile.state))
    assert all(torch.equal(nothing[part], value) for part, value in prior.items())


def test_what_a_support_says_in_closed_form_depends_on_nothing_that_is_learned() -> None:
    params, items, profile = world()
    learned = {name: value for name, value in params.items() if not name.startswith("fixed.")}
    assert learned.keys() == {"gates", "popularity", "scorers.weight"}
    other = {**params, **{name: torch.randn_like(value) for name, value in learned.items()}}
    support = support_of(items, [3, 8, 1], torch.randn(DIM))
    one, same = (head().terms(some, head().prior(some, profile), support) for some in (params, other))
    assert all(torch.equal(one[place], same[place]) for place in range(len(one) - 1))
    adapted, weighed = head().adapt(other, head().prior(other, profile), support), head().weigh(other, one)
    assert adapted.keys() == weighed.keys()
    assert all(torch.equal(value, weighed[name]) for name, value in adapted.items())


def test_a_learner_that_is_to_learn_more_than_its_noise_learns_it() -> None:
    _, items, _ = world()
    layout = Layout(torch.zeros(NUM_FEATURES), torch.ones(NUM_FEATURES), torch.zeros(NUM_FEATURES), 2)
    assert make_head("ridge", NUM_FEATURES, 2, {"penalty": "l1"}).closed
    assert not make_head("maml", NUM_FEATURES, 2).closed
    more = make_head("ridge", NUM_FEATURES, 2, {"penalty": "learned"})
    assert not more.closed
    assert {"learner.log_precision", "learner.log_noise", "prior.bias"} <= more.params(layout, items).keys()


def test_a_learner_starts_by_trusting_the_same_at_every_size() -> None:
    _, items, profile = world()
    layout = Layout(torch.zeros(NUM_FEATURES), torch.ones(NUM_FEATURES), torch.zeros(NUM_FEATURES), 2)
    start, again = head().params(layout, items), head().params(layout, items)
    assert all(torch.equal(value, again[name]) for name, value in start.items())
    fast = [
        head().adapt(start, head().prior(start, profile), support_of(items, list(range(size)), profile.state))
        for size in (0, 1, 5)
    ]
    for later in fast[1:]:
        assert torch.equal(later["state"], fast[0]["state"])
    assert torch.equal(fast[0]["prior"], torch.zeros(NUM_FEATURES))

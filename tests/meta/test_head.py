"""The shared head against its formula, term by term in numpy; the inner step is a stand-in that is easy to follow."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.meta.learner import Items, Layout, LearnerEntry, Params, Profile, Support, init_params, make_learner

NUM_ITEMS, NUM_FEATURES, DIM = 20, 4, 3


def init(layout: Layout) -> Params:
    return {"half": torch.tensor(0.5)}


def inner(params: Params, mean: Tensor, support: Support) -> Tensor:
    """Half of the sum of the chosen items' features."""
    return params["half"] * (support.features * support.mask[:, None]).sum(0)


def metric(params: Params) -> Tensor:
    return torch.ones(NUM_FEATURES)


ENTRY = LearnerEntry(init, inner, metric)


def world() -> tuple[Params, Items, Profile]:
    torch.manual_seed(0)
    items = Items(torch.randn(NUM_ITEMS, NUM_FEATURES), torch.randn(NUM_ITEMS, DIM + 1), torch.randn(NUM_ITEMS))
    layout = Layout(torch.zeros(NUM_FEATURES), torch.tensor([0.0, 1, 1, 0]), torch.zeros(NUM_FEATURES), 2)
    params = init_params(ENTRY, layout, items)
    for name in ("gates", "prior.bias", "prior.profile"):
        params[name] = torch.randn_like(params[name])
    return params, items, Profile(torch.randn(2), torch.randn(DIM))


def support_of(items: Items, chosen: list[int], state: Tensor) -> Support:
    mask = torch.tensor([1.0] * len(chosen) + [0.0])
    return Support(items.features[[*chosen, 0]] * mask[:, None], mask.clone(), mask, state)


@pytest.mark.parametrize("chosen", [[], [3], [3, 8, 1]])
def test_the_score_is_the_sum_of_its_four_terms(chosen: list[int]) -> None:
    params, items, profile = world()
    state = torch.randn(DIM) if chosen else profile.state
    learner = make_learner(ENTRY)
    adapted = learner.adapt(params, learner.prior(params, profile), support_of(items, chosen, state))
    scores = learner.score(params, adapted, items)

    features, vectors = items.features.numpy(), items.vectors.numpy()
    n = len(chosen)
    inputs = np.array([1, float(n == 0), math.log(1 + n), 1 / (1 + n)])
    trust_state, trust_delta = np.log1p(np.exp(params["gates"].numpy() @ inputs))
    in_context = vectors[:, :DIM] @ state.numpy() + vectors[:, DIM]  # the item's bias is part of it
    moved = features @ (0.5 * features[chosen].sum(0))
    mean = params["prior.bias"].numpy() + profile.features.numpy() @ params["prior.profile"].numpy()
    expected = (
        trust_state * in_context / in_context.std()
        + (trust_delta * moved / moved.std() if chosen else 0.0)
        + features[:, 1:3] @ mean[1:3]  # a prior mean is learned on the features that have one
        + params["popularity"].item() * items.popularity.numpy()
    )
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_prior_is_the_list_before_any_event() -> None:
    params, items, profile = world()
    learner = make_learner(ENTRY)
    prior = learner.prior(params, profile)
    nothing = learner.adapt(params, prior, support_of(items, [], profile.state))
    assert all(torch.equal(nothing[part], value) for part, value in prior.items())


def test_a_learner_starts_by_trusting_the_same_at_every_size() -> None:
    _, items, profile = world()
    layout = Layout(torch.zeros(NUM_FEATURES), torch.ones(NUM_FEATURES), torch.zeros(NUM_FEATURES), 2)
    start, again = init_params(ENTRY, layout, items), init_params(ENTRY, layout, items)
    assert all(torch.equal(value, again[name]) for name, value in start.items())
    learner = make_learner(ENTRY)
    fast = [
        learner.adapt(start, learner.prior(start, profile), support_of(items, list(range(size)), profile.state))
        for size in (0, 1, 5)
    ]
    for later in fast[1:]:
        assert torch.equal(later["state"], fast[0]["state"])
    assert torch.equal(fast[0]["prior"], torch.zeros(NUM_FEATURES))

"""The contract of every meta-learner, and the head that all of them adapt.

A learner is a named tuple of pure functions, written for ONE person and vectorised by the caller with
`torch.func.vmap`. Fast weights are a small dict of tensors; together they are one query vector, so scoring stays an
inner product:

    score(i) = g_s(n) · ⟨state, vector_i⟩/σ_s + g_e(n) · ⟨Δ, feature_i⟩/σ_e + ⟨w₀, feature_i⟩ + p · popularity_i

where state is what the backbone read in context, w₀ the prior mean (from nothing and from the profile), Δ = w − w₀ what
the learner moved after the support, σ the spread of each term over the catalogue, and g gates that are learned as
functions of the support size n: how far to trust in-context reading and adapted weights after n events. Popularity has
one weight p whatever n is: how fast it loses against taste changes from season to season, and a learned decline did
not carry over.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Params = dict[str, Tensor]
"""Shared weights by name. Names under "fixed." describe the catalogue and are not trained."""
Fast = dict[str, Tensor]
"""One person's weights by name: state, delta, prior, popularity."""

DISCOUNTED_PLACES = 10
NUM_GATE_INPUTS = 4
_GATE_START = {"state": 0.9, "evidence": 0.45}
_POPULARITY_START = 0.5
_EPSILON = 1e-6


class Profile(NamedTuple):
    """What is known of a person before any event."""

    features: Float[Tensor, "profile"]
    state: Float[Tensor, "dim"]
    """The backbone's state after the profile alone."""


class Support(NamedTuple):
    """The events that a person is adapted to, padded to any width."""

    features: Float[Tensor, "event feature"]
    target: Float[Tensor, "event"]
    """+1 chosen, −1 refused."""
    mask: Float[Tensor, "event"]
    """1 for an event, 0 for padding."""
    state: Float[Tensor, "dim"]
    """The backbone's state after these events."""


class Items(NamedTuple):
    """What scoring reads of the candidates."""

    features: Float[Tensor, "item feature"]
    vectors: Float[Tensor, "item dim"]
    """Backbone vectors with the item bias as last column."""
    popularity: Float[Tensor, "item"]
    """Standardised log popularity."""


class Query(NamedTuple):
    """What a list after the support should have held."""

    items: Items
    relevant: Float[Tensor, "item"]
    """1 for the items chosen later, else 0."""
    allowed: Float[Tensor, "item"]
    """1 for the items that may be listed, 0 for those already seen."""


class Learner(NamedTuple):
    """Pure functions of one task; an empty support returns the prior."""

    prior: Callable[[Params, Profile], Fast]
    adapt: Callable[[Params, Fast, Support], Fast]
    score: Callable[[Params, Fast, Items], Float[Tensor, "item"]]
    loss: Callable[[Params, Profile, Support, Query], Float[Tensor, ""]]


class Layout(NamedTuple):
    """Sizes that a learner's parameters depend on."""

    precision: Float[Tensor, "feature"]
    """Where each feature's prior precision starts (log)."""
    has_prior: Float[Tensor, "feature"]
    """1 for the features whose axes mean the same in every fit, so that a prior mean can be learned on them."""
    tempered: Float[Tensor, "feature"]
    """1 for the features whose spectrum a learner may flatten as the support grows."""
    num_profile_features: int


class LearnerEntry(NamedTuple):
    """One line of the table: parameters to start from, and the inner step Δ(params, w₀, support)."""

    init: Callable[[Layout], Params]
    inner: Callable[[Params, Float[Tensor, "feature"], Support], Float[Tensor, "feature"]]
    metric: Callable[[Params], Float[Tensor, "feature"]]
    """How much each feature counts when two items are compared (the square root of the learner's kernel)."""


def init_params(entry: LearnerEntry, layout: Layout, items: Items) -> Params:
    """The head's and the learner's parameters before meta-training; deterministic."""
    num_features = len(layout.precision)
    gates = torch.zeros(len(_GATE_START), NUM_GATE_INPUTS)
    gates[:, 0] = torch.tensor([math.log(math.expm1(start)) for start in _GATE_START.values()])
    return {
        "gates": gates,
        "popularity": torch.tensor(_POPULARITY_START),
        "prior.bias": torch.zeros(num_features),
        "prior.profile": torch.zeros(layout.num_profile_features, num_features),
        "fixed.has_prior": layout.has_prior,
        "fixed.tempered": layout.tempered,
        **catalogue_statistics(items, layout.tempered),
        **entry.init(layout),
    }


def catalogue_statistics(items: Items, tempered: Float[Tensor, "feature"]) -> Params:
    """What the head knows of the catalogue: covariances, which put the terms on one scale, and the spectrum.

    The spectrum is the log of each tempered feature's mean square, relative to the mean one; 0 for all others.
    """
    power = items.features.square().mean(0)
    alive = (tempered > 0) & (power > 0)
    spectrum = torch.zeros_like(power)
    spectrum[alive] = (power[alive] / power[alive].mean()).log()
    return {
        "fixed.spectrum": spectrum,
        "fixed.vector_covariance": torch.cov(items.vectors.T, correction=0),
        "fixed.feature_covariance": torch.cov(items.features.T, correction=0),
    }


def make_learner(entry: LearnerEntry) -> Learner:
    """Put an inner step under the shared head."""

    def prior_mean(params: Params, profile: Profile) -> Tensor:
        return (params["prior.bias"] + profile.features @ params["prior.profile"]) * params["fixed.has_prior"]

    def compose(params: Params, state: Tensor, mean: Tensor, delta: Tensor, count: Tensor) -> Fast:
        gates = F.softplus(params["gates"] @ _gate_inputs(count))
        query = torch.cat([state, state.new_ones(1)])
        return {
            "state": gates[0] * query / _spread(query, params["fixed.vector_covariance"]),
            "delta": gates[1] * delta / _spread(delta, params["fixed.feature_covariance"]),
            "prior": mean,
            "popularity": params["popularity"],
        }

    def prior(params: Params, profile: Profile) -> Fast:
        mean = prior_mean(params, profile)
        return compose(params, profile.state, mean, torch.zeros_like(mean), mean.new_zeros(()))

    def adapt(params: Params, fast: Fast, support: Support) -> Fast:
        mean = fast["prior"]
        return compose(params, support.state, mean, entry.inner(params, mean, support), support.mask.sum())

    def score(params: Params, fast: Fast, items: Items) -> Tensor:
        return (
            items.vectors @ fast["state"]
            + items.features @ (fast["delta"] + fast["prior"])
            + items.popularity * fast["popularity"]
        )

    def loss(params: Params, profile: Profile, support: Support, query: Query) -> Tensor:
        fast = adapt(params, prior(params, profile), support)
        return ranking_loss(score(params, fast, query.items), query.relevant, query.allowed)

    return Learner(prior, adapt, score, loss)


def ranking_loss(
    scores: Float[Tensor, "item"], relevant: Float[Tensor, "item"], allowed: Float[Tensor, "item"]
) -> Float[Tensor, ""]:
    """LambdaLoss for NDCG@10 on the 100 best-scored items, with the two-sided pair weights of NDCG.

    Each pair of a relevant and an irrelevant item costs softplus(−(s_r − s_i)) times the NDCG that swapping their
    places would change (Burges, From RankNet to LambdaRank to LambdaMART, 2010, MSR-TR-2010-82; Wang et al., The
    LambdaLoss Framework, 2018, doi 10.1145/3269206.3271784).
    """
    depth = min(100, len(scores))
    best, places = scores.masked_fill(allowed == 0, -1e9).topk(depth)
    gains = relevant[places]
    rank = torch.arange(depth, device=scores.device)
    discount = torch.where(rank < DISCOUNTED_PLACES, 1 / torch.log2(rank + 2.0), 0.0)
    ideal = discount[:DISCOUNTED_PLACES].sum()
    swap = (discount[:, None] - discount[None, :]).abs() / ideal
    pairs = gains[:, None] * (1 - gains[None, :]) * swap
    return (pairs * F.softplus(best[None, :] - best[:, None])).sum()


def _gate_inputs(count: Float[Tensor, ""]) -> Float[Tensor, "input"]:
    """Support size as [1, n = 0, log(1 + n), 1/(1 + n)]."""
    return torch.stack([torch.ones_like(count), (count == 0).to(count), count.log1p(), 1 / (1 + count)])


def _spread(query: Float[Tensor, "feature"], covariance: Float[Tensor, "feature feature"]) -> Float[Tensor, ""]:
    """Standard deviation of ⟨query, item⟩ over the catalogue; positive, so that an all-zero query stays zero."""
    return (query @ covariance @ query + _EPSILON).sqrt()

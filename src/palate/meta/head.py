"""The recommender's head: what a person's fast weights are, whichever learner finds them.

Fast weights together are one query vector, so scoring stays an inner product:

    score(i) = g_s(n) · ⟨state, vector_i⟩/σ_s + g_e(n) · ⟨Δ, feature_i⟩/σ_e + ⟨w₀, feature_i⟩ + p · popularity_i

to which is added what item-item scorers say of the few items that go with the last events, ⟨c(n), evidence_i⟩ (see
`palate.scorers`). There state is what the backbone read in context, w₀ the prior mean (from nothing and from the
profile), Δ what the learner makes of the support on top of w₀, σ the spread of each term over the catalogue, and g and
c are gates and weights that are learned as functions of the support size n and of whether the list is for another
visit: how far to trust in-context reading, which goes on with the basket at hand, and adapted weights, which know the
person. Popularity has one weight p whatever n is: how fast it loses against taste changes from season to season, and a
learned decline did not carry over.

The learner adapts a linear model on scaled features. The scale of each is the square root of a precision, and depends
on the support size through the spectrum of the evidence, precision · spectrum^t(n) with t(n) = a + b·log(1 + n): after
few events the broad common directions are the best guess, after many they are known and the fine ones tell people
apart. Precisions, a, b, w₀ and the learner's own parameters are learned for learners that take steps; for one in closed
form they stay where they start, because on three data sets none of them gained anything there. Then Δ before its gate
depends on nothing that is learned, and is computed once (`Head.terms`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from palate.meta.learner import Events, Fast, Params
from palate.meta.model import linear_model
from palate.meta.objectives import smooth_ndcg_loss
from palate.meta.table import build, find_learner

NUM_GATE_INPUTS = 5
OBJECTIVE = "clicks"
"""What the learner fits to the support, a name in `palate.meta.OBJECTIVES`."""
_NUM_SCORER_INPUTS = 3
_GATE_START = {"state": 0.9, "evidence": 0.45}
_RETURN_START = {"state": -1.2, "evidence": 2.1}
"""Added before the softplus where the list is for another visit: the last basket says little of the next one."""
_POPULARITY_START = 0.5
_TEMPERING_START = (-0.3, 0.2)
EPSILON = 1e-6
"""Added to a variance before its root is taken."""
_NOISE = "log_noise"
"""All that a learner in closed form has of its own, unless its settings ask for more to be learned."""
_FIXED = "fixed."
"""Parameters that are not learned begin with it."""
_START = "start."
"""What the learner starts from, among the fast weights."""


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
    weight: Float[Tensor, "event"]
    """How much an event counts; 0 for padding."""
    state: Float[Tensor, "dim"]
    """The backbone's state after these events."""
    returning: Float[Tensor, ""]
    """1 where the list is for another visit than that of the last event, else 0."""


class Items(NamedTuple):
    """What scoring reads of the candidates."""

    features: Float[Tensor, "item feature"]
    vectors: Float[Tensor, "item dim"]
    """Of the backbone."""
    bias: Float[Tensor, "item"]
    """Of the backbone: what an item scores in every context."""
    popularity: Float[Tensor, "item"]
    """Standardised log popularity."""


class ScoringRows(NamedTuple):
    """Items laid out so that a person's scores are one product a term."""

    in_context: Float[Tensor, "item dim_and_one"]
    """Vectors with the bias as last column: what the state is multiplied with."""
    features: Float[Tensor, "item feature"]
    popularity: Float[Tensor, "item"]


class Terms(NamedTuple):
    """What a support says before gates and weights of the combination are known."""

    state: Float[Tensor, "dim_and_one"]
    """What the backbone read, with a one for the bias, over the spread of its scores."""
    delta: Float[Tensor, "feature"]
    """Δ, over the spread of its scores."""
    prior: Float[Tensor, "feature"]
    size: Float[Tensor, ""]
    """Events in the support."""
    returning: Float[Tensor, ""]
    start: Fast
    """What the learner starts from."""


class Query(NamedTuple):
    """What a list after the support should have held."""

    items: Items
    relevant: Float[Tensor, "item"]
    """1 for the items chosen later, else 0."""
    allowed: Float[Tensor, "item"]
    """1 for the items that may be listed, 0 for those already seen."""
    evidence: Float[Tensor, "item scorer_feature"]
    """What the item-item scorers say of each item, given the support."""


class Head(NamedTuple):
    """Pure functions of one person; an empty support returns the prior."""

    params: Callable[["Layout", Items], Params]
    """The head's and the learner's parameters before meta-training; deterministic."""
    prepare: Callable[[Params, Float[Tensor, "user profile"]], Params]
    """What the learner fits on the training people's profiles before meta-training."""
    begin: Callable[[Params, Float[Tensor, "profile"]], Fast]
    """What `adapt` reads of the prior; enough to adapt from, and not to score with."""
    prior: Callable[[Params, Profile], Fast]
    terms: Callable[[Params, Fast, Support], Terms]
    """Of a prior and a support; for a learner in closed form the same whatever is learned."""
    weigh: Callable[[Params, Terms], Fast]
    adapt: Callable[[Params, Fast, Support], Fast]
    """`weigh` of `terms`."""
    score: Callable[[Params, Fast, Items], Float[Tensor, "item"]]
    """Without the item-item scorers, whose weights are the fast weights "scorers"."""
    loss: Callable[[Fast, Query], Float[Tensor, ""]]
    closed: bool
    """Whether the learner is in closed form, with nothing of its own to learn: only the terms' weights are learned."""


class Layout(NamedTuple):
    """Sizes that a learner's parameters depend on."""

    precision: Float[Tensor, "feature"]
    """Where each feature's prior precision starts (log)."""
    has_prior: Float[Tensor, "feature"]
    """1 for the features whose axes mean the same in every fit, so that a prior mean can be learned on them."""
    tempered: Float[Tensor, "feature"]
    """1 for the features whose spectrum a learner may flatten as the support grows."""
    num_profile_features: int


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
        "fixed.vector_covariance": torch.cov(scoring_rows(items).in_context.T, correction=0),
        "fixed.feature_covariance": torch.cov(items.features.T, correction=0),
    }


def make_head(
    learner: str,
    num_features: int,
    num_profile: int,
    settings: Mapping[str, Any] | None = None,
    num_scorer_features: int = 0,
) -> Head:
    """Put a learner of the table, with its settings, under the head.

    Raises:
        ConfigError: an unknown learner or setting.
    """
    core = build(learner, linear_model(num_features), OBJECTIVE, num_profile=num_profile, **(settings or {}))
    entry, own_names = find_learner(learner), core.params.keys() - {"model.weight"}
    by_feature, closed = entry.by_feature, entry.posterior is not None and own_names <= {_NOISE}

    def named(name: str) -> str:
        return f"{_FIXED}{name}" if closed and not name.startswith(_FIXED) else name

    def shown(name: str) -> str:
        # The learner's own parameters among the head's; what is fixed for it stays fixed.
        return f"{_FIXED}learner.{name.removeprefix(_FIXED)}" if name.startswith(_FIXED) else named(f"learner.{name}")

    def params(layout: Layout, items: Items) -> Params:
        gates = torch.zeros(len(_GATE_START), NUM_GATE_INPUTS)
        gates[:, 0] = torch.tensor([_before_softplus(start) for start in _GATE_START.values()])
        gates[:, -1] = torch.tensor(list(_RETURN_START.values()))
        return {
            "gates": gates,
            "popularity": torch.tensor(_POPULARITY_START),
            "scorers.weight": torch.zeros(num_scorer_features, _NUM_SCORER_INPUTS),
            named("prior.bias"): torch.zeros(num_features),
            named("prior.profile"): torch.zeros(num_profile, num_features),
            named("head.log_precision"): layout.precision.clone(),
            named("head.tempering"): torch.tensor(_TEMPERING_START),
            "fixed.has_prior": layout.has_prior,
            "fixed.tempered": layout.tempered,
            **catalogue_statistics(items, layout.tempered),
            **{shown(name): value for name, value in core.params.items() if name != "model.weight"},
        }

    def core_params(params: Params) -> Params:
        own = {name: params[shown(name)] for name in core.params if name != "model.weight"}
        return {"model.weight": torch.zeros_like(learned_or_fixed(params, "head.log_precision")), **own}

    def prepare(params: Params, profiles: Tensor) -> Params:
        fitted = core.prepare(core_params(params), profiles, None)
        return {**params, **{shown(name): value for name, value in fitted.items() if name != "model.weight"}}

    def started(fast: Fast) -> Fast:
        return {name[len(_START) :]: value for name, value in fast.items() if name.startswith(_START)}

    def scale_of(params: Params, count: Tensor) -> Tensor:
        scale = prior_deviation(params, count)
        # NOTE: what such a learner learned about one feature is wrong where a new fit gives the feature another sense.
        return scale * params["fixed.has_prior"] if by_feature else scale

    def compose(
        params: Params, start: Fast, state: Tensor, mean: Tensor, moved: Tensor, count: Tensor, returning: Tensor
    ) -> Terms:
        query = torch.cat([state, state.new_ones(1)])
        delta = scale_of(params, count) * moved
        return Terms(
            query / _spread(query, params["fixed.vector_covariance"]),
            delta / _spread(delta, params["fixed.feature_covariance"]),
            mean,
            count,
            returning,
            start,
        )

    def weigh(params: Params, terms: Terms) -> Fast:
        told = gate_inputs(terms.size, terms.returning)
        gates = F.softplus(params["gates"] @ told)
        return {
            "state": gates[0] * terms.state,
            "delta": gates[1] * terms.delta,
            "prior": terms.prior,
            "popularity": params["popularity"],
            "scorers": scorer_weights(params, told),
            **{_START + name: value for name, value in terms.start.items()},
        }

    def begin(params: Params, profile: Tensor) -> Fast:
        mean = prior_mean(params, profile)
        start = core.prior(core_params(params), profile)
        return {"prior": mean, **{_START + name: value for name, value in start.items()}}

    def prior(params: Params, profile: Profile) -> Fast:
        fast = begin(params, profile.features)
        never, start = fast["prior"].new_zeros(()), started(fast)
        return weigh(params, compose(params, start, profile.state, fast["prior"], start["weight"], never, never))

    def terms(params: Params, fast: Fast, support: Support) -> Terms:
        count = (support.weight > 0).sum().to(support.weight)
        mean = fast["prior"]
        start = started(fast)
        rows = support.features * scale_of(params, count)
        inputs = torch.cat([rows, (support.features @ mean)[:, None]], 1)
        kind = torch.zeros_like(support.weight, dtype=torch.int64)
        moved = core.adapt(core_params(params), start, Events(inputs, support.target, support.weight, kind))
        return compose(params, start, support.state, mean, moved["weight"], count, support.returning)

    def adapt(params: Params, fast: Fast, support: Support) -> Fast:
        return weigh(params, terms(params, fast, support))

    def score(params: Params, fast: Fast, items: Items) -> Tensor:
        return score_rows(fast, scoring_rows(items))

    def loss(fast: Fast, query: Query) -> Tensor:
        scores = score_rows(fast, scoring_rows(query.items)) + query.evidence @ fast["scorers"]
        return smooth_ndcg_loss(scores, query.relevant, query.allowed)

    return Head(params, prepare, begin, prior, terms, weigh, adapt, score, loss, closed)


def learned_or_fixed(params: Params, name: str) -> Tensor:
    """A parameter that enters the adaptation: learned, or fixed for a learner in closed form."""
    fixed = params.get(f"{_FIXED}{name}")
    return params[name] if fixed is None else fixed


def own_parameters(params: Params) -> Params:
    """The learner's own parameters, by the names that it has for them."""
    return {
        name.removeprefix(_FIXED).removeprefix("learner."): value
        for name, value in params.items()
        if name.removeprefix(_FIXED).startswith("learner.")
    }


def prior_mean(params: Params, profile: Float[Tensor, "profile"]) -> Float[Tensor, "feature"]:
    """w₀ of someone with such a profile."""
    mean = learned_or_fixed(params, "prior.bias") + profile @ learned_or_fixed(params, "prior.profile")
    return mean * params["fixed.has_prior"]


def with_start(params: Params, evidence: float, popularity: float) -> Params:
    """The parameters with shares of the starting gate of adapted weights and of the starting weight of popularity."""
    gates = params["gates"].clone()
    gates[1, 0] = _before_softplus(evidence * _GATE_START["evidence"])
    return {**params, "gates": gates, "popularity": torch.tensor(popularity * _POPULARITY_START)}


def metric(params: Params) -> Float[Tensor, "feature"]:
    """How much each feature counts when two items are compared: the prior deviation of its weight, untempered."""
    return torch.exp(-0.5 * learned_or_fixed(params, "head.log_precision"))


def scorer_weights(params: Params, told: Float[Tensor, "input"]) -> Float[Tensor, "scorer_feature"]:
    """What each feature of the item-item scorers is worth, given what `gate_inputs` says.

    Nothing where the list is for another visit: what goes with the last basket was there already. Weights that were
    learned for it did harm to people held out.
    """
    constant, _, growing, falling, returning = told.unbind()
    return params["scorers.weight"] @ (torch.stack([constant, growing, falling]) * (1 - returning))


def scoring_rows(items: Items) -> ScoringRows:
    """Lay items out for `score_rows`; for a catalogue that is scored again and again this is worth keeping."""
    return ScoringRows(torch.cat([items.vectors, items.bias[:, None]], 1), items.features, items.popularity)


def score_rows(fast: Fast, rows: ScoringRows) -> Float[Tensor, "item"]:
    """Score items for one person."""
    return (
        rows.in_context @ fast["state"]
        + rows.features @ (fast["delta"] + fast["prior"])
        + rows.popularity * fast["popularity"]
    )


def score_parts(fast: Fast, rows: ScoringRows) -> dict[str, Float[Tensor, "item"]]:
    """The terms of `score_rows`, by what they come from; an item's are the same whichever others are asked for."""

    def term(columns: Tensor, name: str) -> Tensor:
        # Summed in double precision, so that where the rows lie in memory is not seen in the last digit.
        return (columns.double() @ fast[name].double()).float()

    return {
        "sequence": term(rows.in_context, "state"),
        "adapted": term(rows.features, "delta") + term(rows.features, "prior"),
        "popularity": rows.popularity * fast["popularity"],
    }


def search_rows(items: Items) -> Float[Tensor, "item width"]:
    """Items as rows whose inner product with `search_query` is their score."""
    return torch.cat([items.vectors, items.bias[:, None], items.features, items.popularity[:, None]], 1)


def search_query(fast: Fast) -> Float[Tensor, "width"]:
    """A person's fast weights as one vector: what an index of `search_rows` is asked."""
    return torch.cat([fast["state"], fast["delta"] + fast["prior"], fast["popularity"].reshape(1)])


def prior_deviation(params: Params, count: Float[Tensor, ""]) -> Float[Tensor, "feature"]:
    """Prior standard deviation of each weight before `count` events are explained."""
    constant, slope = learned_or_fixed(params, "head.tempering")
    return metric(params) * torch.exp(-0.5 * (constant + slope * count.log1p()) * params["fixed.spectrum"])


def _before_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def gate_inputs(count: Float[Tensor, ""], returning: Float[Tensor, ""]) -> Float[Tensor, "input"]:
    """Support size as [1, n = 0, log(1 + n), 1/(1 + n)], and whether the list is for another visit."""
    return torch.stack([torch.ones_like(count), (count == 0).to(count), count.log1p(), 1 / (1 + count), returning])


def _spread(query: Float[Tensor, "feature"], covariance: Float[Tensor, "feature feature"]) -> Float[Tensor, ""]:
    """Standard deviation of ⟨query, item⟩ over the catalogue; positive, so that an all-zero query stays zero."""
    return (query @ covariance @ query + EPSILON).sqrt()

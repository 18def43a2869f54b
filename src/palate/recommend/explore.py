"""Exploration: lists that also try items of which too little is known, with the probability of what they show.

The head gives an item i with features φ_i the score (see `palate.meta.head`)

    s_i(w) = rest_i + g(n) · ⟨w, φ_i⟩ / σ(w),   w = D u,   σ(w)² = wᵀ C w

where u is what the learner adapts, D = diag(prior deviation after n events), g the gate of the evidence and C the
covariance of features over the catalogue. A closed-form learner's u has a Gaussian posterior (`LearnerEntry.posterior`;
Bishop, Pattern Recognition and Machine Learning, 2006, eq. 3.50–3.53; for laplace the Gaussian at the mode, eq. 4.134,
whose events weigh what their loss is curved), computed by `palate.meta.online`, so with events X (rows √weight · D φ)
and noise variance σ²

    w ~ N(w̄, D (I − Xᵀ A X) D),   A = (X Xᵀ + σ² I)⁻¹

**One unit of w in units of the score.** The head divides by σ(w̄), which is right for a list but not for its
uncertainty: before the first event w̄ is 0, and after a few it is short only because little is known yet. What the
normaliser stands for is the spread that a person's weights have over the catalogue, and by the law of total variance
the posterior's mean of it is, for a calibrated prior, the prior's: E σ(w)² = E[w̄ᵀ C w̄] + tr(C · covariance) =
tr(C D²) = Σ_f C_ff D_f². So one unit of ⟨w, φ⟩ is worth

    κ(n) = g(n) / √(tr(C D²) + ε)       and       s_i ~ N(score_i, κ² φ_iᵀ D (I − Xᵀ A X) D φ_i)

jointly over the items. The noise spreads over the catalogue by at most g(n), as much as the whole evidence term does,
and by the share of it that the events leave unexplained: with g and D given, every event takes from it. The draws are
centred on the score that is served, so exploration without uncertainty is the list itself.

**Thompson sampling** (Thompson, 1933, doi 10.1093/biomet/25.3-4.285; Chapelle & Li, An Empirical Evaluation of
Thompson Sampling, 2011) draws R whole weight vectors from the posterior. Each draw ranks the candidates; one of the R
lists is picked uniformly and shown.

**Propensities.** Given the draws, item i is shown with probability p_i = (number of the R lists that hold i) / R,
exactly. The draws are then part of the context x in which the action was taken, and inverse propensity scoring is
unbiased conditionally on the context: E[1{i shown} r_i / p_i | x, draws] = r_i for every i with p_i > 0, hence also
on average over draws. What p_i does not do is estimate the marginal probability q_i over all draws, nor need it. One
condition is left, that of overlap: an item in none of the R lists has p_i = 0 and cannot be shown, so the estimate of
a policy that wants it lacks its reward; over draws that happens with probability (1 − q_i)^R.

**UCB** adds a multiple of the standard deviation (Auer, Using Confidence Bounds for Exploitation-Exploration
Trade-offs, 2002; LinUCB: Li et al., 2010, arXiv:1003.0146, eq. 5). It is deterministic: propensity 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64

from palate.errors import ConfigError, NumericalError
from palate.meta.head import EPSILON, OBJECTIVE, Support, gate_inputs, own_parameters, prior_deviation
from palate.meta.learner import Params, SupportRows
from palate.meta.objectives import find_objective
from palate.meta.online import Posterior, Prior
from palate.meta.table import LEARNERS, find_learner, read_settings
from palate.metrics import NO_ITEM, top_k


@dataclass(frozen=True)
class ExploreConfig:
    """How far a list departs from the best one."""

    strength: float = 1.0
    """In posterior standard deviations: of a draw (thompson), or added to the score (ucb). 0 explores nothing."""
    num_draws: int = 64
    """Lists that thompson draws to show one of them; no propensity above 0 is below one in so many."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(f"explore.strength is {self.strength}; expected a number of at least 0")
        if self.num_draws < 1:
            raise ConfigError(f"explore.num_draws is {self.num_draws}; it must be at least 1")


@dataclass(frozen=True, eq=False)
class Belief:
    """What is not known of one person: the posterior around their fast weights, in units of the score."""

    posterior: Posterior
    """Of departures from the fast weights, in the unit of the regression's target."""
    unit: float
    """κ: what one unit of the regression's target is worth in the score."""

    def draw(self, num_draws: int, rng: np.random.Generator) -> Float32[np.ndarray, "draw feature"]:
        """Departures from the fast weights' `delta`; a score moves by ⟨departure, feature⟩."""
        drawn = self.posterior.draw(num_draws, rng)
        drawn *= np.float32(self.unit)
        return drawn

    def variance(self, items: Float[np.ndarray, "item feature"]) -> Float[np.ndarray, "item"]:
        """Variance of each item's score."""
        return self.unit**2 * self.posterior.variance(items)


class Explored(NamedTuple):
    """A list that explores."""

    chosen: Int64[np.ndarray, "place"]
    """Which of the candidates, in the order shown."""
    values: Float[np.ndarray, "place"]
    """What the list was ranked by: the score as drawn, or with its bonus."""
    propensity: Float64[np.ndarray, "place"]
    """Probability with which each item was to be anywhere in the list, given the draws."""
    propensity_first: Float64[np.ndarray, "place"]
    """Probability with which each item was to be at the top; 0 for items that no draw puts there."""


Ranker = Callable[[Float[np.ndarray, "draw item"], int], Int64[np.ndarray, "draw place"]]
"""(scores, k) to lists, as `palate.metrics.top_k`."""

Explorer = Callable[
    [
        Float[np.ndarray, "item"],
        Float[np.ndarray, "item feature"],
        Callable[[], Belief],
        int,
        Ranker,
        np.random.Generator,
        ExploreConfig,
    ],
    Explored,
]
"""(scores, features, belief, k, rank, rng, config); the belief is asked for only where it is needed."""


def explore(
    name: str,
    scores: Float[np.ndarray, "item"],
    features: Float[np.ndarray, "item feature"],
    belief: Callable[[], Belief],
    k: int,
    *,
    rng: np.random.Generator,
    config: ExploreConfig | None = None,
    rank: Ranker = top_k,
) -> Explored:
    """List `k` of the candidates; fewer where fewer have a score above −∞.

    Args:
        name: a line of `EXPLORERS`.
        scores: of the candidates; −∞ for an item that may not be listed.
        features: the head's features of the candidates.
        belief: gives the person's posterior, as `belief_of`; not called where nothing is explored.
        k: length of the list.
        rng: where chance comes from.
        config: how much is explored.
        rank: how scores become a list: by default the best ones, or a re-ranking such as
            `palate.recommend.diversity.diversify`. It ranks every draw, so that propensities stay exact.

    Raises:
        ConfigError: an unknown name, k below 1, or no posterior for this learner.
        NumericalError: a score is NaN.
    """
    if name not in EXPLORERS:
        raise ConfigError(f"explore is {name!r}; choose one of: {', '.join(EXPLORERS)}")
    return EXPLORERS[name](scores, features, belief, k, rank, rng, config or ExploreConfig())


def belief_of(
    learner: str, settings: Mapping[str, Any], params: Params, support: Support, prior: Float[torch.Tensor, "feature"]
) -> Belief:
    """The posterior of one person after their support; an empty one gives the prior.

    Args:
        learner: the name of the learner, a line of `palate.meta.LEARNERS`.
        settings: the learner's own settings.
        params: of the head, after meta-training.
        support: what the person was adapted to: the same that `Head.adapt` was given.
        prior: the mean of their weights before any event, the fast weights "prior".

    Raises:
        ConfigError: the learner has no posterior.
        NumericalError: the posterior is not finite.
    """
    regression = find_learner(learner).posterior
    if regression is None:
        able = " or ".join(name for name, entry in LEARNERS.items() if entry.posterior is not None)
        raise ConfigError(
            f"learner {learner} has no posterior, so nothing says what to explore; "
            f"explore with a model of learner {able}, or set explore to none"
        )
    with torch.inference_mode():
        real = support.weight > 0
        count = real.sum().to(support.weight)
        scale = prior_deviation(params, count)
        features = support.features[real]
        working = regression(
            read_settings(learner, settings),
            own_parameters(params),
            find_objective(OBJECTIVE),
            SupportRows(features * scale, support.target[real], support.weight[real], features @ prior),
        )
        scale = scale * working.deviation
        spread = (params["fixed.feature_covariance"].diagonal() @ scale.square() + EPSILON).sqrt()
        gate = F.softplus(params["gates"] @ gate_inputs(count, support.returning))[1]
        unit = float(gate / spread)
    rows, deviation, noise = features.numpy(), scale.double().numpy(), float(working.noise)
    usable = np.isfinite(rows).all() and np.isfinite(deviation).all() and (deviation > 0).all()
    if not (usable and math.isfinite(unit) and math.isfinite(noise)):
        raise NumericalError(
            f"posterior of {len(rows)} events: not finite, or without spread; are all features and weights finite?"
        )
    # Around the fast weights, so nothing is left to explain: only what the events say of the spread counts.
    departures = Prior(np.zeros(len(deviation)), np.square(deviation), noise)
    return Belief(departures.fit(rows, np.zeros(len(rows)), working.weight.numpy()), unit)


def _none(
    scores: Float[np.ndarray, "item"],
    features: Float[np.ndarray, "item feature"],
    belief: Callable[[], Belief],
    k: int,
    rank: Ranker,
    rng: np.random.Generator,
    config: ExploreConfig,
) -> Explored:
    """The best list."""
    return _certain(scores, rank(scores[None], k)[0])


def _thompson(
    scores: Float[np.ndarray, "item"],
    features: Float[np.ndarray, "item feature"],
    belief: Callable[[], Belief],
    k: int,
    rank: Ranker,
    rng: np.random.Generator,
    config: ExploreConfig,
) -> Explored:
    """The best list of one of the draws."""
    departures = belief().draw(config.num_draws, rng)
    drawn = scores + config.strength * (departures @ features.T)
    lists = rank(drawn, k)
    shown = int(rng.integers(config.num_draws))
    chosen = lists[shown]
    chosen = chosen[chosen != NO_ITEM]
    held = np.bincount(lists[lists != NO_ITEM], minlength=len(scores)) / config.num_draws
    first = np.bincount(lists[lists[:, 0] != NO_ITEM, 0], minlength=len(scores)) / config.num_draws
    return Explored(chosen, drawn[shown, chosen], held[chosen], first[chosen])


def _ucb(
    scores: Float[np.ndarray, "item"],
    features: Float[np.ndarray, "item feature"],
    belief: Callable[[], Belief],
    k: int,
    rank: Ranker,
    rng: np.random.Generator,
    config: ExploreConfig,
) -> Explored:
    """The best list after a bonus for what is not known."""
    hopeful = scores + config.strength * np.sqrt(belief().variance(features))
    return _certain(hopeful, rank(hopeful[None], k)[0])


def _certain(values: Float[np.ndarray, "item"], listed: Int64[np.ndarray, "place"]) -> Explored:
    """A list without chance in it."""
    chosen = listed[listed != NO_ITEM]
    first = np.zeros(len(chosen))
    first[:1] = 1.0
    return Explored(chosen, values[chosen], np.ones(len(chosen)), first)


EXPLORERS: Mapping[str, Explorer] = {
    "none": _none,
    "thompson": _thompson,
    "ucb": _ucb,
}

"""What a chooser reads of a candidate item: popularity, neighbourhood scores and Bayesian factors of the 0/1 matrix."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import DataError
from palate.ratings.bayesian_factors import SampledFactors, SamplerConfig, predict, sample_factors
from palate.ratings.neighbourhood import Neighbourhood, fit_neighbourhood, neighbourhood_scores

_SHARE_SCORES = ("similar people 1", "similar people 2", "cosine", "conditional", "linked", "svd 8", "svd 24")
_SHARE_FLOOR, _FACTOR_SHARE_FLOOR = 0.3, 1.5
_POPULARITY_WEIGHT = 0.004
"""Share of an item's popularity added to its conditional probability, which is 0 where nothing links."""


class Scorers(NamedTuple):
    """What is known of the items from some people's choices."""

    neighbourhood: Neighbourhood
    factors: SampledFactors
    """Of the active items, each divided by its spread."""
    spread: Float[np.ndarray, "active"]
    typical_popularity: float
    """Mean over the people of the mean log count of what they chose."""


def fit_scorers(chosen: Float[np.ndarray, "user item"], config: SamplerConfig, *, seed: int) -> Scorers:
    """Neighbourhoods and factors from a 0/1 matrix of choices."""
    if not chosen.any():
        raise DataError("training choices: a part of the people has chosen nothing; expected values of 1; check them")
    neighbourhood = fit_neighbourhood(chosen)
    popularity = neighbourhood.popularity[neighbourhood.active]
    # A plain 0/1 matrix is fitted to the popular items, one of unit variance to the rarest: go half-way between.
    spread = (popularity / len(chosen)) ** 0.25
    factors = sample_factors(
        neighbourhood.chosen / spread,
        np.ones(neighbourhood.chosen.shape),
        np.zeros((len(chosen), 0)),
        np.log(popularity)[:, None] - 1,
        config,
        rng=np.random.default_rng(seed),
        name="chooser",
    )
    typical = _mean_log_count(neighbourhood, chosen)[chosen.any(1)].mean()
    return Scorers(neighbourhood, factors, spread, float(typical))


def candidate_features(
    scorers: Scorers,
    chosen: Float[np.ndarray, "person item"],
    shown: Float[np.ndarray, "person item"],
    rows: Int64[np.ndarray, "candidate"],
    candidates: Int64[np.ndarray, "candidate"],
    unobserved_weight: float,
) -> Float[np.ndarray, "candidate feature"]:
    """What the combiner reads of each candidate.

    Args:
        scorers: of other people.
        chosen: 1 where the support says chosen.
        shown: 1 where the support says anything.
        rows: the person of each candidate.
        candidates: the item.
        unobserved_weight: of items that are not shown, for the factors.
    """
    neighbourhood, factors, spread, typical = scorers
    active = neighbourhood.active
    weight = np.maximum(shown, unobserved_weight)[:, active]
    no_profile = np.zeros((len(chosen), 0))
    factor_scores = predict(factors, chosen[:, active] / spread, weight, no_profile) * spread
    scores = neighbourhood_scores(neighbourhood, chosen)

    column = np.full(chosen.shape[1], len(active))
    column[active] = np.arange(len(active))

    def pick(table: Float[np.ndarray, "person active"]) -> Float[np.ndarray, "candidate"]:
        """Scores of the candidates; 0 for an item that nobody chose."""
        picked: Float[np.ndarray, "candidate"] = np.c_[table, np.zeros(len(table))][rows, column[candidates]]
        return picked

    count = neighbourhood.popularity[candidates]
    log_count = np.log(count + 0.5)
    popular_taste = np.where(chosen.any(1), _mean_log_count(neighbourhood, chosen) - typical, 0.0)[rows]
    conditional = pick(scores["shrunk conditional"]) + _POPULARITY_WEIGHT * (count + 0.5)
    return np.stack(
        [
            log_count,
            (count == 0).astype(np.float64),
            (count == 1).astype(np.float64),
            log_count * popular_taste,
            *(pick(log_share(scores[name], _SHARE_FLOOR)) for name in _SHARE_SCORES),
            np.log(conditional) - log_count,
            pick(scores["lift"]),
            pick(scores["ease"]),
            pick(factor_scores),
            pick(log_share(factor_scores, _FACTOR_SHARE_FLOOR)),
        ],
        axis=-1,
    )


def log_share(scores: Float[np.ndarray, "person active"], floor: float) -> Float[np.ndarray, "person active"]:
    """Log of 1 + score / (floor · the person's mean score), negative scores as 0: comparable between people."""
    scores = np.maximum(scores, 0)
    share: Float[np.ndarray, "person active"] = scores / np.maximum(scores.mean(1, keepdims=True), 1e-6)
    return np.log1p(share / floor)


def _mean_log_count(
    neighbourhood: Neighbourhood, chosen: Float[np.ndarray, "person item"]
) -> Float[np.ndarray, "person"]:
    """How popular the items are that a person chose; 0 for no choice."""
    total: Float[np.ndarray, "person"] = chosen @ np.log(neighbourhood.popularity + 0.5)
    mean: Float[np.ndarray, "person"] = total / np.maximum(chosen.sum(1), 1)
    return mean

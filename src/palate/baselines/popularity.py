"""Popularity: everyone gets what most people bought. The first floor that a personal method has to clear."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from palate.baselines.base import Scorer, each_support, item_popularity


@dataclass(frozen=True)
class PopularityConfig:
    """Nothing to set: for the popularity of a recent period, fit on the purchases of that period."""


def fit_popularity(matrix: Float32[np.ndarray, "user item"]) -> Scorer:
    """Score each item by the share of people in the 0/1 `matrix` who bought it; DataError if not 0/1."""
    return popularity_scorer(item_popularity(matrix), PopularityConfig())


def popularity_scorer(popularity: Float32[np.ndarray, "item"], config: PopularityConfig) -> Scorer:
    """Score everyone alike by a popularity that is already known."""

    def score(supports: Sequence[Int[np.ndarray, "_"]]) -> Float32[np.ndarray, "user item"]:
        num_users = sum(1 for _ in each_support(supports, len(popularity)))
        return np.tile(popularity, (num_users, 1))

    return score

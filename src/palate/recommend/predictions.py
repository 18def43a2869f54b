"""How a person would rate items, as an answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from palate.ratings.rater import median_rating


class RatingPrediction(NamedTuple):
    """What one item would be rated."""

    item_id: str
    title: str
    mean: float
    """Expected rating: what least squared error asks for."""
    median: float
    """One of the levels: what least absolute error asks for."""
    distribution: Mapping[float, float]
    """Probability of each level, in rising order; they sum to 1."""


def describe_ratings(
    item_ids: Sequence[str],
    titles: Sequence[str],
    probabilities: Float[np.ndarray, "item level"],
    levels: Float[np.ndarray, "level"],
) -> list[RatingPrediction]:
    """Probabilities of the levels as answers, an item each."""
    total = probabilities.astype(np.float64)
    total /= total.sum(1, keepdims=True)
    medians, values = median_rating(total, levels), levels.tolist()
    return [
        RatingPrediction(item, title, float(row @ levels), float(median), dict(zip(values, row.tolist(), strict=True)))
        for item, title, row, median in zip(item_ids, titles, total, medians, strict=True)
    ]

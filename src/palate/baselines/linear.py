"""What the item-item baselines share: an item's score is the sum of what each event says of it.

Σ decay^age · B[event, item] over a person's events, with B (item, item) of `palate.scorers.item_weights`. With recency
such models are hard to beat: Li et al., "A Next Basket Recommendation Reality Check", 2021, arXiv:2109.14233.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32

from palate.baselines.base import ListModel, break_ties


def linear_model(weights: Float32[np.ndarray, "item item"], popularity: Float32[np.ndarray, "item"]) -> ListModel:
    """Score by the weighted sum of rows of B; items of which nothing is known come after, the more popular first."""

    def score(shown: Any) -> Float32[np.ndarray, "user item"]:
        scores: Float32[np.ndarray, "user item"] = shown @ weights
        for row in scores:
            row[:] = break_ties(row, popularity)
        return scores

    return score

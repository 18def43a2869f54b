"""Item neighbours: people who bought this also bought that, by shrunk cosine similarity.

Mukund Deshpande and George Karypis, "Item-Based Top-N Recommendation Algorithms", 2004,
doi 10.1145/963770.963776; shrinkage after Robert Bell and Yehuda Koren, "Scalable Collaborative Filtering
with Jointly Derived Neighborhood Interpolation Weights", 2007, doi 10.1109/ICDM.2007.90.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from palate.baselines.base import CoPurchases, Scorer, count_co_purchases, linear_scorer
from palate.errors import ConfigError
from palate.scorers.item_weights import cosines_of


@dataclass(frozen=True)
class ItemKNNConfig:
    """Settings of the item-neighbour baseline."""

    shrink: float = 30.0
    """Added to the cosine's denominator, in purchases: similarity seen on few people counts less."""
    top_k: int | None = None
    """How many neighbours each bought item speaks for (ties with the last included); None: all items."""

    def __post_init__(self) -> None:
        # At 0 an item that nobody bought would divide by zero.
        if self.shrink <= 0:
            raise ConfigError(f"item_knn.shrink: got {self.shrink}; expected above 0; try 30")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"item_knn.top_k: got {self.top_k}; expected 1 or more, or none for all items")


def fit_item_knn(matrix: Float32[np.ndarray, "user item"], config: ItemKNNConfig | None = None) -> Scorer:
    """Fit on a 0/1 purchase matrix; DataError if it is not one."""
    return item_knn_scorer(count_co_purchases(matrix), config or ItemKNNConfig())


def item_knn_scorer(purchases: CoPurchases, config: ItemKNNConfig) -> Scorer:
    """Score by the summed similarity of an item to those of the support: both / (√(one · other) + shrink)."""
    similarity = cosines_of(purchases.counts.copy(), config.shrink)
    num_items = len(similarity)
    if config.top_k is not None and config.top_k < num_items:
        last_kept = np.partition(similarity, num_items - config.top_k, axis=1)[:, num_items - config.top_k]
        similarity[similarity < last_kept[:, None]] = 0
    return linear_scorer(similarity, purchases.popularity)

"""Item neighbours: people who chose this also chose that, by shrunk cosine similarity.

Mukund Deshpande and George Karypis, "Item-Based Top-N Recommendation Algorithms", 2004,
doi 10.1145/963770.963776; shrinkage after Robert Bell and Yehuda Koren, "Scalable Collaborative Filtering
with Jointly Derived Neighborhood Interpolation Weights", 2007, doi 10.1109/ICDM.2007.90.
"""

from dataclasses import dataclass

import numpy as np

from palate.baselines.base import ListModel, count_popularity
from palate.baselines.linear import linear_model
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.scorers.item_weights import neighbour_weights


@dataclass(frozen=True)
class ItemKNNConfig:
    """Settings of the item-neighbour baseline."""

    shrink: float = 30.0
    """Added to the cosine's denominator, in people: similarity seen on few people counts less."""
    top_k: int | None = None
    """How many neighbours each event's item speaks for (ties with the last included); None: all items."""

    def __post_init__(self) -> None:
        # At 0 an item that nobody had would divide by zero.
        if self.shrink <= 0:
            raise ConfigError(f"item_knn.shrink: got {self.shrink}; expected above 0; try 30")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"item_knn.top_k: got {self.top_k}; expected 1 or more, or none for all items")


def fit_item_knn(training: EventLog, num_items: int, config: ItemKNNConfig) -> ListModel:
    """Score by the summed similarity of an item to those of the events: both / (√(one · other) + shrink)."""
    similarity = neighbour_weights(training, num_items, config.shrink)
    if config.top_k is not None and config.top_k < num_items:
        last_kept = np.partition(similarity, num_items - config.top_k, axis=1)[:, num_items - config.top_k]
        similarity[similarity < last_kept[:, None]] = 0
    return linear_model(similarity, count_popularity(training, num_items))

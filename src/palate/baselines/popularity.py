"""Popularity: everyone gets what most people chose. The first baseline that a personal method has to clear."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from palate.baselines.base import ListModel, NoSettings, count_popularity
from palate.data.event_log import EventLog


def fit_popularity(training: EventLog, num_items: int, config: NoSettings) -> ListModel:
    """Score everyone alike: for the popularity of a recent period, fit on the events of that period."""
    popularity = count_popularity(training, num_items)

    def score(shown: Any) -> Float32[np.ndarray, "user item"]:
        return np.tile(popularity, (shown.shape[0], 1))

    return score

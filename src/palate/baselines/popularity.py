"""Popularity: everyone gets what most people chose. The first baseline that a personal method has to clear."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from palate.baselines.base import ListModel, NoSettings, count_popularity
from palate.baselines.rating import RatingData, RatingModel
from palate.data.event_log import EventLog
from palate.ratings.tasks import Task


def fit_popularity(training: EventLog, num_items: int, config: NoSettings) -> ListModel:
    """Score everyone alike: for the popularity of a recent period, fit on the events of that period."""
    popularity = count_popularity(training, num_items)

    def score(shown: Any) -> Float32[np.ndarray, "user item"]:
        return np.tile(popularity, (shown.shape[0], 1))

    return score


def rate_by_popularity(data: RatingData, config: NoSettings) -> RatingModel:
    """Rank by how many training people have rated the item, of choices have chosen it; rate by the mean."""
    values, items = data.ratings.values, data.ratings.items
    are_choices = set(np.unique(values).tolist()) <= {0.0, 1.0}
    logs = np.log1p(np.bincount(items[values > 0] if are_choices else items, minlength=data.num_items))
    mean, spread = float(values.mean()), float(values.std())
    # In the unit of ratings, as every score is: a protocol may mix scores with ratings that it gives.
    scores = mean + spread * (logs - logs.mean()) / max(float(logs.std()), 1e-9)

    def rate(task: Task, rng: np.random.Generator) -> tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]:
        return np.full(len(task.query_items), mean), scores[task.query_items]

    return rate

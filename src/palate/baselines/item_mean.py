"""Shrunk item mean plus shrunk user bias: what is known of an item and of a person one by one."""

import numpy as np
from jaxtyping import Float

from palate.baselines.base import NoSettings
from palate.baselines.rating import RatingData, RatingModel
from palate.ratings.biases import shrunk_biases, user_bias
from palate.ratings.tasks import Task


def rate_by_item_mean(data: RatingData, config: NoSettings) -> RatingModel:
    """Rate by the mean of all ratings, the item's departure from it and the person's departure from both."""
    mean, bias = shrunk_biases(data.ratings, data.num_items)

    def rate(task: Task, rng: np.random.Generator) -> tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]:
        rating = mean + bias[task.query_items] + user_bias(task, mean, bias)
        return rating, rating

    return rate

"""Item means and how far a person is above them: what any model of ratings has to beat."""

import numpy as np
from jaxtyping import Float

from palate.ratings.tasks import Ratings, Task

_SHRINK_ITEM = 10.0
_SHRINK_USER = 4.0


def shrunk_biases(ratings: Ratings, num_items: int) -> tuple[float, Float[np.ndarray, "item"]]:
    """Global mean, and each item's mean departure from it, shrunk as if by ten ratings of the mean."""
    mean = float(ratings.values.mean())
    total = np.bincount(ratings.items, ratings.values - mean, minlength=num_items)
    return mean, total / (np.bincount(ratings.items, minlength=num_items) + _SHRINK_ITEM)


def user_bias(task: Task, mean: float, bias: Float[np.ndarray, "item"]) -> float:
    """A person's mean departure from the item means, shrunk."""
    left = task.support_values - mean - bias[task.support_items]
    return float(left.sum()) / (len(left) + _SHRINK_USER)

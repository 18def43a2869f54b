"""The contract of the baselines of ratings: fitted on what training people said, they rate the query of a new task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from palate.ratings.tasks import Ratings, Task


class RatingData(NamedTuple):
    """What is known before any task."""

    ratings: Ratings
    """Of the training people."""
    num_items: int
    content: Callable[[], Float[np.ndarray, "item content"]]
    """What is known of the items without ratings, a column of ones first."""


RatingModel: TypeAlias = Callable[
    [Task, np.random.Generator], tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]
]
"""(task, source of chance) to the rating of each item of the query, in the unit of the data, and to a score to rank
them by, higher is better and about in that unit. The values of the query are not read."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class RatingBaseline(Generic[Config]):
    """A baseline of ratings: how it is fitted, with which settings."""

    label: str
    """Its name in the tables."""
    fit: Callable[[RatingData, Config], RatingModel]
    config: Config
    rounded: bool = False
    """Whether it is judged a second time, rounded to the levels that people use, where an absolute error counts."""

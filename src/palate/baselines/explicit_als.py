"""Explicit ALS: item factors of ratings by alternating least squares, and a ridge regression for each person.

The factors explain what the biases of items and people leave. Bias and factors of an item that nobody in training has
rated come from its content, by ridge regression.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from palate.baselines.als import Group, group_rows, solve_side
from palate.baselines.rating import RatingData, RatingModel
from palate.errors import ConfigError
from palate.ratings.biases import shrunk_biases, user_bias
from palate.ratings.tasks import Ratings, Task


@dataclass(frozen=True)
class ExplicitALSConfig:
    """Settings of explicit ALS; its penalties are for a span of ratings of four, as of one to five stars."""

    num_factors: int = 20
    """Length of the vector of a person and of an item."""
    regularisation: float = 1.0
    """Penalty on the squared length of every vector."""
    growth: float = 0.05
    """Share of itself by which the penalty grows with each rating of a person or item."""
    num_iterations: int = 10
    """Rounds of solving for the people, then for the items."""
    seed: int = 0
    """Of the first item vectors; same seed, same model."""
    person_penalty: float = 0.8
    """Ridge penalty of a new person, whose weights have about unit variance."""
    content_penalty: float = 20.0
    """Ridge penalty of the map from content, times the square root of the number of items."""

    def __post_init__(self) -> None:
        for name in ("num_factors", "num_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"explicit_als.{name}: got {getattr(self, name)}; expected 1 or more")
        for name in ("regularisation", "person_penalty", "content_penalty"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"explicit_als.{name}: got {getattr(self, name)}; expected above 0")
        for name in ("growth", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"explicit_als.{name}: got {getattr(self, name)}; expected 0 or more")


def rate_by_explicit_als(data: RatingData, config: ExplicitALSConfig) -> RatingModel:
    """Rate by the biases and the product of an item's factors with the person's weights."""
    unit = float(np.ptp(data.ratings.values)) / 4
    ratings = data.ratings._replace(values=data.ratings.values / unit)
    mean, bias = shrunk_biases(ratings, data.num_items)
    factors = fit_rating_factors(ratings, mean, bias, data.num_items, config)
    known = np.bincount(ratings.items, minlength=data.num_items)
    content = data.content()
    rows = content[known > 0] * np.sqrt(known[known > 0])[:, None]
    wanted = np.column_stack([bias, factors])[known > 0] * np.sqrt(known[known > 0])[:, None]
    penalty = config.content_penalty * len(rows) ** 0.5 * np.eye(content.shape[1])
    mapped = content @ np.linalg.solve(rows.T @ rows + penalty, rows.T @ wanted)
    bias = np.where(known > 0, bias, mapped[:, 0])
    factors = np.where(known[:, None] > 0, factors, mapped[:, 1:])

    def rate(task: Task, rng: np.random.Generator) -> tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]:
        task = task._replace(support_values=task.support_values / unit)
        own = user_bias(task, mean, bias)
        rows = factors[task.support_items]
        left = task.support_values - mean - bias[task.support_items] - own
        taste = np.linalg.solve(rows.T @ rows + config.person_penalty * np.eye(config.num_factors), rows.T @ left)
        rating = unit * (mean + bias[task.query_items] + own + factors[task.query_items] @ taste)
        return rating, rating

    return rate


def fit_rating_factors(
    ratings: Ratings, mean: float, bias: Float[np.ndarray, "item"], num_items: int, config: ExplicitALSConfig
) -> Float[np.ndarray, "item factor"]:
    """Item factors of what the biases leave, each rating with weight 1 and all other cells with none; 0 if unseen."""
    names, users = np.unique(ratings.users, return_inverse=True)
    left = ratings.values - mean - bias[ratings.items]
    by_user, by_item = rated(users, ratings.items, left, len(names)), rated(ratings.items, users, left, num_items)
    shared = config.regularisation * np.eye(config.num_factors)
    factors = np.random.default_rng(config.seed).normal(0, 0.1, (num_items, config.num_factors))
    for _ in range(config.num_iterations):
        people = solve_side(factors, shared, by_user, len(names), growth=config.growth)
        factors = solve_side(people, shared, by_item, num_items, growth=config.growth)
    # Scaled so that a person's weights have unit variance and one ridge penalty fits every data set.
    scaled: Float[np.ndarray, "item factor"] = factors * people.std(0)
    return scaled


def rated(
    rows: Int64[np.ndarray, "event"],
    columns: Int64[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    num_rows: int,
) -> tuple[Group, ...]:
    """The rated cells, of weight 1; a cell that was rated twice counts twice."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(num_rows + 1))
    return group_rows(starts, columns[order], np.ones(len(rows)), values[order])

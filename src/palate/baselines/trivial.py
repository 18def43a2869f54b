"""The two reference points that know nothing: one constant list, and chance.

They show what a metric gives away for free; a method that does not clear them has learned nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from palate.baselines.base import ListModel, NoSettings
from palate.baselines.rating import RatingData, RatingModel
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.ratings.tasks import Task


@dataclass(frozen=True)
class RandomConfig:
    """Settings of the random baseline of lists."""

    seed: int = 0
    """Same seed, same lists."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"random.seed: got {self.seed}; expected 0 or more; choose another seed")


def fit_constant(training: EventLog, num_items: int, config: NoSettings) -> ListModel:
    """Score every item 0: ties go by index, so everyone gets the catalogue in its own order."""

    def score(shown: Any) -> Float32[np.ndarray, "user item"]:
        return np.zeros(shown.shape, dtype=np.float32)

    return score


def fit_random(training: EventLog, num_items: int, config: RandomConfig) -> ListModel:
    """Score by chance: row i of a call depends on the seed and on i only, whatever the person did."""

    def score(shown: Any) -> Float32[np.ndarray, "user item"]:
        scores: Float32[np.ndarray, "user item"] = np.random.default_rng(config.seed).random(shown.shape, np.float32)
        return scores

    return score


def rate_constantly(data: RatingData, config: NoSettings) -> RatingModel:
    """Rate everything by the mean of all ratings."""
    mean = float(data.ratings.values.mean())

    def rate(task: Task, rng: np.random.Generator) -> tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]:
        rating = np.full(len(task.query_items), mean)
        return rating, rating

    return rate


def rate_at_random(data: RatingData, config: NoSettings) -> RatingModel:
    """Draw ratings from those of the training people."""

    def rate(task: Task, rng: np.random.Generator) -> tuple[Float[np.ndarray, "query"], Float[np.ndarray, "query"]]:
        rating = rng.choice(data.ratings.values, len(task.query_items))
        return rating, rating

    return rate

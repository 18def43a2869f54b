"""The two reference points that know nothing: one constant list, and chance.

They show what a metric gives away for free; a method that does not clear them has learned nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from palate.baselines.base import Scorer, check_purchases, each_support
from palate.errors import ConfigError


@dataclass(frozen=True)
class ConstantConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class RandomConfig:
    """Settings of the random baseline."""

    seed: int = 0
    """Same seed, same lists."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"random.seed: got {self.seed}; expected 0 or more; choose another seed")


def count_items(matrix: Float32[np.ndarray, "user item"]) -> int:
    """Size of the catalogue, all that these baselines ask of the data."""
    _, num_items = check_purchases(matrix).shape
    return int(num_items)


def constant_scorer(num_items: int, config: ConstantConfig) -> Scorer:
    """Score every item 0: ties go by index, so everyone gets the catalogue in its own order."""

    def score(supports: Sequence[Int[np.ndarray, "_"]]) -> Float32[np.ndarray, "user item"]:
        num_users = sum(1 for _ in each_support(supports, num_items))
        return np.zeros((num_users, num_items), dtype=np.float32)

    return score


def random_scorer(num_items: int, config: RandomConfig) -> Scorer:
    """Score by chance: row i of a call depends on the seed and on i only, whatever the supports hold."""

    def score(supports: Sequence[Int[np.ndarray, "_"]]) -> Float32[np.ndarray, "user item"]:
        num_users = sum(1 for _ in each_support(supports, num_items))
        return np.random.default_rng(config.seed).random((num_users, num_items), dtype=np.float32)

    return score

"""The combiner of many scores: a logistic regression averaged, as log-odds, with small boosted trees.

The trees are scikit-learn's histogram gradient boosting, after Ke et al., LightGBM: A Highly Efficient Gradient
Boosting Decision Tree, 2017. The regression goes on where the trees are flat, the trees bend where it cannot.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from palate.errors import ConfigError, DataError

_LEAF_RIDGE = 10.0


@dataclass(frozen=True)
class CombinerConfig:
    """Settings of the combiner."""

    logistic_ridge: float = 3.0
    """Penalty on the squared weights of the logistic regression."""
    num_trees: int = 200
    """Boosted trees."""
    tree_learning_rate: float = 0.05
    """Part of each tree that is added."""
    num_leaves: int = 6
    """Leaves of a tree, at most."""
    min_leaf_events: int = 200
    """Events in a leaf, at least."""

    def __post_init__(self) -> None:
        for name, least in (("num_trees", 1), ("num_leaves", 2), ("min_leaf_events", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"combiner.{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("logistic_ridge", "tree_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"combiner.{name} is {getattr(self, name)}; expected above 0")


class Combiner(NamedTuple):
    """Mean of two log-odds."""

    mean: Float[np.ndarray, "feature"]
    scale: Float[np.ndarray, "feature"]
    linear: LogisticRegression
    """Reads standardised features."""
    trees: HistGradientBoostingClassifier
    """Reads them as they are."""


def fit_combiner(
    features: Float[np.ndarray, "event feature"],
    labels: Float[np.ndarray, "event"],
    config: CombinerConfig,
    *,
    num_repeats: int = 1,
    seed: int,
) -> Combiner:
    """Fit both halves on 0/1 labels.

    Args:
        features: of each event.
        labels: 1 chosen, 0 not; there must be some of each.
        config: settings.
        num_repeats: how often each person's events are repeated; the logistic penalty grows with it.
        seed: of the trees.
    """
    if not 0 < labels.sum() < len(labels):
        raise DataError(
            f"training choices: of {len(labels)} query events {int(labels.sum())} are chosen; expected some of each; "
            f"people need more events than the support takes"
        )
    mean, scale = features.mean(0), features.std(0) + 1e-9
    # scikit-learn minimises C · Σ loss + ½ ‖w‖².
    strength = 1 / (2 * config.logistic_ridge * num_repeats)
    linear = LogisticRegression(C=strength, solver="newton-cholesky").fit((features - mean) / scale, labels)
    trees = HistGradientBoostingClassifier(
        learning_rate=config.tree_learning_rate,
        max_iter=config.num_trees,
        max_leaf_nodes=config.num_leaves,
        min_samples_leaf=config.min_leaf_events,
        l2_regularization=_LEAF_RIDGE,
        early_stopping=False,
        random_state=seed,
    ).fit(features, labels)
    return Combiner(mean, scale, linear, trees)


def combine(combiner: Combiner, features: Float[np.ndarray, "event feature"]) -> Float[np.ndarray, "event"]:
    """Log-odds of being chosen."""
    if not len(features):
        return np.zeros(0)
    linear: Any = combiner.linear.decision_function((features - combiner.mean) / combiner.scale)
    mean: Float[np.ndarray, "event"] = (linear + combiner.trees.decision_function(features)) / 2
    return mean

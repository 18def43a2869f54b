"""Item-item models that weigh an event by its age: EASE, neighbours and transitions, with recency.

Each is a matrix B (item, item) of `palate.scorers.item_weights` and a decay γ: the score of an item is
Σ γ^age · B[event, item] over a person's events, where the latest has age 0. Li et al., "A Next Basket Recommendation
Reality Check", 2021, arXiv:2109.14233, find such models hard to beat.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from palate.baselines.base import break_ties
from palate.data.event_log import EventLog
from palate.scorers.item_weights import Weights

Scorer: TypeAlias = Callable[[EventLog], Float32[np.ndarray, "user item"]]
"""Scores every item, higher is better, for each person of a batch, given what they did so far."""


def item_item_scorer(weights: Weights, decay: float, popularity: Float32[np.ndarray, "item"]) -> Scorer:
    """Σ decay^age · B[event, item]; items of which nothing is known come after, the more popular first."""

    def score(inputs: EventLog) -> Float32[np.ndarray, "user item"]:
        stops = np.repeat(inputs.offsets[1:], inputs.lengths())
        ages = stops - 1 - np.arange(len(inputs))
        shown = csr_array(
            (np.float32(decay) ** ages.astype(np.float32), inputs.items, inputs.offsets),
            (inputs.num_users, len(popularity)),
        )
        scores: Float32[np.ndarray, "user item"] = shown @ weights
        return np.stack([break_ties(row, popularity) for row in scores])

    return score

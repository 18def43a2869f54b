"""The floors of the sequential benchmark: popularity, and item-item models that weigh an event by its age.

The matrix of each and its decay are chosen on the validation items; see `palate.baselines.item_item`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from palate.baselines.item_item import Scorer, item_item_scorer
from palate.data.event_log import EventLog
from palate.evaluation.sequential.leave_one_out import Held, figures, rank_targets
from palate.scorers.item_weights import Weights, ease_weights, neighbour_weights, no_weights, transition_weights


class FloorEntry(NamedTuple):
    """One line of the table of floors, with the grid that validation chooses from."""

    weights: Mapping[str, Callable[[EventLog, int], Weights]]
    """Ways to make B, by what is said of them: (training, number of items) → B."""
    decays: tuple[float, ...]
    """Values of γ, each from 0 to 1."""


class Chosen(NamedTuple):
    """A floor with the setting that validation liked best, and nDCG@10 of every setting there."""

    scorer: Scorer
    weights: str
    decay: float
    trials: Mapping[tuple[str, float], float]
    """(name of the weights, decay) → nDCG@10 on validation."""


_DECAYS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_NEIGHBOURS = {f"shrink {shrink}": partial(neighbour_weights, shrink=shrink) for shrink in (1.0, 10.0, 100.0, 1000.0)}
_EASE = {f"λ {weight}": partial(ease_weights, regularisation=weight) for weight in (50.0, 200.0, 1000.0, 3000.0)}

FLOORS: Mapping[str, FloorEntry] = {
    "popularity": FloorEntry({"none": no_weights}, (1.0,)),
    "Markov chain": FloorEntry({"transitions": transition_weights}, (0.0,)),
    "item-kNN, recency": FloorEntry(_NEIGHBOURS, _DECAYS),
    "EASE, recency": FloorEntry(_EASE, _DECAYS),
}


def choose_floor(entry: FloorEntry, training: EventLog, validation: Held, num_items: int) -> Chosen:
    """Make each B once, try every decay on it, and keep what has the best nDCG@10 on validation.

    Equal values keep the earlier setting. Two matrices are in memory at a time at most.

    Raises:
        NumericalError: a matrix cannot be made, or a score is NaN.
    """
    popularity = np.bincount(training.items, minlength=num_items).astype(np.float32)
    popularity /= max(training.num_users, 1)
    best: Chosen | None = None
    trials: dict[tuple[str, float], float] = {}
    for name, make in entry.weights.items():
        weights = make(training, num_items)
        for decay in entry.decays:
            scorer = item_item_scorer(weights, decay, popularity)
            value = float(figures(rank_targets(scorer, validation, num_items).removed)["ndcg@10"].mean())
            trials[name, decay] = value
            if best is None or value > trials[best.weights, best.decay]:
                best = Chosen(scorer, name, decay, trials)
        del weights, scorer  # before the next are made
    assert best is not None, "a floor has at least one setting"
    return best

"""Diversity: a list whose items are good and differ from each other.

Maximal marginal relevance (Carbonell & Goldstein, The Use of MMR, Diversity-Based Reranking for Reordering Documents
and Producing Summaries, 1998, doi 10.1145/290941.291025): the next item of a list S is

    argmax_i  (1 − diversity) · relevance_i − diversity · max_{j ∈ S} cosine(i, j)

with cosine in the metric that the learner has learned. Scores have no unit that a cosine could be weighed against, so
relevance is the score brought to [0, 1] over the candidates. The first item is the best one, whatever the diversity.
"""

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import ConfigError, NumericalError
from palate.metrics import NO_ITEM, top_k


def diversify(
    scores: Float[np.ndarray, "list item"],
    directions: Float[np.ndarray, "item feature"],
    k: int,
    diversity: float,
) -> Int64[np.ndarray, "list place"]:
    """Pick `k` of the candidates for each row of scores, one after the other; rows are re-ranked independently.

    The first items of a list are a shorter list, and the order of the candidates says nothing (but which of two equal
    ones comes first: the one with the lower index). Places that no item can take hold `NO_ITEM`.

    Args:
        scores: one row a list; an item scored −∞ is never listed.
        directions: a unit vector for each candidate; a row of zeros is like nothing.
        k: length of the lists.
        diversity: from 0, the best `k` in order, to 1, where after the first item scores only break ties.

    Raises:
        ConfigError: `diversity` is not inside [0, 1], or `k` is below 1.
        NumericalError: a score is NaN.
    """
    if not 0 <= diversity <= 1:
        raise ConfigError(f"diversity is {diversity}; expected a number from 0 to 1")
    if diversity == 0 or k < 1 or not scores.shape[1]:
        return np.asarray(top_k(scores, k), dtype=np.int64)
    if np.isnan(scores).any():
        raise NumericalError("scores: a score is NaN; expected numbers; check the model")
    num_lists, num_items = scores.shape
    each = np.arange(num_lists)
    relevance = (1 - diversity) * _relevance(scores)
    # All cosines at once pay where the lists together have more places than there are candidates.
    table = directions @ directions.T if num_lists * k >= num_items else None
    nearest = np.full(scores.shape, -np.inf, dtype=directions.dtype)
    free = np.isfinite(scores)
    lists = np.full((num_lists, k), NO_ITEM, dtype=np.int64)
    value = np.where(free, scores, -np.inf)
    for place in range(min(k, num_items)):
        best = value.argmax(1)
        tied = value == value[each, best][:, None]
        if (tied.sum(1) > 1).any():
            best = np.where(tied, scores, -np.inf).argmax(1)
        left = free[each, best]
        if not left.any():
            break
        lists[left, place] = best[left]
        free[each, best] = False
        cosine = table[best] if table is not None else directions[best] @ directions.T
        np.maximum(nearest, cosine, out=nearest)
        value = np.where(free, relevance - diversity * nearest, -np.inf)
    return lists


def _relevance(scores: Float[np.ndarray, "list item"]) -> Float[np.ndarray, "list item"]:
    """Scores from 0, the worst candidate of the list, to 1, the best; −∞ stays."""
    listed = np.isfinite(scores)
    worst = np.where(listed, scores, np.inf).min(1, keepdims=True)
    best = np.where(listed, scores, -np.inf).max(1, keepdims=True)
    width = np.where(best > worst, best - worst, 1.0)
    with np.errstate(invalid="ignore"):  # a row without candidates is ∞ − ∞
        return np.asarray((scores - worst) / width)

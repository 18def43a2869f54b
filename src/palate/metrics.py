"""Ranking and rating metrics: the only implementations in the project.

Ranking metrics take the listed items of a batch of people and which items are relevant to each of them, and
return one value per person, so that intervals over people can be computed (see `significance.py`). Relevance
is binary. An empty place in a list counts as a miss. nDCG and average precision are normalised by the best
list of `k` places, so a perfect list scores 1 whatever the number of relevant items.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Real

from palate.errors import ConfigError, DataError, NumericalError

NO_ITEM = -1
"""Fills the places of a list that no item could take."""


class RankingMetric(Protocol):
    """The common signature of the ranking metrics; every value lies in [0, 1]."""

    def __call__(
        self,
        ranked: Int[np.ndarray, "user place"],
        relevant: Bool[np.ndarray, "user item"],
        k: int | None = None,
    ) -> Float[np.ndarray, "user"]:
        """Score each user's list, cut at `k` places (by default the whole list)."""
        ...


def top_k(scores: Float[np.ndarray, "user item"], k: int) -> Int[np.ndarray, "user place"]:
    """List each user's `k` best-scored items, best first.

    Equal scores are listed by lower item index. An item scored -inf is never listed; places left over hold
    `NO_ITEM`. The result always has `k` columns.

    Raises:
        ConfigError: `k` is below 1.
        NumericalError: a score is NaN.
    """
    _check_cutoff(k)
    num_users, num_items = scores.shape
    _refuse_not_a_number(scores)
    ranked = np.full((num_users, k), NO_ITEM, dtype=np.int64)
    places = min(k, num_items)
    if num_users == 0 or places == 0:
        return ranked

    # A partial sort finds the k best without ordering the rest, but picks arbitrarily among items that tie
    # for the last places; those rows, and only those, are sorted in full.
    chosen = np.argpartition(scores, num_items - places, axis=1)[:, num_items - places :]
    chosen.sort(axis=1)
    chosen_scores = np.take_along_axis(scores, chosen, axis=1)
    worst = chosen_scores.min(axis=1, keepdims=True)
    ties_left_out = (scores == worst).sum(axis=1) > (chosen_scores == worst).sum(axis=1)
    if ties_left_out.any():
        chosen[ties_left_out] = np.argsort(-scores[ties_left_out], axis=1, kind="stable")[:, :places]
        chosen.sort(axis=1)
        chosen_scores = np.take_along_axis(scores, chosen, axis=1)

    # `chosen` is in index order, so a stable sort leaves ties by lower index.
    order = np.argsort(-chosen_scores, axis=1, kind="stable")
    listed = np.take_along_axis(chosen, order, axis=1)
    listed[np.take_along_axis(chosen_scores, order, axis=1) == -np.inf] = NO_ITEM
    ranked[:, :places] = listed
    return ranked


def precision_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """Share of the `k` places that hold a relevant item (an empty place is a miss)."""
    hits, _ = _hits(ranked, relevant, k)
    return np.asarray(hits.mean(axis=1))


def recall_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """Share of the relevant items that are among the first `k`."""
    hits, num_relevant = _hits(ranked, relevant, k)
    return np.asarray(hits.sum(axis=1) / num_relevant)


def hit_rate_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """1 where any of the first `k` items is relevant, else 0."""
    hits, _ = _hits(ranked, relevant, k)
    return np.asarray(hits.any(axis=1), dtype=np.float64)


def ndcg_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """Discounted gain over the first `k`, divided by that of the best possible list.

    Binary gain, discount 1/log2(place + 1); the best list holds min(k, number of relevant items) hits on top.
    """
    hits, num_relevant = _hits(ranked, relevant, k)
    discounts = 1.0 / np.log2(np.arange(hits.shape[1]) + 2.0)
    ideal = np.cumsum(discounts)[np.minimum(num_relevant, hits.shape[1]) - 1]
    return np.asarray((hits * discounts).sum(axis=1) / ideal)


def mrr_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """Reciprocal of the place of the first relevant item, 0 where none is among the first `k`."""
    hits, _ = _hits(ranked, relevant, k)
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1.0), 0.0)


def average_precision_at_k(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None = None
) -> Float[np.ndarray, "user"]:
    """Sum of the precision at each hit among the first `k`, over min(k, number of relevant items)."""
    hits, num_relevant = _hits(ranked, relevant, k)
    places = np.arange(1, hits.shape[1] + 1)
    precision_at_hits = np.where(hits, hits.cumsum(axis=1) / places, 0.0)
    return np.asarray(precision_at_hits.sum(axis=1) / np.minimum(num_relevant, len(places)))


RANKING_METRICS: Mapping[str, RankingMetric] = {
    "precision": precision_at_k,
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
    "ndcg": ndcg_at_k,
    "mrr": mrr_at_k,
    "average_precision": average_precision_at_k,
}


def target_ranks(
    scores: Float[np.ndarray, "user item"],
    targets: Int[np.ndarray, "user"],
    removed: Bool[np.ndarray, "user item"] | None = None,
) -> Int64[np.ndarray, "user"]:
    """How many items stand above each user's one relevant item, without sorting: 0 is the first place.

    Every item that ties with the target stands above it, so a model that gives all items one score hits nothing.

    Args:
        scores: higher is better; -inf is the last place.
        targets: the relevant item of each user.
        removed: items taken out of the list. A target stays in even where it is marked here: it is asked for again.

    Raises:
        DataError: a target is not an item.
        NumericalError: a score is NaN.
    """
    num_users, num_items = scores.shape
    outside = (targets < 0) | (targets >= num_items)
    if outside.any():
        raise DataError(
            f"targets: user row {int(outside.argmax())} asks for item {int(targets[outside.argmax()])};"
            f" expected 0..{num_items - 1}; number items by the catalogue"
        )
    _refuse_not_a_number(scores)
    above = scores >= scores[np.arange(num_users), targets][:, None]
    if removed is not None:
        above &= ~removed
    above[np.arange(num_users), targets] = False
    ranks: Int64[np.ndarray, "user"] = above.sum(axis=1, dtype=np.int64)
    return ranks


def hit_rate_of_ranks(ranks: Int64[np.ndarray, "user"], k: int) -> Float64[np.ndarray, "user"]:
    """1 where the one relevant item is among the first `k`, else 0; ranks as `target_ranks` gives them."""
    _check_cutoff(k)
    return np.asarray(ranks < k, dtype=np.float64)


def ndcg_of_ranks(ranks: Int64[np.ndarray, "user"], k: int) -> Float64[np.ndarray, "user"]:
    """nDCG at `k` with one relevant item: 1/log2(rank + 2) where it is among the first `k`, else 0."""
    _check_cutoff(k)
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def coverage_at_k(ranked: Int[np.ndarray, "user place"], num_items: int, k: int | None = None) -> float:
    """Share of the catalogue that appears among the first `k` of at least one user's list."""
    if num_items < 1:
        raise DataError(f"coverage: the catalogue has {num_items} items; expected at least 1; check the catalogue")
    lists = _cut(ranked, num_items, k)
    return len(np.unique(lists[lists != NO_ITEM])) / num_items


def graded_ndcg_at_k(scores: Float[np.ndarray, "item"], gains: Float[np.ndarray, "item"], k: int) -> float:
    """nDCG at `k` of one list with graded relevance (Järvelin & Kekäläinen, 2002, doi 10.1145/582415.582418).

    Items with equal scores keep their order. 0 where no item has a gain.

    Raises:
        ConfigError: `k` is below 1.
        DataError: there is no item.
        NumericalError: a score is NaN or infinite.
    """
    order = _one_ranking(scores, k)
    discount = 1 / np.log2(np.arange(len(order)) + 2)
    ideal = float((np.sort(gains)[::-1][: len(order)] * discount).sum())
    return float((gains[order] * discount).sum()) / ideal if ideal > 0 else 0.0


def matched_precision_at_k(scores: Float[np.ndarray, "item"], values: Float[np.ndarray, "item"], k: int) -> float:
    """Share of the `k` best-scored items whose value is among the `k` highest values, each of which matches once.

    The precision of few-shot rating studies (Lin et al., 2021, arXiv:2103.06137): a listed 5 matches one of the true
    top 5s, wherever that one stands. A value that is not positive matches like any other.

    Raises: as `graded_ndcg_at_k`.
    """
    return float(_matches(scores, values, k).sum()) / k


def matched_average_precision_at_k(
    scores: Float[np.ndarray, "item"], values: Float[np.ndarray, "item"], k: int
) -> float:
    """Average precision with the hits of `matched_precision_at_k`, divided by `k`.

    Raises: as `graded_ndcg_at_k`.
    """
    hits = _matches(scores, values, k)
    return float((hits * hits.cumsum() / (np.arange(len(hits)) + 1)).sum()) / k


def mae(predicted: Real[np.ndarray, "event"], actual: Real[np.ndarray, "event"]) -> float:
    """Mean absolute error, in the unit of the ratings."""
    return float(np.abs(_errors(predicted, actual)).mean())


def rmse(predicted: Real[np.ndarray, "event"], actual: Real[np.ndarray, "event"]) -> float:
    """Root of the mean squared error, in the unit of the ratings."""
    return float(np.sqrt(np.square(_errors(predicted, actual)).mean()))


def _errors(predicted: Real[np.ndarray, "event"], actual: Real[np.ndarray, "event"]) -> Float[np.ndarray, "event"]:
    if len(predicted) == 0:
        raise DataError("ratings: there is no event to score; expected at least one; check the split")
    errors: Float[np.ndarray, "event"] = np.subtract(predicted, actual, dtype=np.float64)
    broken = ~np.isfinite(errors)
    if broken.any():
        raise NumericalError(
            f"ratings: event {int(broken.argmax())} holds NaN or infinity; expected numbers; check the model"
        )
    return errors


def _one_ranking(scores: Float[np.ndarray, "item"], k: int) -> Int[np.ndarray, "place"]:
    """The `k` best-scored items of one list; ties keep their order."""
    _check_cutoff(k)
    if len(scores) == 0:
        raise DataError("ranking: there is no item to rank; expected at least one; check the split")
    if not np.isfinite(scores).all():
        raise NumericalError("ranking: a score is NaN or infinite; expected numbers; check the model")
    order: Int[np.ndarray, "place"] = np.argsort(-scores, kind="stable")[:k]
    return order


def _matches(
    scores: Float[np.ndarray, "item"], values: Float[np.ndarray, "item"], k: int
) -> Float[np.ndarray, "place"]:
    """1 for each listed item whose value is still free among the `k` highest values."""
    free = np.sort(values)[::-1][:k].tolist()
    hits = np.zeros(min(k, len(values)))
    for place, item in enumerate(_one_ranking(scores, k)):
        if values[item] in free:
            free.remove(values[item])
            hits[place] = 1.0
    return hits


def _refuse_not_a_number(scores: Float[np.ndarray, "user item"]) -> None:
    not_a_number = np.isnan(scores).any(axis=1)
    if not_a_number.any():
        raise NumericalError(
            f"scores: user row {int(not_a_number.argmax())} holds NaN; expected numbers; check the model"
        )


def _check_cutoff(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k: the cut-off is {k}; expected at least 1; ask for one place or more")


def _cut(ranked: Int[np.ndarray, "user place"], num_items: int, k: int | None) -> Int[np.ndarray, "user kept_place"]:
    """Take the first `k` places, and refuse lists that would score wrongly without a sign."""
    num_places = ranked.shape[1]
    k = num_places if k is None else k
    _check_cutoff(k)
    if k > num_places:
        raise ConfigError(f"k: the cut-off is {k} but the lists have {num_places} places; rank at least {k} places")
    lists = ranked[:, :k]
    outside = ((lists < NO_ITEM) | (lists >= num_items)).any(axis=1)
    if outside.any():
        raise DataError(
            f"ranked: user row {int(outside.argmax())} lists an item outside 0..{num_items - 1};"
            f" expected item indices, or {NO_ITEM} for an empty place"
        )
    ordered = np.sort(lists, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)).any(axis=1)
    if repeated.any():
        raise DataError(
            f"ranked: user row {int(repeated.argmax())} lists an item twice; expected each item at most once"
        )
    return lists


def _hits(
    ranked: Int[np.ndarray, "user place"], relevant: Bool[np.ndarray, "user item"], k: int | None
) -> tuple[Bool[np.ndarray, "user kept_place"], Int[np.ndarray, "user"]]:
    """Which of the first `k` places hold a relevant item, and how many items are relevant to each user."""
    num_relevant = relevant.sum(axis=1)
    without = num_relevant == 0
    if without.any():
        raise DataError(
            f"relevant: user row {int(without.argmax())} has no relevant item"
            f" ({int(without.sum())} such rows of {len(without)}); expected at least one each;"
            " drop these users before scoring"
        )
    lists = _cut(ranked, relevant.shape[1], k)
    # NOTE: an empty place, -1, reads the last column here; the mask takes it out again.
    hits = np.take_along_axis(relevant, lists, axis=1) & (lists != NO_ITEM)
    return hits, num_relevant

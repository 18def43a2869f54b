"""Histories and few-shot episodes: what one person did, as the arrays that models read.

A history is the sequence of distinct items that a person chose, in the order of the first choice; a repeat adds
nothing to it. Events that say no (a cancelled order, a dislike) are kept apart. An episode cuts a history after
its first N items: those are the support, and all later ones are what a list should have held.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from palate.data.vocabulary import Vocabulary


class EventMeaning(NamedTuple):
    """What types of events say; any other is a choice of its item."""

    negative: frozenset[str]
    """Those that say no."""
    rating: frozenset[str]
    """Those whose weight is a rating of the item."""


class History(NamedTuple):
    """One person's behaviour; items are vocabulary indices."""

    items: Int64[np.ndarray, "event"]
    """Distinct items chosen, the earliest first."""
    times: Float64[np.ndarray, "event"]
    """When each was first chosen, in seconds since 1970-01-01."""
    refused: Int64[np.ndarray, "refusal"]
    """Distinct items that the person said no to, and did not choose again later."""
    returning: bool = False
    """Whether the list to come is for another visit than the last event's; see `SequenceModelConfig.visit_gap`."""
    ratings: Float64[np.ndarray, "event"] | None = None
    """What the person last rated each of `items`, NaN where they never did; None: they rated none of them."""

    def head(self, length: int) -> "History":
        """The first `length` items, as if nothing had happened afterwards."""
        ratings = None if self.ratings is None else self.ratings[:length]
        return History(self.items[:length], self.times[:length], self.refused[:0], ratings=ratings)

    def tail(self, length: int) -> "History":
        """The most recent `length` items."""
        start = max(len(self.items) - length, 0)
        ratings = None if self.ratings is None else self.ratings[start:]
        return History(self.items[start:], self.times[start:], self.refused, self.returning, ratings)

    def then(self, later: "History") -> "History":
        """These items, and after them those of `later` that are not among them; refusals are the later ones."""
        new = ~np.isin(later.items, self.items)
        follow = None if later.ratings is None else later.ratings[new]
        ratings = None
        if self.ratings is not None or follow is not None:
            both = ((self.items, self.ratings), (later.items[new], follow))
            ratings = np.concatenate([np.full(len(items), np.nan) if one is None else one for items, one in both])
        items, times = np.concatenate([self.items, later.items[new]]), np.concatenate([self.times, later.times[new]])
        return History(items, times, later.refused, ratings=ratings)

    def rated(self) -> tuple[Int64[np.ndarray, "rated"], Float64[np.ndarray, "rated"]]:
        """The items with a rating, and the ratings."""
        if self.ratings is None:
            return self.items[:0], np.zeros(0)
        known = ~np.isnan(self.ratings)
        return self.items[known], self.ratings[known]


def is_another_visit(last: float | None, at: float, gap: float) -> bool:
    """Whether a list is for another visit than that of the last event.

    Args:
        last: when the last event was, in seconds since 1970-01-01; None: there is none, or nobody knows when.
        at: when the list is asked for.
        gap: hours after which a visit is over; 0: visits are not told apart.
    """
    return gap > 0 and last is not None and at - last > 3600.0 * gap


EMPTY_HISTORY = History(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


def build_histories(
    interactions: pl.DataFrame,
    vocabulary: Vocabulary,
    negative_events: Sequence[str],
    rating_events: Sequence[str] = (),
) -> dict[str, History]:
    """Collect each person's history from a log sorted by time; people come in the order of their ids.

    An event whose type is in `negative_events` refuses its item: the item leaves the chosen ones, until it is
    chosen again. The weight of one whose type is in `rating_events` is a rating of its item; the last one counts.

    Raises:
        DataError: an item is not in the vocabulary.
    """
    known = interactions["item_id"].unique(maintain_order=True).to_list()
    vocabulary.index(known)  # names the first unknown item
    events = (
        interactions.with_row_index("order")
        .join(vocabulary.frame, on="item_id", how="left", maintain_order="left")
        .with_columns(
            negative=pl.col("event_type").is_in(list(negative_events)),
            seconds=pl.col("timestamp").dt.epoch("us") / 1e6,
            rating=pl.when(pl.col("event_type").is_in(list(rating_events))).then("weight") if rating_events else None,
        )
    )
    # What counts of an item is the last word said on it, at the place of the first yes.
    per_item = events.group_by("user_id", "item", maintain_order=True).agg(
        refused=pl.col("negative").last(),
        order=pl.col("order").filter(~pl.col("negative")).first(),
        seconds=pl.col("seconds").filter(~pl.col("negative")).first(),
        rating=pl.col("rating").drop_nulls().last(),
    )
    per_item = per_item.sort("user_id", "order", maintain_order=True)  # items never chosen tie
    people = per_item.group_by("user_id", maintain_order=True).agg(pl.len(), refusals=pl.col("refused").sum())
    items, refused = per_item["item"].to_numpy().astype(np.int64), per_item["refused"].to_numpy()
    seconds = per_item["seconds"].to_numpy().astype(np.float64)[~refused]
    ratings = per_item["rating"].fill_null(np.nan).to_numpy()[~refused]
    chosen, refused = items[~refused], items[refused]
    refusals = people["refusals"].to_numpy().astype(np.int64)
    to = np.cumsum(people["len"].to_numpy().astype(np.int64) - refusals).tolist()
    ends = np.cumsum(refusals).tolist()
    return {
        user: History(
            chosen[start:stop], seconds[start:stop], refused[first:last], ratings=any_rated(ratings[start:stop])
        )
        for user, start, stop, first, last in zip(people["user_id"], [0, *to], to, [0, *ends], ends, strict=False)
    }


def any_rated(ratings: Float64[np.ndarray, "event"]) -> Float64[np.ndarray, "event"] | None:
    """Ratings as a history holds them: None where there is none at all."""
    return None if np.isnan(ratings).all() else ratings


def purchase_matrix(histories: Iterable[History], num_items: int) -> Float32[np.ndarray, "user item"]:
    """Mark which items each person chose: 0/1, dense (45 MB for 3,300 people × 3,400 items)."""
    rows = list(histories)
    matrix = np.zeros((len(rows), num_items), dtype=np.float32)
    for row, history in enumerate(rows):
        matrix[row, history.items] = 1.0
    return matrix


def is_held_out(user: str, share: float) -> bool:
    """Whether a person is among the share that is kept from a training, whatever the log: their id alone decides."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) < share * 2**64


def hold_out(
    histories: Mapping[str, History], *, share: float, min_items: int, rng: np.random.Generator
) -> tuple[dict[str, History], dict[str, History]]:
    """Part people into those who train the shared model and those who play the newcomer.

    Newcomers are drawn among the people with at least `min_items` items: half of the places go to the most recent
    first-time customers, who are most like the people to come, half at random, so that every season has its share.
    """
    eligible = sorted(user for user, history in histories.items() if len(history.items) >= min_items)
    count = round(share * len(eligible))
    recent = sorted(eligible, key=lambda user: (histories[user].times[0], user))
    newest = recent[len(recent) - count // 2 :]
    rest = sorted(set(eligible).difference(newest))
    drawn = rng.choice(len(rest), size=count - len(newest), replace=False)
    held = set(newest).union(rest[place] for place in drawn)
    return (
        {user: history for user, history in histories.items() if user not in held},
        {user: histories[user] for user in sorted(held)},
    )

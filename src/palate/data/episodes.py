"""Histories: the choices of one person as the arrays that models read, whole or up to some moment.

A history is the sequence of distinct items that a person chose, in the order of the first choice; a repeat adds
nothing to it. Events that say no (a cancelled order, a dislike) are kept apart. An episode cuts a history after
its first N items: those are the support, and all later ones are what a list should have held. `palate.data.choices`
has everyone's.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


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


def any_rated(ratings: Float64[np.ndarray, "event"]) -> Float64[np.ndarray, "event"] | None:
    """Ratings as a history holds them: None where there is none at all."""
    return None if np.isnan(ratings).all() else ratings


def is_held_out(user: str, share: float) -> bool:
    """Whether a person is among the share that is kept from a training, whatever the log: their id alone decides."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) < share * 2**64

"""What people have chosen and refused: the view of the record of behaviour that models of lists read.

A person's choices are the distinct items that they chose, in the order of the first choice; a repeat adds nothing.
Events that say no (a cancelled order, a dislike) are kept apart: what counts of an item is the last word said on it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from palate.data.episodes import EventMeaning, History, any_rated
from palate.data.event_log import EventLog, from_sequences
from palate.data.record import Record, codes_of, read_record
from palate.data.vocabulary import Vocabulary


@final
class Choices(Mapping[str, History]):
    """Everyone's histories by user id, over flat columns."""

    def __init__(
        self, users: Sequence[str], chosen: EventLog, refused: EventLog, last_seen: Float64[np.ndarray, "user"]
    ) -> None:
        """Rows of both logs are the people of `users`.

        Args:
            users: their ids.
            chosen: distinct items with the time of the first choice; the values are the last ratings, NaN where there
                is none, or None where nobody rated anything.
            refused: distinct items that each said no to and did not choose again later.
            last_seen: when the last event of each was, repeats and refusals included; NaN for who has none.
        """
        self.users = tuple(users)
        self.chosen = chosen
        self.refused = refused
        self.last_seen = last_seen

    def __len__(self) -> int:
        return len(self.users)

    def __iter__(self) -> Iterator[str]:
        return iter(self.users)

    def __contains__(self, user: object) -> bool:
        return user in self._rows

    def __getitem__(self, user: str) -> History:
        return self.history(self._rows[user])

    def last_seen_of(self, user: str) -> float | None:
        """When a person's last event was, in seconds since 1970-01-01; None for who has none."""
        last = float(self.last_seen[self._rows[user]])
        return None if math.isnan(last) else last

    def history(self, row: int) -> History:
        """One person's, by their row."""
        chosen, refused = self.chosen, self.refused
        some = slice(*chosen.offsets[row : row + 2].tolist())
        return History(
            chosen.items[some].astype(np.int64),
            chosen.times[some],
            refused.items[slice(*refused.offsets[row : row + 2].tolist())].astype(np.int64),
            ratings=None if chosen.values is None else any_rated(chosen.values[some].astype(np.float64)),
        )

    def histories(self) -> list[History]:
        """Everyone's, in the order of the rows."""
        return [self.history(row) for row in range(len(self))]

    def take(self, rows: Int64[np.ndarray, "row"]) -> "Choices":
        """Those of some people, in the order asked for."""
        users = [self.users[row] for row in rows.tolist()]
        return Choices(users, self.chosen.take(rows), self.refused.take(rows), self.last_seen[rows])

    def without(self, *others: "Choices") -> "Choices":
        """Those of everyone who is in none of the others."""
        left_out = frozenset().union(*others)
        return self.take(np.array([row for row, user in enumerate(self.users) if user not in left_out], np.int64))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users)}


def read_choices(interactions: pl.DataFrame, vocabulary: Vocabulary, meaning: EventMeaning) -> Choices:
    """The choices in a table of events sorted by time; see `read_record`, which raises."""
    return choices_in(read_record(interactions, vocabulary), meaning)


def choices_in(record: Record, meaning: EventMeaning) -> Choices:
    """Everyone's choices, refusals and ratings in a record.

    An event whose type is negative refuses its item: the item leaves the chosen ones, until it is chosen again, and
    then has its first place. The weight of one whose type is a rating is a rating of its item; the last one counts.
    """
    log, num_users = record.log, len(record.users)
    last_seen = np.full(num_users, np.nan)
    if not len(log):
        nothing = from_sequences([[]] * num_users)
        return Choices(record.users, EventLog(nothing.items, nothing.offsets, np.zeros(0)), nothing, last_seen)
    assert log.kinds is not None, "a record has kinds"
    negative = np.isin(log.kinds, codes_of(record.kinds, meaning.negative))
    rows = np.repeat(np.arange(num_users), log.lengths())
    last_seen[rows] = log.times  # of what is assigned more than once the last stays
    # Events of one person and item side by side, in the order in which they happened.
    order = np.lexsort((log.items, rows))
    pair = np.stack([rows[order], log.items[order]])
    first = np.flatnonzero(np.r_[True, (pair[:, 1:] != pair[:, :-1]).any(0)])
    last = np.r_[first[1:], len(order)] - 1
    refused = negative[order[last]]
    # The place of the first yes; of an item never chosen there is none, and these come before the others.
    never = len(order)
    yes = np.minimum.reduceat(np.where(negative[order], never, order), first)
    owner = pair[0, first]
    chosen = np.flatnonzero(~refused)
    chosen = chosen[np.argsort(yes[chosen])]
    no = np.flatnonzero(refused)
    no = no[np.lexsort((order[first[no]], np.where(yes[no] == never, -1, yes[no]), owner[no]))]
    values = None
    rates = np.isin(log.kinds, codes_of(record.kinds, meaning.rating))
    if rates.any():
        assert log.values is not None, "ratings are weights"
        place = np.maximum.reduceat(np.where(rates[order], np.arange(len(order)), -1), first)[chosen]
        values = np.where(place < 0, np.nan, np.asarray(log.values, np.float64)[order[np.maximum(place, 0)]])
    items = pair[1, first].astype(np.int32)
    return Choices(
        record.users,
        EventLog(items[chosen], _offsets(owner[chosen], num_users), log.times[yes[chosen]], values=values),
        EventLog(items[no], _offsets(owner[no], num_users)),
        last_seen,
    )


def with_ratings(chosen: EventLog, rated: bool) -> EventLog:
    """Choices as a model reads them: with a rating of each, NaN for none, or without ratings."""
    if rated and chosen.values is None:
        return replace(chosen, values=np.full(len(chosen), np.nan))
    return chosen if rated else replace(chosen, values=None)


def _offsets(owners: Int64[np.ndarray, "row"], num_users: int) -> Int64[np.ndarray, "user_and_one"]:
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_users))]).astype(np.int64)


def purchase_matrix(chosen: EventLog, num_items: int) -> Float32[np.ndarray, "user item"]:
    """Mark which items each person chose: 0/1, dense (45 MB for 3,300 people × 3,400 items)."""
    matrix = np.zeros((chosen.num_users, num_items), dtype=np.float32)
    matrix[np.repeat(np.arange(chosen.num_users), chosen.lengths()), chosen.items] = 1.0
    return matrix


def hold_out(people: Choices, *, share: float, min_items: int, rng: np.random.Generator) -> tuple[Choices, Choices]:
    """Part people into those who train the shared model and those who play the newcomer.

    Newcomers are drawn among the people with at least `min_items` items: half of the places go to the most recent
    first-time customers, who are most like the people to come, half at random, so that every season has its share.
    """
    lengths, times = people.chosen.lengths(), people.chosen.times
    eligible = {people.users[row]: row for row in np.flatnonzero(lengths >= min_items).tolist()}
    count = round(share * len(eligible))
    recent = sorted(eligible, key=lambda user: (times[people.chosen.offsets[eligible[user]]], user))
    newest = recent[len(recent) - count // 2 :]
    rest = sorted(set(eligible).difference(newest))
    drawn = rng.choice(len(rest), size=count - len(newest), replace=False)
    held = sorted({*newest, *(rest[place] for place in drawn)})
    newcomers = people.take(np.array([eligible[user] for user in held], np.int64))
    return people.without(newcomers), newcomers

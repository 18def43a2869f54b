"""What a caller gives as a person's events, read into a history: a user id, a table of events, or item ids in order."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from palate.data.choices import Choices, read_choices
from palate.data.episodes import EMPTY_HISTORY, EventMeaning, History
from palate.data.log import read_ids, require_columns, validate_interactions
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError

EventInput = str | pl.DataFrame | Sequence[str] | Mapping[str, float]
"""The id of a person in training, a table of one person's events, item ids from the oldest to the newest, or ratings by
item id in that order."""


def read_history(
    events: EventInput, users: Choices, vocabulary: Vocabulary, meaning: EventMeaning
) -> tuple[History, float | None]:
    """Read a person's events; return them, and when the last one was (None: nobody says).

    Args:
        events: what the caller has.
        users: the people in training.
        vocabulary: of the items.
        meaning: what types of events say.

    Raises:
        DataError: an unknown person or item, a malformed table, or events of several people.
    """
    if isinstance(events, str):
        if events not in users:
            raise DataError(
                f"user {events!r} is not among the {len(users):,} people in training; pass their events instead"
            )
        return users[events], users.last_seen_of(events)
    if isinstance(events, pl.DataFrame):
        return _read_table(events, vocabulary, meaning)
    ratings = np.array(list(events.values()), np.float64) if isinstance(events, Mapping) and events else None
    if ratings is not None and not np.isfinite(ratings).all():
        wrong = list(events)[int(np.flatnonzero(~np.isfinite(ratings))[0])]
        raise DataError(f"events: the rating of {wrong!r} is not finite; leave it out")
    chosen = dict.fromkeys(_numbers(list(events), vocabulary))
    # Without times the order is all that is known: one session, in this order.
    items = np.fromiter(chosen, np.int64, len(chosen))
    return History(items, np.zeros(len(chosen)), np.zeros(0, np.int64), ratings=ratings), None


def _read_table(events: pl.DataFrame, vocabulary: Vocabulary, meaning: EventMeaning) -> tuple[History, float | None]:
    if events.is_empty():
        return EMPTY_HISTORY, None
    require_columns(events, ("item_id",), source="events")
    owner = events.get_column("user_id", default=None)
    if owner is None or (owner.dtype == pl.String and (owner == "").all()):
        events = events.with_columns(user_id=pl.lit("anonymous"))
    timed = "timestamp" in events.columns
    if not timed:  # the rows are in order then, and nothing is known of the gaps
        seconds = pl.duration(seconds=pl.int_range(pl.len()))
        events = events.with_columns(timestamp=pl.datetime(1970, 1, 1) + seconds)
    log = validate_interactions(events, source="events")
    people = log["user_id"].unique(maintain_order=True).to_list()
    if len(people) > 1:
        raise DataError(
            f'events, column "user_id": {len(people)} people ({people[0]!r}, {people[1]!r}, …); '
            "pass the events of one person"
        )
    _numbers(read_ids(events["item_id"], source="events").to_list(), vocabulary)
    last = log["timestamp"].dt.epoch("us").max()
    assert isinstance(last, int), "a log that is valid has times"
    return read_choices(log, vocabulary, meaning)[people[0]], last / 1e6 if timed else None


def _numbers(item_ids: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Numbers of items; an unknown id is refused with its row."""
    try:
        numbers: list[int] = vocabulary.index(item_ids).tolist()
    except DataError as error:
        row = next(row for row, item in enumerate(item_ids, start=1) if item not in vocabulary)
        raise DataError(f'events: row {row}, column "item_id": {error}; drop it or add the item') from None
    return numbers

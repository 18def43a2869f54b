"""The record of behaviour: everyone's events as flat columns, with the names that the numbers stand for.

There is no other. Repeats stay, and so do events that say no, ratings, weights and sessions; whoever reads choices,
positives or ratings alone takes a view of it, such as `palate.data.choices`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int64

from palate.data.event_log import EventLog, from_sequences
from palate.data.log import INTERACTION_SCHEMA
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError

_MOST_KINDS = 2**16


class Record(NamedTuple):
    """Everyone's events; what the items are called is the vocabulary's to say."""

    users: tuple[str, ...]
    """The id of each person of the log."""
    kinds: tuple[str, ...]
    """The event types, by the number that the log has for each."""
    log: EventLog

    def take(self, rows: Int64[np.ndarray, "row"]) -> "Record":
        """Some of the people."""
        return self._replace(users=tuple(self.users[row] for row in rows.tolist()), log=self.log.take(rows))

    def to_interactions(self, vocabulary: Vocabulary) -> pl.DataFrame:
        """The events as a table in `INTERACTION_SCHEMA`, sorted by time; sessions are called by their numbers."""
        log = self.log
        assert log.kinds is not None, "a record has kinds"
        sessions = None if log.sessions is None else pl.Series(log.sessions).cast(pl.String)
        table = pl.DataFrame(
            {
                "user_id": np.repeat(np.array(self.users, object), log.lengths()),
                "item_id": np.array(vocabulary.ids, object)[log.items],
                "event_type": np.array(self.kinds, object)[log.kinds],
                "weight": np.asarray(log.values, np.float64),
                "timestamp": (log.times * 1e6).round().astype(np.int64),
            },
            schema_overrides=dict.fromkeys(("user_id", "item_id", "event_type"), pl.String),
        ).with_columns(
            timestamp=pl.lit(datetime(1970, 1, 1)) + pl.duration(microseconds="timestamp"),
            event_id=pl.lit(None, pl.String),
            session_id=pl.lit(None, pl.String) if sessions is None else pl.when(sessions != "-1").then(sessions),
        )
        table = table.select(pl.col(name).cast(dtype) for name, dtype in INTERACTION_SCHEMA.items())
        return table.sort("timestamp", maintain_order=True)


NO_RECORD = Record((), (), from_sequences([]))
"""Of nobody."""


def read_record(interactions: pl.DataFrame, vocabulary: Vocabulary) -> Record:
    """Read a table of events sorted by time; people come in the order of their ids, event types in that of their names.

    Args:
        interactions: `user_id`, `item_id`, `event_type` and `timestamp`; `weight` and `session_id` where there are any.
        vocabulary: of the items.

    Raises:
        DataError: an item is not in the vocabulary, or there are more than 65,536 event types.
    """
    vocabulary.index(interactions["item_id"].unique(maintain_order=True).to_list())  # names the first unknown item
    kinds = interactions["event_type"].unique().sort()
    if len(kinds) > _MOST_KINDS:
        raise DataError(f"events: {len(kinds):,} event types; at most {_MOST_KINDS:,} can be told apart; merge some")
    present = [name for name in ("weight", "session_id") if name in interactions.columns]
    rows = (
        interactions.select(
            "user_id",
            "item_id",
            pl.col("timestamp").dt.epoch("us") / 1e6,
            pl.col("event_type").cast(pl.Enum(kinds)),
            *present,
        )
        .sort("user_id", maintain_order=True)
        .join(vocabulary.frame, on="item_id", how="left", maintain_order="left")
    )
    people = rows.group_by("user_id", maintain_order=True).len()
    sessions = None
    if "session_id" in present and rows["session_id"].null_count() < len(rows):
        number = pl.col("session_id").rank("dense").cast(pl.Int32) - 1
        sessions = rows.select(number.fill_null(-1)).to_series().to_numpy()
    log = EventLog(
        rows["item"].to_numpy().astype(np.int32),
        np.concatenate([[0], np.cumsum(people["len"].to_numpy())]).astype(np.int64),
        rows["timestamp"].to_numpy().astype(np.float64),
        rows["event_type"].to_physical().to_numpy().astype(np.uint16),
        rows["weight"].to_numpy() if "weight" in present else None,
        sessions=sessions,
    )
    return Record(tuple(people["user_id"]), tuple(kinds), log)


def codes_of(kinds: Sequence[str], meant: frozenset[str]) -> list[int]:
    """The numbers of the event types that are among those meant."""
    return [number for number, kind in enumerate(kinds) if kind in meant]

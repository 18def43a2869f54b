"""Events: stored once each, numbered without gaps for each person, in one transaction with the person's cursor.

`append` takes the rows of any number of requests at once: its cost is a few statements for all of them and some
microseconds a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
from sqlalchemy import Connection, CursorResult, bindparam, case, func, select

from palate.data.event import Event
from palate.errors import DataError
from palate.store.append import APPENDERS
from palate.store.locks import Lock, hold
from palate.store.rows import COLUMNS, StoredEvent
from palate.store.schema import events
from palate.store.store import Store

_ROWS = 5_000
"""Rows that are turned into columns at once."""
WINDOW_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event_type": pl.String(),
        "timestamp": pl.Float64(),
        "weight": pl.Float64(),
        "session_id": pl.String(),
        "event_id": pl.String(),
        "recommendation_id": pl.String(),
    }
)
CHOICE_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event_type": pl.String(),
        "seconds": pl.Float64(),
        "seq": pl.Int64(),
    }
)

_STORED = tuple(events.c[name] for name in COLUMNS)
_OF_PERSON = (
    select(*_STORED)
    .where(events.c.user_id == bindparam("user_id"), events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)
_NEWEST_OF_PERSON = (
    select(*_STORED)
    .where(events.c.user_id == bindparam("user_id"))
    .order_by(events.c.position.desc())
    .limit(bindparam("limit"))
)
# More rows than any table has: a limit that is none.
_ALL = 2**62


class Appended(NamedTuple):
    """What became of the rows of an append."""

    positions: Sequence[int | None]
    """Of each row, in the order given: its number among the person's events, or None for one stored before."""
    stored: Sequence[StoredEvent]
    """The rows that are new, in the order given."""


def append(connection: Connection, rows: Sequence[Event], now: float) -> Appended:
    """Store what is new among events, and advance the cursors of their people; unknown people are made.

    A row whose `event_id` is stored already, or came earlier in `rows`, is skipped whatever else it says. Nothing is
    visible or durable before the transaction commits.

    Args:
        connection: in a transaction for writing.
        rows: of any people, in the order in which each person's events are to be numbered; each with an id and a time.
        now: seconds since 1970 UTC, noted as the time of receipt.

    Raises:
        DataError: an event has no id or no time, or a text holds a NUL character.
    """
    if not rows:
        return Appended([], [])
    ids = [row.event_id for row in rows if row.event_id is not None and row.timestamp is not None]
    if len(ids) < len(rows):
        raise DataError("an event without an id or a time cannot be stored: give it both when it is received")
    appender = APPENDERS[connection.dialect.name]
    # The people first: on PostgreSQL this waits for other processes that store events of the same people.
    last = appender.cursors(connection, sorted({row.user_id for row in rows}), now)
    seen = appender.known_ids(connection, ids)
    positions: list[int | None] = []
    stored: list[StoredEvent] = []
    advanced: dict[str, int] = {}
    for event_id, row in zip(ids, rows, strict=True):
        user_id = row.user_id
        if "\0" in f"{event_id}{user_id}{row.item_id}{row.event_type}{row.session_id}{row.recommendation_id}":
            raise DataError("an event holds a NUL character, which not every store can hold")
        if event_id in seen:
            positions.append(None)
            continue
        seen.add(event_id)
        position = advanced[user_id] = advanced.get(user_id, last[user_id]) + 1
        positions.append(position)
        stored.append(StoredEvent(row, position, now))
    if stored:
        appender.insert(connection, stored)
        appender.advance(connection, advanced, now)
    return Appended(positions, stored)


def read_events(
    connection: Connection, user_id: str, after_position: int = 0, limit: int | None = None
) -> list[StoredEvent]:
    """Return a person's events in the order of their positions; of someone unknown none."""
    bound = {"user_id": user_id, "after": after_position, "limit": _ALL if limit is None else limit}
    return [StoredEvent.from_row(row) for row in connection.execute(_OF_PERSON, bound)]


def read_newest(connection: Connection, user_id: str, limit: int) -> list[StoredEvent]:
    """Return a person's newest stored events, newest first."""
    rows = connection.execute(_NEWEST_OF_PERSON, {"user_id": user_id, "limit": limit})
    return [StoredEvent.from_row(row) for row in rows]


def read_of_people(connection: Connection, user_ids: Sequence[str]) -> dict[str, list[StoredEvent]]:
    """Return the events of many people in the order of their positions; someone without events has an empty list."""
    found: dict[str, list[StoredEvent]] = {user_id: [] for user_id in user_ids}
    condition = APPENDERS[connection.dialect.name].among(events.c.user_id, "wanted")
    query = select(*_STORED).where(condition).order_by(events.c.user_id, events.c.position)
    bound = APPENDERS[connection.dialect.name].pack(list(found))
    for row in connection.execute(query, {"wanted": bound}):
        found[row.user_id].append(StoredEvent.from_row(row))
    return found


def people_since(connection: Connection, after_seq: int, up_to_seq: int, since: float | None = None) -> list[str]:
    """Return who has events stored after one and up to another, by id.

    Args:
        connection: a snapshot.
        after_seq: for instance 0.
        up_to_seq: what `settled` said before this snapshot began.
        since: only events that happened after this time count.
    """
    query = select(events.c.user_id).distinct().where(events.c.seq > after_seq, events.c.seq <= up_to_seq)
    if since is not None:
        query = query.where(events.c.timestamp > since)
    return list(connection.scalars(query.order_by(events.c.user_id)))


def read_choices(connection: Connection, user_ids: Sequence[str], up_to_seq: int) -> pl.DataFrame:
    """Return what people did up to an event, by person and time.

    Columns: `CHOICE_SCHEMA`; `seconds` is the time of the event since 1970 UTC or, where a client's clock is ahead,
    that of its receipt.
    """
    appender = APPENDERS[connection.dialect.name]
    moment = case((events.c.timestamp > events.c.received_at, events.c.received_at), else_=events.c.timestamp)
    query = (
        select(events.c.user_id, events.c.item_id, events.c.event_type, moment.label("seconds"), events.c.seq)
        .where(appender.among(events.c.user_id, "wanted"), events.c.seq <= up_to_seq)
        .order_by(events.c.user_id, moment, events.c.position)
    )
    return _frame(connection.execute(query, {"wanted": appender.pack(user_ids)}), CHOICE_SCHEMA)


def read_window(connection: Connection, since: float, until: float) -> pl.DataFrame:
    """Return the events with `since <= timestamp < until`, sorted by time and, within the same, by order of storing.

    Columns: `WINDOW_SCHEMA`; times in seconds since 1970 UTC.
    """
    query = (
        select(*(events.c[name] for name in WINDOW_SCHEMA))
        .where(events.c.timestamp >= since, events.c.timestamp < until)
        .order_by(events.c.timestamp, events.c.seq)
    )
    return _frame(connection.execute(query), WINDOW_SCHEMA)


def _frame(found: CursorResult[Any], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Rows as columns, in parts: a call that makes hundreds of thousands of rows keeps other threads from running."""
    parts = [
        pl.DataFrame([tuple(row) for row in rows], schema=schema, orient="row") for rows in found.partitions(_ROWS)
    ]
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def settled(store: Store) -> int:
    """Return a seq up to which no event will be stored any more; 0 of an empty store.

    Without it, a follower on PostgreSQL could pass by an event that another process had numbered and not yet committed.

    Raises:
        StoreError: it cannot be read now.
    """
    with store.read() as connection:
        hold(connection, Lock.APPEND)  # given when whoever has numbered events has committed them
        return connection.scalar(select(func.max(events.c.seq))) or 0


def count(connection: Connection, since_received: float | None = None) -> int:
    """Return how many events are stored, or were received from a time on."""
    query = select(func.count()).select_from(events)
    if since_received is not None:
        query = query.where(events.c.received_at >= since_received)
    return connection.scalar(query) or 0


def last_received_before(connection: Connection, moment: float) -> int:
    """Return the seq of the last stored event that was received before a time, 0 without one; reads those after it."""
    query = select(events.c.seq).where(events.c.received_at < moment).order_by(events.c.seq.desc()).limit(1)
    last: int | None = connection.scalar(query)
    return last or 0


def received_until(connection: Connection, moment: float, after_seq: int) -> int:
    """Return a seq up to which the events after another were received before a time; reads those between them."""
    later = select(events.c.seq).where(events.c.seq > after_seq, events.c.received_at >= moment)
    first: int | None = connection.scalar(later.order_by(events.c.seq).limit(1))
    if first is not None:
        return first - 1
    return connection.scalar(select(func.max(events.c.seq))) or after_seq


def newest_timestamp(connection: Connection) -> float | None:
    """Return the time of the event that happened last; None without events."""
    newest: float | None = connection.scalar(select(func.max(events.c.timestamp)))
    return newest

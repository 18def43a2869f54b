"""A data set into the store: items, people and events as the service knows them; done twice, it changes nothing."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import polars as pl

from palate.data.dataset import Dataset
from palate.data.event import Event
from palate.recommend import Recommender
from palate.store import Store, events, items, people

Row = TypeVar("Row")
_TOGETHER = 2_000
"""Rows of a transaction."""


def take_in(store: Store, dataset: Dataset, now: float, say: Callable[[str], None] = lambda line: None) -> int:
    """Store a data set; return how many of its events were new.

    Events without an id get one from what they say and how often it was said before at that time, so that the same
    file taken in again adds nothing. Attributes that are stored already are overwritten.

    Raises:
        StoreError: the store cannot be written; what was taken in stays, and doing it again goes on.
    """
    for name, frame in (("item_id", dataset.items.frame), ("user_id", dataset.users.frame)):
        rows = [(str(row.pop(name)), row) for row in frame.iter_rows(named=True)]
        for some in _parts(rows):
            with store.write() as connection:
                if name == "item_id":
                    items.upsert(connection, [items.ItemChange(key, values) for key, values in some], now)
                else:
                    people.upsert(connection, [people.PersonChange(key, values) for key, values in some], now)
    say(f"{dataset.items.frame.height:,} items and {dataset.users.frame.height:,} people")
    return _take_in_events(store, dataset.interactions, now, say)


def take_in_model(store: Store, model: Recommender, now: float, say: Callable[[str], None] = lambda line: None) -> int:
    """Store what a model folder itself knows, for one whose data is not at hand: titles and events; return how many.

    Only the events with items that the model was trained on are known there, and the people's attributes are not.
    """
    with store.write() as connection:
        rows = zip(model.vocabulary.ids, model.titles, strict=True)
        items.upsert(connection, [items.ItemChange(item_id, {"title": title}) for item_id, title in rows], now)
    say(f"{len(model.vocabulary):,} items and {len(model.record.users):,} people, as the model knows them")
    return _take_in_events(store, model.record.to_interactions(model.vocabulary), now, say)


def _take_in_events(store: Store, interactions: pl.DataFrame, now: float, say: Callable[[str], None]) -> int:
    added = done = 0
    for rows in _parts(list(_events_of(interactions))):
        with store.write() as connection:
            added += len(events.append(connection, rows, now).stored)
        done += len(rows)
        if done % (20 * _TOGETHER) == 0:
            say(f"{done:,} of {interactions.height:,} events")
    say(f"{added:,} new events of {interactions.height:,}")
    return added


def _events_of(log: pl.DataFrame) -> Iterator[Event]:
    """The rows of a log, with ids."""
    said = ["user_id", "item_id", "event_type", "timestamp"]
    numbered = log.with_columns(
        seconds=pl.col("timestamp").dt.epoch("us") / 1e6, number=pl.int_range(pl.len()).over(said)
    )
    columns = (*said[:3], "seconds", "weight", "event_id", "session_id", "number")
    for user_id, item_id, kind, seconds, weight, event_id, session_id, number in numbered.select(columns).iter_rows():
        key = event_id or _digest(user_id, item_id, kind, repr(seconds), str(number))
        yield Event(user_id, item_id, kind, seconds, weight, key, session_id)


def _digest(*parts: str) -> str:
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER))

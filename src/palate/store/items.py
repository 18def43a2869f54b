"""Items: their attributes, whether they are hidden, and the order of their changes. Items are hidden, never removed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from palate.store.append import APPENDERS
from palate.store.attributes import Value, merged
from palate.store.locks import Lock, hold
from palate.store.paging import Page, read_page
from palate.store.schema import items
from palate.store.upsert import upsert as upsert_rows


class StoredItem(NamedTuple):
    """An item as stored."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool
    created_at: float
    updated_at: float
    revision: int
    """Higher than that of every change before, to any item."""


class ItemChange(NamedTuple):
    """An item to make or change; attributes not named stay, None takes one away."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool | None = None
    """Whether it is left out of every list; None: as before, and a new one is not."""


_ITEMS = select(*(items.c[name] for name in StoredItem._fields))


def upsert(connection: Connection, changes: Sequence[ItemChange], now: float) -> list[StoredItem]:
    """Make or change items, one change after the other; they come back as stored, each once, by revision.

    An item that the changes leave as it was keeps its revision, so a repeated import is no news.

    Raises:
        DataError: a number is not finite.
    """
    # Revisions become visible in their order only if nobody takes one while another's is not committed.
    hold(connection, Lock.ITEMS)
    before = read(connection, list(dict.fromkeys(change.item_id for change in changes)))
    after: dict[str, StoredItem] = {}
    for change in changes:
        old = after.get(change.item_id) or before.get(change.item_id)
        old = old or StoredItem(change.item_id, {}, False, now, now, 0)
        hidden = old.hidden if change.hidden is None else change.hidden
        after[change.item_id] = old._replace(attributes=merged(old.attributes, change.attributes), hidden=hidden)
    revision = newest_revision(connection)
    changed = []
    for item_id, item in after.items():
        if item != before.get(item_id):
            revision += 1
            after[item_id] = item._replace(updated_at=now, revision=revision)
            changed.append(after[item_id]._asdict())
    upsert_rows(connection, items, changed, keep=("created_at",))
    return sorted(after.values(), key=lambda item: item.revision)


def hide(connection: Connection, item_ids: Sequence[str], now: float, *, hidden: bool = True) -> list[StoredItem]:
    """Hide items that are known, or show them again; those unknown are left out of the answer."""
    known = read(connection, item_ids)
    return upsert(connection, [ItemChange(item_id, {}, hidden) for item_id in item_ids if item_id in known], now)


def read(connection: Connection, item_ids: Sequence[str]) -> dict[str, StoredItem]:
    """Return those of some items that are known, by id."""
    appender = APPENDERS[connection.dialect.name]
    query = _ITEMS.where(appender.among(items.c.item_id, "wanted"))
    rows = connection.execute(query, {"wanted": appender.pack(list(item_ids))})
    return {row.item_id: StoredItem(*row) for row in rows}


def read_all(connection: Connection) -> list[StoredItem]:
    """Return all items, hidden ones too, in the order of their ids; `attributes.as_frame` makes a table of them."""
    return [StoredItem(*row) for row in connection.execute(_ITEMS.order_by(items.c.item_id))]


def changed_since(connection: Connection, revision: int, limit: int | None = None) -> list[StoredItem]:
    """Return the items that changed after a revision, by revision."""
    query = _ITEMS.where(items.c.revision > revision).order_by(items.c.revision).limit(limit)
    return [StoredItem(*row) for row in connection.execute(query)]


def newest_revision(connection: Connection) -> int:
    """Return the revision of the newest change; 0 before the first."""
    return connection.scalar(select(func.max(items.c.revision))) or 0


def page(connection: Connection, after: str | None, limit: int) -> Page:
    """Return some items as rows with the fields of `StoredItem`, in the order of their ids."""
    return read_page(connection, _ITEMS, items.c.item_id, after, limit)


def count(connection: Connection) -> int:
    """Return how many items there are, hidden ones too."""
    return connection.scalar(select(func.count()).select_from(items)) or 0

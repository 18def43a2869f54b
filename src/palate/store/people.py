"""People: their attributes, and the cursor of their events."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, select, update

from palate.store.append import APPENDERS
from palate.store.attributes import Value, merged
from palate.store.paging import Page, read_page
from palate.store.schema import people


class StoredPerson(NamedTuple):
    """A person as stored."""

    user_id: str
    attributes: Mapping[str, Value]
    position: int
    """How many of their events are stored."""
    created_at: float
    updated_at: float


class PersonChange(NamedTuple):
    """A person to make or change; attributes not named stay, None takes one away."""

    user_id: str
    attributes: Mapping[str, Value]


_PEOPLE = select(*(people.c[name] for name in StoredPerson._fields))


def upsert(connection: Connection, changes: Sequence[PersonChange], now: float) -> list[StoredPerson]:
    """Make or change people, one change after the other; they come back as stored, each once.

    Raises:
        DataError: a number is not finite.
    """
    if not changes:
        return []
    user_ids = sorted({change.user_id for change in changes})
    APPENDERS[connection.dialect.name].cursors(connection, user_ids, now)  # makes and locks them
    found = read(connection, user_ids)
    for change in changes:
        old = found[change.user_id]
        found[change.user_id] = old._replace(attributes=merged(old.attributes, change.attributes), updated_at=now)
    connection.execute(
        update(people)
        .where(people.c.user_id == bindparam("who"))
        .values(attributes=bindparam("what", type_=people.c.attributes.type), updated_at=now),
        [{"who": person.user_id, "what": person.attributes} for person in found.values()],
    )
    return list(found.values())


def read(connection: Connection, user_ids: Sequence[str]) -> dict[str, StoredPerson]:
    """Return those of some people that are known, by id."""
    dialect = connection.dialect.name
    rows = connection.execute(_among(dialect), {"wanted": APPENDERS[dialect].pack(list(user_ids))})
    return {row.user_id: StoredPerson(*row) for row in rows}


@cache
def _among(dialect: str) -> Select[Any]:
    """Made once: SQLAlchemy takes longer to recognise a statement that is made anew than SQLite to answer it."""
    return _PEOPLE.where(APPENDERS[dialect].among(people.c.user_id, "wanted"))


def read_all(connection: Connection) -> list[StoredPerson]:
    """Return everyone, in the order of their ids."""
    return [StoredPerson(*row) for row in connection.execute(_PEOPLE.order_by(people.c.user_id))]


def page(connection: Connection, after: str | None, limit: int) -> Page:
    """Return some people as rows with the fields of `StoredPerson`, in the order of their ids."""
    return read_page(connection, _PEOPLE, people.c.user_id, after, limit)


def count(connection: Connection) -> int:
    """Return how many people are known."""
    return connection.scalar(select(func.count()).select_from(people)) or 0

"""The statements of an append, once for each database, so that a row costs microseconds.

Lists travel as one parameter (a JSON array in SQLite, an array in PostgreSQL), so the text of a statement never
varies with their length and stays prepared. On SQLite the statements are compiled here once by SQLAlchemy and go
straight to the driver.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Executable,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    table,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ClauseElement

from palate.errors import DataError
from palate.store.driver import run, run_many
from palate.store.locks import Lock, share
from palate.store.rows import COLUMNS, StoredEvent
from palate.store.schema import events, people


class Appender(Protocol):
    """What one database does differently."""

    def pack(self, values: Sequence[str]) -> Any:
        """Return strings as the one parameter that `among` reads."""
        ...

    def among(self, place: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
        """Return the condition that a column is one of the strings packed in a parameter."""
        ...

    def cursors(self, connection: Connection, user_ids: Sequence[str], now: float) -> dict[str, int]:
        """Return how many events each person has, making those unknown; nobody else moves them until the commit."""
        ...

    def known_ids(self, connection: Connection, event_ids: Sequence[str]) -> set[str]:
        """Return those of some event ids that are stored."""
        ...

    def insert(self, connection: Connection, rows: Sequence[StoredEvent]) -> None:
        """Store events, in this order."""
        ...

    def advance(self, connection: Connection, positions: Mapping[str, int], now: float) -> None:
        """Note the last position of each person."""
        ...


@final
class SqliteAppender:
    """The whole database has one writer at a time, so nothing is locked here."""

    def __init__(self) -> None:
        self._make = _compiled(
            insert(people)
            .prefix_with("OR IGNORE")
            .from_select(
                ["user_id", "attributes", "position", "created_at", "updated_at"],
                select(
                    func.json_each(bindparam("user_ids")).table_valued("value").c.value,
                    literal_column("'{}'"),
                    literal_column("0"),
                    bindparam("now", type_=Double),
                    bindparam("now_too", type_=Double),
                ),
            )
        )
        self._cursors = _compiled(
            select(people.c.user_id, people.c.position).where(self.among(people.c.user_id, "user_ids"))
        )
        self._known = _compiled(select(events.c.event_id).where(self.among(events.c.event_id, "event_ids")))
        # NOTE: a statement names columns in the order of its table's, so this table has those of a row, in their order.
        written = table(events.name, *(column(name) for name in COLUMNS))
        self._insert = _compiled(insert(written).values({name: bindparam(name) for name in COLUMNS}))
        self._advance = _compiled(
            update(people)
            .values(position=bindparam("to"), updated_at=bindparam("now"))
            .where(people.c.user_id == bindparam("who"))
        )

    def pack(self, values: Sequence[str]) -> str:
        """As a JSON array."""
        if any("\0" in value for value in values):  # SQLite would end the text there
            raise DataError("an id holds a NUL character")
        return json.dumps(values, ensure_ascii=False)

    def among(self, place: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
        """Through `json_each`."""
        return place.in_(select(func.json_each(bindparam(parameter)).table_valued("value").c.value))

    def cursors(self, connection: Connection, user_ids: Sequence[str], now: float) -> dict[str, int]:
        """Read; make who is missing; a batch of known people costs one statement."""
        packed = self.pack(user_ids)
        found = self._read_cursors(connection, packed)
        if len(found) < len(user_ids):
            run(connection, self._make, (now, now, packed))
            found = self._read_cursors(connection, packed)
        return found

    def known_ids(self, connection: Connection, event_ids: Sequence[str]) -> set[str]:
        """One statement."""
        return {row[0] for row in run(connection, self._known, (self.pack(event_ids),))}

    def insert(self, connection: Connection, rows: Sequence[StoredEvent]) -> None:
        """One prepared statement, run for each row."""
        run_many(connection, self._insert, [row.to_row() for row in rows])

    def advance(self, connection: Connection, positions: Mapping[str, int], now: float) -> None:
        """One prepared statement, run for each person."""
        run_many(connection, self._advance, [(last, now, user_id) for user_id, last in positions.items()])

    def _read_cursors(self, connection: Connection, packed: str) -> dict[str, int]:
        return dict(run(connection, self._cursors, (packed,)))


@final
class PostgresAppender:
    """People are locked in the order of their ids, so that processes wait for each other and never in a circle."""

    def __init__(self) -> None:
        wanted = _unnested("wanted", {"user_id": Text})
        self._make = (
            postgresql.insert(people)
            .from_select(
                ["user_id", "attributes", "position", "created_at", "updated_at"],
                select(
                    wanted.c.user_id,
                    cast(literal_column("'{}'"), people.c.attributes.type),
                    literal_column("0"),
                    bindparam("now", type_=Double),
                    bindparam("now", type_=Double),
                ).order_by(wanted.c.number),
            )
            .on_conflict_do_nothing()
        )
        self._cursors = (
            select(people.c.user_id, people.c.position)
            .where(self.among(people.c.user_id, "user_ids"))
            .order_by(people.c.user_id)
            .with_for_update()
        )
        self._known = select(events.c.event_id).where(self.among(events.c.event_id, "event_ids"))
        rows = _unnested("new", {name: events.c[name].type for name in COLUMNS})
        self._insert = insert(events).from_select(
            list(COLUMNS),
            select(*(rows.c[name] for name in COLUMNS)).order_by(rows.c.number),
        )
        moved = _unnested("moved", {"who": Text, "last": BigInteger})
        self._advance = (
            update(people)
            .values(position=moved.c.last, updated_at=bindparam("now", type_=Double))
            .where(people.c.user_id == moved.c.who)
        )

    def pack(self, values: Sequence[str]) -> list[str]:
        """As they are."""
        return list(values)

    def among(self, place: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
        """Through `= ANY`."""
        return place == any_(bindparam(parameter, type_=ARRAY(Text)))

    def cursors(self, connection: Connection, user_ids: Sequence[str], now: float) -> dict[str, int]:
        """Lock; make who is missing and lock again."""
        share(connection, Lock.APPEND)
        wanted = list(user_ids)
        found = self._read_cursors(connection, wanted)
        while len(found) < len(wanted):  # again only where someone is erased in between
            missing = [user_id for user_id in wanted if user_id not in found]
            connection.execute(self._make, {"wanted_user_id": missing, "now": now})
            found |= self._read_cursors(connection, missing)
        return found

    def known_ids(self, connection: Connection, event_ids: Sequence[str]) -> set[str]:
        """One statement."""
        return {row[0] for row in connection.execute(self._known, {"event_ids": list(event_ids)})}

    def insert(self, connection: Connection, rows: Sequence[StoredEvent]) -> None:
        """One statement with an array for each column."""
        columns = zip(*(row.to_row() for row in rows), strict=True)
        connection.execute(
            self._insert,
            {f"new_{name}": list(values) for name, values in zip(COLUMNS, columns, strict=True)},
        )

    def advance(self, connection: Connection, positions: Mapping[str, int], now: float) -> None:
        """One statement."""
        bound = {"moved_who": list(positions), "moved_last": list(positions.values()), "now": now}
        connection.execute(self._advance, bound)

    def _read_cursors(self, connection: Connection, user_ids: list[str]) -> dict[str, int]:
        return {row[0]: row[1] for row in connection.execute(self._cursors, {"user_ids": user_ids})}


def _compiled(statement: Executable) -> str:
    """Return the text of a statement for SQLite's own driver, with a question mark for each parameter."""
    assert isinstance(statement, ClauseElement)
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="qmark")))


def _unnested(name: str, types: Mapping[str, Any]) -> Any:
    """Return rows made of arrays, one parameter `name_column` for each column, numbered in their order."""
    arrays = [cast(bindparam(f"{name}_{part}", type_=ARRAY(kind)), ARRAY(kind)) for part, kind in types.items()]
    columns = [column(part, kind) for part, kind in types.items()]
    return func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name=name).render_derived()


APPENDERS: Final[Mapping[str, Appender]] = {"sqlite": SqliteAppender(), "postgresql": PostgresAppender()}
"""By the name that SQLAlchemy has for the database."""

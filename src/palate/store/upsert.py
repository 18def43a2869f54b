"""Insert a row, or overwrite the one that has its primary key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

Insert = sqlite.Insert | postgresql.Insert

INSERTS: Final[Mapping[str, Callable[[Table], Insert]]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""The inserts that can also overwrite, by the name that SQLAlchemy has for the database."""


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keep: Sequence[str] = ()) -> None:
    """Store rows that all name the same columns.

    Args:
        connection: in a transaction for writing.
        table: with a primary key, which every row names.
        rows: no two with the same key.
        keep: columns that stay as they are in a row that is there.
    """
    if not rows:
        return
    statement = INSERTS[connection.dialect.name](table)
    key = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key and name not in keep}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), [dict(row) for row in rows])

"""Statements straight to SQLite's own driver: SQLAlchemy's way there costs several times what SQLite takes for a row.

For the few that every event needs, and for nothing else. Errors are those that SQLAlchemy would have raised.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, exc


def run(connection: Connection, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and return all of its rows.

    Raises:
        DBAPIError: SQLite refused it.
    """
    with _cursor(connection, statement) as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def run_many(connection: Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run a statement for each of some rows; raises like `run`."""
    with _cursor(connection, statement) as cursor:
        cursor.executemany(statement, rows)


@contextmanager
def _cursor(connection: Connection, statement: str) -> Iterator[Any]:
    failure = connection.dialect.loaded_dbapi.Error
    cursor = connection.connection.cursor()
    try:
        yield cursor
    except failure as error:
        raise exc.DBAPIError.instance(statement, None, error, failure, hide_parameters=True) from error
    finally:
        cursor.close()

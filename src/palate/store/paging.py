"""Listings in parts: a cursor names the last row that was given, so a part costs the same however far in it is."""

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select

from palate.errors import DataError


class Page(NamedTuple):
    """Part of a listing."""

    rows: Sequence[Row[Any]]
    next: str | None
    """The cursor of the part that follows; None: this was the last."""


def encode(key: str | int) -> str:
    """Return the cursor of what follows a key."""
    return base64.urlsafe_b64encode(json.dumps(key, ensure_ascii=False).encode()).decode().rstrip("=")


def decode(cursor: str, kind: type[str] | type[int]) -> str | int:
    """Return the key that a cursor names.

    Raises:
        DataError: it is no cursor, or one of another listing.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key = json.loads(raw)
    except (ValueError, RecursionError):
        key = None
    # bool is an int to Python.
    if type(key) is not kind:
        raise DataError("after: not a cursor of this listing; use the one that came with the part before")
    return key


def read_page(
    connection: Connection,
    query: Select[Any],
    key: ColumnElement[Any],
    after: str | None,
    limit: int,
    kind: type[str] | type[int] = str,
) -> Page:
    """Read part of a listing in the order of a unique column.

    Args:
        connection: to read through.
        query: the listing, without order; it selects `key`.
        key: the unique column.
        after: the cursor that came with the part before; None: from the beginning.
        limit: rows at most, 1 or more.
        kind: of the key.

    Raises:
        DataError: `after` is no cursor of this listing.
    """
    if after is not None:
        query = query.where(key > decode(after, kind))
    rows = connection.execute(query.order_by(key).limit(limit + 1)).fetchall()
    if len(rows) <= limit:
        return Page(rows, None)
    return Page(rows[:limit], encode(getattr(rows[limit - 1], str(key.key))))

"""Locks between processes that a row cannot give; each is held until the transaction ends.

On SQLite a transaction that writes is alone, so there is nothing to do.
"""

from enum import IntEnum

from sqlalchemy import Connection, func, select


class Lock(IntEnum):
    """What can be locked: numbers that PostgreSQL's advisory locks go by."""

    MIGRATION = 0x50A1A7E0
    APPEND = 0x50A1A7E1
    ITEMS = 0x50A1A7E2
    REGISTRY = 0x50A1A7E3


def hold(connection: Connection, lock: Lock) -> None:
    """Wait until nobody holds or shares a lock, and hold it."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(int(lock))))


def share(connection: Connection, lock: Lock) -> None:
    """Wait until nobody holds a lock, and share it."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock_shared(int(lock))))

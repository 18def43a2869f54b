"""API keys: only the SHA-256 of each is stored, so a copy of the store opens no door."""

from typing import Literal, NamedTuple

from sqlalchemy import Connection, insert, select, update

from palate.store.schema import keys

Role = Literal["client", "service", "admin"]


class StoredKey(NamedTuple):
    """A key without its secret."""

    key_id: str
    role: Role
    sha256: str
    """Of the whole key, in hexadecimal digits."""
    name: str
    created_at: float
    revoked_at: float | None


_KEYS = select(*(keys.c[name] for name in StoredKey._fields))


def add(connection: Connection, key: StoredKey) -> None:
    """Store a key that is new."""
    connection.execute(insert(keys), key._asdict())


def revoke(connection: Connection, key_id: str, now: float) -> StoredKey | None:
    """End a key; one that was ended keeps its time. Returns it; None: there is none of that id."""
    connection.execute(update(keys).where(keys.c.key_id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    row = connection.execute(_KEYS.where(keys.c.key_id == key_id)).one_or_none()
    return None if row is None else StoredKey(*row)


def read_all(connection: Connection) -> list[StoredKey]:
    """Return all keys, revoked ones too, oldest first."""
    return [StoredKey(*row) for row in connection.execute(_KEYS.order_by(keys.c.created_at, keys.c.key_id))]

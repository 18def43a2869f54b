"""Fast weights of people: a cache of what adapting to their events gives. Losing a row costs time and nothing else."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, or_, select

from palate.store.append import APPENDERS
from palate.store.schema import people, states
from palate.store.upsert import INSERTS


class SavedState(NamedTuple):
    """What a model had learned of a person when it had seen their events up to a position."""

    user_id: str
    model_id: str
    position: int
    returning: bool
    payload: bytes
    """safetensors."""
    updated_at: float


def save(connection: Connection, rows: Sequence[SavedState]) -> None:
    """Keep states, one of each person; of someone unknown none, and none that has seen less than the one there."""
    if not rows:
        return
    appender = APPENDERS[connection.dialect.name]
    query = select(people.c.user_id).where(appender.among(people.c.user_id, "wanted"))
    known = set(connection.scalars(query, {"wanted": appender.pack([row.user_id for row in rows])}))
    kept = [row._asdict() for row in rows if row.user_id in known]
    if not kept:
        return
    statement = INSERTS[connection.dialect.name](states)
    excluded = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=[states.c.user_id],
        set_={name: excluded[name] for name in SavedState._fields if name != "user_id"},
        where=or_(states.c.model_id != excluded.model_id, states.c.position <= excluded.position),
    )
    connection.execute(statement, kept)


def load(connection: Connection, user_ids: Sequence[str], model_id: str) -> dict[str, SavedState]:
    """Return what is kept of some people under a model, by user id."""
    appender = APPENDERS[connection.dialect.name]
    query = select(*(states.c[name] for name in SavedState._fields)).where(
        appender.among(states.c.user_id, "wanted"), states.c.model_id == model_id
    )
    rows = connection.execute(query, {"wanted": appender.pack(list(user_ids))})
    return {row.user_id: SavedState(*row) for row in rows}


def forget(connection: Connection, model_id: str) -> int:
    """Remove the states of a model that is no longer served; return how many there were."""
    return connection.execute(delete(states).where(states.c.model_id == model_id)).rowcount

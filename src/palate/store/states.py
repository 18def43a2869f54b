"""Fast weights of people: a cache of what adapting to their events gives. Losing a row costs time and nothing else."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, and_, bindparam, or_, select

from palate.store.append import APPENDERS
from palate.store.people import StoredPerson
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


_PERSON_AND_STATE = (
    select(*(people.c[name] for name in StoredPerson._fields), *(states.c[name] for name in SavedState._fields))
    .select_from(people)
    # A state of another position is of no use, so that its payload need not be read.
    .outerjoin(states, and_(states.c.user_id == people.c.user_id, states.c.position == people.c.position))
    .where(people.c.user_id == bindparam("who"))
)


def save(connection: Connection, rows: Sequence[SavedState], created: Mapping[str, float] | None = None) -> None:
    """Keep states, one of each person; of someone unknown none, and none that has seen less than the one there.

    Args:
        connection: in a transaction for writing. On PostgreSQL one of its own: it holds people whom it does not meet in
            the order in which others do.
        rows: no two of the same person.
        created: when the store first heard of each of them, as far as whoever adapted knew: nothing is kept of who was
            erased since, even where they came back. None: whoever is known is meant.
    """
    if not rows:
        return
    appender = APPENDERS[connection.dialect.name]
    # Who is being written to by another process is passed over: the state is about to be outdated.
    query = (
        select(people.c.user_id, people.c.created_at)
        .where(appender.among(people.c.user_id, "wanted"))
        .with_for_update(read=True, key_share=True, skip_locked=True)
    )
    wanted = {"wanted": appender.pack([row.user_id for row in rows])}
    known = {row.user_id: row.created_at for row in connection.execute(query, wanted)}
    kept = [
        row._asdict()
        for row in sorted(rows)  # two processes that keep states of the same people do so in the same order
        if row.user_id in known and (created is None or created[row.user_id] == known[row.user_id])
    ]
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


def read_person(connection: Connection, user_id: str) -> tuple[StoredPerson, SavedState | None] | None:
    """Return a person with the state that has seen all of their events, if it is kept; None: nobody of this id."""
    row = connection.execute(_PERSON_AND_STATE, {"who": user_id}).first()
    if row is None:
        return None
    width = len(StoredPerson._fields)
    return StoredPerson(*row[:width]), None if row[width] is None else SavedState(*row[width:])

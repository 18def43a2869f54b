"""Forgetting a person: out of every table in one transaction, into a log that outlives restores, out of the files.

The log holds no ids: an HMAC of each under the store's salt. It lies beside the database and is never replaced by a
restore, so that people who were erased after a backup was made are erased from it again. `erase` is the decision and
is durable when its transaction commits; `finish` does the rest and may be repeated after a crash.
"""

import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select

from palate.errors import StoreError
from palate.store.append import APPENDERS
from palate.store.file_search import holds
from palate.store.schema import erasures, events, people, recommendations, states
from palate.store.store import Store

_PATIENCE: Final = 30.0
"""Seconds to wait for readers that hold an old snapshot of the SQLite file."""


class Erased(NamedTuple):
    """What an erasure removed."""

    digest: str
    at: float
    num_events: int
    num_lists: int


def digest_of(salt: bytes, user_id: str) -> str:
    """Return what is remembered of an erased id: HMAC-SHA256, in hexadecimal digits."""
    return hmac.digest(salt, user_id.encode(), hashlib.sha256).hex()


def erase(connection: Connection, salt: bytes, user_id: str, now: float) -> Erased | None:
    """Remove a person, their events, weights and lists, and note the digest; None: nothing of them is stored.

    Args:
        connection: in a transaction for writing.
        salt: `Store.salt`.
        user_id: whom to forget.
        now: seconds since 1970 UTC.
    """
    # Another process that stores an event of theirs is over before, or begins with someone new after.
    connection.execute(select(people.c.user_id).where(people.c.user_id == user_id).with_for_update())
    connection.execute(delete(states).where(states.c.user_id == user_id))
    num_events = connection.execute(delete(events).where(events.c.user_id == user_id)).rowcount
    num_lists = connection.execute(delete(recommendations).where(recommendations.c.user_id == user_id)).rowcount
    known = connection.execute(delete(people).where(people.c.user_id == user_id)).rowcount
    if not (known or num_lists):
        return None
    erased = Erased(digest_of(salt, user_id), now, num_events, num_lists)
    connection.execute(insert(erasures).values(digest=erased.digest, at=now))
    return erased


def last_erasures(connection: Connection, salt: bytes, user_ids: Iterable[str]) -> dict[str, float]:
    """Return when each of some people was last erased, as far as the connection sees; who never was is left out."""
    digests = {digest_of(salt, user_id): user_id for user_id in user_ids}
    query = select(erasures.c.digest, func.max(erasures.c.at)).group_by(erasures.c.digest)
    appender = APPENDERS[connection.dialect.name]
    query = query.where(appender.among(erasures.c.digest, "wanted"))
    found = connection.execute(query, {"wanted": appender.pack([*digests])})
    return {digests[digest]: at for digest, at in found}


def count(connection: Connection) -> int:
    """Return how many erasures there were; what was summed over people holds as long as there are no more."""
    return connection.scalar(select(func.count()).select_from(erasures)) or 0


def finish(store: Store, log: Path, user_ids: Sequence[str] | None = None) -> None:
    """Bring the log up to the database, then take what was erased out of the files.

    Nothing may be written meanwhile by this process: run it through `Writer.between`.

    Args:
        store: where people were erased.
        log: the home's `erasures.log`.
        user_ids: whom, if that is still known; else all files are rewritten, which costs more.

    Raises:
        StoreError: the log or the store cannot be written; what is left to do is done by the next call.
    """
    record(store, log)
    _SCRUBS[store.dialect](store, user_ids)


def record(store: Store, log: Path) -> None:
    """Append the erasures to the log that it lacks, and sync it.

    Raises:
        StoreError: the log cannot be read or written.
    """
    with store.read() as connection:
        noted = {(row.digest, row.at) for row in connection.execute(select(erasures.c.digest, erasures.c.at))}
    lacking = noted - set(read_log(log))
    if not lacking:
        return
    lines = [json.dumps({"digest": digest, "at": at}) + "\n" for digest, at in sorted(lacking, key=lambda one: one[1])]
    try:
        new = not log.exists()
        with log.open("ab") as file:
            file.truncate(_whole_length(log))  # a crash may have left part of a line; it is among those lacking
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            folder = os.open(log.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise StoreError(f"{log}: cannot be written ({error.strerror}); free disk space, the job goes on") from None


def read_log(log: Path) -> list[tuple[str, float]]:
    """Return the digests and times of a log; of one that is missing none.

    Raises:
        StoreError: it cannot be read, or a line of it is damaged.
    """
    try:
        content = log.read_bytes()[: _whole_length(log)] if log.exists() else b""
    except OSError as error:
        raise StoreError(f"{log}: cannot be read ({error.strerror})") from None
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
            found.append((str(entry["digest"]), float(entry["at"])))
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{log}: line {number} is damaged; mend it from a copy before restoring") from None
    return found


def erase_again(connection: Connection, salt: bytes, logged: Iterable[tuple[str, float]]) -> int:
    """Erase from a restored database whoever was erased after it was copied; return how many people.

    Someone who came back after the erasure stays, with what is of after it.
    """
    last: dict[str, float] = {}
    for digest, at in logged:
        last[digest] = max(at, last.get(digest, at))
    num_erased = 0
    created = {row.user_id: row.created_at for row in connection.execute(select(people.c.user_id, people.c.created_at))}
    shown = connection.scalars(
        select(recommendations.c.user_id).where(recommendations.c.user_id.is_not(None)).distinct()
    )
    for user_id in {*created, *shown}:
        digest = digest_of(salt, user_id)
        if digest not in last:
            continue
        at = last[digest]
        if created.get(user_id, at) <= at:
            connection.execute(delete(states).where(states.c.user_id == user_id))
            connection.execute(delete(events).where(events.c.user_id == user_id))
            connection.execute(delete(people).where(people.c.user_id == user_id))
            num_erased += user_id in created
        connection.execute(
            delete(recommendations).where(recommendations.c.user_id == user_id, recommendations.c.at <= at)
        )
    return num_erased


def _whole_length(log: Path) -> int:
    """Return the length of a file up to the end of its last whole line."""
    return log.read_bytes().rfind(b"\n") + 1 if log.exists() else 0


def _scrub_sqlite(store: Store, user_ids: Sequence[str] | None) -> None:
    """Empty the log of SQLite; where the main file still holds one of the ids, write that file anew.

    SQLite overwrites what it deletes (`secure_delete`), but when it moves rows between pages it leaves copies behind
    in the gaps. Those are rare, and a look is cheaper than a rewrite. Another process looks, see `file_search`.
    """
    with store.alone() as connection:
        _truncate_log(store, connection)
        file = Path(store.engine.url.database or "")
        if user_ids is None or holds(file, [user_id.encode() for user_id in user_ids]):
            connection.exec_driver_sql("VACUUM")
            _truncate_log(store, connection)


def _truncate_log(store: Store, connection: Connection) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
        if not busy:
            return
        if time.monotonic() > end:
            raise StoreError(f"{store.name}: a reader keeps an old snapshot open, so its log cannot be emptied yet")
        time.sleep(0.05)


def _scrub_postgres(store: Store, user_ids: Sequence[str] | None) -> None:
    """Write the tables that hold people anew. What the server archived of its own log is the operator's."""
    with store.alone() as connection:
        for table in (people, events, states, recommendations):
            connection.exec_driver_sql(f"VACUUM (FULL) {table.name}")


_SCRUBS: Final[Mapping[str, Callable[[Store, Sequence[str] | None], None]]] = {
    "sqlite": _scrub_sqlite,
    "postgresql": _scrub_postgres,
}

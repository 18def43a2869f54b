"""What must hold of a store after any kind of crash."""

from collections import Counter
from collections.abc import Iterable

from sqlalchemy import func, select, text

from palate.store import Store
from palate.store.schema import events, people


def check(store: Store, acknowledged: Iterable[str]) -> int:
    """Ask that a store is sound and holds what it acknowledged, once; return how many events it holds.

    Raises:
        AssertionError: it does not; the message says what is wrong.
    """
    with store.read() as connection:
        if store.dialect == "sqlite":
            found = connection.scalars(text("PRAGMA integrity_check")).all()
            assert found == ["ok"], f"integrity: {found[:3]}"
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            assert not broken, f"foreign keys: {broken[:3]}"
        ids = Counter(connection.scalars(select(events.c.event_id)))
        twice = [event_id for event_id, count in ids.items() if count > 1]
        assert not twice, f"stored twice: {twice[:5]}"
        lost = set(acknowledged) - set(ids)
        assert not lost, f"acknowledged and lost: {sorted(lost)[:5]} ({len(lost)})"
        of_person = select(events.c.user_id, func.count(), func.min(events.c.position), func.max(events.c.position))
        counted = {row[0]: tuple(row[1:]) for row in connection.execute(of_person.group_by(events.c.user_id))}
        cursors = {row.user_id: row.position for row in connection.execute(select(people.c.user_id, people.c.position))}
        for user_id, position in cursors.items():
            expected = (position, 1, position) if position else None
            assert counted.pop(user_id, None) == expected, f"cursor {position} of {user_id}, stored {counted}"
        assert not counted, f"events of people unknown: {sorted(counted)[:5]}"
        return ids.total()

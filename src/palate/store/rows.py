"""An event as the store has it, and as a row of its table."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from palate.data.event import Event

COLUMNS: Final = (*Event._fields, "position", "received_at")
"""Of the table of events, in the order of the values of `StoredEvent.to_row`."""


class StoredEvent(NamedTuple):
    """An event and what the store adds to it."""

    event: Event
    """With an id and a time: neither is None here."""
    position: int
    """1, 2, 3, … without gaps among the person's events."""
    received_at: float

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "StoredEvent":
        """Return the event of a row."""
        *fields, position, received_at = row
        return cls(Event._make(fields), position, received_at)

    def to_row(self) -> tuple[Any, ...]:
        """Return the row of the event."""
        return (*self.event, self.position, self.received_at)

"""An event on its way in, and as it is stored."""

from typing import NamedTuple


class NewEvent(NamedTuple):
    """An event to store."""

    event_id: str
    """Unique over everyone; the same id again is the same event."""
    user_id: str
    item_id: str
    event_type: str
    timestamp: float
    """When it happened; seconds since 1970 UTC."""
    weight: float = 1.0
    session_id: str | None = None
    recommendation_id: str | None = None
    """The list that led to it."""


class StoredEvent(NamedTuple):
    """An event in the store, in the order of the columns of its row."""

    event_id: str
    user_id: str
    position: int
    """1, 2, 3, … without gaps among the person's events."""
    item_id: str
    event_type: str
    timestamp: float
    weight: float
    session_id: str | None
    recommendation_id: str | None
    received_at: float

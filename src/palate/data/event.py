"""One event: something that a user did with an item. Client, service and store hand on this one record."""

from typing import NamedTuple


class Event(NamedTuple):
    """Something that a user did with an item."""

    user_id: str
    """Empty in the session of someone without an id."""
    item_id: str
    event_type: str = "purchase"
    """click, cart, purchase, … as in the training data."""
    timestamp: float | None = None
    """When it happened, in seconds since 1970 UTC; None: when the service receives it."""
    weight: float = 1.0
    """Such as a number of pieces or, where the type says so, a rating."""
    event_id: str | None = None
    """Unique over all users: the same id again is the same event. None: the client or the service makes one."""
    session_id: str | None = None
    recommendation_id: str | None = None
    """The list that led to the event."""

    def time_or(self, received_at: float) -> float:
        """Return when it happened: `received_at` where the event has no time of its own."""
        return received_at if self.timestamp is None else self.timestamp

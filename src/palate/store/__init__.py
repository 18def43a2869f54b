"""Where everything lasting lives: events, people, items, models and keys, in SQLite or PostgreSQL."""

from palate.store.rows import StoredEvent
from palate.store.store import Store
from palate.store.writer import QueueFullError, Writer

__all__ = ["QueueFullError", "Store", "StoredEvent", "Writer"]

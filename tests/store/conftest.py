"""Every contract over both databases."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from palate.data.event import Event
from palate.store import Store, Writer


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    made = Writer(store)
    yield made
    made.close()


@pytest.fixture
def event_of() -> Callable[..., Event]:
    """Makes events: what is not said is of no interest to the test."""
    numbers = itertools.count()

    def make(event_id: str | None = None, user_id: str = "ann", **rest: object) -> Event:
        filled = {"item_id": "pot", "event_type": "purchase", "timestamp": 1000.0 + next(numbers)} | rest
        return Event(user_id, event_id=event_id or f"event-{next(numbers)}", **filled)  # type: ignore[arg-type]

    return make

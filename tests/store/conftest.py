"""Every contract over both databases."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from palate.store import NewEvent, Store, Writer


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
def event_of() -> Callable[..., NewEvent]:
    """Makes events: what is not said is of no interest to the test."""
    numbers = itertools.count()

    def make(event_id: str | None = None, user_id: str = "ann", **rest: object) -> NewEvent:
        filled = {"item_id": "pot", "event_type": "purchase", "timestamp": 1000.0 + next(numbers)} | rest
        return NewEvent(event_id or f"event-{next(numbers)}", user_id, **filled)  # type: ignore[arg-type]

    return make

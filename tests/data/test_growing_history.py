"""A history that takes one event at a time is the one that is built from the whole log."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from palate.data.choices import read_choices
from palate.data.episodes import EventMeaning
from palate.data.growing_history import GrowingHistory
from palate.data.log import validate_interactions
from palate.data.vocabulary import Vocabulary

KINDS = st.sampled_from(["purchase", "cancel", "rating"])
EVENTS = st.lists(st.tuples(st.integers(0, 4), KINDS, st.integers(0, 3)), min_size=1, max_size=14)


@given(EVENTS)
def test_after_every_event_it_is_what_the_log_says(events: list[tuple[int, str, int]]) -> None:
    hours = np.cumsum([gap for _, _, gap in events])  # ties in time keep the order of the log
    log = validate_interactions(
        pl.DataFrame(
            {
                "user_id": ["one"] * len(events),
                "item_id": [f"item-{item}" for item, _, _ in events],
                "event_type": [kind for _, kind, _ in events],
                "weight": [float(1 + place % 5) for place in range(len(events))],
                "timestamp": [datetime(2024, 1, 1) + timedelta(hours=int(hour)) for hour in hours],
            }
        ),
        source="events",
    )
    vocabulary = Vocabulary(tuple(f"item-{item}" for item in range(5)))
    meaning = EventMeaning(frozenset({"cancel"}), frozenset({"rating"}))
    growing = GrowingHistory[int]()
    for length, (item, kind, _) in enumerate(events, start=1):
        seconds = (log["timestamp"][length - 1] - datetime(1970, 1, 1)).total_seconds()
        rating = float(1 + (length - 1) % 5) if kind == "rating" else None
        growing.add(item, seconds, refuses=kind == "cancel", rating=rating)
        expected = read_choices(log.head(length), vocabulary, meaning)["one"]
        found = growing.history()
        assert found.items.tolist() == expected.items.tolist()
        assert found.times.tolist() == expected.times.tolist()
        assert found.refused.tolist() == expected.refused.tolist()
        assert (found.ratings is None) == (expected.ratings is None)
        if found.ratings is not None:
            np.testing.assert_array_equal(found.ratings, expected.ratings)
        assert growing.last == seconds


def test_before_the_first_event_nothing_is_known() -> None:
    growing = GrowingHistory[int]()
    assert not growing.history(returning=True).returning
    assert len(growing.history().items) == 0
    assert growing.last is None
    growing.add(3, 0.0, refuses=True)
    assert growing.knows(3)
    assert not growing.history(returning=True).returning, "who has chosen nothing cannot come back"
    growing.add(3, 1.0)
    assert growing.history(returning=True).returning

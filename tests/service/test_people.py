"""People in memory equal what the log says, whatever the order in which events come."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from palate.data.choices import read_choices
from palate.data.episodes import EMPTY_HISTORY, EventMeaning, History
from palate.data.event import Event
from palate.data.log import validate_interactions
from palate.data.vocabulary import Vocabulary
from palate.service.people import Cursor, People, Person, Stored, fold
from palate.store import StoredEvent

MEANING = EventMeaning(frozenset({"cancel"}), frozenset({"rating"}))
ITEMS = tuple("abcde")
NUMBERS = {item: number for number, item in enumerate(ITEMS)}
events = st.lists(
    st.builds(
        Event,
        st.just("u"),
        st.sampled_from(ITEMS),
        st.sampled_from(["purchase", "view", "cancel", "rating"]),
        st.integers(0, 6).map(float),
        st.sampled_from([1.0, 2.5, 5.0]),
    ),
    max_size=25,
)


def by_the_log(done: Sequence[Event]) -> History:
    """The slow way: a table of all events, sorted by time."""
    if not done:
        return EMPTY_HISTORY
    frame = pl.DataFrame(
        {
            "user_id": ["u"] * len(done),
            "item_id": [event.item_id for event in done],
            "event_type": [event.event_type for event in done],
            "weight": [event.weight for event in done],
            "timestamp": [datetime.fromtimestamp(event.time_or(99.0), UTC).replace(tzinfo=None) for event in done],
        }
    )
    log = validate_interactions(frame, source="test").sort("timestamp", maintain_order=True)
    return read_choices(log, Vocabulary(ITEMS), MEANING)["u"]


def same(one: History, other: History) -> bool:
    ratings = [np.zeros(0) if history.ratings is None else history.ratings for history in (one, other)]
    return np.array_equal(*ratings, equal_nan=True) and all(
        np.array_equal(left, right) for left, right in zip(one[:3], other[:3], strict=True)
    )


class Log:
    """A store in memory: what is stored of people, in the order of commits."""

    def __init__(self) -> None:
        self.events: dict[str, list[StoredEvent]] = {}
        self.reads = 0

    def read(self, user_id: str) -> Stored | None:
        self.reads += 1
        stored = self.events.get(user_id)
        return None if stored is None else Stored({}, stored)

    def store(self, event: Event) -> StoredEvent:
        of_user = self.events.setdefault(event.user_id, [])
        of_user.append(StoredEvent(event, len(of_user) + 1, 99.0))
        return of_user[-1]

    def append(self, people: People, event: Event) -> None:
        people.take(self.store(event))


@given(done=events)
def test_a_fold_equals_reading_the_log(done: list[Event]) -> None:
    log = Log()
    person = fold(Stored({}, [log.store(event) for event in done]), MEANING)
    assert same(person.history(NUMBERS), by_the_log(done))
    assert person.position == len(done)


@given(done=events, looks=st.sets(st.integers(0, 25)))
def test_people_equal_the_log_after_every_event_whatever_its_time(done: list[Event], looks: set[int]) -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    for number, event in enumerate(done):
        if number in looks:
            people.get("u")
        log.append(people, event)
        if number in looks:
            person = people.get("u")
            assert person is not None
            assert same(person.history(NUMBERS), by_the_log(done[: number + 1]))
            assert person.position == number + 1


def test_an_event_in_order_is_taken_without_reading_the_store() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    people.get("u")
    reads = log.reads
    log.append(people, Event("u", "b", "purchase", 1.0))
    person = people.get("u")
    assert person is not None
    assert person.done.chosen() == ["a", "b"]
    assert log.reads == reads


def test_an_event_does_not_wait_for_who_looks_at_people_and_is_in_the_next_look() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    looking = people.get("u")
    assert looking is not None
    reads = log.reads
    with people.lock:
        writer = threading.Thread(target=log.append, args=(people, Event("u", "b", "purchase", 2.0)))
        writer.start()
        writer.join(10)
        assert not writer.is_alive()
        assert looking.done.chosen() == ["a"]
        person = people.get("u")
        assert person is not None
        assert person.done.chosen() == ["a", "b"]
    assert log.reads == reads


def test_what_was_told_of_someone_forgotten_is_not_taken_in() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    people.get("u")
    for forget in (lambda: people.forget("u"), people.clear):
        with people.lock:
            writer = threading.Thread(target=log.append, args=(people, Event("u", "b", "purchase", 2.0)))
            writer.start()
            writer.join(10)
            log.events.pop("u")
            forget()
            assert people.get("u") is None
        log.append(people, Event("u", "c", "purchase", 3.0))
        person = people.get("u")
        assert person is not None
        assert person.done.chosen() == ["c"]


def test_an_event_told_twice_or_late_by_another_process_changes_nothing() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    people.get("u")
    people.take(log.events["u"][0])
    person = people.get("u")
    assert person is not None
    assert person.position == 1
    # Another process has written the second event; this one hears of the third only.
    log.store(Event("u", "b", "purchase", 2.0))
    people.take(log.store(Event("u", "c", "purchase", 3.0)))
    person = people.get("u")
    assert person is not None
    assert person.done.chosen() == ["a", "b", "c"]


def test_a_cursor_ahead_of_memory_reads_the_store() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    people.get("u")
    log.store(Event("u", "b", "purchase", 2.0))  # by another process, which tells nobody
    behind, level = people.get("u"), people.get("u", Cursor({}, 2, 0.0))
    assert behind is not None
    assert level is not None
    assert level.done.chosen() == ["a", "b"]


def test_another_process_may_change_attributes_or_exchange_the_person() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    person = people.get("u", Cursor({}, 1, 0.0))
    assert person is not None
    assert people.get("u", Cursor({"country": "Italy"}, 1, 0.0)) is person
    assert person.attributes == {"country": "Italy"}
    log.events.clear()
    log.store(Event("u", "b", "purchase", 1.0))  # erased, and back with as many events
    other = people.get("u", Cursor({}, 1, 5.0))
    assert other is not None
    assert other.done.chosen() == ["b"]


def test_only_the_most_recent_people_are_held() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    for name in "uvw":
        log.append(people, Event(name, "a", "purchase", 1.0))
        people.get(name)
    assert len(people) == 2
    reads = log.reads
    people.get("w")
    assert log.reads == reads
    people.get("u")
    assert log.reads == reads + 1


def test_a_stranger_is_nobody_and_is_not_held() -> None:
    people = People(Log().read, MEANING, capacity=2)
    assert people.get("x") is None
    assert len(people) == 0


def test_items_that_a_vocabulary_lacks_are_left_out() -> None:
    person = Person({})
    for item in ("a", "new", "b"):
        person.take(Event("u", item, "purchase"), 1.0, MEANING)
    person.take(Event("u", "also new", "cancel"), 1.0, MEANING)
    history = person.history(NUMBERS)
    assert history.items.tolist() == [0, 1]
    assert history.refused.tolist() == []


def test_a_list_is_for_another_visit_once_the_gap_has_passed() -> None:
    person = Person({})
    assert not person.returning(1e9, 12.0)  # who has done nothing does not come back
    person.take(Event("u", "a", timestamp=0.0), 99.0, MEANING)
    assert not person.returning(12 * 3600.0, 12.0)
    assert person.returning(12 * 3600.0 + 1, 12.0)
    assert not person.returning(1e9, 0.0)


def test_forgetting_and_describing() -> None:
    log = Log()
    people = People(log.read, MEANING, capacity=2)
    log.append(people, Event("u", "a", "purchase", 1.0))
    person = people.get("u")
    assert person is not None
    person.memory = ("key", "value")
    people.describe("u", {"country": "France"})
    assert person.memory is None
    assert person.attributes == {"country": "France"}
    people.forget("u")
    del log.events["u"]
    assert people.get("u") is None

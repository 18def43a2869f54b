"""Events are stored once, numbered without gaps, and the cursor says how many there are."""

import threading
from collections import defaultdict
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from palate.data.event import Event
from palate.errors import DataError
from palate.store import Store, Writer, events, people
from palate.store.schema import events as events_table
from palate.store.schema import people as people_table

Make = Callable[..., Event]


def check_cursors(store: Store) -> dict[str, list[str]]:
    """Ask that positions are 1, 2, 3, … of everyone and agree with the cursors; return the event ids of each person."""
    with store.read() as connection:
        cursors = {row.user_id: row.position for row in connection.execute(select(people_table))}
        found: dict[str, list[str]] = defaultdict(list)
        rows = connection.execute(select(events_table).order_by(events_table.c.user_id, events_table.c.position))
        for row in rows:
            found[row.user_id].append(row.event_id)
            assert row.position == len(found[row.user_id]), "a gap or a repeat"
        assert {user: position for user, position in cursors.items() if position} == {
            user: len(ids) for user, ids in found.items()
        }
        seqs = connection.execute(
            select(events_table.c.user_id, events_table.c.seq).order_by(events_table.c.user_id, events_table.c.position)
        ).all()
        assert seqs == sorted(seqs, key=tuple), "the order of storing and of positions differ"
    return dict(found)


def test_what_is_stored_comes_back(store: Store, event_of: Make) -> None:
    full = Event("ann", "pot", "view", 12.5, 0.5, "e1", "visit-1", "list-1")
    bare = Event("ann", "lid", "purchase", 11.0, event_id="e2")
    with store.write() as connection:
        appended = events.append(connection, [full, bare, event_of("e3", "bob")], 99.0)
    assert appended.positions == [1, 2, 1]
    with store.read() as connection:
        found = events.read_events(connection, "ann")
        assert found == list(appended.stored[:2])
        assert [one.event for one in found] == [full, bare]
        assert {one.received_at for one in found} == {99.0}
        assert events.read_events(connection, "ann", after_position=1) == found[1:]
        assert events.read_events(connection, "ann", limit=1) == found[:1]
        assert events.read_newest(connection, "ann", 1) == found[1:]
        assert events.read_events(connection, "nobody") == []
        both = events.read_of_people(connection, ["bob", "ann", "nobody"])
        assert {user: len(of) for user, of in both.items()} == {"bob": 1, "ann": 2, "nobody": 0}
        assert both["ann"] == found
        assert events.count(connection) == 3
        assert events.count(connection, since_received=99.5) == 0
        assert events.newest_timestamp(connection) == max(12.5, 1000.0)


def test_an_event_is_stored_once_within_a_batch_and_among_batches(store: Store, event_of: Make) -> None:
    with store.write() as connection:
        first = events.append(connection, [event_of("a"), event_of("b"), event_of("a", item_id="other")], 1.0)
    with store.write() as connection:
        second = events.append(connection, [event_of("b"), event_of("c"), event_of("a", "bob")], 2.0)
    assert first.positions == [1, 2, None]
    assert second.positions == [None, 3, None]
    assert [one.event.event_id for one in second.stored] == ["c"]
    assert check_cursors(store) == {"ann": ["a", "b", "c"]}
    with store.read() as connection:
        assert {one.event.item_id for one in events.read_events(connection, "ann")} == {"pot"}
        # bob had only a repeat: he is known, without events
        assert people.read(connection, ["bob"])["bob"].position == 0


@pytest.mark.parametrize("lacks", ["event_id", "timestamp"])
def test_an_event_is_stored_with_an_id_and_a_time_or_not_at_all(store: Store, event_of: Make, lacks: str) -> None:
    rows = [event_of("a"), event_of("b")._replace(**{lacks: None})]
    with pytest.raises(DataError, match="without an id or a time"), store.write() as connection:
        events.append(connection, rows, 1.0)
    assert check_cursors(store) == {}


def test_an_empty_append_stores_nothing(store: Store) -> None:
    with store.write() as connection:
        assert events.append(connection, [], 1.0) == ([], [])


def test_nothing_of_an_append_that_is_rolled_back_stays(store: Store, event_of: Make) -> None:
    def fail_after_append() -> None:
        with store.write() as connection:
            events.append(connection, [event_of("b")], 2.0)
            raise KeyError("on purpose")

    with store.write() as connection:
        events.append(connection, [event_of("a")], 1.0)
    with pytest.raises(KeyError):
        fail_after_append()
    assert check_cursors(store) == {"ann": ["a"]}
    with store.write() as connection:
        assert events.append(connection, [event_of("b")], 3.0).positions == [2]


def test_a_window_is_sorted_by_time_and_then_by_storing(store: Store, event_of: Make) -> None:
    times = {"late": 30.0, "tie-1": 20.0, "early": 10.0, "tie-2": 20.0, "until": 40.0}
    with store.write() as connection:
        events.append(connection, [event_of(name, timestamp=at, session_id="s") for name, at in times.items()], 1.0)
    with store.read() as connection:
        window = events.read_window(connection, 10.0, 40.0)
        assert window["event_id"].to_list() == ["early", "tie-1", "tie-2", "late"]
        assert window.schema == events.WINDOW_SCHEMA
        assert window["recommendation_id"].null_count() == 4
        assert events.read_window(connection, 50.0, 60.0).schema == events.WINDOW_SCHEMA
        assert isinstance(window, pl.DataFrame)


def test_a_follower_reads_everything_once(store: Store, event_of: Make) -> None:
    assert events.settled(store) == 0
    after, seen = 0, []
    for start in range(0, 30, 10):
        with store.write() as connection:
            rows = [event_of(None, f"person-{n % 4}", item_id=f"i{n}") for n in range(start, start + 10)]
            events.append(connection, rows, 1.0)
        settled = events.settled(store)
        with store.read() as connection:
            users = events.people_since(connection, after, settled)
            choices = events.read_choices(connection, users, settled).filter(pl.col("seq") > after).sort("seq")
        seen += choices["item_id"].to_list()
        after = settled
    assert seen == [f"i{number}" for number in range(30)]


def test_a_follower_waits_for_events_that_are_numbered_and_not_committed(postgres_url: str, event_of: Make) -> None:
    """Without the wait, it would be told of the second event, note its seq, and never see the first."""
    store = Store.open(postgres_url)
    told: list[int] = []
    with store.write() as slow:
        events.append(slow, [event_of("first", "ann")], 1.0)
        with store.write() as quick:
            events.append(quick, [event_of("second", "bob")], 1.0)
        follower = threading.Thread(target=lambda: told.append(events.settled(store)))
        follower.start()
        follower.join(0.3)
        assert follower.is_alive()
    follower.join(10)
    with store.read() as connection:
        assert events.people_since(connection, 0, told[0]) == ["ann", "bob"]
    store.close()


def test_positions_have_no_gaps_under_threads_through_one_writer(store: Store, event_of: Make) -> None:
    writer = Writer(store, max_batch=64, max_waiting=10**6)
    failures: list[Exception] = []

    def write(thread: int) -> None:
        try:
            for batch in range(15):
                # every event is sent by two threads
                rows = [event_of(f"{thread // 2}-{batch}-{n}", f"person-{n % 7}") for n in range(5)]
                writer.append(rows).result(30)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert failures == []
    stored = sorted(one for ids in check_cursors(store).values() for one in ids)
    assert stored == sorted(f"{pair}-{batch}-{n}" for pair in range(4) for batch in range(15) for n in range(5))


def test_positions_have_no_gaps_with_several_processes_on_postgres(postgres_url: str, event_of: Make) -> None:
    """Each writer has an engine of its own, as a process would; they share people, meet in other orders, and repeat."""
    stores = [Store.open(postgres_url) for _ in range(4)]
    writers = [Writer(store, max_waiting=10**6) for store in stores]
    futures = []
    for batch in range(20):
        for number, writer in enumerate(writers):
            who = range(6) if number % 2 else range(5, -1, -1)
            rows = [event_of(f"{number}-{batch}-{n}", f"person-{n}") for n in who]
            rows += [event_of(f"shared-{batch}", f"person-{number}")]
            futures.append(writer.append(rows))
    results = [future.result(60) for future in futures]
    for writer in writers:
        writer.close()
    found = check_cursors(stores[0])
    for store in stores:
        store.close()
    assert sum(len(ids) for ids in found.values()) == 20 * (4 * 6 + 1)
    assert sum(len(result.stored) for result in results) == 20 * (4 * 6 + 1)


@pytest.mark.parametrize("bad", ["\ud800", "a\0b"])
@pytest.mark.parametrize("place", ["event_id", "user_id", "item_id", "session_id"])
def test_text_that_a_store_cannot_hold_is_refused_alone(writer: Writer, event_of: Make, bad: str, place: str) -> None:
    with pytest.raises(DataError, match=r"cannot be stored|NUL"):
        writer.append([event_of("x")._replace(**{place: bad})]).result(10)
    assert writer.append([event_of("x")]).result(10).positions == [1]


IDS = st.text("abcdef", min_size=1, max_size=2)
BATCHES = st.lists(st.lists(st.tuples(IDS, st.sampled_from(["ann", "bob", "cy"])), max_size=6), max_size=8)


@given(batches=BATCHES, groups=st.lists(st.integers(1, 4), max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_grouping_of_appends_gives_what_one_by_one_gives(
    store: Store, batches: list[list[tuple[str, str]]], groups: list[int]
) -> None:
    with store.write() as connection:
        for table in ("events", "people"):
            connection.execute(text(f"DELETE FROM {table}"))
    seen: set[str] = set()
    expected: dict[str, list[str]] = defaultdict(list)
    answers = []
    for batch in batches:
        answer: list[int | None] = []
        for event_id, user_id in batch:
            if event_id in seen:
                answer.append(None)
            else:
                seen.add(event_id)
                expected[user_id].append(event_id)
                answer.append(len(expected[user_id]))
        answers.append(answer)
    writer = Writer(store)
    release = threading.Event()
    futures, left = [], list(batches)
    for size in [*groups, len(batches)]:
        held = writer.submit(lambda connection, gate=release: gate.wait(10))  # so that the next ones are one group
        rows = [[Event(user, "pot", "view", 1.0, event_id=name) for name, user in batch] for batch in left[:size]]
        futures += [writer.append(batch) for batch in rows]
        left = left[size:]
        release.set()
        held.result(10)
        release.clear()
    writer.close()
    assert [list(future.result(10).positions) for future in futures] == answers
    assert check_cursors(store) == dict(expected)

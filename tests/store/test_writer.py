"""The writer: groups are commits, a failure takes no neighbour down, the queue is bounded, and nothing is lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, event, insert, text

from palate.data.event import Event
from palate.errors import StoreError
from palate.store import QueueFullError, Store, Writer, events
from palate.store.schema import settings

Make = Callable[..., Event]


@contextmanager
def holding(writer: Writer) -> Iterator[None]:
    """Keep the writer busy, so that all that is handed in meanwhile becomes the next group."""
    at_work, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        at_work.set()
        go_on.wait(20)

    held = writer.between(wait)
    at_work.wait(20)
    yield
    go_on.set()
    held.result(20)


def note(name: str) -> Callable[[Connection], str]:
    def operation(connection: Connection) -> str:
        connection.execute(insert(settings).values(name=name, value="x"))
        return name

    return operation


def notes(store: Store) -> set[str]:
    with store.read() as connection:
        return set(connection.scalars(text("SELECT name FROM settings"))) - {"salt"}


def test_what_waits_together_is_one_commit(store: Store, writer: Writer, event_of: Make) -> None:
    commits = []
    event.listen(store.engine, "commit", lambda connection: commits.append(1))
    with holding(writer):
        futures = [writer.append([event_of()]) for _ in range(50)]
        other = writer.submit(note("a"))
        futures += [writer.append([event_of(), event_of()]) for _ in range(50)]
        assert writer.waiting == 151
    assert other.result(20) == "a"
    assert sorted(position for future in futures for position in future.result(20).positions) == list(range(1, 151))
    assert len(commits) == 1
    assert writer.waiting == 0


def test_a_group_ends_at_its_bound(store: Store, event_of: Make) -> None:
    writer = Writer(store, max_batch=10)
    commits = []
    event.listen(store.engine, "commit", lambda connection: commits.append(1))
    with holding(writer):
        futures = [writer.append([event_of() for _ in range(4)]) for _ in range(6)]
        large = writer.append([event_of() for _ in range(25)])
    assert len(large.result(20).stored) == 25
    assert [len(future.result(20).stored) for future in futures] == [4] * 6
    assert len(commits) == 4  # two, two, two and the one that is larger than the bound
    writer.close()


def test_an_operation_that_fails_takes_no_neighbour_down(store: Store, writer: Writer, event_of: Make) -> None:
    def fail(connection: Connection) -> None:
        note("half")(connection)
        raise KeyError("on purpose")

    def wrong(connection: Connection) -> None:
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    with holding(writer):
        before = writer.append([event_of("a")])
        failing, broken = writer.submit(fail), writer.submit(wrong)
        after = writer.append([event_of("b"), event_of("a")])
        kept = writer.submit(note("kept"))
    assert before.result(20).positions == [1]
    assert after.result(20).positions == [2, None]
    assert kept.result(20) == "kept"
    with pytest.raises(KeyError, match="on purpose"):
        failing.result(20)
    with pytest.raises(Exception, match="nowhere"):
        broken.result(20)
    assert notes(store) == {"kept"}


def test_callbacks_come_in_the_order_of_commits_before_the_future(writer: Writer, event_of: Make) -> None:
    order: list[object] = []
    with holding(writer):
        first = writer.append([event_of()], lambda appended: order.append(list(appended.positions)))
        second = writer.submit(note("a"), order.append)
        third = writer.append([event_of()], lambda appended: order.append((list(appended.positions), third.done())))
    third.result(20)
    assert first.done()
    assert second.done()
    assert order == [[1], "a", ([2], False)]


def test_a_callback_sees_what_is_committed(store: Store, writer: Writer, event_of: Make) -> None:
    seen = []

    def look(_: object) -> None:
        with store.read() as connection:
            seen.append(events.count(connection))

    writer.append([event_of()], look).result(20)
    assert seen == [1]


def test_a_callback_that_fails_stops_nothing(writer: Writer, event_of: Make) -> None:
    def fail(_: object) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        writer.append([event_of()], fail).result(20)
    assert writer.append([event_of()]).result(20).positions == [2]


def test_the_queue_is_bounded_by_rows(store: Store, event_of: Make) -> None:
    writer = Writer(store, max_waiting=10)
    with holding(writer):
        taken = [writer.append([event_of() for _ in range(5)]) for _ in range(2)]
        with pytest.raises(QueueFullError):
            writer.append([event_of()])
        with pytest.raises(QueueFullError):
            writer.submit(note("a"))
    assert [len(future.result(20).stored) for future in taken] == [5, 5]
    assert len(writer.append([event_of() for _ in range(30)]).result(20).stored) == 30  # alone it may be larger
    assert notes(store) == set()
    writer.close()


def test_a_cancelled_operation_is_not_run(store: Store, writer: Writer) -> None:
    with holding(writer):
        dropped, kept = writer.submit(note("dropped")), writer.submit(note("kept"))
        assert dropped.cancel()
    kept.result(20)
    assert notes(store) == {"kept"}


def test_closing_writes_what_waits_or_refuses_it(store: Store, event_of: Make) -> None:
    writer = Writer(store)
    closing = threading.Thread(target=writer.close)
    with holding(writer):
        written = writer.append([event_of()])
        closing.start()
    closing.join(20)
    assert written.result(0).positions == [1]
    with pytest.raises(StoreError, match="closed"):
        writer.append([event_of()])

    writer = Writer(store)
    closing = threading.Thread(target=writer.close, args=(False,))
    with holding(writer):
        refused = writer.append([event_of()])
        closing.start()
        with pytest.raises(StoreError, match="send it again"):
            refused.result(20)
    closing.join(20)
    with store.read() as connection:
        assert events.count(connection) == 1


def test_nothing_is_written_while_a_task_runs_between_groups(store: Store, writer: Writer, event_of: Make) -> None:
    writer.append([event_of()]).result(20)
    order = []
    with holding(writer):
        futures = [
            writer.append([event_of()], lambda _: order.append("a")),
            writer.between(lambda: order.append(store.engine.pool.checkedout())),  # type: ignore[attr-defined]
            writer.append([event_of()], lambda _: order.append("b")),
        ]
    for future in futures:
        future.result(20)
    assert order == ["a", 0, "b"]


def test_a_lost_connection_is_replaced(postgres_url: str, event_of: Make) -> None:
    store = Store.open(postgres_url)
    writer = Writer(store)
    writer.append([event_of("a")]).result(20)
    with store.alone() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                 " AND pid <> pg_backend_pid()")
        )  # fmt: skip
    with pytest.raises(StoreError, match="try again"):
        writer.append([event_of("b")]).result(20)
    assert writer.append([event_of("b")]).result(20).positions == [2]
    writer.close()
    store.close()


def test_what_another_process_got_in_the_way_of_is_run_again(postgres_url: str, event_of: Make) -> None:
    """The same event id for two people at once: no lock orders them, the second one to commit finds a duplicate."""
    store = Store.open(postgres_url)
    writer = Writer(store)
    with store.write() as connection:
        events.append(connection, [event_of("same", "ann")], 1.0)
        future = writer.append([event_of("same", "bob")])
        with pytest.raises(TimeoutError):
            future.result(0.3)
    assert future.result(20).positions == [None]
    writer.close()
    store.close()

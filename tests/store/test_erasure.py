"""An erased person is gone from every table, from the log of the database, and from its files, byte for byte."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, text

import store_files
from palate.data.event import Event
from palate.errors import StoreError
from palate.store import Store, Writer, erasure, events, items, people, recommendations, states
from palate.store.file_search import holds
from palate.store.items import ItemChange
from palate.store.people import PersonChange
from palate.store.recommendations import ShownList
from palate.store.schema import erasures, metadata
from palate.store.schema import events as table
from palate.store.states import SavedState
from store_files import files_that_hold

Make = Callable[..., Event]
WHOM = "marguerite-yourcenar-1903"


def fill(store: Store, event_of: Make, others: int = 40) -> None:
    """People whose rows are mixed with those of the one to be erased, changed often, so that pages split and move."""
    rng = random.Random(0)
    for batch in range(25):
        users = [WHOM, *(f"person-{rng.randrange(others):03}-{'x' * rng.randrange(60)}" for _ in range(30))]
        rng.shuffle(users)
        with store.write() as connection:
            rows = [event_of(user_id=user, event_id=f"{batch}-{n}") for n, user in enumerate(users)]
            events.append(connection, rows, float(batch))
            people.upsert(connection, [PersonChange(WHOM, {"note": "y" * rng.randrange(900)})], float(batch))
            states.save(
                connection,
                [SavedState(user, "m", batch, False, rng.randbytes(rng.randrange(3000)), 1.0) for user in {*users}],
            )
            recommendations.add(
                connection,
                [
                    ShownList(
                        f"{batch}-{n}",
                        user,
                        False,
                        "m",
                        "served",
                        "default",
                        1.0,
                        ["a"],
                        [1.0],
                        [1.0],
                        {"exclude": [f"wish of {user}"] * rng.randrange(1, 9)},
                    )
                    for n, user in enumerate(users)
                ],
            )


def test_an_erased_person_is_in_no_table(store: Store, writer: Writer, event_of: Make) -> None:
    fill(store, event_of)
    with store.read() as connection:
        others = events.count(connection) - 25
    erased = writer.submit(lambda connection: erasure.erase(connection, store.salt, WHOM, 9.0)).result(20)
    assert erased == (erasure.digest_of(store.salt, WHOM), 9.0, 25, 25)
    with store.read() as connection:
        for table in metadata.sorted_tables:
            assert WHOM not in str(connection.execute(select(table)).all()), table.name
        assert events.count(connection) == others
        assert [tuple(row) for row in connection.execute(select(erasures))] == [(erased.digest, 9.0)]
    again = writer.submit(lambda connection: erasure.erase(connection, store.salt, WHOM, 10.0)).result(20)
    assert again is None


def test_someone_who_comes_back_begins_anew(store: Store, writer: Writer, event_of: Make) -> None:
    writer.append([event_of("a", WHOM), event_of("b", WHOM)]).result(20)
    writer.submit(lambda connection: erasure.erase(connection, store.salt, WHOM, 9.0)).result(20)
    assert writer.append([event_of("a", WHOM)]).result(20).positions == [1]


@pytest.mark.parametrize("known", [True, False])
def test_no_byte_stays_in_the_files_of_sqlite(tmp_path: Path, event_of: Make, known: bool) -> None:
    """Whether the id is still known when the files are cleaned, or, after a crash, no longer."""
    home = tmp_path / "home"
    store = Store.open(f"sqlite:///{home / 'palate.db'}")
    writer = Writer(store)
    fill(store, event_of)
    assert "palate.db-wal" in files_that_hold(home, WHOM)
    writer.submit(lambda connection: erasure.erase(connection, store.salt, WHOM, 9.0)).result(20)
    log = home / "erasures.log"
    writer.between(lambda: erasure.finish(store, log, [WHOM] if known else None)).result(60)
    assert files_that_hold(home, WHOM) == []  # the store is still open
    assert WHOM[:12] not in str(files_that_hold(home, WHOM[:12]))
    assert writer.append([event_of("later", "ann")]).result(20).positions == [1]
    writer.close()
    store.close()
    assert files_that_hold(home, WHOM) == []


def test_an_erasure_keeps_the_locks_and_the_log_of_the_store(tmp_path: Path, event_of: Make) -> None:
    """What is written after it is there, though another process came and went meanwhile, and this one was killed."""
    copy = tmp_path / "after-a-kill"
    copy.mkdir()
    store = Store.open(f"sqlite:///{tmp_path / 'palate.db'}")
    fill(store, event_of)
    with store.write() as connection:
        erasure.erase(connection, store.salt, WHOM, 9.0)
    erasure.finish(store, tmp_path / "erasures.log", [WHOM])
    assert store_files.faults(os.getpid(), tmp_path / "palate.db") == []
    other = "import sys; from palate.store import Store; Store.open(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", other, f"sqlite:///{tmp_path / 'palate.db'}"], check=True)
    assert store_files.faults(os.getpid(), tmp_path / "palate.db") == []
    with store.write() as connection:
        events.append(connection, [event_of("after")], 10.0)
    subprocess.run(f"cp {tmp_path}/palate.db* {copy}", shell=True, check=True)  # what a kill would leave
    left = Store.open(f"sqlite:///{copy / 'palate.db'}")
    with left.read() as connection:
        assert connection.scalars(select(table.c.event_id).where(table.c.event_id == "after")).all() == ["after"]
    left.close()
    store.close()


@pytest.mark.parametrize("place", [0, 5, (1 << 20) - 6, (1 << 20) - 1, 1 << 20, (2 << 20) + 17])
def test_bytes_are_found_wherever_they_are(tmp_path: Path, place: int) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"x" * place + b"needle" + b"x" * ((3 << 20) - place))
    assert holds(file, [b"haystack", b"needle"])
    assert holds(file, [b"x"])
    assert not holds(file, [b"needles", b"haystack"])
    assert not holds(file, [])


def test_a_file_that_cannot_be_searched_fails_the_scrub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, event_of: Make
) -> None:
    with pytest.raises(OSError, match="cannot be searched"):
        holds(tmp_path / "none", [b"a"])
    store = Store.open(f"sqlite:///{tmp_path / 'palate.db'}")
    fill(store, event_of)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StoreError, match="cannot be read or written now"):
        erasure.finish(store, tmp_path / "erasures.log", [WHOM])
    store.close()


def test_copies_that_sqlite_leaves_in_the_gaps_are_found_and_removed(tmp_path: Path) -> None:
    """A file that still holds the id somewhere after the deletion is written anew."""
    store = Store.open(f"sqlite:///{tmp_path / 'palate.db'}")
    with store.alone() as connection:
        connection.exec_driver_sql("PRAGMA secure_delete = OFF")
        connection.exec_driver_sql("INSERT INTO people VALUES (?, '{}', 0, 1, 1)", (WHOM,))
        connection.exec_driver_sql("DELETE FROM people")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert files_that_hold(tmp_path, WHOM) == ["palate.db"]
    erasure.finish(store, tmp_path / "erasures.log", [WHOM])
    assert files_that_hold(tmp_path, WHOM) == []
    store.close()


def test_no_byte_stays_in_the_tables_of_postgres(postgres_url: str, tmp_path: Path, event_of: Make) -> None:
    """Nor in its statistics; the server's own log of changes is not the store's to clean."""
    store = Store.open(postgres_url)
    fill(store, event_of)
    with store.alone() as connection:
        connection.execute(text("ANALYZE"))
        connection.execute(text("CHECKPOINT"))
        base = Path(connection.scalar(text("SHOW data_directory"))) / "base"
        number = connection.scalar(text("SELECT oid FROM pg_database WHERE datname = current_database()"))
    assert files_that_hold(base / str(number), WHOM)
    with store.write() as connection:
        erasure.erase(connection, store.salt, WHOM, 9.0)
    erasure.finish(store, tmp_path / "erasures.log", [WHOM])
    with store.alone() as connection:
        connection.execute(text("CHECKPOINT"))
    assert files_that_hold(base / str(number), WHOM) == []
    store.close()


def test_a_scrub_waits_for_readers_and_says_so(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, tmp_path: Path, event_of: Make
) -> None:
    monkeypatch.setattr(erasure, "_PATIENCE", 0.1)
    monkeypatch.setattr("palate.store.store.BUSY_SECONDS", 0.05)
    store = Store.open(sqlite_url)
    fill(store, event_of)
    log = tmp_path / "erasures.log"
    with store.read() as reader:
        events.count(reader)
        with store.write() as connection:
            erasure.erase(connection, store.salt, WHOM, 9.0)
        with pytest.raises(StoreError, match="old snapshot"):
            erasure.finish(store, log, [WHOM])
    erasure.finish(store, log, [WHOM])
    assert files_that_hold(tmp_path, WHOM) == []
    assert len(erasure.read_log(log)) == 1
    store.close()


def test_the_log_holds_each_erasure_once_and_no_id(store: Store, tmp_path: Path, event_of: Make) -> None:
    log = tmp_path / "erasures.log"
    for number, name in enumerate(["ann", "bob", "ann"]):
        with store.write() as connection:
            events.append(connection, [event_of(user_id=name)], 1.0)
            erasure.erase(connection, store.salt, name, float(number))
        erasure.record(store, log)
        erasure.record(store, log)
    expected = [(erasure.digest_of(store.salt, name), float(at)) for at, name in enumerate(["ann", "bob", "ann"])]
    assert erasure.read_log(log) == expected
    assert "ann" not in log.read_text()
    assert erasure.digest_of(b"other salt", "ann") != expected[0][0]


def test_a_log_cut_short_by_a_crash_is_completed(store: Store, tmp_path: Path, event_of: Make) -> None:
    log = tmp_path / "erasures.log"
    for number in range(3):
        with store.write() as connection:
            events.append(connection, [event_of(user_id=f"p{number}")], 1.0)
            erasure.erase(connection, store.salt, f"p{number}", float(number))
    erasure.record(store, log)
    whole = log.read_bytes()
    for length in range(len(whole)):
        log.write_bytes(whole[:length])
        assert len(erasure.read_log(log)) == whole[:length].count(b"\n")
    log.write_bytes(whole[: len(whole) - 30])
    erasure.record(store, log)
    assert log.read_bytes() == whole


def test_a_log_that_is_damaged_is_told(tmp_path: Path) -> None:
    log = tmp_path / "erasures.log"
    assert erasure.read_log(log) == []
    log.write_text(json.dumps({"digest": "ab", "at": 1.0}) + "\nnonsense\n")
    with pytest.raises(StoreError, match="line 2 is damaged"):
        erasure.read_log(log)


def test_items_are_not_touched(store: Store, event_of: Make) -> None:
    with store.write() as connection:
        items.upsert(connection, [ItemChange("pot", {})], 1.0)
        events.append(connection, [event_of(user_id=WHOM)], 1.0)
        erasure.erase(connection, store.salt, WHOM, 2.0)
    with store.read() as connection:
        assert items.count(connection) == 1

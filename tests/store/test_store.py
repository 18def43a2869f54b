"""Opening a store: its settings, its schema forward and back, and what is refused."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from palate.data.event import Event
from palate.errors import ConfigError, StoreError
from palate.store import Store, events, migrations, recommendations
from palate.store.recommendations import ShownList
from palate.store.schema import metadata
from palate.store.store import files_of

Make = Callable[..., Event]


def test_the_steps_lead_to_the_schema(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_schema_goes_forward_back_and_forward_with_its_data(store: Store, event_of: Make) -> None:
    with store.write() as connection:
        events.append(connection, [event_of("a"), event_of("b", "bob")], 1.0)
    with store.read() as connection:
        before = connection.execute(text("SELECT * FROM events ORDER BY seq")).all()
    revisions = sorted(migrations.known_revisions())
    assert len(revisions) > 1
    for revision in [*reversed(revisions[:-1]), *revisions[1:]]:
        with store.write() as connection:
            migrations.migrate(connection, revision)
            assert migrations.current_revision(connection) == revision
        with store.read() as connection:
            assert connection.execute(text("SELECT * FROM events ORDER BY seq")).all() == before
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_lists_outlive_the_way_back_and_forward_without_what_was_asked(store: Store) -> None:
    plain = ShownList("r1", "ann", False, "m", "served", "d", 1.0, ["é", "b"], [0.5, 1 / 3], [1.0, 0.1])
    asked = plain._replace(recommendation_id="r2", user_id="bob", at=2.0, asked={"k": 2})
    with store.write() as connection:
        recommendations.add(connection, [plain, asked])
        migrations.migrate(connection, "0002")
        assert "asked" not in [column["name"] for column in inspect(connection).get_columns("recommendations")]
    with store.write() as connection:
        migrations.migrate(connection, "0003")
        recommendations.add(connection, [asked._replace(recommendation_id="r3", at=3.0)])
    with store.read() as connection:
        kept = recommendations.read_window(connection, 0.0, 9.0)
    assert kept == [plain, asked._replace(asked=None), asked._replace(recommendation_id="r3", at=3.0)]


def test_the_way_back_to_nothing_leaves_nothing(store: Store) -> None:
    with store.write() as connection:
        migrations.migrate(connection, "base")
    with store.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    again = Store(store.engine)
    with again.read() as connection:
        assert events.count(connection) == 0
    assert again.salt != store.salt


def test_an_older_store_is_migrated_when_it_is_opened(store: Store, url: str) -> None:
    with store.write() as connection:
        migrations.migrate(connection, "0001")
    opened = Store.open(url)
    with opened.read() as connection:
        assert migrations.current_revision(connection) == migrations.latest_revision()
    assert opened.salt == store.salt
    opened.close()


def test_a_newer_store_is_refused_in_one_line(store: Store, url: str) -> None:
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="schema 9999, written by a newer Palate") as caught:
        Store.open(url)
    assert "\n" not in str(caught.value)
    with store.read() as connection:
        assert migrations.current_revision(connection) == "9999"


def test_processes_that_start_at_once_migrate_once(url: str, store: Store) -> None:
    with store.write() as connection:
        migrations.migrate(connection, "base")
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(Store.open(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 3
    assert len({one.salt for one in opened}) == 1
    for one in opened:
        one.close()


def test_sqlite_runs_with_the_settings_that_keep_the_promises(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    for take in (store.read, store.write, store.alone):
        with take() as connection:
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
            }
        assert found == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "secure_delete": 1,
            "busy_timeout": 10_000,
        }
    store.close()


def test_postgres_runs_with_the_settings_that_keep_the_promises(postgres_url: str) -> None:
    store = Store.open(postgres_url)
    with store.write() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW lock_timeout")) == "10s"
    with store.read() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert connection.scalar(text("SHOW transaction_read_only")) == "on"
    with store.write() as connection:  # the same connection, given back by the reader
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        assert connection.scalar(text("SHOW transaction_read_only")) == "off"
    store.close()


def test_a_reader_sees_one_moment(store: Store, event_of: Make) -> None:
    with store.read() as reader:
        assert events.count(reader) == 0
        with store.write() as connection:
            events.append(connection, [event_of()], 1.0)
        assert events.count(reader) == 0
    with store.read() as reader:
        assert events.count(reader) == 1


def test_a_store_is_made_for_its_owner_only_and_not_by_surprise(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'palate.db'}"
    with pytest.raises(StoreError, match="no such store"):
        Store.open(url, create=False)
    assert not (tmp_path / "new").exists()
    Store.open(url).close()
    assert stat.S_IMODE(os.stat(tmp_path / "new" / "palate.db").st_mode) == 0o600
    Store.open(url, create=False).close()


def test_a_file_gets_its_name_when_nothing_has_it_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where a file system knows no links, and where another process was first."""
    Store.open(f"sqlite:///{tmp_path / 'linked.db'}").close()

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    Store.open(f"sqlite:///{tmp_path / 'moved.db'}").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked.db", "moved.db"]

    (tmp_path / "other").touch()

    def too_late(*_: object) -> None:
        (tmp_path / "other").rename(tmp_path / "raced.db")
        raise FileExistsError(17, "there already")

    monkeypatch.setattr(os, "link", too_late)
    Store.open(f"sqlite:///{tmp_path / 'raced.db'}").close()
    assert not list(tmp_path.glob(".*"))


def test_a_link_to_a_place_without_a_file_makes_the_file_there(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "disk" / "real.db")
    Store.open(f"sqlite:///{tmp_path / 'link.db'}").close()
    assert stat.S_IMODE((tmp_path / "disk" / "real.db").stat().st_mode) == 0o600
    assert files_of(f"sqlite:///{tmp_path / 'link.db'}")[1] == tmp_path / "disk" / "real.db-wal"
    assert files_of("postgresql://host/database") == ()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    text_file = tmp_path / "notes.db"
    text_file.write_text("this is no database, however long one reads on " * 100)
    with pytest.raises(StoreError, match=r"notes\.db: cannot be read"):
        Store.open(f"sqlite:///{text_file}")
    assert text_file.read_text().startswith("this is no database")
    for url in ("mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense", "postgresql+asyncpg://x/y"):
        with pytest.raises(ConfigError, match="expected sqlite"):
            Store.open(url)


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(StoreError, match="cannot be read or written now") as caught:
        Store.open("postgresql://ann:hush@127.0.0.1:1/palate")
    assert "hush" not in str(caught.value)


def test_the_salt_stays(store: Store, url: str) -> None:
    again = Store.open(url)
    assert again.salt == store.salt
    assert len(store.salt) == 32
    again.close()


def test_every_table_has_a_primary_key_and_a_place_in_the_schema(store: Store) -> None:
    with store.engine.connect() as connection:
        there = set(inspect(connection).get_table_names()) - {"alembic_version"}
        assert there == set(metadata.tables)
        for table in metadata.sorted_tables:
            assert table.primary_key.columns
            connection.execute(select(table))

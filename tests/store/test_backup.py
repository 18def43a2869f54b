"""A backup is one moment of a store in use; a restore puts it back whole, without those erased since."""

import hashlib
import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, select, text

import store_files
from palate.data.event import Event
from palate.errors import StoreError
from palate.recommend.signing import make_key, read_key, verify
from palate.store import Store, Writer, erasure, events, items, jobs, keys, migrations, people, registry
from palate.store import recommendations as lists
from palate.store.backup import back_up
from palate.store.items import ItemChange
from palate.store.keys import StoredKey
from palate.store.people import PersonChange
from palate.store.recommendations import ShownList
from palate.store.registry import Model
from palate.store.restore import restore
from palate.store.schema import metadata
from palate.store.states import SavedState
from palate.store.states import save as save_states

Make = Callable[..., Event]


def fill(store: Store, models: Path, event_of: Make) -> None:
    """Something in every table, and two model folders that the home has signed."""
    key = make_key(models.parent / "signing.key")
    for name in ("m1", "m2"):
        (models / name / "part").mkdir(parents=True)
        (models / name / "manifest.json").write_text(f"of {name}")
        (models / name / "manifest.sig").write_bytes(key.sign(f"of {name}".encode()))
        (models / name / "part" / "weights.safetensors").write_bytes(os.urandom(5000))
    with store.write() as connection:
        people.upsert(connection, [PersonChange("ann", {"land": "é ☕", "age": 3.5, "new": True})], 1.0)
        events.append(connection, [event_of("a"), event_of("b", session_id="s", weight=0.1), event_of("c", "bob")], 1.0)
        items.upsert(connection, [ItemChange("pot", {"price": 2, "title": 'a "pot"\n'}), ItemChange("lid", {})], 1.0)
        save_states(connection, [SavedState("ann", "m1", 2, False, b"\0\xff\n", 1.0)])
        shown = ShownList("l1", "ann", False, "m1", "served", "d", 1.0, ["pot"], [0.1], [1 / 3])
        lists.add(connection, [shown, shown._replace(recommendation_id="l2", asked={"k": 1, "exclude": ["é"]})])
        for number, name in enumerate(("m1", "m2", "gone")):
            registry.add(connection, Model(name, name, "candidate", float(number), None, {"x": 1}, "ab" * 32))
        registry.promote(connection, "m1", 1.0)
        registry.start_canary(connection, "m2", 0.1, 2.0)
        jobs.add(connection, "j1", "retrain", 1.0)
        keys.add(connection, StoredKey("k1", "admin", "ab" * 32, "first", 1.0, None))
        events.append(connection, [event_of("x", "erased before")], 1.0)
        erasure.erase(connection, store.salt, "erased before", 2.0)


def content(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    with store.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "models").mkdir(parents=True)
    return tmp_path / "home"


@pytest.mark.parametrize("target", ["same", "other"])
def test_a_restore_gives_back_every_row_and_every_file(
    request: pytest.FixtureRequest, url: str, store: Store, home: Path, tmp_path: Path, event_of: Make, target: str
) -> None:
    """Into the store that it came from, and into an empty one of the other kind."""
    fill(store, home / "models", event_of)
    before, models = content(store), files(home / "models")
    (home / "models" / "m1" / ".nfs0001").write_text("left by the file system")
    assert all(before.values()), "something in every table"
    made = back_up(store, home / "models", tmp_path / "palate.tar", 5.0)
    assert made.num_models == 2
    assert dict(made.rows) == {name: len(rows) for name, rows in before.items()}
    assert made.num_bytes == (tmp_path / "palate.tar").stat().st_size
    assert stat.S_IMODE((tmp_path / "palate.tar").stat().st_mode) == 0o600
    if target == "same":
        where, new_home = url, home
        with store.write() as connection:
            events.append(connection, [event_of("d"), event_of("e", "carl")], 6.0)
            items.upsert(connection, [ItemChange("pot", {"price": 3})], 6.0)
        (home / "models" / "m1" / "manifest.json").write_text("damaged")
    else:
        new_home = tmp_path / "other"
        (new_home / "models").mkdir(parents=True)
        where = request.getfixturevalue("postgres_url" if url.startswith("sqlite") else "sqlite_url")
    store.close()
    key = new_home / "signing.key"
    restored = restore(tmp_path / "palate.tar", where, new_home / "models", new_home / "erasures.log", key)
    assert (restored.num_models, restored.num_erased) == (2, 0)
    opened = Store.open(where)
    assert content(opened) == before
    assert opened.salt == store.salt
    trusted, found = read_key(key).public_key(), files(new_home / "models")
    for name in ("m1", "m2"):
        verify(found[f"{name}/manifest.json"], found[f"{name}/manifest.sig"], trusted, name)
    if target == "other":  # which has a key of its own
        models |= {name: found[name] for name in models if name.endswith(".sig")}
    assert found == models
    assert len(erasure.read_log(new_home / "erasures.log")) == 1
    writer = Writer(opened)
    assert writer.append([event_of("a"), event_of("new")]).result(20).positions == [None, 3]
    writer.close()
    opened.close()


def test_a_restore_erases_again_who_was_erased_since(url: str, store: Store, home: Path, event_of: Make) -> None:
    log = home / "erasures.log"
    with store.write() as connection:
        names = ["stays", "leaves", "came back before", "lists only"]
        events.append(connection, [event_of(user_id=name) for name in names[:2]], 1.0)
        lists.add(
            connection,
            [
                ShownList(f"of {name}", name, False, "m", "served", "d", 1.0, ["a"], [1.0], [1.0])
                for name in ["leaves", "lists only", "stays"]
            ],
        )
        events.append(connection, [event_of(user_id=names[2])], 1.0)
        erasure.erase(connection, store.salt, names[2], 2.0)
        events.append(connection, [event_of("again", user_id=names[2])], 3.0)
    back_up(store, home / "models", home / "b.tar", 5.0)
    with store.write() as connection:
        erasure.erase(connection, store.salt, "leaves", 6.0)
        erasure.erase(connection, store.salt, "lists only", 7.0)
    erasure.record(store, log)
    logged = erasure.read_log(log)
    assert len(logged) == 3
    store.close()
    restored = restore(home / "b.tar", url, home / "models", log, home / "signing.key")
    assert restored.num_erased == 1
    with store.read() as connection:
        assert [person.user_id for person in people.read_all(connection)] == ["came back before", "stays"]
        assert [one.user_id for one in lists.read_window(connection, 0.0, 9.0)] == ["stays"]
        assert events.count(connection) == 2
    assert sorted(erasure.read_log(log)) == sorted(logged)
    # also where the log was lost before it was synced: the database knew
    with store.write() as connection:
        erasure.erase(connection, store.salt, "stays", 9.0)
    restored = restore(home / "b.tar", url, home / "models", log, home / "signing.key")
    assert restored.num_erased == 2
    assert len(erasure.read_log(log)) == 4


def test_no_byte_of_someone_erased_since_stays_in_a_restored_file(home: Path, event_of: Make) -> None:
    url = f"sqlite:///{home / 'palate.db'}"
    store = Store.open(url)
    with store.write() as connection:
        events.append(connection, [event_of(user_id=f"marguerite-{n % 7}") for n in range(300)], 1.0)
    back_up(store, home / "models", home.parent / "b.tar", 5.0)
    with store.write() as connection:
        erasure.erase(connection, store.salt, "marguerite-3", 6.0)
    erasure.record(store, home / "erasures.log")
    store.close()
    restore(home.parent / "b.tar", url, home / "models", home / "erasures.log", home / "signing.key")
    assert [name for name, found in files(home).items() if b"marguerite-3" in found] == []
    assert any(b"marguerite-4" in found for found in files(home).values())


def test_a_backup_under_writes_is_one_moment(store: Store, url: str, home: Path, event_of: Make) -> None:
    writer = Writer(store)
    stop = threading.Event()
    acknowledged: list[str] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            rows = [event_of(f"{number}-{n}", f"p{n % 5}") for n in range(20)]
            writer.append(rows).result(20)
            acknowledged.extend(row.event_id for row in rows)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    while len(acknowledged) < 100:
        stop.wait(0.005)
    before = list(acknowledged)
    back_up(store, home / "models", home / "b.tar", 5.0)
    stop.set()
    thread.join(20)
    writer.close()
    store.close()
    restore(home / "b.tar", url, home / "models", home / "erasures.log", home / "signing.key")
    with store.read() as connection:
        kept = set(events.read_window(connection, 0.0, 1e9)["event_id"])
        for person in people.read_all(connection):
            positions = [one.position for one in events.read_events(connection, person.user_id)]
            assert positions == list(range(1, person.position + 1))
    assert set(before) <= kept
    assert len(kept) % 20 == 0  # no batch by half


def test_a_backup_of_an_older_schema_is_migrated(
    monkeypatch: pytest.MonkeyPatch, url: str, store: Store, home: Path, event_of: Make
) -> None:
    fill(store, home / "models", event_of)
    before = content(store)
    before["recommendations"] = [(*row[:-1], None) for row in before["recommendations"]]  # what was asked came later
    with store.write() as connection:
        migrations.migrate(connection, "0001")
    older = MetaData()
    older.reflect(store.engine, only=list(metadata.tables))
    monkeypatch.setattr("palate.store.backup.metadata", older)
    back_up(store, home / "models", home / "b.tar", 5.0)
    with tarfile.open(home / "b.tar") as archive:
        about = json.load(archive.extractfile("backup.json"))  # type: ignore[arg-type]
    assert about["schema"] == "0001"
    with store.write() as connection:
        migrations.migrate(connection, migrations.latest_revision())
    store.close()
    restore(home / "b.tar", url, home / "models", home / "erasures.log", home / "signing.key")
    with store.read() as connection:
        assert migrations.current_revision(connection) == migrations.latest_revision()
    assert content(store) == before


def test_a_backup_replaces_nothing_but_a_backup(store: Store, home: Path, event_of: Make) -> None:
    fill(store, home / "models", event_of)
    (home / "notes.txt").write_text("not a backup, and dear to somebody")
    for file, reason in (
        (home / "notes.txt", r"notes\.txt: is there and is no backup; name another file"),
        (home / "models", r"models: this is a folder; name a file"),
        (home / "notes.txt" / "shop.tar", r"shop\.tar: the backup cannot be written"),
    ):
        with pytest.raises(StoreError, match=reason):
            back_up(store, home / "models", file, 5.0)
    assert (home / "notes.txt").read_text().startswith("not a backup")
    (home / "empty.tar").touch()  # as `mktemp` makes it
    for _ in range(2):
        back_up(store, home / "models", home / "empty.tar", 5.0)


def test_a_store_is_never_read_as_a_backup_or_written_over(tmp_path: Path, event_of: Make) -> None:
    url = f"sqlite:///{tmp_path / 'palate.db'}"
    store = Store.open(url)
    fill(store, tmp_path / "models", event_of)
    (tmp_path / "link.tar").symlink_to(tmp_path / "palate.db")
    os.link(tmp_path / "palate.db", tmp_path / "second-name.tar")
    for name in ("palate.db", "palate.db-wal", "palate.db-shm", "palate.db-journal", "link.tar", "second-name.tar"):
        with pytest.raises(StoreError, match="this is the store itself"):
            back_up(store, tmp_path / "models", tmp_path / name, 5.0)
        with pytest.raises(StoreError, match="this is the store itself"):
            restore(tmp_path / name, url, tmp_path / "models", tmp_path / "log", tmp_path / "key")
    assert store_files.faults(os.getpid(), tmp_path / "palate.db") == []
    assert content(store)["events"]
    store.close()


def test_a_model_that_serves_must_be_there(store: Store, home: Path, event_of: Make) -> None:
    fill(store, home / "models", event_of)
    (home / "models" / "m2").rename(home / "elsewhere")
    with pytest.raises(StoreError, match="m2: the folder of a model that serves is missing"):
        back_up(store, home / "models", home / "b.tar", 5.0)
    assert sorted(path.name for path in home.iterdir() if "b.tar" in path.name) == []


def repacked(source: Path, target: Path, change: Callable[[dict[str, Any], list[tarfile.TarInfo]], None]) -> None:
    """Write a backup again with its contents changed: files by name, and entries to add."""
    with tarfile.open(source) as archive:
        inside: dict[str, Any] = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    extra: list[tarfile.TarInfo] = []
    change(inside, extra)
    with tarfile.open(target, "w") as archive:
        for name, data in inside.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in extra:
            archive.addfile(entry)


def with_file(name: str, data: bytes = b"x") -> Callable[[dict[str, Any], list[tarfile.TarInfo]], None]:
    """Add a file and its hash, so that only its name is wrong."""

    def change(inside: dict[str, Any], _: list[tarfile.TarInfo]) -> None:
        inside[name] = data
        about = json.loads(inside["backup.json"])
        about["sha256"][name] = hashlib.sha256(data).hexdigest()
        inside["backup.json"] = json.dumps(about).encode()

    return change


def with_link(kind: bytes, name: str = "models/m1/link") -> Callable[[dict[str, Any], list[tarfile.TarInfo]], None]:
    def change(_: dict[str, Any], extra: list[tarfile.TarInfo]) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        extra.append(entry)

    return change


def with_about(**values: object) -> Callable[[dict[str, Any], list[tarfile.TarInfo]], None]:
    def change(inside: dict[str, Any], _: list[tarfile.TarInfo]) -> None:
        inside["backup.json"] = json.dumps(json.loads(inside["backup.json"]) | values).encode()

    return change


def flipped(inside: dict[str, Any], _: list[tarfile.TarInfo]) -> None:
    data = bytearray(inside["tables/events.jsonl"])
    data[len(data) // 2] ^= 1
    inside["tables/events.jsonl"] = bytes(data)


BAD = {
    "a bit flipped": (flipped, "SHA-256"),
    "a table missing": (lambda inside, _: inside.pop("tables/events.jsonl"), "not those that it lists"),
    "no contents": (lambda inside, _: inside.pop("backup.json"), "not a complete backup"),
    "damaged contents": (lambda inside, _: inside.update({"backup.json": b"{"}), "damaged"),
    "a way out": (with_file("models/../../../evil"), "a name that no backup has"),
    "an absolute name": (with_file("/tmp/evil"), "a name that no backup has"),
    "a hidden name": (with_file("models/.evil/x"), "a name that no backup has"),
    "a strange name": (with_file("models/m1/a\nb"), "a name that no backup has"),
    "a symbolic link": (with_link(tarfile.SYMTYPE), "no plain file"),
    "a hard link": (with_link(tarfile.LNKTYPE), "no plain file"),
    "a device": (with_link(tarfile.CHRTYPE), "no plain file"),
    "a newer format": (with_about(format=99), "newer Palate"),
    "a newer schema": (with_about(schema="9999"), "newer Palate"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_backup_is_refused_before_anything_changes(
    sqlite_url: str, home: Path, tmp_path: Path, event_of: Make, bad: str
) -> None:
    store = Store.open(sqlite_url)
    fill(store, home / "models", event_of)
    back_up(store, home / "models", tmp_path / "good.tar", 5.0)
    change, message = BAD[bad]
    repacked(tmp_path / "good.tar", tmp_path / "bad.tar", change)
    with store.write() as connection:
        events.append(connection, [event_of("later")], 6.0)
    before, models = content(store), files(tmp_path / "home")
    with pytest.raises(StoreError, match=message):
        restore(tmp_path / "bad.tar", sqlite_url, home / "models", home / "erasures.log", home / "signing.key")
    assert content(store) == before
    assert files(tmp_path / "home") == models
    assert not Path("/tmp/evil").exists()
    store.close()


def test_a_file_that_is_no_tar_is_refused(sqlite_url: str, home: Path, tmp_path: Path) -> None:
    for data in (b"", b"not a tar" * 200):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(StoreError, match=r"not a backup|not a complete backup"):
            restore(tmp_path / "x.tar", sqlite_url, home / "models", home / "erasures.log", home / "signing.key")
    with pytest.raises(StoreError, match="cannot be read"):
        restore(tmp_path / "none.tar", sqlite_url, home / "models", home / "erasures.log", home / "signing.key")


def test_a_restore_that_fails_leaves_the_database_as_it_was(
    url: str, store: Store, home: Path, tmp_path: Path, event_of: Make
) -> None:
    """A row that contradicts another is found in the middle of the transaction."""
    fill(store, home / "models", event_of)
    back_up(store, home / "models", tmp_path / "good.tar", 5.0)
    before = content(store)
    with tarfile.open(tmp_path / "good.tar") as archive:
        rows = archive.extractfile("tables/states.jsonl").read()  # type: ignore[union-attr]
    double = with_file("tables/states.jsonl", rows + rows)
    repacked(tmp_path / "good.tar", tmp_path / "bad.tar", double)
    with pytest.raises(StoreError, match="contradict one another"):
        restore(tmp_path / "bad.tar", url, home / "models", home / "erasures.log", home / "signing.key")
    assert content(store) == before
    with store.read() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == migrations.latest_revision()


def test_models_of_another_home_are_signed_only_when_that_is_asked_for(
    sqlite_url: str, home: Path, tmp_path: Path, event_of: Make
) -> None:
    store = Store.open(sqlite_url)
    fill(store, home / "models", event_of)
    back_up(store, home / "models", tmp_path / "good.tar", 5.0)

    def unsigned(inside: dict[str, Any], _: list[tarfile.TarInfo]) -> None:
        del inside["models/m2/manifest.sig"]
        about = json.loads(inside["backup.json"])
        del about["sha256"]["models/m2/manifest.sig"]
        inside["backup.json"] = json.dumps(about).encode()

    def swapped(inside: dict[str, Any], extra: list[tarfile.TarInfo]) -> None:
        with_file("models/m1/manifest.sig", inside["models/m2/manifest.sig"])(inside, extra)

    repacked(tmp_path / "good.tar", tmp_path / "unsigned.tar", unsigned)
    repacked(tmp_path / "good.tar", tmp_path / "swapped.tar", swapped)
    other = tmp_path / "other"
    (other / "models").mkdir(parents=True)
    make_key(other / "signing.key")
    with store.write() as connection:
        events.append(connection, [event_of("later")], 6.0)
    before = content(store)
    for place, name, model in ((home, "unsigned", "m2"), (home, "swapped", "m1"), (other, "good", "m[12]")):
        file, key, kept = tmp_path / f"{name}.tar", place / "signing.key", files(place)
        with pytest.raises(StoreError, match=rf"^[^\n]*{name}.tar: model {model} was not signed with [^\n]*--sign`\Z"):
            restore(file, sqlite_url, place / "models", place / "erasures.log", key)
        assert content(store) == before
        assert files(place) == kept
        restore(file, sqlite_url, place / "models", place / "erasures.log", key, sign=True)
        assert key.read_bytes() == kept["signing.key"]
        for one in ("m1", "m2"):
            signature = (place / "models" / one / "manifest.sig").read_bytes()
            verify(f"of {one}".encode(), signature, read_key(key).public_key(), one)
        with store.write() as connection:
            events.append(connection, [event_of("later")], 6.0)
        assert content(store).keys() == before.keys()
        before = content(store)
    assert b"PRIVATE" not in (tmp_path / "good.tar").read_bytes()
    store.close()


def test_a_first_restore_that_fails_can_be_tried_again(
    sqlite_url: str, home: Path, tmp_path: Path, event_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new home has its key when its models are in place, not before."""
    store = Store.open(sqlite_url)
    fill(store, home / "models", event_of)
    back_up(store, home / "models", tmp_path / "good.tar", 5.0)
    store.close()
    new = tmp_path / "new"
    (new / "models").mkdir(parents=True)
    key = new / "signing.key"
    with monkeypatch.context() as patch:
        patch.setattr("palate.store.restore._put_tables", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            restore(tmp_path / "good.tar", sqlite_url, new / "models", new / "erasures.log", key)
    assert not key.exists()
    restore(tmp_path / "good.tar", sqlite_url, new / "models", new / "erasures.log", key)
    signature = (new / "models" / "m1" / "manifest.sig").read_bytes()
    verify(b"of m1", signature, read_key(key).public_key(), "m1")
    assert sorted(path.name for path in new.iterdir()) == ["erasures.log", "models", "signing.key"]

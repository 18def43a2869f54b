"""Kills, power cuts, full disks and failing syncs: nothing acknowledged is lost, and the service goes on after them."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palate import store as store_package
from palate.data.event import Event
from palate.errors import StoreError
from palate.store import Store, Writer, events

Make = Callable[..., Event]
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    sources = str(Path(store_package.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": sources},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_kills_lose_nothing_on_sqlite() -> None:
    said = run(str(ROOT / "soak" / "store_kills.py"), "--sqlite", "20", "--postgres", "0")
    assert "20 kills" in said
    assert "none lost, none twice" in said
    assert int(said.split("kills, ")[1].split()[0]) > 100  # else nothing was put to the test


def test_kills_lose_nothing_on_postgres(postgres_url: str) -> None:
    said = run(str(ROOT / "soak" / "store_kills.py"), "--sqlite", "0", "--postgres", "5", "--url", postgres_url)
    assert "PostgreSQL: 5 kills" in said
    assert int(said.split("PostgreSQL: 5 kills, ")[1].split()[0]) > 10


def test_power_cuts_lose_nothing() -> None:
    said = run(str(ROOT / "soak" / "power_loss.py"), "--cuts", "50")
    assert "50 cuts" in said
    assert "none lost, none twice" in said
    assert int(said.split("cuts: ")[1].split()[0]) > 100


def test_the_check_finds_what_is_lost(monkeypatch: pytest.MonkeyPatch, store: Store, event_of: Make) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "soak"))
    import store_checks
    from sqlalchemy import text

    with store.write() as connection:
        events.append(connection, [event_of("a"), event_of("b")], 1.0)
    assert store_checks.check(store, ["a", "b"]) == 2
    with pytest.raises(AssertionError, match="lost"):
        store_checks.check(store, ["a", "c"])
    with store.write() as connection:
        connection.execute(text("DELETE FROM events WHERE event_id = 'a'"))
    with pytest.raises(AssertionError, match="cursor"):
        store_checks.check(store, ["b"])


def test_a_cut_without_syncs_would_be_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The simulated disk is able to lose: with the syncs left out of its record, acknowledged events are gone."""
    monkeypatch.syspath_prepend(str(ROOT / "soak"))
    import random

    import power_loss

    steps = power_loss.record(tmp_path / "palate.db", random.Random(0))
    kinds = [step.kind for step in steps]
    last = len(kinds) - 1 - kinds[::-1].index("note")
    (tmp_path / "whole").mkdir()
    power_loss.cut(steps, last + 1, tmp_path / "whole" / "palate.db", random.Random(0))
    unsynced = [step for number, step in enumerate(steps[: last + 1]) if step.kind != "sync" or number < 200]
    lost = 0
    for seed in range(10):
        place = tmp_path / f"cut-{seed}"
        place.mkdir()
        try:
            power_loss.cut(unsynced, len(unsynced), place / "palate.db", random.Random(seed))
        except (AssertionError, StoreError):
            lost += 1
    assert lost > 0


@pytest.mark.parametrize("fault", ["sync_fails", "full"])
def test_a_failing_disk_is_told_and_overcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, event_of: Make, fault: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "soak"))
    import crash_vfs
    import store_checks

    disk = crash_vfs.RecordingDisk(f"{fault}-{tmp_path}")
    file = tmp_path / "palate.db"
    file.touch()
    store: Any = crash_vfs.open_store(file, disk)
    writer = Writer(store)
    writer.append([event_of("before")]).result(20)
    gate = threading.Event()
    held = writer.between(lambda: gate.wait(20))
    group = [writer.append([event_of(f"during-{number}")]) for number in range(5)]
    other = writer.submit(lambda connection: 1)
    setattr(disk, fault, True)
    gate.set()
    held.result(20)
    for future in (*group, other):  # the store is at fault, so nobody is tried alone
        with pytest.raises(StoreError, match=r"palate\.db: cannot be .* try again"):
            future.result(20)
    with pytest.raises(StoreError):
        writer.append([event_of("still")]).result(20)
    setattr(disk, fault, False)
    again = [writer.append([event_of(f"during-{number}")]).result(20).positions for number in range(5)]
    writer.close()
    store.close()
    reopened = Store.open(f"sqlite:///{file}")
    assert store_checks.check(reopened, ["before", *(f"during-{number}" for number in range(5))]) in (6, 7)
    assert again in ([[2], [3], [4], [5], [6]], [[None]] * 5)  # a repeat is harmless where the group was kept after all
    reopened.close()


FULL_DISK = """
import resource, sys
from palate.data.event import Event
from palate.errors import StoreError
from palate.store import Store, Writer, events

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

store = Store.open(sys.argv[1])
writer = Writer(store)
stored = failed = 0
limit(200_000)  # the system refuses to let any file grow beyond this, as a full disk does
for number in range(40):
    rows = [Event("ann", "i" * 50, "view", 1.0, event_id=f"{number}-{n}") for n in range(50)]
    try:
        writer.append(rows).result(20)
        stored += 50
    except StoreError as error:
        assert "try again" in str(error), error
        failed += 1
assert stored and failed, (stored, failed)
limit(resource.RLIM_INFINITY)
rows = [Event("ann", "i", "view", 1.0, event_id=f"after-{n}") for n in range(50)]
positions = writer.append(rows).result(20).positions
assert positions == list(range(stored + 1, stored + 51)), positions[:3]
writer.close()
with store.read() as connection:
    assert events.count(connection) == stored + 50
    assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
print("recovered")
"""


def test_a_disk_that_is_really_full(sqlite_url: str) -> None:
    assert "recovered" in run("-c", FULL_DISK, sqlite_url)


def test_another_process_that_keeps_the_file_locked(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, event_of: Make
) -> None:
    from palate.store import store as module

    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    first, second = Store.open(sqlite_url), Store.open(sqlite_url)
    writer = Writer(second)
    with first.write() as connection:
        events.append(connection, [event_of("a")], 1.0)
        with pytest.raises(StoreError, match="locked"):
            writer.append([event_of("b")]).result(20)
    assert writer.append([event_of("b")]).result(20).positions == [2]
    writer.close()
    first.close()
    second.close()

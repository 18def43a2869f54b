"""Cut the power under the real store at random moments, and ask that nothing acknowledged is lost.

    python soak/power_loss.py --cuts 2000

The store, its migrations, the writer and every statement run as in the product, over apsw and a disk that notes each
write and sync (crash_vfs.py). A cut keeps what was synced and, of the rest, any part: writes dropped, reordered or torn
at sectors. What is left is opened by the product's own driver, checked, and written to again.

Not covered: disks that lie about a sync, and Python's own sqlite3 module, which runs only in the check.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from crash_vfs import RecordingDisk, Step, files_after, open_store
from store_checks import check

from palate.data.event import Event
from palate.store import Store, Writer

CUTS_A_RUN = 100


def record(file: Path, rng: random.Random) -> list[Step]:
    """Fill a store while its disk takes notes; events are noted when they are acknowledged."""
    disk = RecordingDisk(f"recording-{rng.random()}")
    file.touch()
    # Few pages between checkpoints, so that cuts fall into many of them.
    store = open_store(file, disk, [f"PRAGMA wal_autocheckpoint = {rng.choice((4, 20, 1000))}"])
    writer = Writer(store)
    for batch in range(40):
        # A third of the ids are repeats.
        ids = [f"e{rng.randrange(batch * 8 + 8)}" for _ in range(rng.randint(1, 12))]
        rows = [Event(f"person-{hash_of(name) % 9}", "item" * 20, "view", 1.0, event_id=name) for name in ids]
        writer.append(rows, lambda _, ids=ids: disk.note(ids)).result()
    writer.close()
    store.close()
    return disk.steps


def hash_of(name: str) -> int:
    """The same number for the same event, so that a repeat is of the same person."""
    return int(name[1:]) * 7919


def cut(steps: list[Step], at: int, file: Path, rng: random.Random) -> tuple[int, int]:
    """Cut the power before a step, and check what is left; return how many events it holds and acknowledged."""
    acknowledged = {name for step in steps[:at] if step.kind == "note" for name in step.note}  # type: ignore[attr-defined]
    source = next(step.file for step in steps if step.file.endswith("palate.db"))
    for name, content in files_after(steps[:at], rng, {source: b""}).items():
        (file.parent / Path(name).name).write_bytes(content)
    store = Store.open(f"sqlite:///{file}")
    try:
        num_stored = check(store, acknowledged)
        writer = Writer(store)
        again = sorted(acknowledged)[:3]
        rows = [Event(f"person-{hash_of(name) % 9}", "item", "view", 1.0, event_id=name) for name in again]
        positions = writer.append([*rows, Event("person-0", "item", "view", 2.0, event_id="after")]).result().positions
        writer.close()
        assert list(positions[:-1]) == [None] * len(again), "a repeat was stored again"
        assert check(store, acknowledged | {"after"}) == num_stored + 1
    finally:
        store.close()
    return num_stored, len(acknowledged)


def main() -> None:
    """Record, cut, check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    steps: list[Step] = []
    num_kept = num_acknowledged = 0
    for number in range(options.cuts):
        with tempfile.TemporaryDirectory() as scratch:
            if number % min(CUTS_A_RUN, max(1, options.cuts // 2)) == 0:
                steps = record(Path(scratch) / "palate.db", rng)
            at = rng.randint(1, len(steps))
            place = Path(scratch) / "after"
            place.mkdir()
            try:
                kept, acknowledged = cut(steps, at, place / "palate.db", rng)
            except Exception as error:
                sys.exit(f"cut {number} of seed {options.seed}, before step {at} of {len(steps)}: {error}")
            num_kept, num_acknowledged = num_kept + kept, num_acknowledged + acknowledged
    print(
        f"{options.cuts} cuts: {num_acknowledged} events were acknowledged before them, none lost, none twice; "
        f"{num_kept} stored"
    )


if __name__ == "__main__":
    main()

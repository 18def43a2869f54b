"""A real service under kills and swaps: nothing acknowledged is lost, and no answer is of two models.

    python soak/service_kills.py --model MODEL [--kills 50] [--promotions 200] [--swaps 50]

kills: `palate serve` takes events over HTTP and dies by signal 9 at a random moment; the next one goes on.
promotions: a process writes a model folder, registers and promotes it, and dies by signal 9 in between; the pointer has
to name a complete, verified model each time. swaps: two models are promoted in turn while people ask for lists; each
answer has to be exactly what its model would have said, and a rollback may take a second.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from palate.client import Client, Event
from palate.errors import PalateError
from palate.recommend import Recommender
from palate.service.home import Home
from palate.service.opening import load_model, prepare, register
from palate.store import Store, events, people, registry


class Service:
    """A `palate serve` process of a home."""

    def __init__(self, home: Home) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "palate", "serve", "--home", str(home.folder), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serving on "):
                self.url = line.split()[-1]
                return
        raise RuntimeError("the service did not start")

    def kill(self) -> None:
        """End it without warning."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """End it as a system does; return its exit code."""
        self.process.terminate()
        return self.process.wait(60)


def make_home(folder: Path, model: Recommender) -> tuple[Home, str]:
    """A home with the model and an admin key."""
    home = Home(folder)
    home.make()
    store = Store.open(home.database)
    key = prepare(store, home, lambda: model, None)
    store.close()
    assert key is not None
    return home, key


def kills(home: Home, key: str, cycles: int, seed: int = 0) -> str:
    """Take events in, die, go on; return a line that says what came of it."""
    rng = random.Random(seed)
    store = Store.open(home.database)
    with store.read() as connection:
        listed = [
            row.event.item_id for row in events.read_newest(connection, people.read_all(connection)[0].user_id, 20)
        ]
    store.close()
    acknowledged: set[str] = set()
    lock = threading.Lock()
    for cycle in range(cycles):
        service = Service(home)
        stopped = threading.Event()

        def send(number: int, url: str = service.url, cycle: int = cycle, stopped: threading.Event = stopped) -> None:
            own = random.Random(f"{seed}-{cycle}-{number}")
            with suppress(PalateError), Client(url, key) as client:
                while not stopped.is_set():
                    # A part of what is sent was sent before: acknowledged or not, it is stored once.
                    again = own.sample(sorted(acknowledged), min(3, len(acknowledged)))
                    names = [f"{cycle}-{number}-{own.randrange(10**9)}" for _ in range(own.choice((1, 1, 20)))] + again
                    client.add_events([Event(f"p{hash(n) % 50}", own.choice(listed), event_id=n) for n in names])
                    with lock:
                        acknowledged.update(names)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.05, 1.5))
        service.kill()
        stopped.set()
        for thread in threads:
            thread.join()
    store = Store.open(home.database)
    with store.read() as connection:
        stored = Counter(row["event_id"] for row in events.read_window(connection, 0, 1e12).iter_rows(named=True))
        for person in people.read_all(connection):
            found = [event.position for event in events.read_events(connection, person.user_id)]
            assert found == list(range(1, person.position + 1)), f"{person.user_id}: positions {found[:5]}…"
    store.close()
    lost = [name for name in acknowledged if stored[name] != 1]
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged events are not stored once"
    return f"{cycles} kills, {len(acknowledged)} events acknowledged: none lost, none twice"


def promotions(home: Home, model: Recommender, cycles: int, seed: int = 0) -> str:
    """Die while a model is written, registered and promoted; the pointer always names one that can be served."""
    rng = random.Random(seed)
    moved = 0
    before = None
    store = Store.open(home.database)
    start = time.perf_counter()
    promote(store, home, model, "e" * 16)
    once = time.perf_counter() - start
    store.close()
    # A process that has used its threads cannot be forked; this one forks from a server that has only imported.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["palate.service.opening"])
    for cycle in range(cycles):
        begun = context.Event()
        child = context.Process(target=promote_on, args=(home.folder, cycle, begun))
        child.start()
        assert begun.wait(60), "the process that promotes did not begin"
        time.sleep(rng.uniform(0.0, 3.0) * once)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"the process that promotes ended with {child.exitcode}"
        store = Store.open(home.database)
        with store.read() as connection:
            pointers = registry.current(connection)
        assert pointers.served is not None
        found = load_model(store, home, pointers.served.model_id)
        assert found.model_id == pointers.served.model_id
        found.recommend([], 3)
        moved += before is not None and before != found.model_id
        before = found.model_id
        with store.write() as connection:  # keep the disk small
            for entry in registry.read_all(connection):
                if entry.model_id not in (before, pointers.previous) and entry.status != "served":
                    registry.remove(connection, entry.model_id)
        store.close()
        for folder in home.models.iterdir():
            if folder.name not in (before, pointers.previous):
                subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert moved > cycles / 4, f"the pointer moved in {moved} of {cycles} cycles: the kills came too early"
    return f"{cycles} kills during promotion, pointer moved in {moved}: always a complete model"


def promote(store: Store, home: Home, model: Recommender, name: str) -> None:
    """Write, register and promote a model under another name."""
    register(store, home, replace(model, model_id=name), {})
    with store.write() as connection:
        registry.promote(connection, name, time.time())


def promote_on(folder: Path, cycle: int, begun: Any) -> None:
    """Register and promote one model after the other until death."""
    torch.set_num_threads(1)
    home = Home(folder)
    store = Store.open(home.database)
    with store.read() as connection:
        pointers = registry.current(connection)
    assert pointers.served is not None
    model = load_model(store, home, pointers.served.model_id)
    promote(store, home, model, f"{cycle:08x}{0:08x}")  # the first takes longer than all others
    begun.set()
    for number in range(1, 1_000_000):
        promote(store, home, model, f"{cycle:08x}{number:08x}")


def swaps(home: Home, key: str, model: Recommender, number: int) -> str:
    """Exchange models under load; every answer is one model's own, and none fails."""
    names = (model.model_id, "f" * 16)
    other = replace(model, params={**model.params, "popularity": model.params["popularity"] + 1}, model_id=names[1])
    store = Store.open(home.database)
    with store.read() as connection:
        users = [person.user_id for person in people.read_all(connection)[:40]]
    register(store, home, other, {})
    with store.write() as connection:
        if registry.read(connection, names[0]) is None:
            raise SystemExit("swaps need a fresh home")
    store.close()
    service = Service(home)
    expected: dict[tuple[str, str], list[str]] = {}
    faults: list[str] = []
    answers: Counter[str] = Counter()
    stopped = threading.Event()
    with Client(service.url, key) as admin:
        for name in (names[1], names[0]):
            with suppress(PalateError):  # the one that is served already
                admin.promote(name)
            for user in users:
                expected[name, user] = [line.item_id for line in admin.recommend(user).items]
        assert any(expected[names[0], user] != expected[names[1], user] for user in users)

        def ask(thread: int) -> None:
            own = random.Random(thread)
            with Client(service.url, key) as client:
                while not stopped.is_set():
                    user = own.choice(users)
                    try:
                        found = client.recommend(user)
                    except PalateError as error:
                        faults.append(str(error))
                        continue
                    answers[found.model_id] += 1
                    if [line.item_id for line in found.items] != expected[found.model_id, user]:
                        faults.append(f"{user}: a list of {found.model_id} that is not its own")

        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        for swap in range(number):
            if swap % 2:
                start = time.perf_counter()
                admin.rollback()
                slowest = max(slowest, time.perf_counter() - start)
            else:
                admin.promote(names[1])
            time.sleep(0.2)  # so that lists are asked for between the exchanges too
        stopped.set()
        for thread in threads:
            thread.join()
    code = service.stop()
    assert code == 0, f"exit code {code}"
    assert not faults, f"{len(faults)} faults, first: {faults[0]}"
    assert min(answers[name] for name in names) > 0, answers
    lists = sum(answers.values())
    return f"{number} swaps under load, {lists} lists: none failed, none mixed; slowest rollback {slowest:.2f} s"


def main() -> None:
    """Do all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--promotions", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=50)
    arguments = parser.parse_args()
    model = Recommender.load(arguments.model)
    said = []
    with tempfile.TemporaryDirectory(prefix="palate-service-") as scratch:
        if arguments.promotions:
            home, _ = make_home(Path(scratch) / "promotions", model)
            said.append(promotions(home, model, arguments.promotions))
            print(said[-1], flush=True)
        if arguments.swaps:
            home, key = make_home(Path(scratch) / "swaps", model)
            said.append(swaps(home, key, model, arguments.swaps))
            print(said[-1], flush=True)
        if arguments.kills:
            home, key = make_home(Path(scratch) / "kills", model)
            said.append(kills(home, key, arguments.kills))
            print(said[-1], flush=True)
    print(json.dumps(said))


if __name__ == "__main__":
    main()

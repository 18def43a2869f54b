"""The first list of people after a restart: with their fast weights from the store, and adapting to them anew.

A home is made of a model and of people with some events each, taken from its own people; they are listed once, so that
their weights are written. The service is then opened again and again, alternately with these weights and without, and
makes everyone's first list and their second, in-process, on one thread. Then what writing costs.

    OMP_NUM_THREADS=1 python benchmarks/kept_states.py [MODEL_FOLDER] [--people 500] [--events 10] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads its BLAS

import numpy as np
import torch
from sqlalchemy import func, select

from palate.cli import find_model
from palate.data.event import Event
from palate.recommend import Recommender
from palate.service.contract import ListRequest
from palate.service.home import Home
from palate.service.opening import open_system, prepare
from palate.service.system import System, SystemConfig
from palate.store import Store, events
from palate.store.schema import states

ROUNDS = 6


def fill(home: Home, model: Recommender, num_people: int, num_events: int) -> list[str]:
    """Make the home; people who did so many things each."""
    home.make()
    store = Store.open(home.database)
    prepare(store, home, lambda: model, None)
    ids = model.vocabulary.ids
    long = [history.items[:num_events] for history in model.users.values() if len(history.items) >= num_events]
    users = [f"visitor-{number}" for number in range(num_people)]
    now = time.time() - 3600
    rows = [
        Event(user, ids[item], "purchase", now + place, event_id=f"{user}-{place}")
        for number, user in enumerate(users)
        for place, item in enumerate(long[number % len(long)])
    ]
    with store.write() as connection:
        events.append(connection, rows, now)
    store.close()
    return users


def timed(system: System, users: list[str]) -> list[float]:
    """Microseconds of each one's list, of this thread: the clock on the wall counts what else the machine does too."""
    times = []
    for user in users:
        start = time.thread_time()
        system.serving.lists([ListRequest(user_id=user)], time.time())
        times.append((time.thread_time() - start) * 1e6)
    return times


async def measure(home: Home, users: list[str]) -> dict[str, float]:
    """Medians in microseconds, and bytes."""
    config = SystemConfig(log_seconds=0.01, freshen_seconds=0.0, states_seconds=3600.0)
    found: dict[str, list[float]] = {"adapting": [], "stored": [], "in memory": []}
    figures: dict[str, float] = {}
    for number in range(ROUNDS):
        system = open_system(Store.open(home.database), home, config)
        system.start()
        store = system._machine.store
        timed(system, [*users[:1], *(f"nobody-{one}" for one in range(100))])  # warm
        system._people.clear()
        system._states._waiting.clear()
        kept = number % 2 == 1
        with store.read() as connection:
            assert connection.scalar(select(func.count()).select_from(states)) == len(users) * kept
        found["stored" if kept else "adapting"] += timed(system, users)
        found["in memory"] += timed(system, users)
        if not kept:
            start, whole = time.thread_time(), time.process_time()
            system._states.flush()
            figures["µs to make a row ready, on the event loop"] = (time.thread_time() - start) / len(users) * 1e6
            await asyncio.wrap_future(system._machine.writer.submit(lambda connection: None))
            figures["µs to write a row, all threads"] = (time.process_time() - whole) / len(users) * 1e6
            with store.read() as connection:
                figures["payload bytes"] = float(
                    connection.scalar(select(func.avg(func.length(states.c.payload)))) or 0
                )
        elif number + 1 < ROUNDS:
            with store.write() as connection:
                connection.execute(states.delete())
        await system.close()
    for name, times in found.items():
        figures[f"{name}: median µs"] = float(np.median(times))
        figures[f"{name}: 95th percentile µs"] = float(np.percentile(times, 95))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = find_model(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        users = fill(home, model, arguments.people, arguments.events)
        figures = asyncio.run(measure(home, users))
    print(f"{arguments.people} people of {arguments.events} events, {len(model.vocabulary):,} items")
    for name, value in figures.items():
        print(f"{name:<45} {value:10,.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

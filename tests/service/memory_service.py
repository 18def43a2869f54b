"""A running system in memory, for tests of the shell alone: what is stored is listed, popular items first.

As a program it serves until it is stopped: `python memory_service.py --port 0 [--pause-ms 5]` prints its address.
"""

import argparse
import asyncio
import hashlib
import hmac
import importlib.util
import secrets
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

if __name__ == "__main__":
    # The shell needs nothing of the models: without palate/__init__.py, and torch with it, a server starts at once.
    spec = importlib.util.find_spec("palate")
    assert spec is not None
    sys.modules["palate"] = importlib.util.module_from_spec(spec)

from palate.data.event import Event
from palate.errors import DataError
from palate.service.contract import (
    Condition,
    EventsTaken,
    Filter,
    ItemIn,
    ItemOut,
    ItemsTaken,
    JobOut,
    KeyOut,
    Listed,
    ListOut,
    ListRequest,
    ModelOut,
    NotFoundError,
    Page,
    PersonIn,
    PersonOut,
    PredictedRating,
    PredictOut,
    PredictRequest,
    RefusedError,
    RowError,
    Value,
)

KEYS = {"client": "client-key", "service": "service-key", "admin": "admin-key"}


class MemoryService:
    """Implements `Running`; `pause` seconds of waiting stand for the disk."""

    def __init__(self, pause: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self.pause, self.clock = pause, clock
        self.events: dict[str, list[Event]] = {}
        self.event_ids: set[str] = set()
        self.attributes: dict[str, dict[str, Value]] = {}
        self.catalog: dict[str, ItemOut] = {}
        self.popular: Counter[str] = Counter()
        self.jobs: dict[str, JobOut] = {}
        self.registry = {
            "m-old": ModelOut("m-old", "retired", clock(), None, {}),
            "m-new": ModelOut("m-new", "served", clock(), 1.7e9, {"hr_at_10": 0.3}),
            "m-next": ModelOut("m-next", "candidate", clock(), 1.7e9, {}),
        }
        self.previous: list[str] = ["m-old"]
        self.key_rows: dict[str, tuple[KeyOut, str]] = {}
        for role, key in KEYS.items():
            self.key_rows[f"key-{role}"] = (KeyOut(f"key-{role}", role, "test", clock(), None), _digest(key))
        self.not_ready: str | None = None
        self.error: Exception | None = None

    async def _work(self) -> None:
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.error is not None:
            raise self.error

    async def add_events(self, events: Sequence[Event]) -> EventsTaken:
        accepted = duplicates = 0
        errors = []
        for row, event in enumerate(events):
            if event.timestamp is not None and event.timestamp > self.clock() + 86_400:
                errors.append(RowError(row, "future", "timestamp lies in the future"))
                continue
            if event.event_id is not None and event.event_id in self.event_ids:
                duplicates += 1
                continue
            event_id = event.event_id or secrets.token_hex(8)
            self.event_ids.add(event_id)
            stored = event._replace(event_id=event_id, timestamp=event.time_or(self.clock()))
            self.events.setdefault(event.user_id, []).append(stored)
            self.attributes.setdefault(event.user_id, {})
            self.catalog.setdefault(event.item_id, ItemOut(event.item_id, {}, False, False))
            self.popular[event.item_id] += 1
            accepted += 1
        await self._work()
        return EventsTaken(accepted, duplicates, errors)

    async def add_people(self, people: Sequence[PersonIn]) -> ItemsTaken:
        for person in people:
            self.attributes[person.user_id] = _merged(self.attributes.get(person.user_id, {}), person.attributes)
        await self._work()
        return ItemsTaken(len(people), ())

    async def add_items(self, items: Sequence[ItemIn]) -> ItemsTaken:
        for item in items:
            old = self.catalog.get(item.item_id, ItemOut(item.item_id, {}, False, False))
            hidden = old.hidden if item.hidden is None else item.hidden
            self.catalog[item.item_id] = ItemOut(item.item_id, _merged(old.attributes, item.attributes), hidden, True)
        await self._work()
        return ItemsTaken(len(items), ())

    async def people(self, after: str | None, limit: int) -> Page:
        await self._work()
        ids, following = _page(sorted(self.attributes), after, limit)
        return Page([PersonIn(one, self.attributes[one]) for one in ids], following)

    async def items(self, after: str | None, limit: int) -> Page:
        await self._work()
        ids, following = _page(sorted(self.catalog), after, limit)
        return Page([self.catalog[one] for one in ids], following)

    async def events_of(self, user_id: str, after: str | None, limit: int) -> Page:
        await self._work()
        self._known(user_id)
        rows = self.events.get(user_id, [])
        if after is not None and not after.isdecimal():
            raise DataError("after: this is no cursor of ours")
        start = int(after or 0)
        stop = start + limit
        return Page(rows[start:stop], str(stop) if stop < len(rows) else None)

    async def recommend(self, requests: Sequence[ListRequest]) -> Sequence[ListOut]:
        await self._work()
        return [self._list(request) for request in requests]

    def _list(self, request: ListRequest) -> ListOut:
        events = self.events.get(request.user_id, []) if request.user_id is not None else request.events
        known = {event.item_id for event in events}
        left_out = {*request.exclude, *(() if request.include_seen else known)}
        lines: list[Listed] = []
        for item_id, count in self.popular.most_common() if self.popular else ():
            item = self.catalog[item_id]
            if item_id in left_out or item.hidden or (request.filter and not _passes(request.filter, item.attributes)):
                continue
            title = str(item.attributes.get("title") or item_id)
            lines.append(Listed(len(lines) + 1, item_id, title, float(count), 1.0, "many people chose it", None))
            if len(lines) == request.k:
                break
        return ListOut(secrets.token_hex(8), self._served(), "served", not known and not request.profile, lines)

    async def similar(self, item_id: str, k: int) -> Sequence[Listed]:
        await self._work()
        if item_id not in self.catalog:
            raise NotFoundError("no such item")
        others = [other for other in sorted(self.catalog) if other != item_id][:k]
        return [
            Listed(rank, other, other, 1.0 / rank, 1.0, "next to it", item_id) for rank, other in enumerate(others, 1)
        ]

    async def predict(self, request: PredictRequest) -> PredictOut:
        await self._work()
        if any(item not in self.catalog for item in request.items):
            raise NotFoundError("no such item")
        events = self.events.get(request.user_id, []) if request.user_id is not None else request.events
        given = [event.weight for event in events if event.event_type == "rating"]
        mean = sum(given) / len(given) if given else 3.0
        lines = [PredictedRating(item, item, mean, 3.0, [1.0, 3.0, 5.0], [0.25, 0.5, 0.25]) for item in request.items]
        return PredictOut(self._served(), lines)

    async def person(self, user_id: str) -> PersonOut:
        await self._work()
        self._known(user_id)
        rows = self.events.get(user_id, [])
        recent = rows[::-1][:20]
        told = ["prior of everyone", f"{len(rows)} events"]
        return PersonOut(user_id, self.attributes[user_id], len(rows), recent, self._served(), len(rows), 0, told)

    async def erase(self, user_id: str) -> JobOut:
        await self._work()
        self._known(user_id)
        for event in self.events.pop(user_id, []):
            self.event_ids.discard(event.event_id)
            self.popular[event.item_id] -= 1
        del self.attributes[user_id]
        return self._job("erase", "done")

    async def job(self, job_id: str) -> JobOut:
        await self._work()
        if job_id not in self.jobs:
            raise NotFoundError("no such job")
        return self.jobs[job_id]

    async def retrain(self) -> JobOut:
        await self._work()
        if any(job.kind == "retrain" and job.status == "running" for job in self.jobs.values()):
            raise RefusedError("a training is at work")
        return self._job("retrain", "running")

    async def models(self) -> Sequence[ModelOut]:
        await self._work()
        return list(self.registry.values())

    async def promote(self, model_id: str, share: float) -> ModelOut:
        await self._work()
        if model_id not in self.registry:
            raise NotFoundError("no such model")
        if self.registry[model_id].status == "served":
            raise RefusedError("the model is served already")
        if share < 1:
            self.registry[model_id] = self.registry[model_id]._replace(status="canary")
        else:
            self.previous.append(self._served())
            self._serve(model_id)
        return self.registry[model_id]

    async def rollback(self) -> ModelOut:
        await self._work()
        if not self.previous:
            raise RefusedError("there is no model before this one")
        self._serve(self.previous.pop())
        return self.registry[self._served()]

    async def add_key(self, role: str, name: str) -> tuple[KeyOut, str]:
        await self._work()
        secret = secrets.token_urlsafe(24)
        made = KeyOut(secrets.token_hex(4), role, name, self.clock(), None)
        self.key_rows[made.key_id] = (made, _digest(secret))
        return made, secret

    async def keys(self) -> Sequence[KeyOut]:
        await self._work()
        return [key for key, _ in self.key_rows.values()]

    async def revoke_key(self, key_id: str) -> KeyOut:
        await self._work()
        if key_id not in self.key_rows:
            raise NotFoundError("no such key")
        key, digest = self.key_rows[key_id]
        self.key_rows[key_id] = (key._replace(revoked_at=self.clock()), digest)
        return self.key_rows[key_id][0]

    def role_of(self, key: str) -> tuple[str, str] | None:
        digest = _digest(key)
        found = None
        for row, wanted in self.key_rows.values():
            if hmac.compare_digest(digest, wanted) and row.revoked_at is None:
                found = (row.key_id, row.role)
        return found

    def metrics(self) -> bytes:
        return f"# TYPE palate_events gauge\npalate_events {len(self.event_ids)}\n".encode()

    def ready(self) -> str | None:
        return self.not_ready

    def _known(self, user_id: str) -> None:
        if user_id not in self.attributes:
            raise NotFoundError("no such person")

    def _served(self) -> str:
        return next(model.model_id for model in self.registry.values() if model.status == "served")

    def _serve(self, model_id: str) -> None:
        before = self._served()
        self.registry[before] = self.registry[before]._replace(status="retired")
        self.registry[model_id] = self.registry[model_id]._replace(status="served")

    def _job(self, kind: str, status: str) -> JobOut:
        job = JobOut(secrets.token_hex(8), kind, status, None, self.clock(), self.clock())
        self.jobs[job.job_id] = job
        return job


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _merged(old: Mapping[str, Value], new: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in {**old, **new}.items() if value is not None}


def _page(ids: list[str], after: str | None, limit: int) -> tuple[list[str], str | None]:
    start = 0 if after is None else bisect_right(ids, after)
    chosen = ids[start : start + limit]
    return chosen, chosen[-1] if start + limit < len(ids) else None


def _passes(part: Filter | Condition, attributes: Mapping[str, Value]) -> bool:
    if isinstance(part, Filter):
        holds = [[_passes(each, attributes) for each in group] for group in (part.all, part.any, part.none)]
        return all(holds[0]) and (not part.any or any(holds[1])) and not any(holds[2])
    value = attributes.get(part.attribute)
    if part.op == "missing":
        return value is None
    if value is None:
        return False
    tests = {
        "eq": lambda: value == part.value,
        "ne": lambda: value != part.value,
        "lt": lambda: type(value) is type(part.value) and value < part.value,
        "le": lambda: type(value) is type(part.value) and value <= part.value,
        "gt": lambda: type(value) is type(part.value) and value > part.value,
        "ge": lambda: type(value) is type(part.value) and value >= part.value,
        "in": lambda: value in part.value,
        "contains": lambda: isinstance(value, str) and part.value in value,
    }
    return tests[part.op]()


def main() -> None:
    from palate.service.limits import Limits
    from palate.service.server import ServerSettings, serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--connections", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=1e6)
    parser.add_argument("--header-seconds", type=float, default=5.0)
    parser.add_argument("--body-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    limits = replace(
        Limits(),
        max_in_flight=arguments.in_flight,
        max_connections=arguments.connections,
        rate=arguments.rate,
        burst=arguments.rate,
        header_seconds=arguments.header_seconds,
        body_seconds=arguments.body_seconds,
    )

    @asynccontextmanager
    async def make_running() -> AsyncIterator[MemoryService]:
        yield MemoryService(arguments.pause_ms / 1e3)
        print("closed", flush=True)

    serve(
        make_running,
        ServerSettings(port=arguments.port, limits=limits),
        started=lambda address: print(address, flush=True),
    )


if __name__ == "__main__":
    main()

"""A running service under open-loop load: events with lists after them, batches of events, and three times too much.

Requests leave on a fixed schedule whether or not earlier ones were answered, and latency counts from the scheduled time
(Tene, How NOT to Measure Latency, 2015), so a stall shows in every request that it delayed. The service is a real
process; the load comes from this one, on the same two cores.

    python benchmarks/service.py --url http://127.0.0.1:8000 --key KEY [--pairs 150] [--seconds 60]
        [--part pairs|batches|overload] [--json FILE]
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request at a time: the least that a client can cost."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = transport, True
        self.parser = httptools.HttpResponseParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((0, b""))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if not self.parser.should_keep_alive():
            self.open = False
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((self.parser.get_status_code(), self.body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self.answer


@dataclass
class Pool:
    """Connections that are kept and reused."""

    host: str
    port: int
    key: str
    free: list[Connection] = field(default_factory=list)

    def request(self, path: str, body: object) -> bytes:
        content = json.dumps(body).encode()
        return (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        while self.free:
            connection = self.free.pop()
            if connection.open:
                break
        else:
            try:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, self.host, self.port)
            except OSError:
                return 0, b""
        answer = await connection.ask(self.request(path, body))
        if connection.open:
            self.free.append(connection)
        return answer


def percentiles(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if not values:
        return {}
    found = np.percentile(np.array(values) * 1e3, [50, 90, 99, 99.9, 100])
    return dict(zip(("p50", "p90", "p99", "p99.9", "max"), (round(float(value), 2) for value in found), strict=True))


async def schedule(rate: float, seconds: float, work) -> None:  # type: ignore[no-untyped-def]
    """Start `work(scheduled time)` `rate` times a second, at Poisson moments, whatever becomes of it."""
    loop, rng = asyncio.get_running_loop(), random.Random(0)
    tasks, at = set(), time.perf_counter()
    end = at + seconds
    while at < end:
        at += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        # Timers count whole milliseconds: who is sent too early counts from then.
        task = loop.create_task(work(min(at, time.perf_counter())))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def pairs(pool: Pool, items: list[str], rate: float, seconds: float, num_people: int = 2000) -> dict[str, object]:
    """An event, then the same person's list, which must not hold the item of the event."""
    rng = random.Random(1)
    both: list[float] = []
    first: list[float] = []
    second: list[float] = []
    starts: list[float] = []
    statuses: Counter[int] = Counter()
    unseen = 0

    async def work(at: float) -> None:
        nonlocal unseen
        user, item = f"load-{rng.randrange(num_people)}", rng.choice(items)
        status, _ = await pool.post("/v1/events", {"user_id": user, "item_id": item, "event_type": "purchase"})
        middle = time.perf_counter()
        statuses[status] += 1
        if status != 200:
            return
        status, body = await pool.post("/v1/recommendations", {"user_id": user, "k": 10})
        end = time.perf_counter()
        statuses[status] += 1
        if status == 200:
            both.append(end - at)
            starts.append(at)
            first.append(middle - at)
            second.append(end - middle)
            unseen += f'"item_id":"{item}"'.encode() in body.replace(b": ", b":")

    await schedule(rate, 3.0, work)  # warm
    for values in (both, first, second, starts):
        values.clear()
    await schedule(rate, seconds, work)
    minutes = ((np.array(starts) - min(starts, default=0.0)) // 60).astype(int)
    by_minute = [percentiles(list(np.array(both)[minutes == minute])) for minute in np.unique(minutes)]
    return {
        "pairs a second": rate,
        "requests a second": 2 * rate,
        "pair": percentiles(both),
        "minutes": [[minute["p50"], minute["p99"]] for minute in by_minute],
        "event": percentiles(first),
        "list": percentiles(second),
        "statuses": dict(statuses),
        "lists that had not seen the event": unseen,
    }


async def batches(pool: Pool, items: list[str], seconds: float, size: int = 200, at_once: int = 8) -> dict[str, object]:
    """As many acknowledged events a second as go in, by `at_once` clients with batches."""
    rng = random.Random(2)
    end, accepted, statuses = time.perf_counter() + seconds, 0, Counter[int]()

    async def client() -> None:
        nonlocal accepted
        while time.perf_counter() < end:
            rows = [{"user_id": f"bulk-{rng.randrange(5000)}", "item_id": rng.choice(items)} for _ in range(size)]
            status, body = await pool.post("/v1/events", {"events": rows})
            statuses[status] += 1
            if status == 200:
                accepted += json.loads(body)["accepted"]

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return {"events a second": round(accepted / (time.perf_counter() - start)), "statuses": dict(statuses)}


async def overload(pool: Pool, items: list[str], seconds: float) -> dict[str, object]:
    """The most lists a second, then three times as many, then how soon all is well again."""
    rng = random.Random(3)

    async def ask(at: float, good: list[float], refused: list[float], other: Counter[int]) -> None:
        status, _ = await pool.post("/v1/recommendations", {"user_id": f"load-{rng.randrange(2000)}", "k": 10})
        (good if status == 200 else refused).append(time.perf_counter() - at)
        other[status] += 1

    end, done = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            status, _ = await pool.post("/v1/recommendations", {"user_id": f"load-{rng.randrange(2000)}", "k": 10})
            done += status == 200

    await asyncio.gather(*(client() for _ in range(16)))
    peak = done / seconds
    good: list[float] = []
    refused: list[float] = []
    statuses: Counter[int] = Counter()
    await schedule(3 * peak, seconds, lambda at: ask(at, good, refused, statuses))
    start = time.perf_counter()
    while True:
        began = time.perf_counter()
        status, _ = await pool.post("/v1/recommendations", {"user_id": "load-1", "k": 10})
        if status == 200 and time.perf_counter() - began < 0.1:
            break
        await asyncio.sleep(0.02)
    return {
        "peak lists a second": round(peak),
        "goodput at three times": round(len(good) / seconds),
        "share of peak": round(len(good) / seconds / peak, 3),
        "refused": percentiles(refused),
        "answered": percentiles(good),
        "statuses": dict(statuses),
        "seconds to recover": round(time.perf_counter() - start, 3),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", required=True)
    parser.add_argument("--pairs", type=float, default=150.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--part", choices=["pairs", "batches", "overload"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    where = urlsplit(arguments.url)
    pool = Pool(where.hostname or "127.0.0.1", where.port or 80, arguments.key)
    status, body = await pool.post("/v1/recommendations", {"user_id": "load-0", "k": 500})
    assert status == 200, (status, body)
    items = [line["item_id"] for line in json.loads(body)["items"]]
    parts = {
        "pairs": lambda: pairs(pool, items, arguments.pairs, arguments.seconds),
        "batches": lambda: batches(pool, items, min(arguments.seconds, 20)),
        "overload": lambda: overload(pool, items, min(arguments.seconds, 20)),
    }
    results = {}
    for name, part in parts.items():
        if arguments.part in (None, name):
            start = time.perf_counter()
            results[name] = await part()
            print(name, json.dumps(results[name]), f"({time.perf_counter() - start:.0f} s)", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    uvloop.run(main())

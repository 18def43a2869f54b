"""What the HTTP shell itself costs: requests a second and CPU time of the server for each, over real sockets.

Behind the shell is a system in memory that costs next to nothing, in a process of its own; the load comes from this
one: a few connections that ask again as soon as they are answered, without an HTTP library. Also: how quickly it says
no when it is full, and what 200 slow sockets do to a healthy client's latency.

    python benchmarks/http_shell.py [--requests 5000]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

PROGRAM = Path(__file__).parent.parent / "tests" / "service" / "memory_service.py"
CONNECTIONS = 8


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int, psutil.Process]]:
    """A server process; yields host, port and process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        host, _, port = process.stdout.readline().strip().removeprefix("http://").partition(":")
        yield host, int(port), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def post(path: str, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: client-key\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request, read the whole answer, return its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


async def closed_loop(host: str, port: int, requests: list[bytes]) -> tuple[list[float], list[int]]:
    """Every connection asks as soon as it is answered: latencies in seconds and statuses."""
    waiting, times, statuses = iter(requests), [], []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for request in waiting:
            start = time.perf_counter()
            statuses.append(await ask(reader, writer, request))
            times.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return times, statuses


def row(name: str, times: list[float], cpu: float, wall: float) -> None:
    median, slow = np.percentile(times, [50, 99]) * 1e3
    print(
        f"{name:<34} {len(times) / wall:8.0f} requests/s   server CPU {cpu / len(times) * 1e3:6.3f} ms each"
        f"   p50 {median:6.2f} ms   p99 {slow:6.2f} ms"
    )


def cost(name: str, requests: list[bytes]) -> None:
    with server() as (host, port, process):
        asyncio.run(closed_loop(host, port, [event(number) for number in range(500)] + requests[:200]))
        before, start = process.cpu_times(), time.perf_counter()
        times, statuses = asyncio.run(closed_loop(host, port, requests))
        after, wall = process.cpu_times(), time.perf_counter() - start
        assert set(statuses) == {200}, set(statuses)
        row(name, times, after.user + after.system - before.user - before.system, wall)


def event(number: int) -> bytes:
    value = {"user_id": f"u{number % 997}", "item_id": f"i{number % 50}", "event_type": "click"}
    return post("/v1/events", {**value, "event_id": f"warm-{number}", "timestamp": 1.7e9 + number})


async def full_house(host: str, port: int) -> None:
    """Three times as many connections as places, each asking without pause; how long a 503 takes."""
    request = post("/v1/recommendations", {"user_id": "u1", "k": 10})
    good: list[float] = []
    refused: list[float] = []

    async def connection(until: float) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while (start := time.perf_counter()) < until:
            status = await ask(reader, writer, request)
            (good if status == 200 else refused).append(time.perf_counter() - start)
            if status != 200:
                await asyncio.sleep(0.05)
        writer.close()

    await asyncio.gather(*(connection(time.perf_counter() + 5) for _ in range(3 * 16)))
    times = np.percentile(refused, [50, 99]) * 1e3
    print(
        f"full house (16 places of 20 ms)    {len(good) / 5:8.0f} answers/s of {16 / 0.02:.0f} possible, "
        f"{len(refused) / 5:.0f} refusals/s   503 p50 {times[0]:.2f} ms   p99 {times[1]:.2f} ms"
    )


async def slow_sockets(host: str, port: int, number: int, rounds: int = 5) -> float:
    """A healthy client without and with sockets beside it that send a byte of their headers now and then, in turns.

    Returns:
        The ratio of its 99th percentiles: the median of the rounds with them over that of the rounds without.
    """
    requests = [event(place) for place in range(2000)]

    async def dribble() -> None:
        while True:
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"POST /v1/events HTTP/1.1\r\nx-slow: ")
                while not reader.at_eof():
                    await asyncio.sleep(0.2)
                    writer.write(b"a")
            except OSError:
                pass
            finally:
                writer.close()

    found: list[list[float]] = [[], []]
    for _ in range(rounds):
        for beside in (0, 1):
            slow = [asyncio.create_task(dribble()) for _ in range(beside * number)]
            await asyncio.sleep(1)
            times, _ = await closed_loop(host, port, requests)
            found[beside].append(float(np.percentile(times, 99)) * 1e3)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
    before, after = (float(np.median(values)) for values in found)
    print(
        f"{number} slow sockets                   p99 {before:.2f} ms alone, {after:.2f} ms beside:"
        f" × {after / before:.2f} (rounds: {', '.join(f'{b / a:.2f}' for a, b in zip(*found, strict=True))})"
    )
    return after / before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=5000)
    number = parser.parse_args().requests
    person = [post("/v1/recommendations", {"user_id": f"u{place % 997}", "k": 10}) for place in range(number)]
    batches = [
        post(
            "/v1/events",
            {"events": [{"user_id": f"u{row}", "item_id": "i1", "event_id": f"{batch}-{row}"} for row in range(100)]},
        )
        for batch in range(max(1, number // 20))
    ]
    cost("POST /v1/events, one", [event(10_000 + place) for place in range(number)])
    cost("POST /v1/events, batches of 100", batches)
    cost("POST /v1/recommendations, k = 10", person)
    with server("--pause-ms", "20", "--in-flight", "16") as (host, port, _):
        asyncio.run(full_house(host, port))
    with server("--header-seconds", "2") as (host, port, _):
        if asyncio.run(slow_sockets(host, port, 200)) > 2:
            raise SystemExit("slow sockets move a healthy client's p99 by more than 2×")


if __name__ == "__main__":
    main()

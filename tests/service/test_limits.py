"""The gate: bodies that are too large or too slow, keys that ask too often, and a full house. Over real sockets."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from asking import Asking, ServerProcess
from memory_service import MemoryService

from palate.errors import ConfigError
from palate.service.app import create_app
from palate.service.limits import Buckets, Limits
from palate.service.reading import parse

Start = Callable[..., ServerProcess]
Connect = Callable[[ServerProcess], socket.socket]
HEAD = b"POST /v1/events HTTP/1.1\r\nhost: x\r\nx-api-key: client-key\r\ncontent-type: application/json\r\n"


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _some(connection)
    return int(first.split()[1]), headers, body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EOFError
    return data


@pytest.fixture
def connect() -> Iterator[Callable[[ServerProcess], socket.socket]]:
    """Opens connections that end with the test."""
    with contextlib.ExitStack() as opened:
        yield lambda server: opened.enter_context(socket.create_connection(server.address, timeout=10))


def event(size: int) -> bytes:
    body = b'{"user_id": "u", "item_id": "i"'
    return body + b" " * (size - len(body) - 1) + b"}"


def test_bodies_are_bounded_both_ways(start_server: Start, connect: Connect) -> None:
    server = start_server("--body-seconds", "1")
    with connect(server) as connection:
        # Said to be too large: answered before a byte of the body is sent.
        connection.sendall(HEAD + b"content-length: 1000001\r\n\r\n")
        status, _, body = answer(connection)
        assert (status, json.loads(body)["code"]) == (413, "too_large")
    with connect(server) as connection:
        connection.sendall(HEAD + b"content-length: " + b"9" * 18 + b"\r\n\r\n")
        assert answer(connection)[0] == 413
    with connect(server) as connection:
        # Too large without saying so.
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(11):
            connection.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
        assert answer(connection)[0] == 413
    with connect(server) as connection:
        # Exactly as large as allowed, both ways, on one connection.
        connection.sendall(HEAD + b"content-length: 1000000\r\n\r\n" + event(1_000_000))
        assert answer(connection)[0] == 200
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\nf4240\r\n" + event(1_000_000) + b"\r\n0\r\n\r\n")
        assert answer(connection)[0] == 200
        connection.sendall(HEAD + b"content-length: 1000001\r\n\r\n" + event(1_000_001))
        assert answer(connection)[0] == 413
    with connect(server) as connection:
        # A body that stops arriving.
        start = time.monotonic()
        connection.sendall(HEAD + b'content-length: 40\r\n\r\n{"user')
        status, headers, body = answer(connection)
        assert (status, json.loads(body)["code"], headers["connection"]) == (408, "too_slow", "close")
        assert 0.9 < time.monotonic() - start < 5
        assert connection.recv(1) == b""
    with connect(server) as connection:
        # Without a key nobody's body is read.
        connection.sendall(HEAD.replace(b"client-key", b"wrong") + b"content-length: 1000001\r\n\r\n")
        assert answer(connection)[0] == 401


def test_slow_and_broken_connections_are_closed(start_server: Start, connect: Connect) -> None:
    server = start_server("--header-seconds", "1")
    silent, partial, dribbling, blank, later = (connect(server) for _ in range(5))
    slow = [connect(server) for _ in range(100)]
    start = time.monotonic()
    partial.sendall(HEAD)
    for one in slow:
        one.sendall(HEAD)
    later.sendall(HEAD + b"content-length: 35\r\n\r\n" + event(35))
    assert answer(later)[0] == 200
    later.sendall(HEAD[:20])
    drops = iter(HEAD)
    while time.monotonic() - start < 2.5:
        # A byte now and then does not put the end off; nor do empty lines.
        for connection, data in ((dribbling, bytes([next(drops)])), (blank, b"\r\n")):
            with contextlib.suppress(OSError):
                connection.sendall(data)
        time.sleep(0.1)
    for connection in (silent, partial, dribbling, blank, later, *slow):
        connection.settimeout(2)
        # It is reset rather than closed when a byte was under way.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096) == b""
    with connect(server) as connection:
        connection.sendall(HEAD + b"content-length: 35\r\n\r\n" + event(35))
        assert answer(connection)[0] == 200, "a healthy client is served"
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * 20_000)
        time.sleep(0.2)
        connection.sendall(b"x" * 20_000)
        assert answer(connection)[0] == 431
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, headers, body = answer(connection)
        assert (status, json.loads(body)["code"]) == (400, "bad_http")
        assert headers["content-type"] == "application/problem+json"


def test_a_full_house_says_no_at_once_while_others_finish(start_server: Start, connect: Connect) -> None:
    server = start_server("--in-flight", "4", "--pause-ms", "800")
    request = HEAD + b"content-length: 35\r\n\r\n" + event(35)
    inside = [connect(server) for _ in range(4)]
    for one in inside:
        one.sendall(request)
    time.sleep(0.2)
    refusals = []
    for _ in range(8):
        with connect(server) as one:
            start = time.monotonic()
            one.sendall(request)
            status, headers, body = answer(one)
            refusals.append(time.monotonic() - start)
            assert (status, headers["retry-after"], json.loads(body)["code"]) == (503, "1", "overloaded")
            # The connection is still good, and health is never refused.
            one.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer(one)[0] == 200
    assert min(refusals) < 0.05, "a refusal does not wait for the others"
    assert [answer(one)[0] for one in inside] == [200] * 4
    inside[0].sendall(request)
    assert answer(inside[0])[0] == 200, "there is room again"


def test_a_body_under_way_takes_no_place() -> None:
    """Clients that send slowly cannot fill the house."""

    async def run() -> None:
        app = create_app(MemoryService(), Limits(max_in_flight=1, body_seconds=5.0))
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/events",
            "raw_path": b"/v1/events",
            "headers": [(b"x-api-key", b"client-key")],
        }

        async def never() -> dict[str, object]:
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message: object) -> None:
            return None

        waiting = asyncio.create_task(app.gate(scope, never, send))
        await asyncio.sleep(0)
        answered = await Asking(app)("POST", "/v1/events", json={"user_id": "u", "item_id": "i"})
        assert answered.status_code == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert app.gate.in_flight == 0

    asyncio.run(run())


def test_bodies_that_are_arriving_are_bounded_together() -> None:
    async def run() -> None:
        app = create_app(MemoryService(), Limits(max_waiting_bytes=100))

        async def pieces() -> object:
            yield b'{"user_id": "u", '
            yield b" " * 100
            yield b'"item_id": "i"}'

        answered = await Asking(app)("POST", "/v1/events", content=pieces())
        assert (answered.status_code, answered.json()["code"]) == (503, "overloaded")
        small = await Asking(app)("POST", "/v1/events", json={"user_id": "u", "item_id": "i"})
        assert small.status_code == 200, "what was counted is given back"

    asyncio.run(run())


def test_each_key_has_its_own_rate() -> None:
    async def run() -> None:
        asking = Asking(create_app(MemoryService(), Limits(rate=0.2, burst=3.0)))
        statuses = [(await asking("GET", "/v1/models", "service")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refusal = await asking("GET", "/v1/models", "service")
        assert 1 <= int(refusal.headers["retry-after"]) <= 5
        assert refusal.json()["code"] == "too_many_requests"
        assert (await asking("GET", "/v1/models", "admin")).status_code == 200
        assert (await asking("GET", "/health/live", None)).status_code == 200

    asyncio.run(run())


def test_a_bucket_fills_at_its_rate_and_no_further() -> None:
    now = 0.0
    buckets = Buckets(rate=2.0, burst=3.0, clock=lambda: now)
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now = 0.5
    assert [buckets.take("a") for _ in range(2)] == [0.0, 0.5]
    now = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", sorted(vars(Limits())))
def test_no_limit_can_be_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=f"limits.{name}"):
        Limits(**{name: type(getattr(Limits(), name))(0)})


def test_no_cache_of_the_parser_keeps_an_id() -> None:
    body = b'{"user_id": "someone who may be erased"}'
    one, other = parse(body), parse(body)
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert one["user_id"] is not other["user_id"]

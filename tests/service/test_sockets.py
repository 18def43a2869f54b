"""Connections with bounds, where a real client would be slow to show it."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from asking import ServerProcess
from uvicorn.server import ServerState

from palate.service.limits import Limits
from palate.service.sockets import BoundedProtocol, Draining, JoiningTransport

READY = b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Remembers what became of a connection."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.written = b""
        self.aborted = self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(60)


def protocol(limits: Limits) -> tuple[BoundedProtocol, FakeTransport]:
    config = uvicorn.Config(nothing, log_config=None, lifespan="off", ws="none")
    made = BoundedProtocol(config, ServerState(), {}, limits=limits, draining=Draining())
    transport = FakeTransport()
    made.connection_made(transport)
    return made, transport


class Pieces(FakeTransport):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))


async def hello(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/later":
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"hello"})


def test_an_answer_leaves_in_one_piece() -> None:
    async def run() -> None:
        config = uvicorn.Config(hello, log_config=None, lifespan="off", ws="none")
        config.load()
        made, transport = BoundedProtocol(config, ServerState(), {}, limits=Limits(), draining=Draining()), Pieces()
        made.connection_made(transport)
        for path in (b"/now", b"/later"):
            made.data_received(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(0.1)
        made.connection_lost(None)
        whole, head, body = transport.pieces
        assert whole.startswith(b"HTTP/1.1 200")
        assert whole.endswith(b"\r\n\r\nhello")
        assert (head + body).endswith(b"\r\n\r\nhello"), "a head does not wait for a slow body"
        assert body == b"hello"

    asyncio.run(run())


def test_a_head_is_sent_before_its_connection_closes() -> None:
    async def run() -> None:
        transport = Pieces()
        whole = JoiningTransport(transport, asyncio.get_running_loop())
        whole.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert not transport.pieces
        whole.close()
        assert transport.pieces == [b"HTTP/1.1 204 No Content\r\n\r\n"]
        assert transport.closed
        whole.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await asyncio.sleep(0)
        assert len(transport.pieces) == 1, "nothing is written to what is closed"

    asyncio.run(run())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def run() -> None:
        one, transport = protocol(Limits(write_seconds=0.05))
        one.pause_writing()
        await asyncio.sleep(0.02)
        assert not transport.aborted
        await asyncio.sleep(0.05)
        assert transport.aborted
        other, transport = protocol(Limits(write_seconds=0.05))
        other.pause_writing()
        other.resume_writing()
        await asyncio.sleep(0.1)
        assert not transport.aborted, "it has read in time"

    asyncio.run(run())


def test_the_deadline_for_headers_ends_with_the_headers() -> None:
    async def run() -> None:
        slow, cut = protocol(Limits(header_seconds=0.05))
        slow.data_received(READY[:-2])
        quick, kept = protocol(Limits(header_seconds=0.05))
        quick.data_received(READY)
        await asyncio.sleep(0.1)
        assert cut.closed
        assert not kept.closed, "its request is at work"
        for task in quick.tasks:
            task.cancel()
        await asyncio.sleep(0)
        quick.connection_lost(None)
        slow.connection_lost(None)

    asyncio.run(run())


def test_there_is_a_last_connection(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--connections", "2")
    first, second, third = (socket.create_connection(server.address, timeout=5) for _ in range(3))
    with first, second, third:
        head = third.recv(4096)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in head
        while third.recv(4096):
            pass
        first.sendall(READY)
        assert first.recv(12) == b"HTTP/1.1 200"
        second.close()
        # The place is free again once the server has seen the end of the other one.
        for _ in range(50):
            with socket.create_connection(server.address, timeout=5) as fourth:
                fourth.sendall(READY)
                if fourth.recv(12) == b"HTTP/1.1 200":
                    return
        raise AssertionError("no place became free")

"""Connections with bounds: no client holds one open by sending its headers slowly, or by not reading its answer.

uvicorn's own protocol waits for headers without end, which makes it an easy prey: a few hundred sockets that send a
byte now and then would use up the descriptors. Bodies are `limits.py`'s to bound.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from palate.service.errors import KINDS, MEDIA_TYPE, RETRY_SECONDS, problem_body
from palate.service.limits import Limits


@dataclass
class Draining:
    """Whether the server is about to stop; shared by its parts."""

    active: bool = False


def _prepare(code: str) -> bytes:
    body = problem_body(code)
    status = KINDS[code].status
    head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    again = f"retry-after: {RETRY_SECONDS}\r\n" if status == 503 else ""
    return STATUS_LINE[status] + f"{head}{again}\r\n".encode() + body


_REFUSALS: Final = {code: _prepare(code) for code in ("bad_http", "headers_too_large", "overloaded")}


class JoiningTransport:
    """A transport that sends the head of an answer with what follows it: each piece would wake the client.

    uvicorn writes the two one after the other. A head that nothing follows is sent in the loop's next round.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or keep a head."""
        if not self._head and data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data if head else data)

    def close(self) -> None:
        """Close, after what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with deadlines; while draining, every answer closes its connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        draining: Draining,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._draining = limits, draining
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport, self.loop)))
        if len(self.connections) > self._limits.max_connections:
            self._close_with("overloaded")
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers."""
        self._headers_are_there()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; bytes that do not complete the headers of a request start its deadline."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            return  # a request is at work: its body has its own deadline
        if self.transport.is_closing():
            return
        self._header_bytes += len(data)
        if self._header_bytes > self._limits.max_header_bytes:
            self._close_with("headers_too_large")
        elif self._header_timer is None:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._headers_are_there()
        super().on_headers_complete()
        if self._draining.active:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Give a client that does not read a while, then cut it off."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        self._cancel_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the one shape of errors."""
        self._close_with("bad_http")

    def is_idle(self) -> bool:
        """Whether no request is at work."""
        return self.cycle is None or self.cycle.response_complete

    def finish(self) -> None:
        """Let the answer at work, if there is one, be the last."""
        if not self.is_idle():
            self.cycle.keep_alive = False

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self._limits.header_seconds, self.transport.close)

    def _headers_are_there(self) -> None:
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _close_with(self, code: str) -> None:
        self.transport.write(_REFUSALS[code])
        self.transport.close()

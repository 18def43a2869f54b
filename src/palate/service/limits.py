"""The gate before every route: nothing large, slow or too much gets further. Pure ASGI, so that a refusal is cheap.

The order is by cost: a full house is told first, then a missing key, then a key that asks too often, then a body that
is too large or too slow. Only a request that is there in full takes one of the places at work.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palate.errors import ConfigError
from palate.service.auth import identify
from palate.service.contract import Running
from palate.service.errors import MEDIA_TYPE, RETRY_SECONDS, problem, problem_body
from palate.service.figures import Figures


@dataclass(frozen=True)
class Limits:
    """How much one server process takes on."""

    max_in_flight: int = 64
    """Requests at work at once; more are answered 503 with `Retry-After` at once."""
    max_body_bytes: int = 1_000_000
    """A larger body is answered 413 before it is read."""
    body_seconds: float = 10.0
    """A body that is not there in full by then is answered 408."""
    max_waiting_bytes: int = 64_000_000
    """Of bodies that are still arriving, all together; beyond it, 503."""
    rate: float = 2000.0
    """Requests a second that one key may keep up; beyond it, 429 with `Retry-After`."""
    burst: float = 4000.0
    """Requests that a rested key may send at once."""
    header_seconds: float = 5.0
    """A connection that has no complete headers so long after it was opened, or after a request began, is closed."""
    max_header_bytes: int = 32_768
    """Of headers that arrive in pieces; more is answered 431."""
    keep_alive_seconds: int = 5
    """A connection without a request for so long is closed."""
    write_seconds: float = 20.0
    """A client that reads nothing of its answer for so long is cut off."""
    max_connections: int = 2048
    """Open connections; further ones are answered 503 and closed."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"limits.{name} is {value}; it must be above 0")
        if self.burst < 1:
            raise ConfigError(f"limits.burst is {self.burst}; below 1 no request would ever pass")


class Buckets:
    """A token bucket for each key: `rate` tokens a second, at most `burst` of them."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, key_id: str) -> float:
        """Take a token: 0 if there was one, else the seconds until there is."""
        now = self._clock()
        level, at = self._levels.get(key_id, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        if level < 1:
            self._levels[key_id] = (level, now)
            return (1 - level) / self._rate
        self._levels[key_id] = (level - 1, now)
        return 0.0


def _prepare(code: str, status: int, *headers: tuple[bytes, bytes]) -> tuple[Message, Message]:
    """The two ASGI messages of a problem, made once."""
    body = problem_body(code)
    head = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    return {"type": "http.response.start", "status": status, "headers": head}, {
        "type": "http.response.body",
        "body": body,
    }


_OVERLOADED: Final = _prepare("overloaded", 503, (b"retry-after", RETRY_SECONDS.encode()))
_NO_KEY: Final = _prepare("no_key", 401, (b"www-authenticate", b"Bearer"))
_WITH_BODY: Final = frozenset(("POST", "PUT", "PATCH"))


class Gate:
    """The outermost ASGI application; `in_flight` is how many requests are at work."""

    def __init__(
        self, app: ASGIApp, running: Running, limits: Limits, figures: Figures, open_paths: Set[str] = frozenset()
    ) -> None:
        self._app, self._running, self._limits, self._figures = app, running, limits, figures
        self._open_paths = open_paths
        self._buckets = Buckets(limits.rate, limits.burst)
        self._waiting_bytes = 0
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        if self.in_flight >= self._limits.max_in_flight:
            await self._refuse("overloaded", _OVERLOADED, send)
            return
        caller = identify(scope["headers"], self._running)
        if caller is None:
            await self._refuse("no_key", _NO_KEY, send)
            return
        wait = self._buckets.take(caller.key_id)
        if wait > 0:
            refusal = self._turn_away("too_many_requests", {"retry-after": str(math.ceil(wait))})
            await refusal(scope, receive, send)
            return
        scope["palate.caller"] = caller
        if scope["method"] in _WITH_BODY:
            body = await self._read_body(scope, receive)
            if body is None:
                return
            if isinstance(body, Response):
                await body(scope, receive, send)
                return
            # Others may have come while the body did.
            if self.in_flight >= self._limits.max_in_flight:
                await self._refuse("overloaded", _OVERLOADED, send)
                return
            scope["palate.body"] = body
        self.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _refuse(self, code: str, messages: tuple[Message, Message], send: Send) -> None:
        self._figures.turned_away(code)
        for message in messages:
            await send(message)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | Response | None:
        """The whole body, a refusal, or None when the client has gone."""
        limit = self._limits.max_body_bytes
        for name, value in scope["headers"]:
            # The parser lets only digits through; a number too long to parse is too large as well.
            if name == b"content-length" and (len(value) > 18 or int(value) > limit):
                return self._turn_away("too_large")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        return self._turn_away("too_large")
                    if not message.get("more_body", False):
                        return b"".join((*chunks, chunk)) if chunks else chunk
                    chunks.append(chunk)
                    self._waiting_bytes += len(chunk)
                    if self._waiting_bytes > self._limits.max_waiting_bytes:
                        return self._turn_away("overloaded")
        except TimeoutError:
            return self._turn_away("too_slow", {"connection": "close"})
        finally:
            self._waiting_bytes -= sum(map(len, chunks))

    def _turn_away(self, code: str, headers: Mapping[str, str] | None = None) -> Response:
        self._figures.turned_away(code)
        return problem(code, headers=headers)

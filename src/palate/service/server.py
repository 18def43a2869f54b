"""Serving under uvicorn: uvloop and httptools, bounded connections, and a stop that resets no connection.

On SIGTERM `/health/ready` answers 503 and every answer closes its connection; after a moment the socket stops
listening, and what was waiting in its queue is still answered. Requests at work finish; then the running system closes.
"""

import asyncio
import contextlib
import ctypes
import functools
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import cast

import uvicorn
import uvloop

from palate.errors import ConfigError
from palate.service.app import create_app
from palate.service.contract import Running
from palate.service.limits import Limits
from palate.service.sockets import BoundedProtocol, Draining

_log = logging.getLogger("palate.service")
_TICK = 0.02
_HANDSHAKE_SECONDS = 0.3
_SO_ATTACH_FILTER = 26


@dataclass(frozen=True)
class ServerSettings:
    """Where and how one server process listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of this machine's."""
    port: int = 8000
    """0: any free one."""
    limits: Limits = field(default_factory=Limits)
    """How much the process takes on."""
    open_docs: bool = False
    """Whether `/docs` and `/openapi.json` need no key."""
    reuse_port: bool = False
    """Let several processes listen on the same port; the kernel spreads connections over them."""
    announce_seconds: float = 1.0
    """How long a stopping server still takes connections, so that a load balancer sees `/health/ready` fail first."""
    linger_seconds: float = 2.0
    """How long a stopping server then waits for idle connections to ask once more, before it closes them."""
    drain_seconds: float = 30.0
    """How long a stop may take; requests that are at work by then are cut off."""

    def __post_init__(self) -> None:
        for name in ("announce_seconds", "linger_seconds", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"server.{name} is {getattr(self, name)}; it must not be negative")


def bind(settings: ServerSettings) -> socket.socket:
    """A socket that is bound, and listens once a server takes it.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error}; choose another --port or --host"
        ) from None
    bound.setblocking(False)
    return bound


def turn_away_new(listener: socket.socket) -> None:
    """Let no new connection begin, where the system can: on Linux, by a packet filter that drops each SYN.

    Connections that are set up, or nearly, are not touched. Who knocks later knocks again, and finds the socket closed.
    """
    # Load the byte of the TCP flags; if SYN is set, keep 0 bytes of the packet, else all.
    rules = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid filters
            listener.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(rules), ctypes.addressof(program))
            )


def serve(
    make_running: Callable[[], AbstractAsyncContextManager[Running]],
    settings: ServerSettings,
    *,
    bound: socket.socket | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything is finished and the running system is closed.

    Args:
        make_running: opens the running system inside the event loop; leaving the context closes it.
        bound: a socket of `bind` that several processes share; by default this process makes its own.
        started: called with the address once connections are accepted.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    listener = bound or bind(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(make_running, settings, listener, bound is not None, started))
    finally:
        listener.close()


async def _serve(
    make_running: Callable[[], AbstractAsyncContextManager[Running]],
    settings: ServerSettings,
    listener: socket.socket,
    shared: bool,
    started: Callable[[str], None],
) -> None:
    async with make_running() as running:
        draining = Draining()
        app = create_app(running, settings.limits, open_docs=settings.open_docs, draining=lambda: draining.active)
        protocol = functools.partial(BoundedProtocol, limits=settings.limits, draining=draining)
        config = uvicorn.Config(
            app.gate,
            http=cast(type[asyncio.Protocol], protocol),
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,  # a log of paths would keep the ids of erased people
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.limits.keep_alive_seconds,
        )
        server = DrainingServer(config, settings, draining, listener, shared)
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        await server.serve_from(lambda: started(address))


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a stop that loses nothing."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: ServerSettings,
        draining: Draining,
        listener: socket.socket,
        shared: bool,
    ) -> None:
        super().__init__(config)
        self._settings, self._draining, self._listener, self._shared = settings, draining, listener, shared
        self._when_started: Callable[[], None] = lambda: None

    async def serve_from(self, when_started: Callable[[], None]) -> None:
        """Serve the listener until a signal comes."""
        self._when_started = when_started
        await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self.started:
            self._when_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGTERM and SIGINT; uvicorn's own would raise the signal again before the store is closed."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second SIGINT, at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Announce, stop listening, let requests finish, close."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain_seconds
        _log.info("stopping: requests at work finish")
        self._draining.active = True
        for connection in self._open():
            connection.finish()
        await self._wait(lambda: False, min(end, loop.time() + self._settings.announce_seconds))
        await self._stop_listening()
        # An idle connection may be about to ask: one that does is answered and told that this was the last.
        await self._wait(lambda: not self._open(), min(end, loop.time() + self._settings.linger_seconds))
        for connection in self._open():
            connection.shutdown()
        await self._wait(lambda: not self._open() and not self.server_state.tasks, end)
        cut_off = list(self.server_state.tasks)
        if cut_off:
            _log.error("%d requests took longer than %g s and are cut off", len(cut_off), self._settings.drain_seconds)
        for task in cut_off:
            task.cancel("the server stops")
        await asyncio.gather(*cut_off, return_exceptions=True)
        for connection in self._open():
            connection.transport.abort()
        _log.info("stopped")

    def _open(self) -> list[BoundedProtocol]:
        return cast(list[BoundedProtocol], list(self.server_state.connections))

    async def _wait(self, done: Callable[[], bool], until: float) -> None:
        loop = asyncio.get_running_loop()
        while not done() and loop.time() < until and not self.force_exit:
            await asyncio.sleep(_TICK)

    async def _stop_listening(self) -> None:
        """Close the socket without losing who is at the door.

        The kernel resets connections that it has set up and nobody has accepted yet. So nobody new may knock first;
        who is at the door by then is accepted, and then the socket is closed.
        """
        if not self._shared:
            turn_away_new(self._listener)
            await asyncio.sleep(min(_HANDSHAKE_SECONDS, self._settings.drain_seconds))
        for server in self.servers:
            server.close()

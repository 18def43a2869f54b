"""A server process that is stopped: requests at work finish, and no connection is reset."""

import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest
from asking import ServerProcess

from palate.errors import ConfigError
from palate.service.server import ServerSettings, bind

Start = Callable[..., ServerProcess]
BODY = b'{"user_id": "u", "item_id": "i"}'
EVENT = (
    b"POST /v1/events HTTP/1.1\r\nhost: x\r\nx-api-key: client-key\r\ncontent-length: %d\r\n\r\n" % len(BODY)
) + BODY
READY = b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n"


def ask(connection: socket.socket, request: bytes) -> tuple[int, bool]:
    """Status of the answer, and whether it closes the connection."""
    connection.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise EOFError
        data += more
    head, _, body = data.lower().partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), b"connection: close" in head


class Caller(threading.Thread):
    """Asks without pause, on one connection or a new one each time, until the server no longer takes connections."""

    def __init__(self, server: ServerProcess, keep: bool) -> None:
        super().__init__(daemon=True)
        self.server, self.keep = server, keep
        self.good = 0
        self.faults: list[str] = []

    def run(self) -> None:
        connection = None
        while True:
            if connection is None:
                try:
                    connection = socket.create_connection(self.server.address, timeout=20)
                except ConnectionRefusedError:
                    return
                except OSError as error:
                    self.faults.append(f"connect: {error!r}")
                    return
            try:
                status, closes = ask(connection, EVENT)
            except (OSError, EOFError) as error:
                self.faults.append(f"request {self.good}, keep {self.keep}: {error!r}")
                connection.close()
                return
            if status != 200:
                self.faults.append(str(status))
            self.good += 1
            if closes or not self.keep:
                connection.close()
                connection = None


def test_a_stop_loses_no_request(start_server: Start) -> None:
    server = start_server("--pause-ms", "30")
    callers = [Caller(server, keep=number % 2 == 0) for number in range(8)]
    for caller in callers:
        caller.start()
    with socket.create_connection(server.address, timeout=10) as idle:
        assert ask(idle, READY) == (200, False)
        time.sleep(0.5)
        start = time.monotonic()
        server.terminate()
        time.sleep(0.3)
        # An idle connection is answered once more, and told that this was the last.
        assert ask(idle, READY) == (503, True)
        assert idle.recv(1) == b""
    for caller in callers:
        caller.join(20)
    assert server.process.wait(30) == 0
    assert time.monotonic() - start < 20
    assert [fault for caller in callers for fault in caller.faults] == []
    assert all(caller.good > 3 for caller in callers)
    out, errors = server.close()
    assert "closed" in out, "the running system is closed, too"
    assert "Traceback" not in errors


def test_a_request_at_work_finishes(start_server: Start) -> None:
    server = start_server("--pause-ms", "2500")
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(EVENT)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert server.process.wait(20) == 0


def test_an_answer_has_no_word_of_the_software(start_server: Start) -> None:
    server = start_server()
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(READY)
        head = connection.recv(4096).decode().lower()
    assert "server:" not in head
    assert "cache-control: no-store" in head


def test_two_servers_may_share_a_port_if_they_say_so() -> None:
    with bind(ServerSettings(port=0, reuse_port=True)) as first:
        port = first.getsockname()[1]
        with bind(ServerSettings(port=port, reuse_port=True)) as second:
            assert second.getsockname()[1] == port
    with bind(ServerSettings(port=0)) as first:
        first.listen()
        with pytest.raises(ConfigError, match="cannot listen on"):
            bind(ServerSettings(port=first.getsockname()[1]))


@pytest.mark.parametrize("name", ["announce_seconds", "linger_seconds", "drain_seconds"])
def test_times_are_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ServerSettings(**{name: -1.0})

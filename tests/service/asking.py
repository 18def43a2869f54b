"""Ways to ask the shell: in this process, and as a server process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from memory_service import KEYS

HERE = Path(__file__).parent


class Asking:
    """Asks an application in this process, with the key of a role."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
        headers = {**({} if role is None else {"x-api-key": KEYS[role]}), **options.pop("headers", {})}
        transport = httpx.ASGITransport(self.app.gate, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://palate") as client:
            return await client.request(method, path, headers=headers, **options)


class ServerProcess:
    """A server process; `url`, and what it printed."""

    def __init__(self, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "memory_service.py"), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url.startswith("http://"):
            raise RuntimeError(f"the server did not start: {self.process.communicate()}")
        host, _, port = self.url.removeprefix("http://").partition(":")
        self.address = (host, int(port))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> tuple[str, str]:
        """Kill it if it is alive; what it printed on both streams."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.communicate()

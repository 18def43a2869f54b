"""The shell over a system in memory: in this process, or as a server of its own."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from asking import Asking, ServerProcess
from memory_service import MemoryService

from palate.recommend import Recommender
from palate.service.app import App, create_app
from palate.service.home import Home
from palate.service.opening import prepare
from palate.store import Store


@pytest.fixture
def running() -> MemoryService:
    return MemoryService()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    """The store of a test's own `home`."""
    opened = Store.open(home.database)
    yield opened
    opened.close()


@pytest.fixture
def served_home(tmp_path: Path, model: Recommender) -> Home:
    """A home that serves the small shop's model, with none of the shop's data."""
    home = Home(tmp_path / "home")
    home.make()
    opened = Store.open(home.database)
    prepare(opened, home, lambda: model, None)
    opened.close()
    return home


@pytest.fixture
def app(running: MemoryService) -> App:
    return create_app(running)


@pytest.fixture
def ask(app: App) -> Callable[..., httpx.Response]:
    """Ask and wait for the answer."""
    asking = Asking(app)
    return lambda *args, **options: asyncio.run(asking(*args, **options))


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts server processes that end with the test."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        started.append(ServerProcess(*options))
        return started[-1]

    yield start
    for one in started:
        one.close()

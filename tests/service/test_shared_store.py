"""Two processes' worth of systems on one PostgreSQL: what one does, the other serves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from palate.data.event import Event
from palate.errors import ConfigError
from palate.recommend import Recommender
from palate.service.contract import ItemIn, ListRequest, PersonIn, RefusedError
from palate.service.home import Home
from palate.service.launch import Launch
from palate.service.opening import open_system, prepare, register
from palate.service.system import System, SystemConfig
from palate.store import Store


@pytest.fixture
def home(tmp_path: Path, model: Recommender, postgres_url: str) -> Home:
    place = Home(tmp_path / "home")
    place.make()
    store = Store.open(postgres_url)
    prepare(store, place, lambda: model, None)
    register(store, place, replace(model, model_id="f" * 16), {})
    store.close()
    return place


@asynccontextmanager
async def two(home: Home, url: str) -> AsyncIterator[tuple[System, System]]:
    config = SystemConfig(log_seconds=0.01, watch_seconds=0.05, freshen_seconds=0.0)
    systems = [open_system(Store.open(url), home, config, shared=True) for _ in range(2)]
    for system in systems:
        system.start()
    try:
        yield systems[0], systems[1]
    finally:
        for system in systems:
            await system.close()


async def until(done: object, seconds: float = 20.0) -> None:
    """Wait for what the other process follows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await done():  # type: ignore[operator]
            return
        await asyncio.sleep(0.05)
    pytest.fail("the other process did not follow")


def test_what_one_process_takes_the_other_serves(home: Home, postgres_url: str) -> None:
    async def main() -> None:
        async with two(home, postgres_url) as (one, other):
            me = ListRequest(user_id="someone", k=100)
            assert (await other.recommend([me]))[0].fallback
            for number in range(6):
                system = (one, other)[number % 2]
                await system.add_events([Event("someone", f"toys-0{number}", event_id=f"e{number}")])
                lists = [(await each.recommend([me]))[0].items for each in (one, other)]
                assert lists[0] == lists[1]
                assert f"toys-0{number}" not in [line.item_id for line in lists[0]]
            again = await one.add_events([Event("someone", "toys-05", event_id="e5")])
            assert (again.accepted, again.duplicates) == (0, 1)
            await one.add_people([PersonIn("someone", {"country": "Italy"})])
            lists = [(await each.recommend([me]))[0].items for each in (one, other)]
            assert lists[0] == lists[1]
            await other.erase("someone")
            assert (await one.recommend([me]))[0].fallback
            await one.add_events([Event("someone", "garden-01")])
            assert (await other.person("someone")).num_events == 1

    asyncio.run(main())


def test_items_keys_and_models_are_followed(home: Home, postgres_url: str) -> None:
    async def main() -> None:
        async with two(home, postgres_url) as (one, other):
            await one.add_items([ItemIn("fresh", {"title": "blue toys kite", "price": 7.0})])
            key, secret = await one.add_key("client", "shop")

            async def listed() -> bool:
                [found] = await other.recommend([ListRequest(k=100)])
                return "fresh" in [line.item_id for line in found.items]

            async def known() -> bool:
                return other.role_of(secret) is not None

            async def gone() -> bool:
                return other.role_of(secret) is None

            async def promoted() -> bool:
                return (await other.recommend([ListRequest()]))[0].model_id == "f" * 16

            await until(listed)
            await until(known)
            await one.revoke_key(key.key_id)
            await until(gone)
            await one.promote("f" * 16, 1.0)
            await until(promoted)
            assert await listed()
            await other.rollback()
            assert (await other.recommend([ListRequest()]))[0].model_id != "f" * 16
            with pytest.raises(RefusedError):
                await one.rollback()

    asyncio.run(main())


def test_several_processes_ask_for_postgres(home: Home) -> None:
    with pytest.raises(ConfigError, match="PostgreSQL"):
        Launch(home, home.database, workers=2)

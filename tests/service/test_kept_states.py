"""Fast weights that are stored are a cache: lists with them and without them are the same, whatever happens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from palate.data.event import Event
from palate.errors import StoreError
from palate.recommend import Recommender, State
from palate.service import state_log
from palate.service.contract import ItemIn, ListRequest, PersonIn
from palate.service.home import Home
from palate.service.lists import adapt
from palate.service.opening import open_system, prepare, register
from palate.service.people import Kept, Person, fold
from palate.service.shelf import Item, make_shelf
from palate.service.system import System, SystemConfig
from palate.store import Store
from palate.store.schema import states
from palate.store.states import SavedState, save

OTHER = "f" * 16
NOW = 1e9


class Shop:
    """A home that can be opened again and again; its store has its people's states written when told to."""

    def __init__(self, folder: Path, model: Recommender, url: str | None = None) -> None:
        self.home = Home(folder)
        self.home.make()
        self.url = url or self.home.database
        store = Store.open(self.url)
        prepare(store, self.home, lambda: model, None)
        other = replace(model, params={**model.params, "popularity": model.params["popularity"] + 1}, model_id=OTHER)
        register(store, self.home, other, {})
        store.close()

    @asynccontextmanager
    async def open(self, seconds: float = 3600.0, shared: bool = False) -> AsyncIterator[System]:
        config = SystemConfig(log_seconds=0.01, freshen_seconds=0.0, states_seconds=seconds, watch_seconds=3600.0)
        system = open_system(Store.open(self.url), self.home, config, shared=shared)
        system.start()
        try:
            yield system
        finally:
            await system.close()

    def states(self) -> dict[str, SavedState]:
        store = Store.open(self.url)
        with store.read() as connection:
            rows = connection.execute(select(*(states.c[name] for name in SavedState._fields))).all()
        store.close()
        return {row.user_id: SavedState(*row) for row in rows}


@pytest.fixture
def shop_home(tmp_path: Path, model: Recommender) -> Shop:
    return Shop(tmp_path / "home", model)


@pytest.fixture
def recalls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a state was of use, each time that one was looked at."""
    found: list[bool] = []
    load_state = Recommender.load_state

    def watched(self: Recommender, *arguments: object) -> State | None:
        state = load_state(self, *arguments)  # type: ignore[arg-type]
        found.append(state is not None)
        return state

    monkeypatch.setattr(Recommender, "load_state", watched)
    return found


async def flush(system: System) -> None:
    """Write what waits, and wait until it is written."""
    system._states.flush()
    await asyncio.wrap_future(system._machine.writer.submit(lambda connection: None))


def lists_of(system: System, users: Sequence[str], now: float = NOW) -> list[object]:
    """Items and scores."""
    requests = [ListRequest(user_id=user, k=100, include_seen=True) for user in users]
    return [(made.list.model_id, made.list.fallback, made.list.items) for made in system.serving.lists(requests, now)]


def numbers(state: State) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.fast.items()}


def check(system: System, users: Sequence[str]) -> None:
    """What is served is what folding the store anew and adapting anew gives, to the bit."""
    served = lists_of(system, users)
    for user in users:
        seen = system.serving.adapted(user, NOW)
        stored = system._read_person(user)
        assert (seen is None) == (stored is None)
        if seen is None or stored is None:
            continue
        shelf, _, adapted = seen
        person = fold(stored._replace(kept=None), shelf.model.config.meaning)
        assert numbers(adapted.state) == numbers(adapt(shelf, person, NOW).state)
    system._people._read = lambda user: (  # type: ignore[assignment]
        None if (found := system._read_person(user)) is None else found._replace(kept=None)
    )
    system._people.clear()
    assert lists_of(system, users) == served
    system._people._read = system._read_person
    system._people.clear()
    assert lists_of(system, users) == served


whom = st.sampled_from("abc")
steps = st.one_of(
    st.tuples(
        st.just("event"),
        whom,
        st.sampled_from(["toys-01", "toys-02", "garden-01", "kitchen-03", "toys-18", "fresh", "later"]),
        st.sampled_from(["purchase", "cancel"]),
        st.integers(0, 5),
    ),
    st.tuples(st.just("describe"), whom, st.sampled_from(["Italy", "France", None])),
    st.tuples(st.just("item"), st.sampled_from(["fresh", "later"]), st.sampled_from(["blue kite", "red rake"])),
    st.tuples(st.just("list"), whom),
    st.tuples(
        st.sampled_from(["flush", "flush", "flush", "evict", "restart", "restart", "freshen", "promote", "rollback"])
    ),
    st.tuples(st.just("erase"), whom),
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(steps, min_size=4, max_size=16), run=st.uuids())
def test_lists_do_not_depend_on_what_is_kept(shop_home: Shop, script: list[tuple[object, ...]], run: object) -> None:
    name = {who: f"{who}-{run}" for who in "abc"}
    users = list(name.values())

    async def take(system: System, step: tuple[object, ...]) -> None:
        match step:
            case ("event", who, item, kind, when):
                await system.add_events([Event(name[who], item, kind, timestamp=float(when))])  # type: ignore[index,arg-type]
            case ("describe", who, country):
                await system.add_people([PersonIn(name[who], {"country": country})])  # type: ignore[index,dict-item]
            case ("item", item, title):
                await system.add_items([ItemIn(item, {"title": title, "price": 7.0})])  # type: ignore[arg-type]
            case ("list", who):
                lists_of(system, [name[who]])  # type: ignore[index]
            case ("flush",):
                await flush(system)
            case ("evict",):
                system._people.clear()
            case ("freshen",):
                await system._machine.keep_up(system._models._freshen, time.time())
            case ("promote",) if system.serving.variants.served.model.model_id != OTHER:
                await system.promote(OTHER, 1.0)
            case ("rollback",) if system.serving.variants.served.model.model_id == OTHER:
                await system.rollback()
            case ("erase", who) if system._read_person(name[who]) is not None:  # type: ignore[index]
                await system.erase(name[who])  # type: ignore[index]

    async def work() -> None:
        rest = list(script)
        while rest:
            async with shop_home.open() as system:
                check(system, users)
                while rest:
                    step = rest.pop(0)
                    if step == ("restart",):
                        break
                    await take(system, step)
                    check(system, users)
        async with shop_home.open() as system:
            check(system, users)
            if system.serving.variants.served.model.model_id == OTHER:
                await system.rollback()

    asyncio.run(work())


def test_after_a_restart_nobody_is_adapted_to_anew(shop_home: Shop, recalls: list[bool]) -> None:
    users = ["one", "two", "user-003"]

    async def before() -> None:
        async with shop_home.open() as system:
            await system.add_people([PersonIn("two", {"country": "Italy"}), PersonIn("three", {})])
            await system.add_events([Event("one", "toys-01"), Event("one", "toys-02", "cancel")])
            lists.extend(lists_of(system, [*users, "three", "stranger"]))
            system.serving.lists([ListRequest(events=(Event("", "toys-01"),))], NOW)
            assert recalls == []

    async def after(system: System) -> None:
        assert lists_of(system, [*users, "three", "stranger"]) == lists
        assert recalls == [True] * 3
        assert system._states._waiting == {}  # they are stored already
        system._people.clear()
        await system.add_events([Event("one", "toys-03")])
        lists_of(system, ["one"])
        assert recalls == [True] * 3  # that of another position is not even read
        assert list(system._states._waiting) == ["one"]

    async def main() -> None:
        await before()
        # Of a session, of a stranger and of someone of whom nothing is known there is nothing to keep.
        assert {user: row.position for user, row in shop_home.states().items() if user != "user-003"} == {
            "one": 2,
            "two": 0,
        }
        async with shop_home.open() as system:
            await after(system)

    lists: list[object] = []
    asyncio.run(main())
    assert shop_home.states()["one"].position == 3


def test_they_are_written_from_time_to_time_and_once(shop_home: Shop) -> None:
    async def main() -> None:
        async with shop_home.open(seconds=0.02) as system:
            await system.add_events([Event(f"u{number}", "toys-01") for number in range(70)])
            lists_of(system, [f"u{number}" for number in range(70)])
            for _ in range(400):
                if len(shop_home.states()) == 70:
                    break
                await asyncio.sleep(0.02)
            first = shop_home.states()
            assert len(first) == 70
            # Another list, other popularities, another visit to memory: nothing new was learned of them.
            lists_of(system, ["u1"])
            await system._machine.keep_up(system._models._freshen, time.time())
            lists_of(system, ["u1"])
            system._people.clear()
            lists_of(system, ["u1"])
            await asyncio.sleep(0.2)
            assert shop_home.states() == first
            await system.add_people([PersonIn("u1", {"country": "Italy"})])
            lists_of(system, ["u1"])
        last = shop_home.states()
        assert last.pop("u1").payload != first.pop("u1").payload
        assert last == first
        async with shop_home.open(seconds=0.0) as system:
            await system.add_events([Event("u2", "toys-02")])
            lists_of(system, ["u2"])
        assert shop_home.states()["u2"] == first["u2"]

    asyncio.run(main())


def test_a_bound_is_kept_and_the_newest_stay(shop_home: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_log, "_WAITING", 5)

    async def main() -> None:
        async with shop_home.open() as system:
            users = [f"u{number}" for number in range(8)]
            await system.add_events([Event(user, "toys-01") for user in users])
            lists_of(system, users)
            await system.add_events([Event("u3", "toys-02")])
            lists_of(system, ["u3"])
            assert list(system._states._waiting) == ["u4", "u5", "u6", "u7", "u3"]

    asyncio.run(main())
    assert set(shop_home.states()) == {"u3", "u4", "u5", "u6", "u7"}


def test_nothing_stays_of_someone_erased_nor_comes_back(shop_home: Shop, recalls: list[bool]) -> None:
    async def main() -> None:
        async with shop_home.open() as system:
            await system.add_events([Event("one", "toys-01"), Event("two", "toys-01")])
            lists_of(system, ["one", "two"])
            await flush(system)
            assert set(shop_home.states()) == {"one", "two"}
            await system.erase("one")
            assert set(shop_home.states()) == {"two"}
            await system.add_events([Event("one", "garden-01")])
            lists_of(system, ["one"])
            assert recalls == []
            await system.erase("one")  # while the weights wait
            await flush(system)
            assert set(shop_home.states()) == {"two"}
            # Another process erases them, and they come back, before this one has written what it knows.
            await system.add_events([Event("one", "garden-01")])
            lists_of(system, ["one"])
            forget, system._states.forget = system._states.forget, lambda user: None  # type: ignore[method-assign]
            await system.erase("one")
            await system.add_events([Event("one", "garden-01")])
            system._states.forget = forget  # type: ignore[method-assign]
            assert list(system._states._waiting) == ["one"]
            await flush(system)
            assert set(shop_home.states()) == {"two"}

    asyncio.run(main())


@pytest.mark.parametrize(
    "damage", [lambda payload: b"", lambda payload: payload[:-1], lambda payload: b"\x80" + payload]
)
def test_a_damaged_state_costs_time_alone(
    shop_home: Shop, recalls: list[bool], damage: Callable[[bytes], bytes]
) -> None:
    async def main() -> None:
        async with shop_home.open() as system:
            await system.add_events([Event("one", "toys-01")])
            lists = lists_of(system, ["one"])
            await flush(system)
            with system._machine.store.write() as connection:
                payload = connection.scalar(select(states.c.payload).where(states.c.user_id == "one"))
                assert payload is not None
                connection.execute(update(states).values(payload=damage(payload)).where(states.c.user_id == "one"))
            system._people.clear()
            assert lists_of(system, ["one"]) == lists
            assert recalls == [False]
            await flush(system)  # it is mended
            system._people.clear()
            assert lists_of(system, ["one"]) == lists
            assert recalls == [False, True]

    asyncio.run(main())


def test_a_store_that_cannot_be_written_fails_no_list(
    shop_home: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("palate.store.states.save", fail)

    async def main() -> None:
        async with shop_home.open(seconds=0.01) as system:
            await system.add_events([Event("one", "toys-01")])
            lists = lists_of(system, ["one"])
            for _ in range(400):
                if "the disk is full" in caplog.text:
                    break
                await asyncio.sleep(0.01)
            assert "1 people are not kept: the disk is full" in caplog.text
            assert lists_of(system, ["one"]) == lists

    asyncio.run(main())


def test_a_state_is_for_one_model_one_position_and_one_visit(model: Recommender) -> None:
    visits = replace(model, config=replace(model.config, model=replace(model.config.model, visit_gap=12.0)))
    shelf = make_shelf(visits, [Item(item, {}, False) for item in model.vocabulary.ids], 1)
    soon, late = 3600.0, 1e6

    def person(kept: Kept | None = None) -> Person:
        made = Person({})
        made.kept = kept
        for number in range(3):
            made.done.add(f"toys-0{number}", float(number))
            made.position += 1
        return made

    def kept(now: float) -> Kept:
        seen = adapt(shelf, person(), now)
        payload = visits.dump_state(seen.state, seen.profile)
        return Kept(visits.model_id, 3, seen.state.history.returning, payload)

    for before in (soon, late):
        found = kept(before)
        for now in (soon, late):
            seen = adapt(shelf, person(found), now)
            assert seen.told == (before == now)
            assert numbers(seen.state) == numbers(adapt(shelf, person(), now).state)
    found = kept(soon)
    for wrong in (found._replace(model_id=OTHER), found._replace(position=2), found._replace(returning=True)):
        assert not adapt(shelf, person(wrong), soon).told
    assert numbers(adapt(shelf, person(kept(soon)), soon).state) != numbers(adapt(shelf, person(), late).state)


def test_another_processs_older_state_is_never_used(
    tmp_path: Path, model: Recommender, postgres_url: str, recalls: list[bool]
) -> None:
    place = Shop(tmp_path / "home", model, postgres_url)

    async def main() -> None:
        async with place.open(shared=True) as one, place.open(shared=True) as other:
            await one.add_events([Event("someone", "toys-01")])
            first = lists_of(one, ["someone"])
            await flush(one)
            assert lists_of(other, ["someone"]) == first
            assert recalls == [True]  # what one has computed the other need not
            await other.add_events([Event("someone", "garden-01")])
            second = lists_of(other, ["someone"])
            assert second != first
            other._people.clear()
            assert lists_of(other, ["someone"]) == second
            assert lists_of(one, ["someone"]) == second
            assert recalls == [True]
            await flush(other)
            # An older one that comes late takes the place of no newer one.
            newest = place.states()["someone"]
            assert newest.position == 2
            with one._machine.store.write() as connection:
                save(connection, [newest._replace(position=1, payload=b"late")])
            assert place.states()["someone"] == newest
            one._people.clear()
            assert lists_of(one, ["someone"]) == second
            assert recalls == [True, True]
            await other.erase("someone")
            assert "someone" not in place.states()
            await flush(one)
            assert "someone" not in place.states()

    asyncio.run(main())


def test_who_is_being_written_to_elsewhere_is_passed_over(
    tmp_path: Path, model: Recommender, postgres_url: str
) -> None:
    place = Shop(tmp_path / "home", model, postgres_url)

    async def main() -> None:
        async with place.open(shared=True) as system:
            await system.add_events([Event("one", "toys-01"), Event("two", "toys-01")])
            lists_of(system, ["one", "two"])
            other = Store.open(postgres_url)
            with other.write() as connection:
                connection.exec_driver_sql("SELECT 1 FROM people WHERE user_id = 'one' FOR UPDATE")
                await flush(system)
                assert set(place.states()) == {"two"}
            other.close()

    asyncio.run(main())


def test_the_bytes_are_safetensors_without_what_the_model_has(shop_home: Shop) -> None:
    async def main() -> None:
        async with shop_home.open() as system:
            await system.add_events([Event("one", "toys-01")])
            lists_of(system, ["one"])

    asyncio.run(main())
    payload = shop_home.states()["one"].payload
    header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    assert set(header) == {"delta", "scorers", "seal", "state"}

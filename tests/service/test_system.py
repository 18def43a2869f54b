"""The running system on a real store: what is acknowledged is durable and seen, what is forgotten is gone."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palate.config import DataConfig
from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning
from palate.data.event import Event
from palate.errors import ModelError, StoreError
from palate.recommend import Recommender
from palate.service.contract import (
    ItemIn,
    ListRequest,
    NotFoundError,
    PersonIn,
    PredictOut,
    PredictRequest,
    RefusedError,
)
from palate.service.home import Home
from palate.service.intake import take_in
from palate.service.lists import adapt
from palate.service.opening import open_system, prepare, register
from palate.service.people import Person, fold
from palate.service.system import System, SystemConfig
from palate.service.trainer import RetrainPolicy, Trainer
from palate.store import Store, events, items, people, registry
from palate.store import recommendations as shown
from store_files import files_that_hold


class Place:
    """A home with a served model and the shop's data, and how to open it again."""

    def __init__(self, folder: Path, model: Recommender) -> None:
        self.home = Home(folder)
        self.home.make()
        store = Store.open(self.home.database)
        self.key = prepare(store, self.home, lambda: model, None)
        store.close()

    @asynccontextmanager
    async def open(self, freshen: float = 0.0, judge: float = 60.0, **settings: object) -> AsyncIterator[System]:
        store = Store.open(self.home.database)
        config = SystemConfig(log_seconds=0.01, freshen_seconds=freshen, judge_seconds=judge)
        system = open_system(store, self.home, config, **settings)  # type: ignore[arg-type]
        system.start()
        try:
            yield system
        finally:
            await system.close()

    def run(self, work: Callable[[System], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            async with self.open(**settings) as system:
                await work(system)

        asyncio.run(main())


@pytest.fixture
def place(tmp_path: Path, model: Recommender) -> Place:
    return Place(tmp_path / "home", model)


def ids(answer: Sequence) -> list[list[str]]:  # type: ignore[type-arg]
    return [[line.item_id for line in one.items] for one in answer]


async def list_of(system: System, user_id: str, **request: object) -> list[str]:
    [found] = ids(await system.recommend([ListRequest(user_id=user_id, **request)]))  # type: ignore[arg-type]
    return found


def test_a_first_start_takes_in_what_the_model_knows_and_shows_one_key(place: Place, model: Recommender) -> None:
    assert place.key is not None
    again = Store.open(place.home.database)
    assert prepare(again, place.home, pytest.fail, None) is None  # type: ignore[arg-type]
    with again.read() as connection:
        assert people.count(connection) == len(model.users)
        assert items.count(connection) == len(model.vocabulary)
        assert events.count(connection) == len(model.record.log)
    again.close()
    folder = place.home.models / model.model_id
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    assert b"user-0" not in content

    async def work(system: System) -> None:
        assert place.key is not None
        found = system.role_of(place.key)
        assert found is not None
        assert found[1] == "admin"
        assert system.role_of(place.key[:-1]) is None
        assert system.role_of("") is None

    place.run(work)


def test_who_was_in_training_is_served_as_the_model_itself_would(place: Place, model: Recommender) -> None:
    users = list(model.users)[:20]

    async def work(system: System) -> None:
        for user in users:
            history = model.users[user]
            person = Person({})
            theirs = adapt(system.serving.variants.served, person, 0.0)
            assert not theirs.personal
            seen = system.serving.adapted(user, time.time())
            assert seen is not None
            assert seen[2].state.history.items.tolist() == history.items.tolist()
            assert sorted(seen[2].state.history.refused.tolist()) == sorted(history.refused.tolist())

    place.run(work)


def test_ratings_are_foretold_as_the_model_itself_would(tmp_path: Path, rated_model: Recommender) -> None:
    user, history = next(iter(rated_model.users.items()))
    asked = ("toys-05", "garden-05", "kitchen-05")

    def means(made: PredictOut) -> list[float]:
        return [line.mean for line in made.items]

    async def work(system: System) -> None:
        stored = await system.predict(PredictRequest(asked, user_id=user))
        nobody = rated_model.encode_profile({})  # a model's folder does not know the attributes
        assert means(stored) == [line.mean for line in rated_model.predict_for(history, nobody, asked)]
        assert stored.model_id == rated_model.model_id
        assert [sum(line.probabilities) for line in stored.items] == pytest.approx([1, 1, 1])
        rated = [Event("new", "toys-00", "rating", weight=5.0), Event("new", "garden-00", "rating", weight=1.0)]
        await system.add_events([*rated, Event("new", "kitchen-01", "view", weight=5.0)])
        told = await system.predict(PredictRequest(asked, user_id="new"))
        assert means(told) == [
            line.mean for line in rated_model.predict({"toys-00": 5.0, "garden-00": 1.0}, list(asked))
        ]
        session = await system.predict(PredictRequest(asked, events=tuple(rated)))
        assert means(session) == means(told)
        stranger = await system.predict(PredictRequest(asked, user_id="stranger"))
        assert means(stranger) == [line.mean for line in rated_model.predict([], list(asked))]
        with pytest.raises(NotFoundError, match="number 1"):
            await system.predict(PredictRequest(("toys-00", "nothing"), user_id="new"))

    Place(tmp_path / "home", rated_model).run(work)


def test_a_model_without_ratings_foretells_none(place: Place) -> None:
    async def work(system: System) -> None:
        with pytest.raises(RefusedError, match="learned no ratings"):
            await system.predict(PredictRequest(("toys-00",), user_id="new"))

    place.run(work)


def test_data_is_taken_in_once(tmp_path: Path, shop: Dataset) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'x.db'}")
    assert take_in(store, shop, 1.0) == shop.interactions.height
    assert take_in(store, shop, 2.0) == 0
    with store.read() as connection:
        assert events.count(connection) == shop.interactions.height
        assert people.read(connection, ["user-000"])["user-000"].attributes["age"] == 20.0
        window = events.read_window(connection, -1e12, 1e12)
    assert window["item_id"].to_list() == shop.interactions["item_id"].to_list()
    assert window["event_type"].to_list() == shop.interactions["event_type"].to_list()
    store.close()


def test_the_data_of_the_config_comes_first(tmp_path: Path, model: Recommender, shop: Dataset) -> None:
    shop.interactions.write_csv(tmp_path / "events.csv")
    shop.items.frame.write_csv(tmp_path / "items.csv")
    data = DataConfig(interactions=str(tmp_path / "events.csv"), items=str(tmp_path / "items.csv"))
    home = Home(tmp_path / "home")
    home.make()
    store = Store.open(home.database)
    prepare(store, home, lambda: model, data)
    with store.read() as connection:
        assert events.count(connection) == shop.interactions.height
    store.close()


def test_an_event_is_in_the_next_list_and_in_nobody_elses(place: Place) -> None:
    async def work(system: System) -> None:
        others = [f"user-{number:03}" for number in range(5)]
        before = [
            line for one in await system.recommend([ListRequest(user_id=u) for u in others]) for line in one.items
        ]
        assert (await system.recommend([ListRequest(user_id="new")]))[0].fallback
        first = await list_of(system, "new")
        taken = await system.add_events([Event("new", first[0])])
        assert (taken.accepted, taken.duplicates, list(taken.errors)) == (1, 0, [])
        second = await list_of(system, "new")
        assert first[0] not in second
        assert not (await system.recommend([ListRequest(user_id="new")]))[0].fallback
        await system.add_events([Event("new", second[0], "cancel")])
        assert second[0] not in await list_of(system, "new")
        after = [line for one in await system.recommend([ListRequest(user_id=u) for u in others]) for line in one.items]
        assert before == after

    place.run(work)


def test_events_sent_again_change_nothing(place: Place) -> None:
    async def work(system: System) -> None:
        rows = [Event("new", item, event_id=f"e-{item}") for item in ("toys-01", "toys-02")]
        assert (await system.add_events(rows)).accepted == 2
        once = await system.recommend([ListRequest(user_id="new")])
        again = await system.add_events([*rows, Event("new", "toys-01", event_id="e-toys-01")])
        assert (again.accepted, again.duplicates) == (0, 3)
        assert [one.items for one in await system.recommend([ListRequest(user_id="new")])] == [
            one.items for one in once
        ]
        future = await system.add_events(
            [Event("new", "toys-03", timestamp=time.time() + 1e6), Event("new", "toys-04")]
        )
        assert future.accepted == 1
        assert [(error.row, error.code) for error in future.errors] == [(0, "future")]
        page = await system.events_of("new", None, 2)
        assert [row.item_id for row in page.rows] == ["toys-01", "toys-02"]  # type: ignore[attr-defined]
        page = await system.events_of("new", page.next, 2)
        assert [row.item_id for row in page.rows] == ["toys-04"]  # type: ignore[attr-defined]
        assert page.next is None
        with pytest.raises(NotFoundError):
            await system.events_of("nobody", None, 2)

    place.run(work)


def test_a_crash_loses_only_what_is_in_memory(place: Place) -> None:
    """The state that events made step by step equals the one that a new process folds from the store."""

    async def before(system: System) -> None:
        for number, item in enumerate(["toys-01", "garden-03", "toys-02", "kitchen-04"]):
            await system.add_people([PersonIn("new", {"country": "Italy", "shoe": 40.0})])
            await system.add_events([Event("new", item, timestamp=1000.0 + number)])
            kept.append(await system.recommend([ListRequest(user_id="new")]))
        await system.add_events([Event("new", "toys-05", timestamp=500.0)])  # late: it happened before all others
        kept.append(await system.recommend([ListRequest(user_id="new")]))
        seen = system.serving.adapted("new", 2000.0)
        assert seen is not None
        states.append(seen[2].state)

    async def after(system: System) -> None:
        again = await system.recommend([ListRequest(user_id="new")])
        assert [one.items for one in again] == [one.items for one in kept[-1]]
        seen = system.serving.adapted("new", 2000.0)
        assert seen is not None
        for name, value in states[0].fast.items():
            assert np.array_equal(value.numpy(), seen[2].state.fast[name].numpy())
        assert seen[2].state.history.items.tolist() == states[0].history.items.tolist()

    kept: list = []  # type: ignore[type-arg]
    states: list = []  # type: ignore[type-arg]
    place.run(before)
    place.run(after)


def test_a_new_item_can_be_listed_at_once_and_a_hidden_one_cannot(place: Place) -> None:
    async def work(system: System) -> None:
        await system.add_events([Event("new", f"toys-0{number}") for number in range(5)])
        taken = await system.add_items([ItemIn("fresh", {"title": "blue toys kite", "price": 7.0})])
        assert (taken.accepted, list(taken.errors)) == (1, [])
        assert "fresh" in await list_of(system, "new", k=100)
        await system.add_events([Event("other", "fresh")])
        [listed] = await system.recommend([ListRequest(user_id="other")])
        assert "fresh" not in [line.item_id for line in listed.items]
        assert not listed.fallback
        await system.add_items([ItemIn("fresh", {}, hidden=True)])
        assert "fresh" not in await list_of(system, "new", k=100)
        await system.add_items([ItemIn("fresh", {"title": "renamed"}, hidden=False)])
        [listed] = await system.recommend([ListRequest(user_id="new", k=100)])
        assert "renamed" in [line.title for line in listed.items]
        wrong = await system.add_items([ItemIn("odd", {"price": "cheap"}), ItemIn("even", {"price": 3.0})])
        assert (wrong.accepted, [error.row for error in wrong.errors]) == (1, [0])
        wrong = await system.add_people([PersonIn("odd", {"age": "old"}), PersonIn("even", {"age": 3.0})])
        assert (wrong.accepted, [error.row for error in wrong.errors]) == (1, [0])
        page = await system.items(None, 1000)
        known = {row.item_id: row.known_to_model for row in page.rows}  # type: ignore[attr-defined]
        assert known["fresh"]
        assert known["even"]
        near = await system.similar("toys-01", 5)
        assert len(near) == 5
        assert "toys-01" not in [line.item_id for line in near]
        with pytest.raises(NotFoundError):
            await system.similar("nothing", 5)

    place.run(work)


def test_the_rows_of_items_follow_what_is_chosen(place: Place) -> None:
    async def work(system: System) -> None:
        await system.add_items([ItemIn("fresh", {"title": "something", "price": 7.0})])
        gardener = ListRequest(user_id="gardener", k=100)
        await system.add_events([Event("gardener", f"garden-0{number}") for number in range(3)])
        stranger = ListRequest(user_id="stranger", k=100)
        before = ids(await system.recommend([gardener, stranger]))
        for number in range(30):
            rows = [Event(f"g{number}", f"garden-0{place}") for place in range(4)]
            await system.add_events([*rows, Event(f"g{number}", "fresh"), Event(f"g{number}", "toys-16")])
        assert ids(await system.recommend([gardener, stranger])) == before  # not yet
        await system._machine.keep_up(system._models._freshen, time.time())
        after = ids(await system.recommend([gardener, stranger]))
        assert after[1].index("toys-16") < before[1].index("toys-16")
        model = system.serving.variants.served.model
        assert model.item_table.base is not None
        row = model.vocabulary.index(["fresh"])[0]
        assert model.items.popularity[row] > model.item_table.base.popularity[row]

    place.run(work)


def test_items_are_freshened_at_intervals(place: Place) -> None:
    async def work(system: System) -> None:
        await system.add_events([Event("someone", "toys-16")])
        for _ in range(400):
            if system.serving.variants.served.model.item_table.base is not None:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the rows of items did not follow")

    place.run(work, freshen=0.1)


def test_an_anonymous_session_is_read_and_not_stored(place: Place) -> None:
    async def work(system: System) -> None:
        [stranger] = await system.recommend([ListRequest(k=5)])
        session = tuple(Event("", f"toys-0{number}") for number in range(3))
        [found] = await system.recommend([ListRequest(events=session, k=5)])
        assert (stranger.fallback, found.fallback) == (True, False)
        assert sum(line.item_id.startswith("toys") for line in found.items) >= 4
        [profiled] = await system.recommend([ListRequest(profile={"country": "Italy"}, k=5)])
        assert not profiled.fallback
        page = await system.people(None, 1000)
        assert "" not in [row.user_id for row in page.rows]  # type: ignore[attr-defined]

    place.run(work)


def test_what_was_shown_is_logged(place: Place) -> None:
    made: list = []  # type: ignore[type-arg]

    async def work(system: System) -> None:
        made.extend(await system.recommend([ListRequest(user_id="user-001", scenario="home", explore="thompson")]))
        made.extend(await system.recommend([ListRequest(events=(Event("", "toys-01"),))]))

    place.run(work)
    store = Store.open(place.home.database)
    with store.read() as connection:
        logged = shown.read(connection, [one.recommendation_id for one in made])
    store.close()
    first, second = (logged[one.recommendation_id] for one in made)
    assert list(first.items) == [line.item_id for line in made[0].items]
    assert list(first.propensities) == [line.propensity for line in made[0].items]
    assert (first.user_id, first.scenario, first.variant, first.session) == ("user-001", "home", "served", False)
    assert (second.user_id, second.session) == (None, True)


def test_an_erased_person_is_a_stranger_at_once_and_in_no_file_soon(place: Place) -> None:
    async def work(system: System) -> None:
        await system.add_people([PersonIn("secret-person", {"country": "Italy"})])
        await system.add_events([Event("secret-person", f"toys-0{number}") for number in range(4)])
        personal = await list_of(system, "secret-person")
        await system.erase("secret-person")
        [now] = await system.recommend([ListRequest(user_id="secret-person")])
        assert now.fallback
        assert [line.item_id for line in now.items] != personal
        await asyncio.sleep(0.1)
        job = await system.erase("secret-person")  # the list above was logged under the id
        for _ in range(200):
            if (await system.job(job.job_id)).status == "done":
                break
            await asyncio.sleep(0.05)
        assert (await system.job(job.job_id)).status == "done"
        with pytest.raises(NotFoundError):
            await system.erase("secret-person")
        with pytest.raises(NotFoundError):
            await system.person("secret-person")
        with pytest.raises(NotFoundError):
            await system.job("nothing")

    place.run(work)
    for file in place.home.folder.rglob("*"):
        if file.is_file():
            assert b"secret-person" not in file.read_bytes(), file


@pytest.mark.parametrize("flushed", ["before the erasure is written", "in its transaction", "after it"])
def test_a_list_that_waits_to_be_logged_is_not_logged_of_who_was_erased(place: Place, flushed: str) -> None:
    """However the two meet on their way into the store."""

    async def work(system: System) -> None:
        await system.add_events([Event("secret-person", "toys-01")])
        await system.recommend([ListRequest(user_id="secret-person")])
        writer, gate = system._machine.writer, threading.Event()
        held = writer.between(lambda: gate.wait(20))  # what is handed in meanwhile becomes one transaction
        if flushed == "before the erasure is written":
            system._log.flush()
        erased = asyncio.ensure_future(system.erase("secret-person"))
        await asyncio.sleep(0)
        if flushed == "in its transaction":
            system._log.flush()
        gate.set()
        await asyncio.wrap_future(held)
        job = await erased
        if flushed == "after it":
            system._log.flush()
        for _ in range(200):
            if (await system.job(job.job_id)).status == "done":
                break
            await asyncio.sleep(0.05)
        await asyncio.wrap_future(writer.submit(lambda connection: None))

    place.run(work)
    assert files_that_hold(place.home.folder, "secret-person") == []


def test_what_is_known_of_a_person_can_be_asked(place: Place) -> None:
    async def work(system: System) -> None:
        await system.add_people([PersonIn("new", {"country": "Italy"})])
        await system.add_events([Event("new", "toys-01"), Event("new", "toys-02"), Event("new", "toys-01")])
        known = await system.person("new")
        assert (known.num_events, known.support, known.attributes["country"]) == (3, 2, "Italy")
        assert [event.item_id for event in known.recent] == ["toys-01", "toys-02", "toys-01"]
        assert known.fast_weights > 10
        assert any("country" in line for line in known.learned_from)

    place.run(work)


def test_models_are_exchanged_whole_and_back(place: Place, model: Recommender, early_shop: Dataset) -> None:
    other_model(place, model)

    async def work(system: System) -> None:
        await system.add_items([ItemIn("fresh", {"title": "blue toys kite", "price": 7.0})])
        users = [ListRequest(user_id=f"user-{number:03}", k=100) for number in range(40)]
        first = [one.items for one in await system.recommend(users)]
        await system.promote("f" * 16, 0.5)
        mixed = await system.recommend(users)
        canary = [one.variant == "canary" for one in mixed]
        assert 8 < sum(canary) < 32
        assert {one.model_id for one in mixed if one.variant == "canary"} == {"f" * 16}
        for one, before, tried in zip(mixed, first, canary, strict=True):
            assert (one.items != before) == tried
        await system.promote("f" * 16, 1.0)
        promoted = await system.recommend(users)
        assert {one.model_id for one in promoted} == {"f" * 16}
        assert all("fresh" in [line.item_id for line in one.items] for one in promoted)
        for one, part, tried in zip(promoted, mixed, canary, strict=True):
            assert one.items == part.items or not tried
        with pytest.raises(RefusedError):
            await system.promote("f" * 16, 1.0)
        with pytest.raises(NotFoundError):
            await system.promote("nothing", 1.0)
        start = time.perf_counter()
        await system.rollback()
        assert time.perf_counter() - start < 1.0
        assert [one.items for one in await system.recommend(users)] == first
        with pytest.raises(RefusedError):
            await system.rollback()
        assert {one.status for one in await system.models()} == {"served", "retired"}
        await system.promote("f" * 16, 1.0)

    place.run(work)

    async def later(system: System) -> None:
        assert (await system.recommend([ListRequest()]))[0].model_id == "f" * 16

    place.run(later)


def test_a_damaged_model_is_not_promoted(place: Place, model: Recommender) -> None:
    other = replace(model, model_id="e" * 16)
    store = Store.open(place.home.database)
    folder = register(store, place.home, other, {})
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))

    async def work(system: System) -> None:
        with pytest.raises(RefusedError, match="could not be opened and verified"):
            await system.promote("e" * 16, 1.0)
        assert (await system.recommend([ListRequest()]))[0].model_id == model.model_id

    place.run(work)
    with store.read() as connection:
        served = registry.current(connection).served
    store.close()
    assert served is not None
    assert served.model_id == model.model_id


@pytest.mark.parametrize("damage", ["signed by another", "unsigned", "with a file more"])
def test_a_model_that_the_home_has_not_signed_never_serves(
    place: Place, model: Recommender, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by promotion, and not by a rollback to what served before; the one that serves goes on."""
    name = other_model(place, model)

    def damaged(model_id: str) -> None:
        folder = place.home.models / model_id
        if damage == "signed by another":  # whole, as registered, and even its hashes fit
            manifest = (folder / "manifest.json").read_bytes()
            (folder / "manifest.sig").write_bytes(Ed25519PrivateKey.generate().sign(manifest))
        elif damage == "unsigned":
            (folder / "manifest.sig").unlink()
        else:
            (folder / "more.safetensors").touch()

    signature = (place.home.models / name / "manifest.sig").read_bytes()

    async def promoted(system: System) -> None:
        damaged(name)
        for share in (1.0, 0.5):
            with pytest.raises(RefusedError, match=rf"^model {name} could not be opened[^\n]*log[^\n]*\Z"):
                await system.promote(name, share)
        assert (await system.recommend([ListRequest()]))[0].model_id == model.model_id
        (place.home.models / name / "manifest.sig").write_bytes(signature)
        (place.home.models / name / "more.safetensors").unlink(missing_ok=True)
        await system.promote(name, 1.0)

    async def rolled_back(system: System) -> None:
        damaged(model.model_id)
        with pytest.raises(RefusedError, match=f"model {model.model_id} could not be opened"):
            await system.rollback()
        assert (await system.recommend([ListRequest()]))[0].model_id == name
        assert {one.status for one in await system.models() if one.model_id == name} == {"served"}

    place.run(promoted)
    place.run(rolled_back)
    assert str(place.home.models / name) in caplog.text
    assert "PRIVATE" not in caplog.text


def test_another_processes_promotion_of_an_unsigned_model_is_not_followed(place: Place, model: Recommender) -> None:
    name = other_model(place, model)

    async def work(system: System) -> None:
        (place.home.models / name / "manifest.sig").unlink()
        store = Store.open(place.home.database)
        with store.write() as connection:
            registry.promote(connection, name, time.time())
        store.close()
        await asyncio.sleep(1.0)
        assert (await system.recommend([ListRequest()]))[0].model_id == model.model_id

    place.run(work)
    with pytest.raises(ModelError, match=r"manifest\.sig is missing"):
        place.run(work)


def other_model(place: Place, model: Recommender) -> str:
    """Another model in the registry."""
    other = replace(model, params={**model.params, "popularity": model.params["popularity"] + 1}, model_id="f" * 16)
    store = Store.open(place.home.database)
    register(store, place.home, other, {})
    store.close()
    return other.model_id


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_model_whose_lists_fail_is_taken_out(place: Place, model: Recommender, share: float) -> None:
    name = other_model(place, model)

    async def work(system: System) -> None:
        await system.promote(name, share)
        for _ in range(300):  # the fewest that are judged are 200
            system.monitors.failed(name)
        for _ in range(200):
            await asyncio.sleep(0.05)
            statuses = {one.model_id: one for one in await system.models()}
            if statuses[name].status == "refused":
                break
        assert statuses[name].status == "refused"
        assert "failed" in str(statuses[name].report["live"])
        assert statuses[model.model_id].status == "served"
        lists = await system.recommend([ListRequest(user_id=f"u{number}") for number in range(20)])
        assert {one.model_id for one in lists} == {model.model_id}
        with pytest.raises(RefusedError):  # it is not let in again by hand
            await system.promote(name, 1.0)

    place.run(work, judge=0.2)


def test_a_model_whose_lists_are_made_stays(place: Place, model: Recommender) -> None:
    name = other_model(place, model)

    async def work(system: System) -> None:
        await system.promote(name, 1.0)
        for _ in range(30):
            await system.recommend([ListRequest(user_id=f"u{number}") for number in range(10)])
        await asyncio.sleep(0.5)
        assert (await system.recommend([ListRequest()]))[0].model_id == name

    place.run(work, judge=0.2)


def test_trainings_begin_by_policy_and_one_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[float] = []
    go_on = threading.Event()

    def run(self: Trainer) -> None:
        runs.append(time.monotonic())
        assert go_on.wait(30)
        if len(runs) == 2:
            raise ModelError("no window yet")

    monkeypatch.setattr(Trainer, "run", run)

    async def until(done: Callable[[], bool]) -> None:
        for _ in range(400):
            if done():
                return
            await asyncio.sleep(0.02)
        pytest.fail("it did not come to that")

    async def work(system: System) -> None:
        await system.add_events([Event("a", "toys-01"), Event("a", "toys-02")])
        await asyncio.sleep(0.3)
        assert not runs  # two events are too few
        await system.add_events([Event("a", "toys-03")])
        await until(lambda: len(runs) == 1)
        with pytest.raises(RefusedError, match="at work"):
            await system.retrain()
        go_on.set()
        await asyncio.sleep(0.3)
        assert len(runs) == 1  # what it learned from does not begin another
        job = await system.retrain()
        await until(lambda: len(runs) == 2)
        for _ in range(200):
            if (await system.job(job.job_id)).status == "failed":
                break
            await asyncio.sleep(0.02)
        assert (await system.job(job.job_id)).error == "no window yet"

    place.run(
        work, trainer=Trainer(place.home.folder, place.home.database), policy=RetrainPolicy(3, check_seconds=0.05)
    )


def test_a_process_that_does_not_train_says_so(place: Place) -> None:
    async def work(system: System) -> None:
        with pytest.raises(RefusedError, match="does not train"):
            await system.retrain()

    place.run(work)


def test_keys_come_and_go(place: Place) -> None:
    async def work(system: System) -> None:
        key, secret = await system.add_key("client", "web shop")
        assert system.role_of(secret) == (key.key_id, "client")
        await system.revoke_key(key.key_id)
        assert system.role_of(secret) is None
        with pytest.raises(NotFoundError):
            await system.revoke_key("nothing")
        assert [one.name for one in await system.keys()] == ["first key", "web shop"]

    place.run(work)
    assert place.key is not None
    assert files_that_hold(place.home.folder, place.key) == []


def test_a_home_has_one_service(place: Place) -> None:
    store = place.home.database
    with place.home.locked(store), pytest.raises(StoreError, match="another"), place.home.locked(store):
        pass
    with place.home.locked(store):
        pass


def test_a_sqlite_store_has_one_service_wherever_its_home_is(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'elsewhere' / 'shop.db'}"
    homes = [Home(tmp_path / name) for name in ("one", "other")]
    for home in homes:
        home.make()
    with homes[0].locked(store), pytest.raises(StoreError, match="another"), homes[1].locked(store):
        pass
    shared = "postgresql://host/database"
    with homes[0].locked(shared), homes[1].locked(shared):
        pass


actions = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["toys-01", "toys-02", "garden-01", "kitchen-03", "fresh"]),
        st.sampled_from(["purchase", "cancel"]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=actions, run=st.uuids())
def test_any_event_changes_its_own_persons_next_list_alone(
    place: Place, actions: list[tuple[str, str, str, int]], run: object
) -> None:
    async def work(system: System) -> None:
        await system.add_items([ItemIn("fresh", {"title": "blue toys kite", "price": 7.0})])
        names = {name: f"{name}-{run}" for name in "abc"}
        requests = [ListRequest(user_id=name, k=100, include_seen=True) for name in names.values()]
        before = [one.items for one in await system.recommend(requests)]
        for name, item, kind, when in actions:
            await system.add_events([Event(names[name], item, kind, timestamp=float(when))])
            after = [one.items for one in await system.recommend(requests)]
            for other, old, new in zip(names, before, after, strict=True):
                assert other == name or old == new
            known = await system.person(names[name])
            assert known.recent[0].item_id == item
            seen = system.serving.adapted(names[name], 100.0)
            assert seen is not None
            fresh = system._read_person(names[name])
            assert fresh is not None
            told = fold(fresh, EventMeaning(frozenset({"cancel"}), frozenset()))
            assert told.done.chosen() == seen[1].done.chosen()
            assert told.done.refused() == seen[1].done.refused()
            before = after

    place.run(work)

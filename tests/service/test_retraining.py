"""The loop from events to another model: warm start on what is old, judged on what is new, served or refused."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from palate.config import Config, GateConfig, RetrainingConfig
from palate.data.dataset import Dataset
from palate.data.event import Event
from palate.errors import ModelError
from palate.meta.head import Items
from palate.pipeline import train
from palate.recommend import Recommender
from palate.service.contract import ListRequest
from palate.service.home import Home
from palate.service.intake import take_in
from palate.service.opening import load_model, open_system, prepare, register
from palate.service.retraining import RetrainConfig, dataset_of, retrain
from palate.service.system import SystemConfig
from palate.store import Store, registry


@pytest.fixture(scope="module")
def early_model(early_shop: Dataset, tiny: Config) -> Recommender:
    settings = replace(
        tiny,
        retraining=RetrainingConfig(num_epochs=2, num_steps=5),
        gate=GateConfig(window=10.0, min_people=10, margin=0.3),
    )
    return train(early_shop, settings)


@pytest.fixture
def home(tmp_path: Path, early_model: Recommender, shop: Dataset) -> Home:
    place = Home(tmp_path / "home")
    place.make()
    store = Store.open(place.database)
    take_in(store, shop, time.time())
    prepare(store, place, lambda: early_model, None)
    store.close()
    return place


def test_the_store_gives_back_the_data_set(store: Store, shop: Dataset) -> None:
    found = dataset_of(store)
    columns = ["user_id", "item_id", "event_type", "timestamp", "weight"]
    assert found.interactions.select(columns).equals(shop.interactions.select(columns))
    assert found.items.frame.sort("item_id").equals(shop.items.frame.sort("item_id").select(found.items.frame.columns))
    both = (data.users.frame.sort("user_id") for data in (found, shop))
    first, second = both
    assert first.equals(second.select(first.columns))


def test_a_candidate_that_is_as_good_is_served(
    home: Home, store: Store, early_model: Recommender, shop: Dataset
) -> None:
    lines: list[str] = []
    outcome = retrain(store, home, RetrainConfig(), say=lines.append)
    assert outcome.decision.promote, outcome.decision.reason
    with store.read() as connection:
        pointers = registry.current(connection)
        entry = registry.read(connection, outcome.model_id)
    assert pointers.served is not None
    assert (pointers.served.model_id, pointers.previous) == (outcome.model_id, early_model.model_id)
    assert entry is not None
    assert entry.report["promote"]
    model = load_model(store, home, outcome.model_id)
    newest = shop.interactions["timestamp"].max()
    assert isinstance(newest, type(shop.interactions["timestamp"][0]))
    begin = (newest - timedelta(days=10)).replace(tzinfo=None)
    before = shop.interactions.filter(pl.col("timestamp") < begin)["timestamp"].dt.epoch("us").max()
    assert isinstance(before, int)
    assert model.trained_until == pytest.approx(before / 1e6)  # nothing of the window was learned
    assert not model.users
    assert not home.work.exists()


def test_a_canary_serves_a_share_at_first(home: Home, store: Store, early_model: Recommender) -> None:
    outcome = retrain(store, home, RetrainConfig(canary=0.2))
    with store.read() as connection:
        pointers = registry.current(connection)
    assert pointers.served is not None
    assert pointers.canary is not None
    assert (pointers.served.model_id, pointers.canary.model_id) == (early_model.model_id, outcome.model_id)
    assert pointers.share == 0.2


def test_a_candidate_that_is_worse_is_refused_with_the_reason(
    home: Home, store: Store, early_model: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def badly(*arguments: object, **settings: object) -> Recommender:
        model = train(*arguments, **settings)  # type: ignore[arg-type]
        mixed_up = torch.randperm(len(model.vocabulary), generator=torch.Generator().manual_seed(0))
        rows = Items(*(part[mixed_up] for part in model.items))
        return replace(model, item_table=replace(model.item_table, rows=rows), model_id="b" * 16)

    monkeypatch.setattr("palate.service.retraining.train", badly)
    outcome = retrain(store, home, RetrainConfig())
    assert not outcome.decision.promote
    assert outcome.decision.reason.startswith("refused")
    with store.read() as connection:
        pointers = registry.current(connection)
        entry = registry.read(connection, "b" * 16)
    assert pointers.served is not None
    assert pointers.served.model_id == early_model.model_id
    assert entry is not None
    assert entry.status == "refused"
    assert entry.report["reason"] == outcome.decision.reason


def test_a_model_that_has_seen_the_window_is_not_gone_on_from(
    home: Home, store: Store, early_model: Recommender
) -> None:
    late = replace(early_model, trained_until=1e12, model_id="c" * 16)
    register(store, home, late, {})
    with store.write() as connection:
        registry.promote(connection, late.model_id, time.time())
    with pytest.raises(ModelError, match="window"):
        retrain(store, home, RetrainConfig())


def test_a_run_that_was_killed_goes_on_with_its_plan(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    seen: list[int] = []

    def killed(*arguments: object, **settings: object) -> Recommender:
        seen.append(arguments[0].interactions.height)  # type: ignore[attr-defined]
        if len(seen) == 1:
            raise Killed
        return train(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("palate.service.retraining.train", killed)
    with pytest.raises(Killed):
        retrain(store, home, RetrainConfig())
    with store.write() as connection:
        from palate.store import events

        newest = events.newest_timestamp(connection)
        assert newest is not None
        events.append(
            connection, [Event("user-001", "toys-01", "purchase", newest + 5 * 86_400, event_id="late")], time.time()
        )
    retrain(store, home, RetrainConfig())
    assert seen[0] == seen[1]


def test_a_running_service_follows_the_new_model(home: Home, shop: Dataset) -> None:
    newest = shop.interactions["timestamp"].dt.epoch("s").max()
    assert isinstance(newest, int)

    async def main() -> None:
        store = Store.open(home.database)
        system = open_system(store, home, SystemConfig(watch_seconds=0.05))
        system.start()
        try:
            await system.add_events([Event("someone", "toys-01", timestamp=float(newest))])
            [before] = await system.recommend([ListRequest(user_id="someone")])
            other = Store.open(home.database)
            # What another process does; this one goes on serving.
            outcome = await asyncio.to_thread(retrain, other, home, RetrainConfig())
            other.close()
            for _ in range(200):
                [after] = await system.recommend([ListRequest(user_id="someone")])
                if after.model_id != before.model_id:
                    break
                await asyncio.sleep(0.05)
            assert outcome.decision.promote
            assert after.model_id == outcome.model_id
            assert not after.fallback
        finally:
            await system.close()

    asyncio.run(main())

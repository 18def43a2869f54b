"""Choices followed step by step, against the same events given to the model in one table, on SQLite and PostgreSQL."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from palate.data.catalog import Catalog
from palate.data.event import Event
from palate.recommend import Recommender
from palate.service import item_follower
from palate.service.item_follower import ItemFollower
from palate.store import Store, erasure, events

EPOCH = datetime(1970, 1, 1)
NOW = 5e9


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=[0.0, 9.0], ids=["for ever", "half-life"])
def bare(model: Recommender, request: pytest.FixtureRequest) -> Recommender:
    """Without people, as the service holds it, and with one new item."""
    evidence = replace(model.config.evidence, half_life=request.param)
    known = replace(model.without_people(), config=replace(model.config, evidence=evidence))
    return known.add_items(Catalog.infer(pl.DataFrame({"item_id": ["n0"], "title": ["garden hose"], "price": [4.0]})))


def in_one(store: Store, model: Recommender) -> Recommender:
    """All events of everyone, read plainly and given at once."""
    with store.read() as connection:
        log = events.read_window(connection, -NOW, NOW)
    received = log.with_columns(timestamp=pl.from_epoch((pl.col("timestamp") * 1e6).cast(pl.Int64), time_unit="us"))
    kept = received.filter(pl.col("item_id").is_in(list(model.vocabulary.ids)))
    return model.with_item_events(kept, now=EPOCH + timedelta(seconds=model.trained_until + 90 * 86_400))


def followed(store: Store, model: Recommender, follower: ItemFollower) -> Recommender:
    choices = follower.catch_up(store, model, events.settled(store))
    return model.with_item_choices(choices, model.trained_until + 90 * 86_400)


def same(one: Recommender, other: Recommender) -> None:
    for mine, theirs in zip(one.items, other.items, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_step_by_step_is_what_it_is_at_once(store: Store, bare: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_follower, "_PEOPLE", 3)
    rng = np.random.default_rng(3)
    model, follower = bare, ItemFollower()
    names = [*model.vocabulary.ids[:: len(model.vocabulary) // 6], "n0", "n1", "nobody knows"]
    until, moved = model.trained_until, 0
    for step in range(25):
        rows = []
        for number in range(int(rng.integers(1, 9))):
            when = until + float(rng.integers(-5, 80)) * 86_400 + float(rng.random())
            kind = "cancel" if rng.random() < 0.2 else "purchase"
            rows.append(
                Event(f"u{rng.integers(8)}", str(rng.choice(names)), kind, round(when, 3), event_id=f"{step}-{number}")
            )
        with store.write() as connection:
            events.append(connection, rows, until + 89 * 86_400)
            if step % 8 == 7:
                erasure.erase(connection, b"salt", f"u{step // 8}", 1.0)
        if step == 12:  # an item that was chosen before it was known
            model = model.add_items(
                Catalog.infer(pl.DataFrame({"item_id": ["n1"], "title": ["toy train"], "price": [9.0]}))
            )
        if rng.random() < 0.7:
            before, one = model.items, followed(store, model, follower)
            same(one, in_one(store, model))
            moved += not np.array_equal(one.items.popularity.numpy(), before.popularity.numpy())
    assert moved > 5
    same(followed(store, model, follower), followed(store, model, ItemFollower()))


def test_only_those_who_did_something_are_read(
    store: Store, bare: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = events.read_choices

    def noting(connection, user_ids, up_to_seq):  # type: ignore[no-untyped-def]
        read.extend(user_ids)
        return plain(connection, user_ids, up_to_seq)

    monkeypatch.setattr(events, "read_choices", noting)
    item, follower = bare.vocabulary.ids[0], ItemFollower()

    def choose(name: str, user: str, seconds: float) -> list[str]:
        with store.write() as connection:
            events.append(connection, [Event(user, item, "purchase", bare.trained_until + seconds, event_id=name)], NOW)
        read.clear()
        followed(store, bare, follower)
        return sorted(read)

    with store.write() as connection:
        events.append(connection, [Event("past", item, "purchase", bare.trained_until - 1, event_id="old")], NOW)
    assert choose("a", "one", 1.0) == ["one"], "who did nothing since training is not read"
    assert choose("b", "two", 2.0) == ["two"]
    assert choose("c", "past", -5.0) == ["past"]
    with store.write() as connection:
        erasure.erase(connection, b"salt", "two", 1.0)
    assert choose("d", "three", 3.0) == ["one", "three"], "after an erasure all is read again"


def test_a_clock_that_is_ahead_counts_at_its_receipt(store: Store, bare: Recommender) -> None:
    item = bare.vocabulary.ids[0]
    with store.write() as connection:
        row = Event("one", item, "purchase", bare.trained_until + 300 * 86_400, event_id="a")
        events.append(connection, [row], bare.trained_until + 86_400)
    ahead = followed(store, bare, ItemFollower())
    log = pl.DataFrame({"user_id": ["one"], "item_id": [item], "timestamp": [bare.trained_until + 86_400]})
    plain = log.with_columns(timestamp=pl.from_epoch((pl.col("timestamp") * 1e6).cast(pl.Int64), time_unit="us"))
    same(ahead, bare.with_item_events(plain, now=EPOCH + timedelta(seconds=bare.trained_until + 90 * 86_400)))

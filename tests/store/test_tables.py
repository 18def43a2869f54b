"""People, items, weights, lists, jobs and keys: what goes in comes back, changes add up, listings come in parts."""

from collections.abc import Callable, Iterable

import polars as pl
import pytest
from sqlalchemy import Connection, select, text

from palate.data.event import Event
from palate.errors import DataError
from palate.store import Store, events, items, jobs, keys, people, recommendations, schema, states
from palate.store.attributes import as_frame, merged
from palate.store.items import ItemChange
from palate.store.keys import StoredKey
from palate.store.paging import Page, decode, encode
from palate.store.people import PersonChange
from palate.store.recommendations import ShownList
from palate.store.states import SavedState

Make = Callable[..., Event]


def all_pages(store: Store, page: Callable[[Connection, str | None, int], Page], limit: int) -> list[str]:
    after, found = None, []
    with store.read() as connection:
        while True:
            part = page(connection, after, limit)
            assert len(part.rows) <= limit
            found += [row[0] for row in part.rows]
            after = part.next
            if after is None:
                return found


def test_attributes_add_up() -> None:
    assert merged({"a": 1, "b": "x"}, {"b": None, "c": True}) == {"a": 1, "c": True}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="not finite"):
            merged({}, {"a": bad})


def test_attributes_become_a_table() -> None:
    frame = as_frame(
        "item_id",
        [("a", {"price": 1, "new": True, "mixed": "x"}), ("b", {"price": 2.5, "mixed": 3, "item_id": "no"}), ("c", {})],
    )
    assert frame.schema == {"item_id": pl.String, "price": pl.Float64, "new": pl.Boolean, "mixed": pl.String}
    assert frame.rows() == [("a", 1.0, True, "x"), ("b", 2.5, None, "3"), ("c", None, None, None)]


def test_people_are_made_and_changed(store: Store, event_of: Make) -> None:
    with store.write() as connection:
        events.append(connection, [event_of(user_id="ann"), event_of(user_id="ann")], 1.0)
        made = people.upsert(
            connection,
            [
                PersonChange("bob", {"age": 3.5, "land": "é ☕"}),
                PersonChange("ann", {"age": 1}),
                PersonChange("ann", {"land": "fr", "age": None}),
            ],
            5.0,
        )
    assert {person.user_id: person.attributes for person in made} == {
        "ann": {"land": "fr"},
        "bob": {"age": 3.5, "land": "é ☕"},
    }
    with store.read() as connection:
        assert sorted(people.read(connection, ["ann", "bob", "nobody"]).values()) == sorted(made)
        ann = people.read(connection, ["ann"])["ann"]
        assert (ann.position, ann.created_at, ann.updated_at) == (2, 1.0, 5.0)
        assert [person.user_id for person in people.read_all(connection)] == ["ann", "bob"]
        assert people.count(connection) == 2
    with store.write() as connection:
        assert people.upsert(connection, [], 6.0) == []


def test_items_are_made_changed_and_hidden(store: Store) -> None:
    with store.write() as connection:
        items.upsert(connection, [ItemChange("pot", {"price": 2.0}), ItemChange("lid", {}, hidden=True)], 1.0)
    with store.write() as connection:
        changed = items.upsert(
            connection,
            [ItemChange("pot", {"title": "Pot"}), ItemChange("new", {"x": 1}), ItemChange("pot", {"price": None})],
            2.0,
        )
    assert [(item.item_id, dict(item.attributes), item.hidden) for item in changed] == [
        ("pot", {"title": "Pot"}, False),
        ("new", {"x": 1}, False),
    ]
    with store.write() as connection:
        assert [item.item_id for item in items.hide(connection, ["new", "unknown"], 3.0)] == ["new"]
        items.hide(connection, ["lid"], 3.0, hidden=False)
    with store.read() as connection:
        found = {item.item_id: item for item in items.read_all(connection)}
        assert {name: item.hidden for name, item in found.items()} == {"lid": False, "new": True, "pot": False}
        assert (found["pot"].created_at, found["pot"].updated_at) == (1.0, 2.0)
        assert items.read(connection, ["pot", "unknown"]) == {"pot": found["pot"]}
        assert items.count(connection) == 3


def test_revisions_tell_what_is_new(store: Store) -> None:
    def change(*changes: ItemChange) -> list[int]:
        with store.write() as connection:
            return [item.revision for item in items.upsert(connection, changes, 1.0)]

    def since(revision: int) -> list[str]:
        with store.read() as connection:
            return [item.item_id for item in items.changed_since(connection, revision)]

    with store.read() as connection:
        assert items.newest_revision(connection) == 0
    assert change(ItemChange("a", {}), ItemChange("b", {})) == [1, 2]
    assert change(ItemChange("a", {"x": 1})) == [3]
    assert change(ItemChange("a", {"x": 1}), ItemChange("b", {}, hidden=False)) == [2, 3]  # no news
    assert since(0) == ["b", "a"]
    assert since(2) == ["a"]
    assert since(3) == []
    with store.read() as connection:
        assert [item.item_id for item in items.changed_since(connection, 0, limit=1)] == ["b"]
        assert items.newest_revision(connection) == 3


def test_weights_are_kept_for_people_who_are_known(store: Store, event_of: Make) -> None:
    def state(user_id: str, position: int, model_id: str = "m1", payload: bytes = b"\0\xff") -> SavedState:
        return SavedState(user_id, model_id, position, True, payload, 1.0)

    def kept() -> list[SavedState]:
        columns = [schema.states.c[name] for name in SavedState._fields]
        with store.read() as connection:
            return [SavedState(*row) for row in connection.execute(select(*columns).order_by("user_id"))]

    with store.write() as connection:
        events.append(connection, [event_of(user_id="ann"), event_of(user_id="bob")], 1.0)
        states.save(connection, [state("ann", 5), state("bob", 1), state("nobody", 1)])
        states.save(connection, [state("ann", 4, payload=b"older")])
        states.save(connection, [state("bob", 2, payload=b"newer")])
        states.save(connection, [])
    assert kept() == [state("ann", 5), state("bob", 2, payload=b"newer")]
    with store.write() as connection:
        states.save(connection, [state("ann", 1, "m2")])  # of another model, whatever it has seen
    assert kept() == [state("ann", 1, "m2"), state("bob", 2, payload=b"newer")]
    with store.read() as connection:
        ann, bob = (states.read_person(connection, name) for name in ("ann", "bob"))
        assert ann is not None
        assert ann[1] == state("ann", 1, "m2")
        assert bob is not None
        assert bob[1] is None, "it has seen more than is stored"
        assert states.read_person(connection, "nobody") is None


def test_lists_are_logged(store: Store) -> None:
    def shown(name: str, at: float) -> ShownList:
        return ShownList(name, None, True, "m1", "served", "default", at, ["a", "b"], [0.5, 1 / 3], [1.0, 0.1])

    asked = {"k": 3, "exclude": ["é"], "filter": {"all": [{"attribute": "x", "op": "in", "value": [True, 1.5]}]}}
    lists = [
        shown("one", 1.0),
        shown("two", 2.0),
        shown("three", 3.0)._replace(user_id="ann", session=False, asked=asked),
    ]
    with store.write() as connection:
        recommendations.add(connection, lists)
        recommendations.add(connection, [])
    with store.read() as connection:
        assert recommendations.read(connection, ["two", "none"]) == {"two": lists[1]}
        assert recommendations.read_window(connection, 1.0, 3.0) == lists[:2]
        empty = "SELECT recommendation_id FROM recommendations WHERE asked IS NULL ORDER BY at"
        assert connection.scalars(text(empty)).all() == ["one", "two"]
    with store.write() as connection:
        assert recommendations.prune(connection, 2.0) == 1
    with store.read() as connection:
        assert recommendations.read_window(connection, 0.0, 9.0) == lists[1:]


def test_numbers_that_no_store_holds_are_refused(store: Store) -> None:
    bad = ShownList("one", None, True, "m1", "served", "default", 1.0, ["a"], [float("nan")], [1.0])
    with pytest.raises(DataError, match="not finite"), store.write() as connection:
        recommendations.add(connection, [bad])


def test_jobs_go_their_way(store: Store) -> None:
    with store.write() as connection:
        jobs.add(connection, "j1", "retrain", 1.0)
        jobs.add(connection, "j2", "erase", 2.0, subject="x")
        jobs.add(connection, "j3", "retrain", 3.0)
        jobs.move(connection, "j1", "running", 4.0, progress={"step": 3})
        jobs.move(connection, "j3", "failed", 5.0, error="the disk was full")
        assert jobs.move(connection, "none", "done", 5.0) is None
    with store.read() as connection:
        assert [job.job_id for job in jobs.unfinished(connection)] == ["j1", "j2"]
        assert [job.job_id for job in jobs.unfinished(connection, "erase")] == ["j2"]
        failed = jobs.read(connection, "j3")
        assert failed is not None
        assert (failed.status, failed.error, failed.created_at, failed.updated_at) == (
            "failed",
            "the disk was full",
            3.0,
            5.0,
        )
        assert jobs.read(connection, "none") is None
    with store.write() as connection:
        done = jobs.move(connection, "j1", "done", 6.0)
        assert done is not None
        assert done.progress == {"step": 3}
    assert all_pages(store, jobs.page, 2) == ["j1", "j2", "j3"]


def test_keys_are_added_and_revoked(store: Store) -> None:
    key = StoredKey("k1", "admin", "ab" * 32, "first", 1.0, None)
    with store.write() as connection:
        keys.add(connection, key)
        keys.add(connection, key._replace(key_id="k0", created_at=2.0))
        assert keys.revoke(connection, "k1", 3.0) == key._replace(revoked_at=3.0)
        assert keys.revoke(connection, "k1", 4.0) == key._replace(revoked_at=3.0)
        assert keys.revoke(connection, "none", 4.0) is None
    with store.read() as connection:
        assert [(one.key_id, one.revoked_at) for one in keys.read_all(connection)] == [("k1", 3.0), ("k0", None)]


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_listings_come_in_parts_without_gap_or_repeat(store: Store, limit: int) -> None:
    names = ["a", "B", "é", "a b", "☕"]
    with store.write() as connection:
        people.upsert(connection, [PersonChange(name, {}) for name in names], 1.0)
        items.upsert(connection, [ItemChange(name, {}) for name in names], 1.0)
    for page in (people.page, items.page):
        found = all_pages(store, page, limit)
        assert sorted(found) == sorted(names)


def test_a_row_that_comes_meanwhile_moves_no_page(store: Store) -> None:
    def add(names: Iterable[str]) -> None:
        with store.write() as connection:
            items.upsert(connection, [ItemChange(name, {}) for name in names], 1.0)

    add("bdf")
    with store.read() as connection:
        first = items.page(connection, None, 2)
    add("ace")
    with store.read() as connection:
        rest = items.page(connection, first.next, 9)
    assert [row.item_id for row in (*first.rows, *rest.rows)] == ["b", "d", "e", "f"]
    assert rest.next is None


@pytest.mark.parametrize("bad", ["", "?", "x", "bnVsbA", "dHJ1ZQ", "W10", encode(3), "a" * 5000, "é"])
def test_a_cursor_that_is_none_is_refused(store: Store, bad: str) -> None:
    with store.read() as connection, pytest.raises(DataError, match="not a cursor"):
        items.page(connection, bad, 2)


@pytest.mark.parametrize("key", ["", "a", "é☕", "a/b?c", "=" * 9])
def test_a_cursor_goes_into_a_url_and_back(key: str) -> None:
    assert decode(encode(key), str) == key
    assert set(encode(key)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert decode(encode(7), int) == 7

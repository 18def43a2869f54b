"""The pointer names one served model and perhaps a canary, moves whole, and goes back."""

import threading

import pytest

from palate.store import Store, registry
from palate.store.registry import Model, RegistryError


def model(model_id: str, created_at: float = 1.0) -> Model:
    return Model(model_id, model_id, "candidate", created_at, None, {}, "ab" * 32)


def statuses(store: Store) -> dict[str, str]:
    with store.read() as connection:
        return {one.model_id: one.status for one in registry.read_all(connection)}


def pointers(store: Store) -> tuple[str | None, str | None, str | None, float]:
    with store.read() as connection:
        now = registry.current(connection)
    served = None if now.served is None else now.served.model_id
    return served, now.previous, None if now.canary is None else now.canary.model_id, now.share


@pytest.fixture
def three(store: Store) -> Store:
    with store.write() as connection:
        for number, name in enumerate("abc"):
            registry.add(connection, model(name, float(number)))
    return store


def test_models_are_registered_once(three: Store) -> None:
    with three.write() as connection:
        registry.promote(connection, "a", 5.0)
        registry.add(connection, model("a", 99.0))
        assert registry.read(connection, "none") is None
    assert statuses(three) == {"c": "candidate", "b": "candidate", "a": "served"}
    assert list(statuses(three)) == ["c", "b", "a"]  # newest first


def test_promotion_and_rollback_move_the_pointer(three: Store) -> None:
    assert pointers(three) == (None, None, None, 0.0)
    with three.write() as connection:
        assert registry.promote(connection, "a", 1.0).status == "served"
    assert pointers(three) == ("a", None, None, 0.0)
    with three.write() as connection:
        registry.promote(connection, "b", 2.0)
    assert pointers(three) == ("b", "a", None, 0.0)
    assert statuses(three) == {"a": "retired", "b": "served", "c": "candidate"}
    with three.write() as connection:
        assert registry.rollback(connection, 3.0).model_id == "a"
        assert registry.current(connection).changed_at == 3.0
    assert pointers(three) == ("a", None, None, 0.0)
    assert statuses(three) == {"a": "served", "b": "retired", "c": "candidate"}
    with pytest.raises(RegistryError, match="no previous"), three.write() as connection:
        registry.rollback(connection, 4.0)


def test_a_canary_begins_is_replaced_ends_and_is_promoted(three: Store) -> None:
    with pytest.raises(RegistryError, match="no model is served"), three.write() as connection:
        registry.start_canary(connection, "a", 0.1, 1.0)
    with three.write() as connection:
        registry.promote(connection, "a", 1.0)
        registry.start_canary(connection, "b", 0.1, 2.0)
    assert pointers(three) == ("a", None, "b", 0.1)
    with three.write() as connection:
        registry.start_canary(connection, "c", 0.2, 3.0)
    assert pointers(three) == ("a", None, "c", 0.2)
    assert statuses(three) == {"a": "served", "b": "retired", "c": "canary"}
    with three.write() as connection:
        assert registry.rollback(connection, 4.0).model_id == "a"
        assert registry.current(connection).changed_at == 4.0
    assert pointers(three) == ("a", None, None, 0.0)
    with three.write() as connection:
        registry.start_canary(connection, "c", 0.2, 5.0)
        registry.promote(connection, "c", 6.0)
    assert pointers(three) == ("c", "a", None, 0.0)
    assert statuses(three) == {"a": "retired", "b": "retired", "c": "served"}


def test_what_contradicts_is_refused_and_changes_nothing(three: Store) -> None:
    with three.write() as connection:
        registry.promote(connection, "a", 1.0)
        registry.promote(connection, "b", 2.0)
    before = (pointers(three), statuses(three))
    for action in (
        lambda connection: registry.promote(connection, "b", 3.0),
        lambda connection: registry.promote(connection, "none", 3.0),
        lambda connection: registry.start_canary(connection, "b", 0.1, 3.0),
        lambda connection: registry.start_canary(connection, "c", 1.0, 3.0),
        lambda connection: registry.start_canary(connection, "c", 0.0, 3.0),
        lambda connection: registry.report(connection, "b", {}, refused=True),
        lambda connection: registry.report(connection, "none", {}, refused=False),
        lambda connection: registry.remove(connection, "a"),
        lambda connection: registry.remove(connection, "b"),
    ):
        with pytest.raises(RegistryError), three.write() as connection:
            action(connection)
    assert (pointers(three), statuses(three)) == before


def test_the_gate_reports_and_refuses(three: Store) -> None:
    with three.write() as connection:
        registry.report(connection, "a", {"ndcg": 0.5}, refused=False)
        registry.report(connection, "b", {"reason": "worse"}, refused=True)
        registry.remove(connection, "c")
    with three.read() as connection:
        found = {one.model_id: (one.status, one.report) for one in registry.read_all(connection)}
    assert found == {"a": ("candidate", {"ndcg": 0.5}), "b": ("refused", {"reason": "worse"})}


def test_promotions_at_once_leave_one_served(url: str, three: Store) -> None:
    stores = [Store.open(url) for _ in "abc"]

    def promote(store: Store, name: str) -> None:
        for _ in range(5):
            try:
                with store.write() as connection:
                    registry.promote(connection, name, 1.0)
            except RegistryError:
                pass  # it is served already

    threads = [threading.Thread(target=promote, args=pair) for pair in zip(stores, "abc", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    served, previous, _, _ = pointers(three)
    assert [name for name, status in statuses(three).items() if status == "served"] == [served]
    assert previous not in (None, served)
    for store in stores:
        store.close()

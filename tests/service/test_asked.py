"""What was asked for goes into the log and comes back as the same request; a plain list leaves nothing there."""

import asyncio
import json
import time

import pytest

from palate.data.event import Event
from palate.service.asked import MOST, asked_of, request_of
from palate.service.contract import Condition, Filter, ListRequest
from palate.service.home import Home
from palate.service.list_schemas import FilterBody
from palate.service.opening import open_system
from palate.service.system import SystemConfig
from palate.store import Store, items, recommendations
from palate.store.items import ItemChange
from palate.store.recommendations import ShownList

TOYS = Filter(
    all=(Condition("taste", "in", ("toys", "garden")), Filter(any=(Condition("price", "lt", 6.0), Filter()))),
    none=(Condition("rare", "missing"), Condition("rare", "eq", True), Condition("price", "eq", 1.0)),
)


def logged(request: ListRequest) -> ShownList:
    """A list of three items for a request, after a journey through JSON."""
    asked = json.loads(json.dumps(asked_of(request)))
    items = ["a", "b", "c"]
    return ShownList(
        "r", request.user_id, False, "m", "served", request.scenario, 0.0, items, [0.0] * 3, [1.0] * 3, asked
    )


@pytest.mark.parametrize(
    "request_",
    [
        ListRequest("u", k=5),
        ListRequest("u", exclude=("a", "☕")),
        ListRequest("u", filter=TOYS),
        ListRequest("u", filter=Filter()),
        ListRequest("u", diversity=0.25),
        ListRequest("u", include_seen=True),
        ListRequest("u", (), {}, 500, ("a",), TOYS, 1.0, "none", "cart", True),
    ],
    ids=str,
)
def test_a_request_comes_back_from_the_log(request_: ListRequest) -> None:
    found = request_of(logged(request_))
    assert found == request_
    assert repr(found) == repr(request_)  # true is not 1


def test_only_what_differs_is_kept_in_the_words_of_the_api() -> None:
    asked = asked_of(ListRequest("u", k=3, filter=TOYS))
    assert asked is not None
    assert set(asked) == {"k", "filter"}
    assert FilterBody.model_validate(asked["filter"]).plain() == TOYS


def test_a_plain_list_and_a_session_leave_nothing() -> None:
    assert asked_of(ListRequest("u")) is None
    assert asked_of(ListRequest("u", explore="thompson", scenario="cart")) is None
    assert asked_of(ListRequest(None, (Event("", "a"),), k=3, exclude=("a",), filter=TOYS)) is None
    assert request_of(logged(ListRequest("u"))) == ListRequest("u", k=3)  # as long as it was


def test_what_is_too_long_is_not_kept() -> None:
    word = "x" * 97
    fits = tuple(f"{word}{number:03}"[-97:] for number in range(MOST // 100))
    assert request_of(logged(ListRequest("u", exclude=fits))) == ListRequest("u", exclude=fits)
    for long in (
        ListRequest("u", exclude=(*fits, word)),
        ListRequest("u", exclude=fits, filter=Filter(any=(Condition("title", "contains", word),))),
        ListRequest("u", filter=Filter(none=(Filter(all=(Condition("title", "in", (*fits, word)),)),)), k=3),
    ):
        asked = asked_of(long)
        assert asked == {"too_long": True}
        assert request_of(logged(long)) is None


def test_a_service_logs_what_it_was_asked(served_home: Home) -> None:
    store = Store.open(served_home.database)
    with store.write() as connection:
        items.upsert(connection, [ItemChange(f"garden-{number:02}", {"price": number}) for number in range(17)], 1.0)
    cheap = Filter(all=(Condition("price", "lt", 8.0),))
    requests = [
        ListRequest("u1", explore="thompson"),
        ListRequest("u2", k=4, exclude=("toys-01",), filter=cheap, diversity=0.5, include_seen=True),
        ListRequest(None, k=4, filter=cheap),
    ]

    async def main() -> None:
        system = open_system(store, served_home, SystemConfig(log_seconds=0.01))
        system.start()
        try:
            await system.recommend(requests)
        finally:
            await system.close()

    asyncio.run(main())
    opened = Store.open(served_home.database)
    with opened.read() as connection:
        lists = recommendations.read_window(connection, 0.0, time.time() + 1)
        kept = connection.exec_driver_sql("SELECT user_id FROM recommendations WHERE asked IS NOT NULL").scalars().all()
    opened.close()
    assert kept == ["u2"], "the others cost nothing"
    by_user = {one.user_id: one for one in lists}
    assert by_user.keys() == {"u1", "u2", None}
    assert request_of(by_user["u2"]) == requests[1]

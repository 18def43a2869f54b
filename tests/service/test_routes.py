"""Each route does what it says, over a system in memory."""

from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from memory_service import MemoryService

from palate.data.event import Event

Ask = Callable[..., httpx.Response]
ODD_IDS = ["a/b", "é", "100%", "a b?c=d#e", "..", "%2F", "+", "日本", "a\u2028b"]


def event(user: str, item: str, **more: object) -> dict[str, object]:
    return {"user_id": user, "item_id": item, **more}


def send(ask: Ask, *events: dict[str, object]) -> dict[str, object]:
    answer = ask("POST", "/v1/events", "client", json={"events": list(events)})
    assert answer.status_code == 200
    return answer.json()


def test_one_event_is_stored_once(ask: Ask, running: MemoryService) -> None:
    one = event("u", "mug", event_id="e-1", event_type="click", timestamp=1.7e9, weight=2, session_id="s")
    assert ask("POST", "/v1/events", json=one).json() == {"accepted": 1, "duplicates": 0, "errors": []}
    assert ask("POST", "/v1/events", json=one).json() == {"accepted": 0, "duplicates": 1, "errors": []}
    (stored,) = running.events["u"]
    assert stored == Event("u", "mug", "click", 1.7e9, 2.0, "e-1", "s")
    shown = {"event_id": "e-1", "item_id": "mug", "event_type": "click", "timestamp": 1.7e9, "weight": 2.0}
    assert ask("GET", "/v1/users/u/events").json() == {"rows": [shown], "next": None}
    assert ask("GET", "/v1/users/u").json()["recent"] == [shown]


def test_a_malformed_row_does_not_take_its_neighbours_along(ask: Ask, running: MemoryService) -> None:
    rows = [
        event("u", "a"),
        event("u", "b", weight="heavy"),
        event("u", "c", timestamp=9e10),
        event("u", "d"),
        7,
        event("u", ""),
        event("u", "e"),
    ]
    answer = send(ask, *rows)
    assert answer["accepted"] == 3
    assert [(error["row"], error["code"]) for error in answer["errors"]] == [
        (1, "invalid"),
        (4, "invalid"),
        (5, "invalid"),
        (2, "future"),
    ]
    assert answer["errors"][0]["message"].startswith("weight: ")
    assert [stored.item_id for stored in running.events["u"]] == ["a", "d", "e"]


def test_a_single_row_that_is_refused_is_an_error(ask: Ask) -> None:
    answer = ask("POST", "/v1/events", json=event("u", "c", timestamp=9e10))
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"where": "", "message": "timestamp lies in the future"}]


@pytest.mark.parametrize("number", [0, 1001])
def test_a_batch_has_1_to_1000_rows(ask: Ask, number: int) -> None:
    for path, name in (("events", "events"), ("users", "users"), ("items", "items")):
        answer = ask("POST", f"/v1/{path}", json={name: [{}] * number})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["where"] == name
    assert ask("POST", "/v1/events", json={"events": [event("u", "i")] * 1000}).json()["accepted"] == 1000


def test_people_are_added_changed_listed_and_erased(ask: Ask) -> None:
    people = [{"user_id": f"u{number}", "attributes": {"country": "France", "age": 30}} for number in range(5)]
    assert ask("POST", "/v1/users", "service", json={"users": people}).json() == {"accepted": 5, "errors": []}
    ask("POST", "/v1/users", json={"user_id": "u1", "attributes": {"country": None, "vip": True}})
    send(ask, event("u1", "mug"), event("u1", "cup"))
    person = ask("GET", "/v1/users/u1", "service").json()
    assert person["attributes"] == {"age": 30.0, "vip": True}
    assert (person["num_events"], [row["item_id"] for row in person["recent"]]) == (2, ["cup", "mug"])
    pages, after = [], None
    while True:
        page = ask("GET", "/v1/users", params={"limit": 2, **({"after": after} if after else {})}).json()
        pages.append([row["user_id"] for row in page["rows"]])
        after = page["next"]
        if after is None:
            break
    assert pages == [["u0", "u1"], ["u2", "u3"], ["u4"]]
    job = ask("DELETE", "/v1/users/u1", "service")
    assert job.status_code == 202
    assert ask("GET", job.headers["location"]).json()["status"] == "done"
    assert ask("GET", "/v1/users/u1").status_code == 404
    assert ask("DELETE", "/v1/users/u1").status_code == 404


def test_a_persons_events_are_listed_in_pages(ask: Ask) -> None:
    send(ask, *(event("u", f"i{number}") for number in range(5)))
    first = ask("GET", "/v1/users/u/events?limit=3").json()
    second = ask("GET", "/v1/users/u/events", params={"limit": 3, "after": first["next"]}).json()
    assert [row["item_id"] for row in first["rows"] + second["rows"]] == ["i0", "i1", "i2", "i3", "i4"]
    assert second["next"] is None
    assert ask("GET", "/v1/users/u/events?after=nonsense").status_code == 422


@pytest.mark.parametrize("name", ODD_IDS)
def test_ids_may_hold_any_printable_character(ask: Ask, name: str) -> None:
    send(ask, event(name, name), event("other", name), event("other", "x"))
    path = quote(name, safe="").replace(".", "%2E")
    assert ask("GET", f"/v1/users/{path}").json()["user_id"] == name
    assert ask("GET", f"/v1/users/{path}/events").json()["rows"][0]["item_id"] == name
    assert ask("GET", f"/v1/items/{path}/similar").json()["items"][0]["item_id"] == "x"
    assert ask("DELETE", f"/v1/users/{path}").status_code == 202


def test_paths_are_matched_in_any_spelling(ask: Ask) -> None:
    send(ask, event("u", "i"))
    assert ask("GET", "/v1/%75sers/%75").json()["user_id"] == "u"


@pytest.mark.parametrize("bad", ["", "a\n", "\x00", "\x7f", "\x9f", "x" * 257, 5, None, True, ["a"]])
def test_ids_that_are_none(ask: Ask, bad: object) -> None:
    answer = ask("POST", "/v1/events", json=event("u", "i", user_id=bad))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "user_id"


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e999", '"1"', "true", "null", "9" * 400, "9" * 9000, "1e7", "-1e7"]
)
def test_numbers_are_finite_and_bounded(ask: Ask, text: str) -> None:
    body = f'{{"user_id": "u", "item_id": "i", "weight": {text}}}'
    assert ask("POST", "/v1/events", content=body).status_code in (400, 422)


def test_attributes_are_bounded(ask: Ask) -> None:
    def status(attributes: object) -> int:
        return ask("POST", "/v1/items", json={"item_id": "i", "attributes": attributes}).status_code

    assert status({f"a{number}": "x" * 2000 for number in range(64)}) == 200
    assert status({f"a{number}": 1 for number in range(65)}) == 422
    assert status({"a": "x" * 2001}) == 422
    assert status({"x" * 65: 1}) == 422
    assert status({"": 1}) == 422
    assert status({"a": {"b": 1}}) == 422
    assert status({"a": "\x00"}) == 422
    assert status({"a": None, "b": False, "c": -1.5, "d": "two\nlines"}) == 200


def test_items_are_hidden_and_filtered(ask: Ask) -> None:
    items = [{"item_id": f"i{price}", "attributes": {"price": price, "title": f"mug {price}"}} for price in range(5)]
    ask("POST", "/v1/items", json={"items": items})
    send(ask, *(event(f"u{number}", f"i{price}") for price in range(5) for number in range(price + 1)))

    def listed(**options: object) -> list[str]:
        answer = ask("POST", "/v1/recommendations", "client", json={"user_id": "new", **options})
        assert answer.status_code == 200, answer.text
        return [line["item_id"] for line in answer.json()["items"]]

    assert listed() == ["i4", "i3", "i2", "i1", "i0"]
    assert listed(k=2) == ["i4", "i3"]
    assert listed(exclude=["i4"], k=2) == ["i3", "i2"]
    assert listed(filter={"all": [{"attribute": "price", "op": "le", "value": 1}]}) == ["i1", "i0"]
    either = [
        {"attribute": "price", "op": "in", "value": [0, 4]},
        {"attribute": "title", "op": "contains", "value": "3"},
    ]
    assert listed(filter={"any": either}) == ["i4", "i3", "i0"]
    assert listed(filter={"none": [{"any": either}]}) == ["i2", "i1"]
    assert listed(filter={"all": [{"attribute": "brand", "op": "missing"}]}, k=1) == ["i4"]
    ask("POST", "/v1/items", json={"item_id": "i4", "hidden": True})
    assert listed(k=1) == ["i3"]
    hidden = {row["item_id"]: row["hidden"] for row in ask("GET", "/v1/items").json()["rows"]}
    assert hidden == {"i0": False, "i1": False, "i2": False, "i3": False, "i4": True}


def nested(depth: int) -> dict[str, object]:
    inner: dict[str, object] = {"all": [{"attribute": "a", "op": "missing"}]}
    for _ in range(depth - 1):
        inner = {"any": [inner]}
    return inner


def test_filters_are_bounded(ask: Ask) -> None:
    def status(filter: object) -> int:
        return ask("POST", "/v1/recommendations", json={"user_id": "u", "filter": filter}).status_code

    condition = {"attribute": "a", "op": "eq", "value": 1}
    assert status(nested(4)) == 200
    assert status(nested(5)) == 422
    assert status(nested(60)) == 422
    assert status({"all": [condition] * 64}) == 200
    assert status({"all": [condition] * 33, "any": [condition] * 32}) == 422
    assert status({"all": [{"any": [condition] * 40}, {"any": [condition] * 25}]}) == 422
    assert status({"all": [{"attribute": "a", "op": "in", "value": 3}]}) == 422
    assert status({"all": [{"attribute": "a", "op": "lt", "value": [3]}]}) == 422
    assert status({"all": [{"attribute": "a", "op": "missing", "value": 3}]}) == 422
    assert status({"all": [{"attribute": "a", "op": "contains", "value": 3}]}) == 422
    assert status({"all": [{"attribute": "a", "op": "eq"}]}) == 422
    assert status({"a": condition}) == 422
    assert ask("POST", "/v1/recommendations", content='{"user_id":' + "[" * 400).status_code == 400


def test_lists_for_many_and_for_a_session(ask: Ask) -> None:
    send(ask, event("u", "a"), event("v", "b"), event("w", "b"))
    many = ask("POST", "/v1/recommendations", "client", json={"users": ["u", "new"], "k": 5}).json()["lists"]
    assert [[line["item_id"] for line in each["items"]] for each in many] == [["b"], ["b", "a"]]
    assert [each["fallback"] for each in many] == [False, True]
    session = {"events": [{"item_id": "b"}], "profile": {"country": "France"}}
    answer = ask("POST", "/v1/recommendations", json=session).json()
    assert [line["item_id"] for line in answer["items"]] == ["a"]
    assert ask("POST", "/v1/recommendations", json={"events": []}).json()["fallback"] is True


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"user_id": "u", "events": []},
        {"user_id": "u", "k": 0},
        {"user_id": "u", "k": 501},
        {"user_id": "u", "k": True},
        {"user_id": "u", "k": "5"},
        {"user_id": "u", "diversity": 1.1},
        {"user_id": "u", "explore": "wild"},
        {"user_id": "u", "profile": {}},
        {"users": []},
        {"users": ["u"] * 1001},
        {"users": ["u"] * 101, "k": 100},
        {"events": [{"item_id": "a", "user_id": "u"}]},
    ],
)
def test_lists_that_cannot_be_meant(ask: Ask, wrong: dict[str, object]) -> None:
    assert ask("POST", "/v1/recommendations", json=wrong).status_code == 422


def test_models_are_promoted_and_rolled_back(ask: Ask) -> None:
    def served() -> list[str]:
        return [row["model_id"] for row in ask("GET", "/v1/models").json()["models"] if row["status"] == "served"]

    assert served() == ["m-new"]
    assert ask("POST", "/v1/models/m-next/promote", json={"share": 0.1}).json()["status"] == "canary"
    assert served() == ["m-new"]
    assert ask("POST", "/v1/models/m-next/promote").status_code == 200
    assert served() == ["m-next"]
    assert ask("POST", "/v1/models/m-next/promote").status_code == 409
    assert ask("POST", "/v1/models/rollback").json()["model_id"] == "m-new"
    assert served() == ["m-new"]
    for share in (0, 1.5, "1", None):
        assert ask("POST", "/v1/models/m-next/promote", json={"share": share}).status_code == 422


def test_training_is_a_job(ask: Ask) -> None:
    started = ask("POST", "/v1/retrain")
    assert started.status_code == 202
    assert ask("GET", started.headers["location"], "service").json()["kind"] == "retrain"
    assert ask("POST", "/v1/retrain").status_code == 409


def test_health_and_figures(ask: Ask, running: MemoryService) -> None:
    assert ask("GET", "/health/live", None).json() == {"status": "ok"}
    assert ask("GET", "/health/ready", None).json() == {"status": "ok"}
    running.not_ready = "no model is served"
    answer = ask("GET", "/health/ready", None)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "no model is served" in answer.json()["detail"]
    assert ask("GET", "/health/live", None).status_code == 200
    send(ask, event("u", "a"))
    ask("GET", "/v1/models", None)
    figures = ask("GET", "/v1/metrics").text
    assert "palate_events 1" in figures
    assert 'palate_http_answers_total{route="POST /v1/events",status="200"} 1.0' in figures
    assert 'palate_http_turned_away_total{code="no_key"} 1.0' in figures


def test_the_document_is_complete(ask: Ask) -> None:
    document = ask("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = [(path, each) for path, methods in document["paths"].items() for each in methods.values()]
    for path, operation in operations:
        assert operation["summary"], path
        assert "Role: **" in operation["description"], path
        assert path.startswith("/health") == (operation["security"] == []), path
        for body in operation.get("requestBody", {}).get("content", {}).values():
            for choice in body["schema"].get("oneOf", [body["schema"]]):
                assert choice["$ref"].rpartition("/")[2] in document["components"]["schemas"]
    example = document["components"]["schemas"]["Event"]["examples"][0]
    assert ask("POST", "/v1/events", json=example).status_code == 200
    page = ask("GET", "/docs").text
    assert "<script" not in page
    assert all(path in page for path, _ in operations)

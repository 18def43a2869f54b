"""The client: every method against a real server, and retries that do no harm."""

import ast
import json
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from palate.client import (
    Client,
    Event,
    InvalidRequestError,
    Item,
    KeyRefusedError,
    Person,
    RefusedError,
    Retries,
    ServerError,
    UnavailableError,
    UnknownIdError,
)
from palate.errors import ConfigError, PalateError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "service"))

from asking import ServerProcess  # noqa: E402

Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    started = ServerProcess()
    yield started
    started.close()


@pytest.fixture
def admin(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url, "admin-key") as client:
        yield client


def test_the_whole_api(admin: Client, server: ServerProcess) -> None:
    assert admin.ready()
    items = [Item(f"mug/{number}", {"title": f"mug {number}", "price": float(number)}) for number in range(1200)]
    assert admin.add_items(items) == (1200, 0, ())
    assert admin.add_people([Person("anna/1", {"country": "France"}), Person("..", {})]).accepted == 2
    events = [Event("anna/1", f"mug/{number}", "click", 1.7e9 + number) for number in range(3)]
    taken = admin.add_events([*events, Event("anna/1", "mug/9", timestamp=9e10)])
    assert (taken.accepted, [(fault.row, fault.code) for fault in taken.errors]) == (3, [(3, "future")])
    stored = list(admin.events_of("anna/1"))
    assert [event._replace(event_id=None) for event in stored] == events
    assert admin.add_events(stored)[:2] == (0, 3)  # they have their ids: sent again, they change nothing
    known = admin.person("anna/1")
    assert (known.attributes, known.num_events, known.recent[0].item_id) == ({"country": "France"}, 3, "mug/2")
    assert admin.person("..").num_events == 0
    assert sorted(item.item_id for item in admin.items()) == sorted(item.item_id for item in items)
    assert {person.user_id for person in admin.people()} == {"anna/1", ".."}
    admin.add_events([Event("ben", "mug/5"), Event("eva", "mug/5"), Event("eva", "mug/6")])
    listing = admin.recommend("anna/1", k=2)
    assert [line.item_id for line in listing.items] == ["mug/5", "mug/6"]
    assert listing.model_id == "m-new"
    cheap = {"all": [{"attribute": "price", "op": "le", "value": 5}]}
    assert admin.recommend("anna/1", filter=cheap).items[-1].item_id == "mug/5"
    assert [len(each.items) for each in admin.recommend_many(["anna/1", "eva"], k=3)] == [2, 3]
    session = admin.recommend(session=[Event("", "mug/5", weight=2.0)], profile={"country": "Italy"}, exclude=["mug/6"])
    assert {line.item_id for line in session.items} == {"mug/0", "mug/1", "mug/2"}
    assert admin.similar("mug/5", k=1)[0].rank == 1
    admin.add_events([Event("anna/1", "mug/7", "rating", weight=5.0)])
    rated = admin.predict(["mug/5", "mug/7"], "anna/1")
    assert [(line.item_id, line.mean) for line in rated] == [("mug/5", 5.0), ("mug/7", 5.0)]
    assert rated[0].levels == (1.0, 3.0, 5.0)
    assert admin.predict(["mug/5"], session=[Event("", "mug/6", "rating", weight=1.0)])[0].mean == 1.0
    with pytest.raises(UnknownIdError):
        admin.predict(["no such mug"], "anna/1")
    key, secret = admin.add_key("client", "shop")
    listed = admin.keys()
    assert key in listed
    with Client(server.url, secret) as shop:
        assert shop.recommend("eva").items
        with pytest.raises(KeyRefusedError, match="service") as refused:
            shop.erase("eva")
        assert (refused.value.status, refused.value.code) == (403, "not_allowed")
        assert admin.revoke_key(key.key_id).revoked_at is not None
        with pytest.raises(KeyRefusedError):
            shop.recommend("eva")
    assert admin.promote("m-next", 0.2).status == "canary"
    assert admin.promote("m-next").status == "served"
    with pytest.raises(RefusedError, match="served already"):
        admin.promote("m-next")
    assert admin.rollback().model_id == "m-new"
    assert {model.model_id for model in admin.models()} == {"m-old", "m-new", "m-next"}
    job = admin.retrain()
    assert admin.job(job.job_id).status == "running"
    with pytest.raises(UnavailableError, match="still running"):
        admin.wait(job, timeout=0.02, every=0.01)
    assert admin.wait(admin.erase("anna/1")).status == "done"
    with pytest.raises(UnknownIdError):
        admin.person("anna/1")
    with pytest.raises(InvalidRequestError, match="events/0/item_id: expected a text"):
        admin.recommend(session=[Event("", "")])
    assert "palate_http_answers_total" in admin.metrics()


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request], list[float]]:
    """A client whose service answers in this way; what it was asked, and how long the client waited in between."""
    waiting, asked, waits = iter(answers), [], []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        now = next(waiting)
        if isinstance(now, Exception):
            raise now
        return now

    transport = httpx.MockTransport(answer)
    client = Client("http://x", "k", transport=transport, sleep=waits.append, rng=random.Random(0))
    return client, asked, waits


GOOD = httpx.Response(200, json={"accepted": 1, "duplicates": 0, "errors": []})


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "Wait."}, headers=headers)


def test_a_retry_sends_the_same_ids() -> None:
    lost = httpx.ReadError("lost")
    client, asked, waits = answering(problem(503, "overloaded"), lost, problem(429, "too_many_requests"), GOOD)
    with client:
        client.add_events([Event("u", "a"), Event("u", "b", event_id="mine")])
    assert len(asked) == 4
    assert len({request.content for request in asked}) == 1
    ids = [event["event_id"] for event in json.loads(asked[0].content)["events"]]
    assert ids[1] == "mine"
    assert len(ids[0]) == 32
    assert all(low <= wait <= high for wait, low, high in zip(waits, (0.05, 0.1, 0.2), (0.1, 0.2, 0.4), strict=True))


def test_it_waits_as_long_as_it_is_asked_to_within_reason() -> None:
    longest = Retries().longest_wait
    client, _, waits = answering(
        problem(503, "overloaded", **{"retry-after": "2"}), problem(429, "x", **{"retry-after": "3600"}), GOOD
    )
    with client:
        client.add_events([Event("u", "a")])
    assert waits == [2.0, longest]


def test_it_gives_up() -> None:
    client, asked, _ = answering(*[problem(503, "overloaded")] * 9)
    with client, pytest.raises(UnavailableError, match="Wait") as error:
        client.recommend("u")
    assert (len(asked), error.value.status, error.value.code) == (Retries().attempts, 503, "overloaded")
    client, asked, _ = answering(*[httpx.ConnectError("refused")] * 9)
    with client, pytest.raises(UnavailableError, match="ConnectError"):
        client.recommend("u")
    assert len(asked) == Retries().attempts
    assert isinstance(error.value, PalateError)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500])
def test_what_cannot_help_is_not_repeated(status: int) -> None:
    client, asked, waits = answering(problem(status, "x"), GOOD)
    with client, pytest.raises(PalateError):
        client.add_events([Event("u", "a")])
    assert (len(asked), waits) == (1, [])


def test_what_may_have_happened_is_not_repeated_if_that_does_harm() -> None:
    client, asked, _ = answering(httpx.ReadError("lost"), httpx.Response(201, json={}))
    with client, pytest.raises(UnavailableError, match="whether it acted is unknown"):
        client.add_key("client", "x")
    assert len(asked) == 1
    made = {"key_id": "1", "role": "client", "name": "x", "created_at": 1.0, "revoked_at": None, "key": "s", "new": 1}
    client, asked, _ = answering(
        httpx.ConnectError("refused"), problem(503, "store_unavailable"), httpx.Response(201, json=made)
    )
    with client:
        assert client.add_key("client", "x")[1] == "s"
    assert len(asked) == 3


def test_a_failure_of_the_service_names_its_id() -> None:
    body = {"code": "internal", "detail": "Tell them.", "error_id": "abc"}
    client, _, _ = answering(httpx.Response(500, json=body))
    with client, pytest.raises(ServerError, match="abc"):
        client.models()
    client, _, _ = answering(httpx.Response(502, text="<html>proxy</html>"))
    with client, pytest.raises(ServerError, match="is this the address of a Palate service"):
        client.models()


def test_a_lost_answer_stores_an_event_once(server: ServerProcess, admin: Client) -> None:
    """Between client and server something passes the first request on and drops the answer."""
    cuts = iter([True, True, False])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def relay() -> None:
            for cut in cuts:
                inside, _ = listener.accept()
                with inside, socket.create_connection(server.address) as outside:
                    outside.sendall(_whole_message(inside))
                    answer = _whole_message(outside)
                    if not cut:
                        inside.sendall(answer)

        relaying = threading.Thread(target=relay)
        relaying.start()
        with Client(
            f"http://127.0.0.1:{listener.getsockname()[1]}", "client-key", sleep=lambda seconds: None
        ) as client:
            taken = client.add_events([Event("cut-off", "mug"), Event("cut-off", "cup")])
        relaying.join()
    assert (taken.accepted, taken.duplicates) == (0, 2), "the first attempt had been stored"
    assert [event.item_id for event in admin.events_of("cut-off")] == ["mug", "cup"]


def _whole_message(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        more = connection.recv(65536)
        data, body = data + more, body + more
    return data


@pytest.mark.parametrize(
    ("url", "key"), [("127.0.0.1:8000", "k"), ("http://x", ""), ("http://x", "k\n"), ("http://x", "é")]
)
def test_addresses_and_keys_that_cannot_be_used(url: str, key: str) -> None:
    with pytest.raises(ConfigError):
        Client(url, key)


def test_settings_and_calls_that_cannot_be_meant(admin: Client) -> None:
    with pytest.raises(ConfigError):
        Retries(attempts=0)
    with pytest.raises(ConfigError):
        admin.recommend()
    with pytest.raises(ConfigError):
        admin.recommend("u", session=[])


def test_nobody_answers() -> None:
    with Client("http://127.0.0.1:9", "k", retries=Retries(attempts=2, first_wait=0.01)) as client:
        assert not client.ready()
        with pytest.raises(UnavailableError):
            client.models()


def test_the_client_needs_nothing_of_the_service() -> None:
    for path in (ROOT / "src" / "palate" / "client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("palate"):
                allowed = ("palate.client", "palate.errors", "palate.data.event")
                assert node.module.startswith(allowed), f"{path.name}: {node.module}"

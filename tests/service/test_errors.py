"""One shape for every error, and no word of the input in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from memory_service import MemoryService

from palate.errors import ConfigError, DataError, ModelError, StoreError
from palate.service.contract import NotFoundError, OverloadedError, RefusedError
from palate.service.errors import KINDS, MAX_BYTES, Fault, problem_body

Ask = Callable[..., httpx.Response]
SECRET = "s3cr3tword"
DOCS = Path(__file__).parent.parent.parent / "docs" / "service.md"


def check(answer: httpx.Response, code: str) -> dict[str, object]:
    """The shape of RFC 9457, as documented."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert problem["type"] == f"urn:palate:problem:{code}"
    assert problem["status"] == answer.status_code == KINDS[code].status
    assert problem["title"]
    assert problem["detail"]
    assert set(problem) <= {"type", "title", "status", "code", "detail", "errors", "error_id"}
    assert len(answer.content) <= MAX_BYTES
    assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
    return problem


PLANTED = [
    ("GET", f"/{SECRET}", {}, "no_such_route"),
    ("GET", f"/v1/{SECRET}?a={SECRET}", {}, "no_such_route"),
    ("PATCH", "/v1/users", {}, "method_not_allowed"),
    (SECRET.upper(), "/v1/users", {}, "method_not_allowed"),
    ("GET", f"/v1/users?limit={SECRET}&{SECRET}=1", {}, "invalid_request"),
    ("GET", f"/v1/users?after={SECRET}" + "x" * 2000, {}, "invalid_request"),
    ("GET", f"/v1/users/{SECRET}", {}, "not_found"),
    ("GET", f"/v1/users/{SECRET}%00", {}, "invalid_request"),
    ("GET", f"/v1/users/{SECRET}%ff", {}, "invalid_request"),
    ("GET", f"/v1/items/{SECRET}/similar?k={SECRET}", {}, "invalid_request"),
    ("GET", f"/v1/jobs/{SECRET}", {}, "not_found"),
    ("DELETE", f"/v1/keys/{SECRET}", {}, "not_found"),
    ("POST", f"/v1/models/{SECRET}/promote", {"json": {}}, "not_found"),
    ("POST", "/v1/models/m-new/promote", {"json": {SECRET: SECRET}}, "invalid_request"),
    ("POST", "/v1/models/m-new/promote", {"json": {"share": 1}}, "refused"),
    ("POST", "/v1/events", {"content": f'{{"{SECRET}'}, "malformed_json"),
    ("POST", "/v1/events", {"content": f'{{"a": {SECRET}}}'}, "malformed_json"),
    ("POST", "/v1/events", {"content": SECRET, "headers": {"content-type": f"text/{SECRET}"}}, "not_json"),
    ("POST", "/v1/events", {"json": SECRET}, "invalid_request"),
    ("POST", "/v1/events", {"json": {"user_id": [SECRET], "item_id": {SECRET: SECRET}}}, "invalid_request"),
    ("POST", "/v1/events", {"json": {"events": SECRET, SECRET: 1}}, "invalid_request"),
    ("POST", "/v1/events", {"json": {"user_id": "u", "item_id": "i", "weight": SECRET}}, "invalid_request"),
    ("POST", "/v1/events", {"json": {f"{SECRET}{n}": SECRET for n in range(400)}}, "invalid_request"),
    ("POST", "/v1/events", {"json": {"12345678": SECRET}}, "invalid_request"),
    ("POST", "/v1/users", {"json": {"user_id": "u", "attributes": {SECRET: [SECRET]}}}, "invalid_request"),
    ("POST", "/v1/items", {"json": {"item_id": "u", "attributes": {f"{SECRET}\n": 1}}}, "invalid_request"),
    ("POST", "/v1/recommendations", {"json": {"user_id": SECRET, "users": [SECRET]}}, "invalid_request"),
    ("POST", "/v1/recommendations", {"json": {"user_id": "u", "explore": SECRET}}, "invalid_request"),
    ("POST", "/v1/recommendations", {"json": {"user_id": "u", "filter": {"all": [{SECRET: 1}]}}}, "invalid_request"),
    (
        "POST",
        "/v1/recommendations",
        {"json": {"user_id": "u", "filter": {"all": [{"attribute": SECRET, "op": SECRET, "value": [SECRET]}]}}},
        "invalid_request",
    ),
    ("POST", "/v1/predictions", {"json": {"user_id": "u", "items": [SECRET]}}, "not_found"),
    ("POST", "/v1/predictions", {"json": {"user_id": SECRET, "events": []}}, "invalid_request"),
    ("POST", "/v1/predictions", {"json": {"user_id": SECRET, "items": [{SECRET: SECRET}]}}, "invalid_request"),
    ("POST", "/v1/keys", {"json": {"role": SECRET, "name": SECRET}}, "invalid_request"),
]


@pytest.mark.parametrize(("method", "path", "options", "code"), PLANTED)
def test_nothing_that_was_sent_comes_back(
    ask: Ask, method: str, path: str, options: dict[str, object], code: str
) -> None:
    headers = {"x-note": SECRET, "cookie": SECRET, **options.get("headers", {})}
    answer = ask(method, path, **{**options, "headers": headers})
    check(answer, code)
    seen = f"{answer.text} {answer.headers}".lower()
    assert SECRET not in seen
    assert "12345678" not in seen


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_key_nothing_comes_back_either(ask: Ask, method: str) -> None:
    answer = ask(method, f"/v1/{SECRET}?{SECRET}", None, headers={"authorization": f"Bearer {SECRET}"})
    check(answer, "no_key")
    assert SECRET not in f"{answer.text} {answer.headers}".lower()


def test_a_malformed_row_does_not_come_back(ask: Ask) -> None:
    rows = [{"user_id": "u", "item_id": "i"}, {"user_id": SECRET, SECRET: 1}, SECRET, [SECRET], {"user_id": [SECRET]}]
    answer = ask("POST", "/v1/events", json={"events": rows})
    assert answer.status_code == 200
    assert [error["row"] for error in answer.json()["errors"]] == [1, 2, 3, 4]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("x"), "not_found"),
        (RefusedError("a training is at work"), "refused"),
        (OverloadedError("queue"), "overloaded"),
        (StoreError("/srv/palate.db: no space left"), "store_unavailable"),
        (DataError("after: this is no cursor"), "invalid_request"),
        (ConfigError("explore: not with this model"), "invalid_request"),
        (ModelError("/srv/models/x: broken"), "internal"),
        (KeyError("/srv/inner"), "internal"),
    ],
)
def test_errors_from_within(
    ask: Ask, running: MemoryService, caplog: pytest.LogCaptureFixture, error: Exception, code: str
) -> None:
    running.error = error
    answer = ask("GET", "/v1/models")
    problem = check(answer, code)
    assert "/srv" not in answer.text
    assert "Traceback" not in answer.text
    if code in ("refused", "invalid_request"):
        assert problem["detail"] == str(error)
    if code == "internal":
        assert str(problem["error_id"]) in caplog.text
        assert type(error).__name__ in caplog.text
    if code == "store_unavailable":
        assert "no space left" in caplog.text


def test_a_problem_never_outgrows_its_limit() -> None:
    faults = [Fault("events/1/" + "é" * 200, "ü" * 300) for _ in range(50)]
    body = problem_body("invalid_request", "ö" * 5000, faults)
    assert len(body) <= MAX_BYTES
    assert json.loads(body)["errors"], "as many as fit are there"


def test_every_code_is_documented(ask: Ask) -> None:
    page = DOCS.read_text(encoding="utf-8")
    document = ask("GET", "/openapi.json").json()
    schema = document["components"]["schemas"]["Problem"]["properties"]
    assert schema["code"]["enum"] == list(KINDS)
    for code, kind in KINDS.items():
        assert re.search(rf"`{code}` \| {kind.status} ", page), code
        assert f"`{code}` ({kind.status})" in document["info"]["description"]

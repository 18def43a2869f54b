"""Who may call what: every route with every role, and no route without a policy."""

import asyncio
import re
from collections.abc import Callable

import httpx
import pytest
from asking import Asking
from fastapi import FastAPI
from memory_service import MemoryService

from palate.errors import ConfigError
from palate.service.app import App, create_app

ROLES = ["client", "service", "admin"]
# Written by hand: what the code declares must be what was meant.
WANTED = {
    ("GET", "/health/live"): "anyone",
    ("GET", "/health/ready"): "anyone",
    ("GET", "/openapi.json"): "client",
    ("GET", "/docs"): "client",
    ("POST", "/v1/events"): "client",
    ("POST", "/v1/recommendations"): "client",
    ("GET", "/v1/items/{item_id}/similar"): "client",
    ("POST", "/v1/predictions"): "client",
    ("POST", "/v1/users"): "service",
    ("GET", "/v1/users"): "service",
    ("GET", "/v1/users/{user_id}"): "service",
    ("GET", "/v1/users/{user_id}/events"): "service",
    ("DELETE", "/v1/users/{user_id}"): "service",
    ("POST", "/v1/items"): "service",
    ("GET", "/v1/items"): "service",
    ("GET", "/v1/models"): "service",
    ("GET", "/v1/jobs/{job_id}"): "service",
    ("GET", "/v1/metrics"): "service",
    ("POST", "/v1/models/{model_id}/promote"): "admin",
    ("POST", "/v1/models/rollback"): "admin",
    ("POST", "/v1/retrain"): "admin",
    ("GET", "/v1/keys"): "admin",
    ("POST", "/v1/keys"): "admin",
    ("DELETE", "/v1/keys/{key_id}"): "admin",
}


def routes_of(app: App) -> set[tuple[str, str]]:
    return {(method, route.path) for route in app.api.routes for method in route.methods}


def test_every_route_has_the_policy_that_was_meant(app: App) -> None:
    assert routes_of(app) == set(WANTED)
    assert app.policies == WANTED


@pytest.mark.parametrize("role", [None, *ROLES])
@pytest.mark.parametrize(("method", "path"), sorted(WANTED), ids=lambda part: part)
def test_the_matrix(ask: Callable[..., httpx.Response], method: str, path: str, role: str | None) -> None:
    policy = WANTED[method, path]
    status = ask(method, re.sub(r"\{\w+\}", "some-id", path), role).status_code
    if policy == "anyone":
        assert status == 200
    elif role is None:
        assert status == 401
    elif ROLES.index(role) < ROLES.index(policy):
        assert status == 403
    else:
        assert status not in (401, 403)
        assert status < 500


def test_a_route_without_a_policy_stops_the_start(running: MemoryService) -> None:
    def extend(api: FastAPI) -> None:
        api.get("/v1/secret")(lambda: "told")

    with pytest.raises(ConfigError, match="GET /v1/secret"):
        create_app(running, extend=extend)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("authorization", "Bearer client-key", 200),
        ("authorization", "bearer  client-key ", 200),
        ("x-api-key", "client-key", 200),
        ("authorization", "Basic client-key", 401),
        ("authorization", "client-key", 401),
        ("authorization", "Bearer", 401),
        ("authorization", "Bearer client-key2", 401),
        ("x-api-key", "", 401),
        ("x-api-key", "k" * 600, 401),
        ("x-api-key", b"client-key\xff", 401),
    ],
)
def test_how_a_key_is_shown(ask: Callable[..., httpx.Response], name: str, value: str | bytes, status: int) -> None:
    answer = ask("POST", "/v1/recommendations", None, json={"user_id": "u"}, headers={name: value})
    assert answer.status_code == status
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)


def test_a_wrong_authorization_is_not_mended_by_the_other_header(ask: Callable[..., httpx.Response]) -> None:
    headers = {"authorization": "Bearer wrong"}
    assert ask("GET", "/v1/models", "admin", headers=headers).status_code == 401


def test_a_revoked_key_opens_nothing(ask: Callable[..., httpx.Response]) -> None:
    made = ask("POST", "/v1/keys", json={"role": "service", "name": "nightly job"})
    assert made.status_code == 201
    key = {"x-api-key": made.json()["key"]}
    assert ask("GET", "/v1/users", None, headers=key).status_code == 200
    assert ask("GET", "/v1/keys", None, headers=key).status_code == 403
    revoked = ask("DELETE", f"/v1/keys/{made.json()['key_id']}")
    assert revoked.json()["revoked_at"] is not None
    assert ask("GET", "/v1/users", None, headers=key).status_code == 401
    listed = ask("GET", "/v1/keys").text
    assert made.json()["key_id"] in listed
    assert made.json()["key"] not in listed


def test_unknown_paths_tell_nothing_without_a_key(ask: Callable[..., httpx.Response]) -> None:
    assert ask("GET", "/nowhere", None).status_code == 401
    assert ask("GET", "/health/live/", None).status_code == 401
    assert ask("GET", "/nowhere", "client").status_code == 404


def test_documents_can_be_opened(running: MemoryService) -> None:
    asking = Asking(create_app(running, open_docs=True))
    for path in ("/docs", "/openapi.json"):
        assert asyncio.run(asking("GET", path, None)).status_code == 200
    assert asyncio.run(asking("GET", "/v1/models", None)).status_code == 401

"""The application: every route on top of a running system, behind the gate."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote_to_bytes

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from palate.service.auth import Policy, require_policies
from palate.service.contract import Running
from palate.service.docs_page import docs_page
from palate.service.errors import Fault, problem, problem_of
from palate.service.figures import Figures
from palate.service.limits import Gate, Limits
from palate.service.openapi import describe
from palate.service.reading import where
from palate.service.routes_admin import add_key_routes, add_model_routes
from palate.service.routes_catalog import add_item_routes, add_person_routes
from palate.service.routes_events import add_event_routes
from palate.service.routes_lists import add_list_routes
from palate.service.routes_server import add_document_routes, add_server_routes
from palate.service.routing import Routes


class App(NamedTuple):
    """What a server runs, and what it is made of."""

    gate: Gate
    """The ASGI application."""
    api: FastAPI
    policies: dict[tuple[str, str], Policy]
    """Who may call each (method, path)."""


def create_app(
    running: Running,
    limits: Limits | None = None,
    *,
    open_docs: bool = False,
    draining: Callable[[], bool] = lambda: False,
    extend: Callable[[FastAPI], None] = lambda api: None,
) -> App:
    """Put the routes on top of a running system.

    Args:
        open_docs: whether the OpenAPI document needs no key.
        draining: whether the server is about to stop; `/health/ready` says so.
        extend: may add to the application before the policies are checked.

    Raises:
        ConfigError: a route has no policy.
    """
    # Nothing of FastAPI's own: its routes would have no policy, and its redirects would answer for unknown paths.
    api = FastAPI(title="Palate", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    figures = Figures()
    routes = Routes(api, figures)
    # The busiest first: routes are tried in order.
    add_event_routes(routes, running)
    add_list_routes(routes, running)
    add_person_routes(routes, running)
    add_item_routes(routes, running)
    add_model_routes(routes, running)
    add_key_routes(routes, running)
    add_server_routes(routes, running, draining, lambda: figures.text(gate.in_flight))

    @cache
    def document() -> dict[str, Any]:
        return describe(api, routes.bodies, version("palate"))

    add_document_routes(
        routes,
        cache(lambda: to_json(document())),
        cache(lambda: docs_page(document()).encode()),
        "anyone" if open_docs else "client",
    )
    extend(api)
    require_policies(
        (
            (method, getattr(route, "path", type(route).__name__))
            for route in api.routes
            for method in sorted(getattr(route, "methods", None) or ("*",))
        ),
        routes.policies,
    )
    api.add_exception_handler(HTTPException, _no_route)
    api.add_exception_handler(RequestValidationError, _bad_parameter)
    api.add_exception_handler(Exception, _unforeseen)
    anyone = frozenset(path for (_, path), policy in routes.policies.items() if policy == "anyone")
    gate = Gate(_keep_encoded(api), running, limits or Limits(), figures, anyone)
    return App(gate, api, routes.policies)


def _keep_encoded(app: ASGIApp) -> ASGIApp:
    """Let routes be matched on the percent-encoded path, in one spelling, so that an id may hold a slash."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"%" in raw:
            scope = {**scope, "path": "/".join(quote(unquote_to_bytes(part), safe="") for part in raw.split(b"/"))}
        await app(scope, receive, send)

    return call


async def _no_route(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    code = {404: "no_such_route", 405: "method_not_allowed"}.get(refusal.status_code, "bad_http")
    return problem(code, headers=dict(refusal.headers or {}))


async def _bad_parameter(request: Request, error: Exception) -> Response:
    faults = [
        Fault(where(fault["loc"]), fault["msg"].removeprefix("Value error, "))
        for fault in cast(RequestValidationError, error).errors()
    ]
    return problem("invalid_request", None, faults)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return problem_of(error)

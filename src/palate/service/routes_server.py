"""Health, figures and the documentation: how the server itself is."""

from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from palate.service.answers import HealthAnswer, answer
from palate.service.auth import Policy
from palate.service.contract import Running
from palate.service.errors import problem
from palate.service.routing import Routes

_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_PAGE_HEADERS: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def add_server_routes(
    routes: Routes, running: Running, draining: Callable[[], bool], figures: Callable[[], bytes]
) -> None:
    """Add health and figures."""

    async def live(request: Request) -> Response:
        """Say that the process answers."""
        return answer({"status": "ok"})

    async def ready(request: Request) -> Response:
        """Say whether lists can be made; 503 while starting, stopping or without a model or a store."""
        reason = "the server is stopping" if draining() else running.ready()
        return answer({"status": "ok"}) if reason is None else problem("not_ready", f"Not ready: {reason}.")

    async def metrics(request: Request) -> Response:
        """Show the figures in the text format of Prometheus."""
        return Response(running.metrics() + figures(), 200, {"cache-control": "no-store"}, _METRICS)

    routes.add("GET", "/health/live", "anyone", live, answer=HealthAnswer, tag="server")
    routes.add("GET", "/health/ready", "anyone", ready, answer=HealthAnswer, tag="server", problems=("not_ready",))
    routes.add("GET", "/v1/metrics", "service", metrics, answer="text/plain", tag="server")


def add_document_routes(
    routes: Routes, document: Callable[[], bytes], page: Callable[[], bytes], policy: Policy
) -> None:
    """Add the OpenAPI document and its page."""

    async def openapi(request: Request) -> Response:
        """Show this document."""
        return Response(document(), 200, media_type="application/json")

    async def docs(request: Request) -> Response:
        """Show this document as a page."""
        return Response(page(), 200, _PAGE_HEADERS, "text/html; charset=utf-8")

    routes.add("GET", "/openapi.json", policy, openapi, answer="application/json", tag="server")
    routes.add("GET", "/docs", policy, docs, answer="text/html", tag="server")

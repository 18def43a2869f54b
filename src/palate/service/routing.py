"""How a route is declared: method, path, who may call it, what goes in and what comes out, all in one place.

FastAPI finds the route and checks parameters of path and query. Bodies are read by `reading.py` and answers written by
`answers.py`; what the OpenAPI document says of them comes from the same declaration.
"""

import time
from collections.abc import Sequence
from functools import wraps
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from palate.service.auth import Endpoint, Policy, guarded
from palate.service.errors import KINDS, MEDIA_TYPE, problem_of
from palate.service.figures import Figures
from palate.service.schemas import PRINTABLE, Id

_ALWAYS: Final = ("no_key", "not_allowed", "too_many_requests", "internal", "overloaded", "store_unavailable")
_WITH_BODY: Final = ("malformed_json", "too_slow", "too_large", "not_json", "invalid_request")


def _decoded(value: str) -> str:
    return unquote(value, errors="strict")


# Paths are matched while percent-encoded (see app.py), so that an id may hold a slash.
# FastAPI documents only what `Path` itself says.
PathId = Annotated[
    str,
    BeforeValidator(_decoded),
    *Id.__metadata__,
    Path(description="percent-encoded", json_schema_extra={"pattern": PRINTABLE}),
]
After = Annotated[
    str | None, Query(min_length=1, max_length=1024, description="`next` of the page before; none: from the start")
]
Limit = Annotated[int, Query(ge=1, le=1000, description="rows of a page")]


class Routes:
    """Adds routes to an application; none without a policy."""

    def __init__(self, api: FastAPI, figures: Figures) -> None:
        self._api, self._figures = api, figures
        self.policies: dict[tuple[str, str], Policy] = {}
        """Who may call each (method, path)."""
        self.bodies: set[type] = set()
        """What pydantic reads as bodies, for the document."""

    def add(
        self,
        method: str,
        path: str,
        policy: Policy,
        endpoint: Endpoint,
        *,
        answer: type[BaseModel] | Any,
        tag: str,
        body: Sequence[type] = (),
        body_required: bool = True,
        status: int = 200,
        problems: Sequence[str] = (),
    ) -> None:
        """Declare one route; its docstring is the documentation.

        Args:
            policy: the lowest role that may call it, or "anyone".
            answer: the model of a good answer, or a media type where it is no JSON.
            body: types of pydantic of which the body is one; none: the route reads no body.
            problems: codes of `errors.KINDS` beside those that every such route may answer.
        """
        self.policies[method, path] = policy
        self.bodies.update(body)
        summary, _, description = (endpoint.__doc__ or "").strip().partition("\n")
        codes = (*problems, *(_WITH_BODY if body else ()), *(_ALWAYS if policy != "anyone" else ()))
        self._api.add_api_route(
            path,
            self._counted(guarded(endpoint, policy), f"{method} {path}"),
            methods=[method],
            status_code=status,
            summary=summary.rstrip("."),
            description=f"{' '.join(description.split())}\n\nRole: **{policy}**.".strip(),
            operation_id=endpoint.__name__,
            tags=[tag],
            response_class=Response,
            response_model=None,
            responses={**_good(status, answer), **_bad(codes)},
            openapi_extra=_extra(body, body_required, policy),
        )

    def _counted(self, endpoint: Endpoint, route: str) -> Endpoint:
        @wraps(endpoint)
        async def call(request: Request, **parameters: Any) -> Response:
            start = time.perf_counter()
            try:
                response = await endpoint(request=request, **parameters)
            except Exception as error:
                response = problem_of(error)
            self._figures.answered(route, response.status_code, time.perf_counter() - start)
            return response

        return call


def _good(status: int, answer: Any) -> dict[int | str, dict[str, Any]]:
    if isinstance(answer, str):
        return {status: {"description": "Success", "content": {answer: {"schema": {"type": "string"}}}}}
    said = answer.__doc__ if isinstance(answer, type) else None
    return {status: {"description": said or "Success", "model": answer}}


def _bad(codes: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    """Problems by status; several codes may share one."""
    shared: dict[int, list[str]] = {}
    for code in codes:
        shared.setdefault(KINDS[code].status, []).append(code)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(f"`{code}`: {KINDS[code].title}" for code in group),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status, group in sorted(shared.items())
    }


def _extra(body: Sequence[type], required: bool, policy: Policy) -> dict[str, Any]:
    extra: dict[str, Any] = {"security": [{"bearer": []}, {"header": []}] if policy != "anyone" else []}
    if body:
        choices = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in body]
        schema = choices[0] if len(choices) == 1 else {"oneOf": choices}
        extra["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return extra

"""The OpenAPI 3.1 document: FastAPI's of the routes, with the bodies, the one shape of errors and the keys added."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from palate.service.auth import ROLES
from palate.service.errors import KINDS

_INTRO = """\
Events in, lists out. An event that was acknowledged is durable, and the same person's next list reads it.

**Keys.** Send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Each role may do what those before it may:

{roles}

**Errors** have one shape, `application/problem+json` of RFC 9457, and never repeat what was sent. `code` and `type`
(`urn:palate:problem:CODE`) never change their meaning:

{codes}

**Retries.** After 429 and 503 wait as long as `Retry-After` says. Events with an `event_id` may be sent any number of
times. Ids in paths are percent-encoded, a slash too (`%2F`).
"""


def describe(api: FastAPI, bodies: Iterable[type], version: str) -> dict[str, Any]:
    """The document of an application whose routes are complete."""
    roles = "\n".join(f"- `{role}` {what}" for role, what in ROLES.items())
    codes = "\n".join(f"- `{code}` ({kind.status}): {kind.title}. {kind.cure}" for code, kind in KINDS.items())
    document = get_openapi(
        title="Palate",
        version=version,
        openapi_version="3.1.0",
        description=_INTRO.format(roles=roles, codes=codes),
        routes=api.routes,
        tags=[{"name": name} for name in ("lists", "events", "people", "items", "models", "keys", "server")],
    )
    ordered = sorted(bodies, key=lambda body: body.__name__)
    _, schemas = TypeAdapter.json_schemas(
        [(body.__name__, "validation", TypeAdapter(body)) for body in ordered],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas.get("$defs", {}))
    components["schemas"]["Problem"] = _problem_schema()
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return document


def _problem_schema() -> dict[str, Any]:
    text = {"type": "string"}
    fault = {
        "type": "object",
        "required": ["where", "message"],
        "properties": {
            "where": {**text, "description": "path of the field, such as `events/3/weight`; a name of yours is `*`"},
            "message": text,
        },
    }
    return {
        "type": "object",
        "description": "What went wrong, at most 2 KB.",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": {**text, "enum": [f"urn:palate:problem:{code}" for code in KINDS]},
            "title": text,
            "status": {"type": "integer"},
            "code": {**text, "enum": list(KINDS)},
            "detail": {**text, "description": "what to do"},
            "errors": {"type": "array", "items": fault, "description": "fields that are wrong, the first few"},
            "error_id": {**text, "description": "of an `internal` error: the log holds it"},
        },
        "additionalProperties": False,
    }

"""Errors as answers: one shape for all, RFC 9457's `application/problem+json`, at most 2 KB, no word of the input.

    {"type": "urn:palate:problem:not_found", "title": "…", "status": 404, "code": "not_found", "detail": "…"}

`errors` is there too where fields of the request are wrong, `error_id` where the server is: the log holds that id.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pydantic_core import to_json
from starlette.responses import Response

from palate.errors import ConfigError, DataError, PalateError, StoreError
from palate.service.contract import NotFoundError, OverloadedError, RefusedError

MEDIA_TYPE: Final = "application/problem+json"
MAX_BYTES: Final = 2048
RETRY_SECONDS: Final = "1"
_MAX_DETAIL: Final = 400
_MAX_FAULTS: Final = 10

_log = logging.getLogger("palate.service")


class Kind(NamedTuple):
    """One kind of problem: what `type` and `code` stand for. Once published, neither changes."""

    status: int
    title: str
    cure: str
    """What the caller can do; the `detail` where nothing more exact is known."""


KINDS: Final[Mapping[str, Kind]] = {
    "bad_http": Kind(400, "Not HTTP", "Send a well-formed HTTP/1.1 request."),
    "malformed_json": Kind(400, "Not JSON", "Send one JSON object in UTF-8, without NaN or Infinity."),
    "no_key": Kind(
        401, "No valid API key", "Send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`; it may be revoked."
    ),
    "not_allowed": Kind(403, "The key's role may not do this", "Use a key of the role that the documentation names."),
    "no_such_route": Kind(404, "No such route", "See the documentation for the routes; ids are percent-encoded."),
    "not_found": Kind(404, "Nothing of this id is known", "Check the id, and that it is percent-encoded in the path."),
    "method_not_allowed": Kind(405, "The route has no such method", "Use a method of the `Allow` header."),
    "too_slow": Kind(408, "The request took too long to arrive", "Send the whole body without pause."),
    "refused": Kind(409, "It contradicts how things stand", "Look at the present state, then decide again."),
    "too_large": Kind(413, "The body is too large", "Send less at once: split the batch."),
    "not_json": Kind(415, "The body is of another type", "Send JSON with `Content-Type: application/json`."),
    "invalid_request": Kind(422, "The request breaks a rule", "Compare the request with the documentation."),
    "too_many_requests": Kind(429, "The key asks too often", "Wait as long as `Retry-After` says."),
    "headers_too_large": Kind(431, "The headers are too large", "Send fewer or shorter headers."),
    "internal": Kind(500, "The server failed", "Tell whoever runs the server the `error_id`: the log holds it."),
    "overloaded": Kind(503, "The server has too much to do", "Send the same request again after `Retry-After`."),
    "store_unavailable": Kind(
        503, "The store cannot be read or written now", "Send the same request again after `Retry-After`."
    ),
    "not_ready": Kind(503, "Lists cannot be made now", "Ask again after `Retry-After`."),
}


class Fault(NamedTuple):
    """What is wrong with one field of a request."""

    where: str
    """Path from the outside in, such as `events/3/weight`; names that the caller made up are `*`."""
    message: str


class InvalidRequestError(PalateError):
    """The form of a request is wrong; `code` is of `KINDS`."""

    def __init__(self, code: str, detail: str | None = None, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail or KINDS[code].cure)
        self.code = code
        self.detail = detail
        self.faults = tuple(faults)


def problem_body(
    code: str, detail: str | None = None, faults: Sequence[Fault] = (), *, error_id: str | None = None
) -> bytes:
    """The JSON of a problem, at most `MAX_BYTES` long: faults that do not fit are left out, the last first."""
    kind = KINDS[code]
    shown = [fault._asdict() for fault in faults[:_MAX_FAULTS]]
    problem: dict[str, object] = {
        "type": f"urn:palate:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "code": code,
        "detail": _one_line(detail or kind.cure),
    }
    if error_id is not None:
        problem["error_id"] = error_id
    while True:
        if shown:
            problem["errors"] = shown
        body = to_json(problem)
        if len(body) <= MAX_BYTES or not shown:
            return body
        shown = shown[:-1]
        problem.pop("errors")


def problem(
    code: str,
    detail: str | None = None,
    faults: Sequence[Fault] = (),
    *,
    error_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response; what may be tried again carries `Retry-After`."""
    kind = KINDS[code]
    extra = {"cache-control": "no-store", **(headers or {})}
    if kind.status in (429, 503):
        extra.setdefault("retry-after", RETRY_SECONDS)
    body = problem_body(code, detail, faults, error_id=error_id)
    return Response(body, kind.status, extra, MEDIA_TYPE)


def problem_of(error: Exception) -> Response:
    """What an error becomes for the caller; one that nobody foresaw becomes an id, and the log gets the rest."""
    match error:
        case InvalidRequestError():
            return problem(error.code, error.detail, error.faults)
        case NotFoundError():
            return problem("not_found")
        case RefusedError():
            return problem("refused", str(error))
        case OverloadedError():
            return problem("overloaded")
        case StoreError():
            # The message names files and hosts of the server: for the log, not for the caller.
            _log.error("store: %s", error)
            return problem("store_unavailable")
        case DataError() | ConfigError():
            return problem("invalid_request", str(error))
        case _:
            error_id = uuid.uuid4().hex
            _log.error("error %s", error_id, exc_info=error)
            return problem("internal", error_id=error_id)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "…"

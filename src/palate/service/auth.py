"""Who may call what: three roles, each may do all that the one before may, and a declared policy for every route.

A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Without one, only routes for "anyone" answer.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final, Literal, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from palate.errors import ConfigError
from palate.service.contract import Running
from palate.service.errors import problem

Role = Literal["client", "service", "admin"]
Policy = Literal["anyone", "client", "service", "admin"]
Endpoint = Callable[..., Awaitable[Response]]

ROLES: Final[Mapping[Role, str]] = {
    "client": "sends events and asks for lists: what a shop's web server needs",
    "service": "also writes people and items, reads what is stored, erases people",
    "admin": "also trains, promotes and rolls back models, and manages keys",
}
_RANK: Final[Mapping[Policy, int]] = {"anyone": 0, "client": 1, "service": 2, "admin": 3}
_MAX_KEY: Final = 512


class Caller(NamedTuple):
    """Whose key a request carries."""

    key_id: str
    role: Role


def identify(headers: Iterable[tuple[bytes, bytes]], running: Running) -> Caller | None:
    """The caller, or None without a valid key; `Authorization` counts before `X-API-Key`."""
    authorization = plain = None
    for name, value in headers:
        if name == b"authorization":
            authorization = value
        elif name == b"x-api-key":
            plain = value
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    else:
        key = plain or b""
    key = key.strip()
    if not key or len(key) > _MAX_KEY or not key.isascii():
        return None
    found = running.role_of(key.decode("ascii"))
    return None if found is None else Caller(*found)


def guarded(endpoint: Endpoint, policy: Policy) -> Endpoint:
    """The endpoint behind its policy; it is called only for a role that may."""
    needed = _RANK[policy]
    if needed == 0:
        return endpoint

    @wraps(endpoint)
    async def call(request: Request, **parameters: Any) -> Response:
        caller: Caller | None = request.scope.get("palate.caller")
        if caller is None:
            return problem("no_key", headers={"www-authenticate": "Bearer"})
        if _RANK[caller.role] < needed:
            return problem("not_allowed", f"This needs a key of the role {policy}.")
        return await endpoint(request=request, **parameters)

    return call


def require_policies(routes: Iterable[tuple[str, str]], policies: Mapping[tuple[str, str], Policy]) -> None:
    """Check that every (method, path) has a policy.

    Raises:
        ConfigError: naming the routes that have none.
    """
    bare = [f"{method} {path}" for method, path in routes if (method, path) not in policies]
    if bare:
        raise ConfigError(
            f"routes without a policy: {', '.join(bare)}; add them through Routes.add, which asks for one"
        )

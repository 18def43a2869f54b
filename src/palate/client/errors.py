"""What can go wrong between a client and the service."""

from collections.abc import Mapping
from typing import Final

import httpx

from palate.errors import PalateError


class ClientError(PalateError):
    """The service did not do what was asked; `code` and `status` are those of its answer, if there was one."""

    def __init__(self, message: str, code: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class KeyRefusedError(ClientError):
    """The key is missing, revoked, or of a role that may not do this."""


class InvalidRequestError(ClientError):
    """The request breaks a rule; the message says where."""


class UnknownIdError(ClientError):
    """Nothing of this id is known to the service."""


class RefusedError(ClientError):
    """It contradicts how things stand, such as promoting the model that is served."""


class UnavailableError(ClientError):
    """No answer, or the service was too busy, for as long as the client was willing to try."""


class ServerError(ClientError):
    """The service failed; the message names the id under which its log says why."""


_KINDS: Final[Mapping[int, type[ClientError]]] = {
    401: KeyRefusedError,
    403: KeyRefusedError,
    404: UnknownIdError,
    409: RefusedError,
    408: UnavailableError,
    429: UnavailableError,
    503: UnavailableError,
}


def error_of(response: httpx.Response) -> ClientError:
    """The error that an answer stands for."""
    status = response.status_code
    try:
        problem = response.json()
        code, detail = str(problem["code"]), str(problem["detail"])
        faults = [f"{each['where']}: {each['message']}".removeprefix(": ") for each in problem.get("errors", ())]
    except (ValueError, KeyError, TypeError):
        # Not the service's own: something in between answered.
        code, detail, faults, problem = "", f"HTTP status {status}; is this the address of a Palate service?", [], {}
    if "error_id" in problem:
        detail = f"{detail} (error_id {problem['error_id']})"
    kind = _KINDS.get(status, InvalidRequestError if status < 500 else ServerError)
    return kind("; ".join([detail, *faults]), code, status)

"""Requests that are repeated where that helps and does no harm."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from palate.client.errors import UnavailableError, error_of
from palate.errors import ConfigError


@dataclass(frozen=True)
class Retries:
    """How long a client keeps trying."""

    attempts: int = 5
    """Of one request, the first included."""
    first_wait: float = 0.1
    """Seconds before the second attempt, drawn between half and all of it; twice as long before each further one."""
    longest_wait: float = 5.0
    """No wait is longer, whatever the service asks for."""
    timeout: float = 10.0
    """Seconds that one attempt may take."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or not min(self.first_wait, self.longest_wait, self.timeout) > 0:
            raise ConfigError("retries: attempts must be at least 1, and every time above 0")


class Sender:
    """Sends over one HTTP client: after 429, 503 and lost connections again, with longer and longer waits."""

    def __init__(
        self, http: httpx.Client, retries: Retries, sleep: Callable[[float], None], rng: random.Random
    ) -> None:
        self._http, self._retries, self._sleep, self._rng = http, retries, sleep, rng

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        parameters: Mapping[str, Any] | None = None,
        again: bool = True,
    ) -> httpx.Response:
        """Send, and send again where that helps.

        Args:
            again: whether a second request does no harm if the first was acted upon and only its answer was lost.

        Raises:
            ClientError: the service refuses, or does not answer.
        """
        wait = self._retries.first_wait
        for attempt in range(1, self._retries.attempts + 1):
            last = attempt == self._retries.attempts
            try:
                response = self._http.request(method, path, json=body, params=parameters)
            except httpx.TransportError as error:
                # An attempt that never reached the service may always be repeated.
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if last or not (again or unsent):
                    unsure = "" if again or unsent else "; whether it acted is unknown, so look before you repeat it"
                    said = f"no answer from the service ({type(error).__name__}){unsure}"
                    raise UnavailableError(said) from None
                pause = 0.0
            else:
                if response.status_code < 400:
                    return response
                if response.status_code not in (429, 503) or last:
                    raise error_of(response)
                pause = _retry_after(response)
            jittered = wait * self._rng.uniform(0.5, 1.0)
            self._sleep(min(max(jittered, pause), self._retries.longest_wait))
            wait *= 2
        raise AssertionError("the last attempt returns or raises")


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0

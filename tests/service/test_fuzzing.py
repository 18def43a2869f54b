"""3,000 requests made up from the OpenAPI document: no server error, and every answer as documented.

The same for 50,000: `python soak/schemathesis_soak.py`.
"""

import pytest
from fuzzing import Fuzzer
from memory_service import MemoryService

from palate.service.app import create_app

ROUTES = sorted(f"{method} {path}" for method, path in create_app(MemoryService()).policies if path != "/openapi.json")
WITH_BODY = {f"POST /v1/{path}" for path in ("events", "users", "items", "recommendations", "keys")}
WITH_PARAMETERS = {route for route in ROUTES if "{" in route} | {"GET /v1/users", "GET /v1/items"}
# The other routes have one case only. Bodies take the longest to make up.
CASES = {**dict.fromkeys(WITH_BODY, 160), **dict.fromkeys(WITH_PARAMETERS, 250)}


@pytest.fixture(scope="module")
def fuzzer() -> Fuzzer:
    return Fuzzer()


@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_is_as_documented(fuzzer: Fuzzer, route: str) -> None:
    seen = fuzzer.run(route, CASES.get(route, 2))
    assert any(status < 300 or status == 404 for _, status in seen), seen
    if route in CASES:
        assert sum(seen.values()) >= 0.7 * CASES[route]
        assert sum(count for (mode, _), count in seen.items() if mode == "NEGATIVE") > 0.3 * CASES[route]


def test_there_are_enough_cases() -> None:
    assert sum(CASES.values()) >= 3000

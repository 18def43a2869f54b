"""Requests made up from the OpenAPI document, good ones and bad ones, and what must hold of every answer."""

import sys
import traceback
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from memory_service import KEYS, MemoryService
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from palate.service.app import create_app
from palate.service.errors import MAX_BYTES
from palate.service.limits import Limits

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
sys.setrecursionlimit(10_000)
_TOGETHER, _ATTEMPTS = 40, 4
"""Filters hold filters, and schemathesis now and then follows them too far: cases are made up in parts, so that one of
them loses little, and other parts are tried in its place."""
# What is in words only: which value fits which `op` of a filter and how deep filters may be; what a cursor is.
IN_WORDS = {"POST /v1/recommendations", "GET /v1/users/{user_id}/events"}


class Fuzzer:
    """Asks an application over a system in memory, long from now: no time is in the future. State carries over."""

    def __init__(self) -> None:
        app = create_app(MemoryService(clock=lambda: 1e12), Limits(rate=1e9, burst=1e9), open_docs=True)
        config = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
        schema = schemathesis.openapi.from_asgi("/openapi.json", app.gate, config=config)
        self.operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}

    def run(self, label: str, cases: int, seed_number: int = 0) -> Counter[tuple[str, int]]:
        """Ask an operation; how often each (mode, status) came back."""
        seen: Counter[tuple[str, int]] = Counter()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            wanted = (cases + 1) // 2
            for part in range(_ATTEMPTS * (wanted // _TOGETHER + 1)):
                left = wanted - sum(count for (name, _), count in seen.items() if name == mode.name)
                if left <= 0:
                    break
                try:
                    self._run(label, mode, min(left, _TOGETHER), seed_number + 1000 * part, seen)
                except Unsatisfiable:
                    assert mode is GenerationMode.NEGATIVE, "there is nothing to get wrong in a request without parts"
                    break
                except RecursionError as error:
                    if any("palate/service" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
                        raise  # in the application, not in making a case up
        return seen

    def _run(
        self, label: str, mode: GenerationMode, cases: int, seed_number: int, seen: Counter[tuple[str, int]]
    ) -> None:
        @seed(seed_number)
        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=self.operations[label].as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            answer = case.call(headers={"x-api-key": KEYS["admin"]})
            seen[mode.name, answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)
            assert answer.status_code not in (401, 403)
            if answer.status_code >= 400:
                assert len(answer.content) <= MAX_BYTES
            if mode is GenerationMode.POSITIVE and label not in IN_WORDS:
                said = f"the document allows {case.path_parameters} {case.query} {case.body!r}: {answer.text}"
                assert answer.status_code not in (400, 415, 422), said

        ask()

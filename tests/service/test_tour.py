"""The tour of docs/service.md runs as it stands, and what it shows has the shape of what comes back.

A small runner stands in for curl, so that the test needs nothing installed; where curl is there, it runs, too.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import ServerProcess

import palate.client

PAGE = (Path(__file__).parent.parent.parent / "docs" / "service.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
KEY = "admin-key"


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    started = ServerProcess()
    yield started
    started.close()


def commands(block: str) -> list[list[str]]:
    """The commands of a block, split into words as a shell does."""
    joined = re.sub(r"\\\n\s*", " ", block)
    found = [shlex.split(part) for part in re.split(r"(?m)^(?=curl )", joined) if part.strip()]
    assert all(words[0] == "curl" for words in found)
    return found


def ask(words: list[str], url: str) -> httpx.Response:
    """Do what curl does with the few options of the tour; any other one fails the test."""
    method, headers, body, address = None, {}, None, None
    rest = iter(words[1:])
    for word in rest:
        if word == "-s":
            continue
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value.replace("$KEY", KEY)
        elif word == "-d":
            body = next(rest)
        else:
            assert address is None, f"the runner does not know {word}"
            address = word.replace("$URL", url)
    assert address is not None
    return httpx.request(method or ("GET" if body is None else "POST"), address, headers=headers, content=body)


def shape(value: Any) -> Any:
    """Names and kinds of a JSON value, without its figures."""
    match value:
        case dict():
            return {name: shape(part) for name, part in value.items()}
        case list():
            return [shape(part) for part in value]
        case _:
            return "str" if value is None else type(value).__name__  # a text may be missing


def tour() -> list[tuple[str, dict[str, Any] | None]]:
    """Each block of commands, and the answer shown right after it."""
    steps = []
    for number, (language, text) in enumerate(BLOCKS):
        if language == "bash":
            after = BLOCKS[number + 1]
            shown = json.loads(after[1]) if after[0] == "json" else None
            steps.append((text, shown))
    return steps


def run_tour(answer: Callable[[list[str], str], Any]) -> None:
    steps = tour()
    assert len(steps) >= 10
    for block, shown in steps:
        answers = [answer(words, block) for words in commands(block)]
        if shown is not None:
            assert shape(answers[0]) == shape(shown), block


def test_the_tour(server: ServerProcess) -> None:
    def answer(words: list[str], block: str) -> Any:
        answered = ask(words, server.url)
        assert answered.status_code < 300, (block, answered.text)
        is_json = answered.headers["content-type"] == "application/json"
        return answered.json() if is_json else answered.text

    run_tour(answer)


def test_the_tour_with_curl_itself(server: ServerProcess) -> None:
    curl = shutil.which("curl")
    if curl is None:
        return  # the test above has run the same commands

    def answer(words: list[str], block: str) -> Any:
        full = [word.replace("$URL", server.url).replace("$KEY", KEY) for word in [curl, "--fail", *words[1:]]]
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, (block, done.stderr)
        return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

    run_tour(answer)


def test_the_python_example(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(palate, "Client", palate.client.Client, raising=False)
    (example,) = [text for language, text in BLOCKS if language == "python"]
    ask(commands(tour()[1][0])[0], server.url)  # somebody else's events, so that there is something to list
    exec(compile(example, "service.md", "exec"), {"URL": server.url, "KEY": KEY})
    assert capsys.readouterr().out.startswith("1 cup/2")


def test_the_error_that_is_shown_is_the_error(server: ServerProcess) -> None:
    shown = next(json.loads(text) for language, text in BLOCKS if language == "json" and "urn:palate" in text)
    body = {"events": [{"item_id": ""}]}
    answer = httpx.post(f"{server.url}/v1/recommendations", headers={"x-api-key": KEY}, json=body)
    assert answer.json() == shown


def test_the_limits_that_are_named_are_the_limits() -> None:
    from palate.service.limits import Limits

    limits = Limits()
    for said in (
        f"{limits.max_body_bytes:,} bytes, there within {limits.body_seconds:g} s",
        f"{limits.rate:,.0f} requests a second, {limits.burst:,.0f} at once",
        f"{limits.max_in_flight} requests at work",
        f"headers there within {limits.header_seconds:g} s, {limits.max_header_bytes // 1024} KB of them",
        f"{limits.max_connections:,} connections",
    ):
        assert said in PAGE

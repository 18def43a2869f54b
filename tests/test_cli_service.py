"""The service from the command line: serve, ask, back up, restore, train on."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import palate
from palate.cli import app


class Served:
    """A `palate serve` process and how to ask it."""

    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "palate", "serve", "--home", str(home), "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(palate.__file__).parents[1])},
        )
        assert self.process.stdout is not None
        self.key, self.said = "", []
        guard = threading.Timer(120, self.process.kill)
        guard.start()
        for line in self.process.stdout:
            said = json.loads(line)["message"] if line.startswith("{") else line
            self.said.append(said)
            if said.startswith("admin key"):
                self.key = said.split()[-1]
            if said.startswith("serving on"):
                self.url = said.split()[2]
                break
        guard.cancel()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        """Wait for it; its exit code."""
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def run(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, found.output
    return found.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "home"


@pytest.fixture(scope="module")
def served(home: Path, saved_model: Path) -> Iterator[Served]:
    started = Served(home, "--model", str(saved_model))
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.end()


def test_from_the_first_start_to_a_restored_backup(served: Served, home: Path, tmp_path: Path) -> None:
    assert served.key.startswith("palate_"), served.said
    access = ("--url", served.url, "--key", served.key, "--json")
    first = json.loads(run("remote", "recommend", "--user", "visitor", *access))
    assert first["fallback"]
    item = first["items"][0]["item_id"]
    assert json.loads(run("remote", "send", "--user", "visitor", "--item", item, *access))["accepted"] == 1
    second = json.loads(run("remote", "recommend", "--user", "visitor", "-k", "5", *access))
    assert not second["fallback"]
    assert item not in [line["item_id"] for line in second["items"]]
    assert item in run("remote", "user", "visitor", *access)
    assert second["items"][0]["item_id"] in run("remote", "recommend", "--user", "visitor", *access[:-1])

    made = json.loads(run("remote", "keys", "--add", "client", "--name", "shop", *access))
    as_client = ("--url", served.url, "--key", made["key"], "--json")
    assert json.loads(run("remote", "recommend", "--user", "visitor", *as_client))["items"]
    run("remote", "models", *as_client, code=2)
    run("remote", "keys", "--revoke", made["key_id"], *access)
    run("remote", "recommend", "--user", "visitor", *as_client, code=2)
    assert len(json.loads(run("remote", "keys", *access))) == 2
    [model] = json.loads(run("remote", "models", *access))
    assert model["status"] == "served"
    run("remote", "promote", model["model_id"], *access, code=2)
    run("remote", "rollback", *access, code=2)

    file = tmp_path / "backup.tar"
    run("backup", str(file), "--home", str(home), "--json")
    assert json.loads(run("remote", "erase", "visitor", *access))["status"] == "done"
    run("remote", "user", "visitor", *access, code=2)

    assert stat.S_IMODE((home / "signing.key").stat().st_mode) == 0o600
    secret = "".join((home / "signing.key").read_text().splitlines()[1:-1])
    assert secret.encode() not in file.read_bytes()
    assert secret not in " ".join(served.said)

    # A second service in the same home is refused in one line; so is a restore while the first one runs.
    other = Served(home)
    assert other.end() == 2
    assert "another" in " ".join(other.said)
    assert "another" in run("restore", str(file), "--home", str(home), code=2)
    assert served.stop() == 0
    run("restore", str(file), "--home", str(home), "--json")
    again = Served(home)
    try:
        access = ("--url", again.url, "--key", served.key, "--json")
        assert json.loads(run("remote", "recommend", "--user", "visitor", *access))["fallback"]
        run("remote", "user", "visitor", *access, code=2)  # in the backup, and erased since
    finally:
        assert again.stop() == 0

    # Another home: the first time with a key that is made for it, later only where that is asked for.
    other = tmp_path / "other"
    run("restore", str(file), "--home", str(other), "--json")
    moved = Served(other)
    assert moved.stop() == 0, moved.said
    assert (other / "signing.key").read_bytes() != (home / "signing.key").read_bytes()
    said = " ".join(run("restore", str(file), "--home", str(other), code=2).split())
    assert "was not signed with" in said
    assert "palate restore --sign" in said
    run("restore", str(file), "--home", str(other), "--sign", "--json")
    moved = Served(other)
    assert moved.stop() == 0, moved.said


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    assert "no such store" in run("retrain", "--home", str(tmp_path), code=2)
    assert "no such store" in run("backup", str(tmp_path / "x.tar"), "--home", str(tmp_path), code=2)
    assert "x.tar" in run("restore", str(tmp_path / "x.tar"), "--home", str(tmp_path / "new"), code=2)
    assert "PostgreSQL" in run("serve", "--home", str(tmp_path / "new"), "--workers", "2", code=2)
    run("remote", "models", "--url", "http://127.0.0.1:9", "--key", "x", code=2)

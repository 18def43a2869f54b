"""After every act of the API and of the command line a serving process holds its locks and works on no deleted file.

Commands run in this process, which is another than the one that serves, and which must not open the store's files by
itself either: both watch themselves (`store_files.watch`).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import palate
import store_files
from palate.cli import app
from palate.client import Client
from palate.recommend import Recommender
from palate.service.home import Home
from palate.service.opening import prepare, register
from palate.store import Store

_BEGIN = "import store_files; store_files.watch(); from palate.cli import main; main()"


class Place(NamedTuple):
    """A home that is served by a process."""

    home: Home
    process: int
    url: str
    key: str
    models: tuple[str, str]
    """The served one and a candidate."""
    scratch: Path

    def ask(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        headers = {"authorization": f"Bearer {self.key}"}
        found = httpx.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=60)
        assert found.status_code == status, found.text
        return found.json() if found.headers["content-type"].endswith("json") else found.text

    def run(self, *arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(app, list(arguments))
        assert found.exit_code == code, found.output
        return found.output


@pytest.fixture(scope="module")
def place(model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("store-files")
    home = Home(scratch / "home")
    home.make()
    store = Store.open(home.database)
    key = prepare(store, home, lambda: model, None)
    other = replace(model, model_id="f" * 16)
    register(store, home, other, {})
    store.close()
    assert key is not None
    paths = os.pathsep.join([str(Path(palate.__file__).parents[1]), str(Path(store_files.__file__).parent)])
    command = [sys.executable, "-c", _BEGIN, "serve", "--home", str(home.folder), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on"), line
        yield Place(home, process.pid, line.split()[2], key, (model.model_id, other.model_id), scratch)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def erase(place: Place) -> None:
    """Forget someone, and wait until the file was searched for what is left."""
    place.ask("POST", "/v1/events", {"events": [{"user_id": "someone-to-forget", "item_id": "toys-01"}]})
    job = place.ask("DELETE", "/v1/users/someone-to-forget", status=202)
    with Client(place.url, place.key) as client:
        assert client.wait(client.job(job["job_id"]), every=0.05).status == "done"


def train(place: Place) -> None:
    """Let the service train; the process that it starts opens the store and is gone again."""
    job = place.ask("POST", "/v1/retrain", status=202)
    with Client(place.url, place.key) as client:
        assert client.wait(client.job(job["job_id"]), timeout=120).status in ("done", "failed")


def keys(place: Place) -> None:
    made = place.ask("POST", "/v1/keys", {"role": "client", "name": "another"}, 201)
    place.ask("DELETE", f"/v1/keys/{made['key_id']}")


def models(place: Place) -> None:
    place.ask("POST", f"/v1/models/{place.models[1]}/promote", {"share": 1.0})
    place.ask("POST", "/v1/models/rollback")


EVENTS = {"events": [{"user_id": f"user-{number}", "item_id": "toys-02"} for number in range(200)]}
API: dict[str, Callable[[Place], object]] = {
    "send_events": lambda place: place.ask("POST", "/v1/events", EVENTS),
    "recommend": lambda place: place.ask("POST", "/v1/recommendations", {"user_id": "user-001", "k": 5}),
    "similar": lambda place: place.ask("GET", "/v1/items/toys-01/similar"),
    "predict": lambda place: place.ask("POST", "/v1/predictions", {"user_id": "user-001", "items": ["toys-01"]}, 409),
    "send_users": lambda place: place.ask("POST", "/v1/users", {"users": [{"user_id": "x", "attributes": {}}]}),
    "list_users": lambda place: place.ask("GET", "/v1/users"),
    "show_user": lambda place: place.ask("GET", "/v1/users/user-001"),
    "erase_user": erase,
    "list_events": lambda place: place.ask("GET", "/v1/users/user-001/events"),
    "send_items": lambda place: place.ask("POST", "/v1/items", {"items": [{"item_id": "toys-01", "hidden": False}]}),
    "list_items": lambda place: place.ask("GET", "/v1/items"),
    "list_models": lambda place: place.ask("GET", "/v1/models"),
    "roll_back": models,
    "promote_model": models,
    "retrain": train,
    "show_job": erase,
    "list_keys": lambda place: place.ask("GET", "/v1/keys"),
    "make_key": keys,
    "revoke_key": keys,
    "live": lambda place: place.ask("GET", "/health/live"),
    "ready": lambda place: place.ask("GET", "/health/ready"),
    "metrics": lambda place: place.ask("GET", "/v1/metrics"),
    "openapi": lambda place: place.ask("GET", "/openapi.json"),
    "docs": lambda place: place.ask("GET", "/docs"),
}


def restore(place: Place) -> None:
    """Refused while the home is served; taken by another home."""
    file = str(place.scratch / "to-restore.tar")
    place.run("backup", file, "--home", str(place.home.folder))
    assert "another" in place.run("restore", file, "--home", str(place.home.folder), code=2)
    place.run("restore", file, "--home", str(place.scratch / "other-home"))


def serve_twice(place: Place) -> None:
    assert "another" in place.run("serve", "--home", str(place.home.folder), "--port", "0", code=2)


def back_up(place: Place) -> None:
    home = str(place.home.folder)
    place.run("backup", str(place.scratch / "shop.tar"), "--home", home)
    for ending in ("", "-wal", "-shm"):
        said = place.run("backup", f"{home}/palate.db{ending}", "--home", home, code=2)
        assert "this is the store itself" in said
    for name in ("erasures.log", "signing.key"):
        assert "is there and is no backup" in place.run("backup", f"{home}/{name}", "--home", home, code=2)


def off_policy(place: Place) -> None:
    for _ in range(3):
        place.ask("POST", "/v1/recommendations", {"user_id": "user-001", "k": 5, "explore": "thompson"})
    assert "log: " in place.run("off-policy", "--home", str(place.home.folder), code=2)  # they are too young to count


def retrain(place: Place) -> None:
    """Train to the end, or be refused because the newest window is not full: the store is opened and closed."""
    found = CliRunner().invoke(app, ["retrain", "--home", str(place.home.folder)])
    assert found.exit_code in (0, 2), found.output


COMMANDS: dict[str, Callable[[Place], object]] = {
    "serve": serve_twice,
    "retrain": retrain,
    "backup": back_up,
    "restore": restore,
    "live": lambda place: json.loads(place.run("live", "--home", str(place.home.folder), "--json")),
    "off-policy": off_policy,
}


@pytest.mark.parametrize("act", [*API, *COMMANDS])
def test_locks_are_held_and_no_file_is_gone_after(act: str, place: Place) -> None:
    database = place.home.folder / "palate.db"
    assert store_files.faults(place.process, database) == []
    (API | COMMANDS)[act](place)
    assert store_files.faults(place.process, database) == []
    # Another process comes and goes; were the locks lost, it would take the log with it.
    Store.open(place.home.database, create=False).close()
    assert store_files.faults(place.process, database) == []


def test_every_route_and_every_command_on_a_home_is_tried(place: Place) -> None:
    routes = place.ask("GET", "/openapi.json")["paths"].values()
    assert {one["operationId"] for methods in routes for one in methods.values()} == set(API)
    commands = get_command(app).commands.items()  # type: ignore[attr-defined]
    on_a_home = {name for name, one in commands if any(option.name == "home" for option in one.params)}
    assert on_a_home == set(COMMANDS)


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    """The look at /proc finds the fault that it is there for."""
    store = Store.open(f"sqlite:///{tmp_path / 'palate.db'}")
    assert store_files.faults(os.getpid(), tmp_path / "palate.db") == []
    with (tmp_path / "palate.db").open("rb"):
        pass
    assert store_files.faults(os.getpid(), tmp_path / "palate.db") == ["no lock on palate.db"]
    other = "import sys; from palate.store import Store; Store.open(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", other, f"sqlite:///{tmp_path / 'palate.db'}"], check=True)
    assert "works on palate.db-wal" in " ".join(store_files.faults(os.getpid(), tmp_path / "palate.db"))
    store.close()


def test_palate_may_not_open_a_file_of_a_store(tmp_path: Path) -> None:
    from palate.store.file_search import _search

    for name in ("palate.db", "palate.db-wal", "palate.db-shm"):
        (tmp_path / name).touch()
        with pytest.raises(store_files.OpenedError):
            _search(str(tmp_path / name), [b"x"])

"""The running service: serve, retrain, backup and restore a home; and verbs that ask a service over HTTP."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from palate.cli.common import JsonOption, ModelOption, WorkersOption, app, command, find_model
from palate.cli.common import home as default_home
from palate.cli.outputs import check_folder
from palate.client import Client, Event
from palate.config import DataConfig, read_config
from palate.service.home import Home
from palate.service.launch import Launch, launch
from palate.service.retraining import RetrainConfig, retrain
from palate.service.server import ServerSettings
from palate.service.system import SystemConfig
from palate.service.trainer import RetrainPolicy
from palate.service.trends import TrendConfig
from palate.store import Store
from palate.store.backup import back_up
from palate.store.restore import restore as put_back

remote = typer.Typer(
    no_args_is_help=True, help="Ask a running service, with --url and --key or $PALATE_URL and $PALATE_KEY."
)
app.add_typer(remote, name="remote")
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the service. Default: $PALATE_HOME/service, or ~/.palate/service."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="PALATE_STORE",
        help="postgresql://user:password@host/database. Default: palate.db (SQLite) in the home. In $PALATE_STORE a "
        "password is not seen by others on the machine.",
    ),
]
UrlOption = Annotated[str, typer.Option("--url", envvar="PALATE_URL", help="Address of the service.")]
KeyOption = Annotated[str, typer.Option("--key", envvar="PALATE_KEY", help="API key.")]
_URL = "http://127.0.0.1:8000"


@command("serve")
def serve(
    model: ModelOption = None,
    home: HomeOption = None,
    store: StoreOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Config whose [data] is taken in at the first start. Default: what the model was trained on."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer; more than one needs PostgreSQL.")] = 1,
    open_docs: Annotated[
        bool, typer.Option("--open-docs", help="Let /docs and /openapi.json be read without key.")
    ] = False,
    retrain_events: Annotated[
        int, typer.Option(min=0, help="Train on after so many new events; 0: not by events.")
    ] = 0,
    retrain_hours: Annotated[float, typer.Option(min=0, help="Train on after so many hours; 0: not by time.")] = 0.0,
    retrain_drift: Annotated[
        float, typer.Option(min=0, help="Train on when the stability index of choices is above this; 0: not by drift.")
    ] = 0.0,
    canary: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the people whom such a model serves at first; 0: all.")
    ] = 0.0,
    conversion: Annotated[
        list[str] | None,
        typer.Option(help="Type of event that monitors count as a conversion; several times. Default: purchase."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message as a JSON value.")] = False,
) -> None:
    """Serve a model over HTTP: events in, lists out, taste learned at once.

    The first start makes the home, takes the data in and prints one admin key.
    """
    # Warnings of what happens in the background; no log of requests, which would keep the ids of erased people.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    place = _home(home)
    chosen = DataConfig() if data is None else read_config(data).data
    launch(
        Launch(
            place,
            store or place.database,
            ServerSettings(host=host, port=port, open_docs=open_docs),
            SystemConfig(trends=TrendConfig(conversions=tuple(conversion)) if conversion else TrendConfig()),
            retrain=RetrainPolicy(retrain_events, retrain_hours, retrain_drift, canary=canary),
            workers=workers,
        ),
        lambda: find_model(model),
        None if data is None else _absolute(chosen, data.parent),
        say=lambda line: print(json.dumps({"message": line}) if as_json else line, flush=True),
    )


@command("retrain")
def retrain_model(
    home: HomeOption = None,
    store: StoreOption = None,
    canary: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the people whom a good candidate serves at first; 0: all.")
    ] = 0.0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the served model on with all events, judge the result on the newest ones, serve it if it is as good.

    A running service follows by itself. A run that is stopped goes on where it was.
    """
    place = _home(home)
    opened = Store.open(store or place.database, create=False)
    for folder in (place.work, place.models):
        check_folder(folder, "--home")
    try:
        outcome = retrain(
            opened,
            place,
            RetrainConfig(canary, workers or 1),
            say=lambda line: None if as_json else print(line, flush=True),
        )
    finally:
        opened.close()
    if as_json:
        print(json.dumps({"model_id": outcome.model_id, **outcome.decision.to_dict()}))


@command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="The .tar file to write.")],
    home: HomeOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the store and its models into one file, while the service runs."""
    place = _home(home)
    opened = Store.open(store or place.database, create=False)
    try:
        _say(back_up(opened, place.models, file, time.time()), as_json)
    finally:
        opened.close()


@command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `palate backup` wrote.")],
    home: HomeOption = None,
    store: StoreOption = None,
    sign: Annotated[
        bool, typer.Option("--sign", help="Sign its models with this home's key: those of another home, or unsigned.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of what a store holds; people erased since are erased again.

    A home without a signing key gets one, and it signs the models of the backup.
    """
    place = _home(home)
    place.make()
    url = store or place.database
    with place.locked(url):
        done = put_back(file, url, place.models, place.erasures, place.signing_key, sign=sign)
        _say(done, as_json)


@command("send", remote)
def remote_send(
    user: Annotated[str, typer.Option(help="Whose event.")],
    item: Annotated[str, typer.Option(help="Of which item.")],
    kind: Annotated[str, typer.Option(help="purchase, click, cancel, …")] = "purchase",
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send one event."""
    with Client(url, key) as client:
        _say(client.add_events([Event(user, item, kind)]), as_json)


@command("recommend", remote)
def remote_recommend(
    user: Annotated[str, typer.Option(help="For whom.")],
    k: Annotated[int, typer.Option("-k", min=1, max=500, help="Length of the list.")] = 10,
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print someone's list."""
    with Client(url, key) as client:
        found = client.recommend(user, k=k)
    if as_json:
        _say(found, True)
        return
    for line in found.items:
        print(f"{line.rank:>3}  {line.item_id:<16} {line.title:<40} {line.score:8.3f}  {line.reason}")


@command("user", remote)
def remote_user(
    user: Annotated[str, typer.Argument(help="Whom.")],
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print what is known of someone and how it was learned."""
    with Client(url, key) as client:
        _say(client.person(user), as_json)


@command("erase", remote)
def remote_erase(
    user: Annotated[str, typer.Argument(help="Whom to forget.")],
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Forget someone, and wait until the files are clean."""
    with Client(url, key) as client:
        _say(client.wait(client.erase(user)), as_json)


@command("models", remote)
def remote_models(url: UrlOption = _URL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """List the models of the registry."""
    with Client(url, key) as client:
        _say(client.models(), as_json)


@command("promote", remote)
def remote_promote(
    model_id: Annotated[str, typer.Argument(help="Which model.")],
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the people; below 1, a canary.")] = 1.0,
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Serve another model."""
    with Client(url, key) as client:
        _say(client.promote(model_id, share), as_json)


@command("rollback", remote)
def remote_rollback(url: UrlOption = _URL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """End the canary, or serve the previous model again."""
    with Client(url, key) as client:
        _say(client.rollback(), as_json)


@command("keys", remote)
def remote_keys(
    add: Annotated[Literal["client", "service", "admin"] | None, typer.Option(help="Make a key of this role.")] = None,
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "unnamed",
    revoke: Annotated[str | None, typer.Option(help="End the key of this id.")] = None,
    url: UrlOption = _URL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the keys, make one (its secret is shown once), or end one."""
    with Client(url, key) as client:
        if add is not None:
            made, secret = client.add_key(add, name)
            _say({**made._asdict(), "key": secret}, as_json)
        elif revoke is not None:
            _say(client.revoke_key(revoke), as_json)
        else:
            _say(client.keys(), as_json)


def _home(folder: Path | None) -> Home:
    return Home(folder or default_home() / "service")


def _absolute(data: DataConfig, base: Path) -> DataConfig:
    names = {name: getattr(data, name) for name in ("interactions", "items", "users")}
    return DataConfig(
        data.bundled,
        **{name: None if value is None else str(base / value) for name, value in names.items()},
        columns=data.columns,
    )


def _say(value: Any, as_json: bool) -> None:
    """A result as JSON, or as lines of name and value."""
    plain = _plain(value)
    if as_json:
        print(json.dumps(plain))
        return
    for row in plain if isinstance(plain, list) else [plain]:
        Console().print("  ".join(f"[dim]{name}[/] {shown}" for name, shown in row.items()), highlight=False)


def _plain(value: Any) -> Any:
    """Named tuples and data classes as dictionaries."""
    as_dict = getattr(value, "_asdict", None)
    if as_dict is not None:
        return {name: _plain(part) for name, part in as_dict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in asdict(value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value

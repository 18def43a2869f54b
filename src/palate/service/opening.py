"""From a home to a running system: the store at its newest schema, the first model and key, the shelves.

The registry's model folders hold no people: what is known of them is in the store alone, where it can be erased. They
are signed with the home's key, and none is opened that is not.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from palate.config import DataConfig
from palate.data.files import write_atomically
from palate.errors import ModelError, StoreError
from palate.recommend import Recommender
from palate.recommend.signing import MANIFEST, SIGNATURE, keep, make_key, pending, read_key
from palate.service.home import Home
from palate.service.intake import take_in, take_in_model
from palate.service.keyring import new_key
from palate.service.models import plain, warmed
from palate.service.serving import Variants
from palate.service.shelf import Item, Shelf, exchanged, make_shelf
from palate.service.system import System, SystemConfig
from palate.service.trainer import RetrainPolicy, Trainer
from palate.store import Store, events, items, keys, registry

Say = Callable[[str], None]


def prepare(
    store: Store, home: Home, model: Callable[[], Recommender], data: DataConfig | None, say: Say = lambda line: None
) -> str | None:
    """Bring a store to where it can be served; on one that is, nothing happens.

    Args:
        store: at the newest schema.
        home: where the registry's folders are.
        model: gives the first model; called only where none is served yet.
        data: what to take in at first, unless there are events already; None: the data that the model was trained on,
            if its config names it, else what the model folder itself knows.
        say: takes lines about the progress.

    Returns:
        The first key, an admin's, if there was none: it is not stored and cannot be shown again.

    Raises:
        ModelError: the model cannot be read or written.
        DataError, ConfigError: the data cannot be read.
        StoreError: the store cannot be written.
    """
    sign_earlier_models(store, home, say)
    with store.read() as connection:
        pointers = registry.current(connection)
    if pointers.served is None:
        first = model()
        chosen = data if data is not None else first.config.data
        with store.read() as connection:
            empty = events.count(connection) == 0
        if empty and chosen.bundled is None and chosen.interactions is None:
            take_in_model(store, first, time.time(), say)
        elif empty:
            take_in(store, chosen.open(), time.time(), say)
        register(store, home, first, {})
        with store.write() as connection:
            registry.promote(connection, first.model_id, time.time())
        say(f"model {first.model_id} is served")
    with store.write() as connection:
        if keys.read_all(connection):
            return None
        key, secret = new_key("admin", "first key", time.time())
        keys.add(connection, key)
        return secret


def register(store: Store, home: Home, model: Recommender, report: Mapping[str, object]) -> Path:
    """Write a model's folder, without people, sign it, verify it and enter it into the registry as a candidate.

    Raises:
        ModelError: the folder cannot be written, or does not read back.
    """
    folder = home.models / model.model_id
    key = make_key(home.signing_key)
    model.without_people().save(folder, key)
    Recommender.load(folder, key.public_key())
    manifest = _manifest_of(folder)
    with store.write() as connection:
        registry.add(
            connection,
            registry.Model(
                model.model_id, folder.name, "candidate", time.time(), model.trained_until, dict(report), manifest
            ),
        )
    return folder


def load_model(store: Store, home: Home, model_id: str) -> Recommender:
    """Open a model of the registry.

    Raises:
        ModelError: the folder is missing, is not signed with the home's key, or is not the one that was registered.
    """
    with store.read() as connection:
        entry = registry.read(connection, model_id)
    if entry is None:
        raise ModelError(f"model {model_id}: not in the registry")
    folder = home.models / entry.folder
    model = Recommender.load(folder, read_key(home.signing_key).public_key())
    if _manifest_of(folder) != entry.sha256:
        raise ModelError(f"{folder}: not the folder that was registered (SHA-256 of its manifest); restore it")
    return model


def sign_earlier_models(store: Store, home: Home, say: Say = lambda line: None) -> None:
    """Give a key to a home from before there were signatures, and sign the models that are as they were registered.

    Nothing happens in a home that has a key, or where any model is signed already: there a key was lost, or is in the
    home of another machine. A run that is killed is taken up with the same key.

    Raises:
        ModelError: a signature or the key cannot be written.
    """
    new = pending(home.signing_key)
    with store.read() as connection:
        folders = {home.models / entry.folder: entry.sha256 for entry in registry.read_all(connection)}
    unsigned = [folder for folder in folders if (folder / MANIFEST).exists() and not (folder / SIGNATURE).exists()]
    signed_by_others = not new.exists() and any((folder / SIGNATURE).exists() for folder in folders)
    if home.signing_key.exists() or signed_by_others or not (unsigned or new.exists()):
        return
    key = make_key(new)
    try:
        for folder in unsigned:
            if _manifest_of(folder) == folders[folder]:
                write_atomically(folder / SIGNATURE, key.sign((folder / MANIFEST).read_bytes()))
                say(f"model {folder.name} is signed: its manifest is the registered one")
            else:
                say(f"model {folder.name} is not the one that was registered: it stays unsigned, and is not opened")
        keep(new, home.signing_key)
    except OSError as error:
        raise ModelError(f"{error.filename or home.folder}: cannot be written ({error.strerror})") from None


def _manifest_of(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def open_system(
    store: Store,
    home: Home,
    config: SystemConfig,
    *,
    shared: bool = False,
    trainer: Trainer | None = None,
    policy: RetrainPolicy | None = None,
) -> System:
    """Make the system that the store's pointer describes.

    Raises:
        StoreError: no model is served yet: `prepare` comes first.
        ModelError: a model's folder cannot be read.
    """
    with store.read() as connection:
        pointers = registry.current(connection)
        stored = [Item(row.item_id, plain(row.attributes), row.hidden) for row in items.read_all(connection)]
        revision = items.newest_revision(connection)
    if pointers.served is None:
        raise StoreError(f"{store.name}: no model is served yet; start with `palate serve --model FOLDER`")
    served = warmed(make_shelf(load_model(store, home, pointers.served.model_id), stored, revision))
    canary: Shelf | None = None
    if pointers.canary is not None:
        canary = warmed(exchanged(served, load_model(store, home, pointers.canary.model_id)))
    return System(
        store,
        Variants(served, canary, pointers.share),
        config,
        load=lambda model_id: load_model(store, home, model_id),
        erasures=home.erasures,
        trainer=trainer,
        policy=policy,
        shared=shared,
        followed=pointers.changed_at,
    )

"""A backup is one tar file: every table as JSON lines, the model folders, and the hash of each file.

It is one moment of a store that goes on serving, needs no tool of the database's own, and is read by either kind of
store. It holds what the database holds: people's events, hashes of keys and the salt; keep it as safe.
"""

import base64
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, LargeBinary, Table, select

from palate.data.files import sync_folder
from palate.errors import StoreError
from palate.store import migrations, registry
from palate.store.schema import metadata
from palate.store.store import Store, files_of

FORMAT: Final = 1
CONTENTS: Final = "backup.json"


class BackedUp(NamedTuple):
    """What a backup holds."""

    rows: Mapping[str, int]
    """By table."""
    num_models: int
    """Folders of models."""
    num_bytes: int
    """Of the file."""


def back_up(store: Store, models: Path, file: Path, now: float) -> BackedUp:
    """Copy a store and its models, as of one moment, while it is in use.

    Args:
        store: what to copy.
        models: the home's folder of model folders.
        file: the tar file to write; one that is there is replaced only by a complete one.
        now: seconds since 1970 UTC, noted in the file.

    Raises:
        StoreError: the store cannot be read, a model that serves is missing, or the file cannot be written, or is
            there and is no backup.
    """
    _refuse_another_file(file, store)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        # Opened first: what fails inside of `read` is told as the store's own failure.
        with _open_new(temporary) as raw, store.read() as connection:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
                hashes: dict[str, str] = {}
                rows = {
                    table.name: _add_table(archive, connection, table, file.parent, hashes)
                    for table in metadata.sorted_tables
                }
                num_models = _add_models(archive, connection, models, hashes)
                about = {
                    "format": FORMAT,
                    "schema": migrations.current_revision(connection),
                    "created_at": now,
                    "sha256": hashes,
                }
                content = json.dumps(about, indent=2).encode()
                archive.addfile(_entry(CONTENTS, len(content)), io.BytesIO(content))
            raw.flush()
            os.fsync(raw.fileno())
            num_bytes = raw.tell()
        temporary.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise StoreError(f"{file}: the backup cannot be written ({error.strerror}); the store is as it was") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return BackedUp(rows, num_models, num_bytes)


def refuse_store_file(file: Path, url: str) -> None:
    """Refuse a file that is part of a SQLite store, before it is opened.

    Raises:
        StoreError: it is.
    """
    for own in files_of(url):
        if file.resolve() == own.resolve() or (file.exists() and own.exists() and file.samefile(own)):
            raise StoreError(f"{file}: this is the store itself; name another file")


def _refuse_another_file(file: Path, store: Store) -> None:
    """Refuse to write a backup over anything but an older backup."""
    refuse_store_file(file, store.engine.url.render_as_string(hide_password=False))
    if file.is_dir():
        raise StoreError(f"{file}: this is a folder; name a file for the backup, such as {file / 'shop.tar'}")
    try:
        if file.exists() and file.stat().st_size and not tarfile.is_tarfile(file):
            raise StoreError(f"{file}: is there and is no backup; name another file, or remove this one")
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror}); name another file") from None


def dump_rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Give each row of a table as a line of JSON; bytes as base64."""
    binary = [isinstance(column.type, LargeBinary) for column in table.columns]
    names = [column.name for column in table.columns]
    query = select(table).order_by(*table.primary_key)
    result = connection.execution_options(stream_results=True, yield_per=1000).execute(query)
    for row in result:
        values = [
            base64.b64encode(value).decode() if packed and value is not None else value
            for value, packed in zip(row, binary, strict=True)
        ]
        yield json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False).encode() + b"\n"


def _add_table(
    archive: tarfile.TarFile, connection: Connection, table: Table, scratch: Path, hashes: dict[str, str]
) -> int:
    name, num_rows = f"tables/{table.name}.jsonl", 0
    digest = hashlib.sha256()
    # tar wants the length first; the file has no name, so a crash leaves nothing behind.
    with tempfile.TemporaryFile(dir=scratch) as spool:
        for line in dump_rows(connection, table):
            spool.write(line)
            digest.update(line)
            num_rows += 1
        size = spool.tell()
        spool.seek(0)
        archive.addfile(_entry(name, size), spool)
    hashes[name] = digest.hexdigest()
    return num_rows


def _add_models(archive: tarfile.TarFile, connection: Connection, models: Path, hashes: dict[str, str]) -> int:
    """Add the folders of the registry; a model that neither serves nor would be returned to may have lost its own."""
    pointers = registry.current(connection)
    needed = {model.model_id for model in (pointers.served, pointers.canary) if model is not None} | {pointers.previous}
    num_models = 0
    for model in registry.read_all(connection):
        folder = models / model.folder
        if not folder.is_dir():
            if model.model_id in needed:
                raise StoreError(f"{folder}: the folder of a model that serves is missing; nothing was backed up")
            continue
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = path.relative_to(folder)
            if any(part.startswith(".") for part in inside.parts):
                continue  # left by the file system, such as .nfs…; no model reads it, and no restore would take it
            name = f"models/{model.folder}/{inside.as_posix()}"
            with path.open("rb") as content:
                hashes[name] = hashlib.file_digest(content, "sha256").hexdigest()
                size = content.tell()
                content.seek(0)
                archive.addfile(_entry(name, size), content)
        num_models += 1
    return num_models


def _open_new(path: Path) -> Any:
    """Open a file for writing that its owner alone can read."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600), "w+b")


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry

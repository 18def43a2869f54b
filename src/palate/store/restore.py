"""Putting a backup in the place of a store: verified before anything changes, then in one transaction.

Who was erased after the backup was made is erased again: the home's `erasures.log` is read and never replaced. Models
come back with the home's signature or not at all; the key itself is in no backup.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, LargeBinary, MetaData, Table, delete, exc, func, insert, select, text

from palate.data.files import sync_folder, write_atomically
from palate.errors import ModelError, StoreError
from palate.recommend.signing import MANIFEST, SIGNATURE, keep, make_key, pending, read_key, verify
from palate.store import erasure, migrations
from palate.store.backup import CONTENTS, FORMAT, refuse_store_file
from palate.store.schema import erasures, events, metadata, settings
from palate.store.store import Store
from palate.store.upsert import INSERTS

# A name in a backup: no part of it begins with a dot, so none leads out of the folder or is hidden in it.
_NAME: Final = re.compile(r"(tables/[a-z_]+\.jsonl|models(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+)")
_ROWS: Final = 2000


class Restored(NamedTuple):
    """What a restore put in place."""

    rows: Mapping[str, int]
    """By table, before people were erased again."""
    num_models: int
    num_erased: int
    """People who were erased again."""


def restore(file: Path, url: str, models: Path, log: Path, key: Path, *, sign: bool = False) -> Restored:
    """Put a backup in the place of what a store holds. Nothing else may use the store meanwhile.

    Args:
        file: what `back_up` wrote.
        url: of the store, as for `Store.open`; of either kind, whatever the backup was made of.
        models: the home's folder of model folders; those that the backup lacks stay.
        log: the home's `erasures.log`.
        key: the home's signing key. Where there is none yet, one is made and signs the models of the backup.
        sign: let a key that is there sign them too: models of another home, or of before there were signatures.

    Raises:
        StoreError: the file is damaged, of a newer version, no backup or the store itself, holds a model that the
            home's key has not signed, or something cannot be written. The database is then as it was.
        ModelError: the key cannot be read or made.
    """
    refuse_store_file(file, url)
    logged = erasure.read_log(log)
    try:
        with tarfile.open(file, mode="r:") as archive:
            schema, members = _verified(archive, file)
            signatures = _signatures(archive, members, file, key, sign=sign)
            store = Store.open(url)
            try:
                num_models = _put_models(archive, members, models, signatures)
                try:
                    with store.write() as connection:
                        rows, num_erased = _put_tables(connection, archive, members, schema, logged)
                except (exc.SQLAlchemyError, ValueError, LookupError, TypeError):
                    raise StoreError(f"{file}: its rows contradict one another; the database is as it was") from None
                erasure.finish(store, log)
                if not key.exists() and pending(key).exists():
                    keep(pending(key), key)
            finally:
                store.close()
    except tarfile.TarError as error:
        raise StoreError(f"{file}: not a backup, or damaged ({error}); use another copy") from None
    except OSError as error:
        raise StoreError(f"{error.filename or file}: cannot be read or written ({error.strerror})") from None
    return Restored(rows, num_models, num_erased)


def _verified(archive: tarfile.TarFile, file: Path) -> tuple[str, dict[str, tarfile.TarInfo]]:
    """Return the schema of a backup and its files by name, after reading every byte."""

    def refuse(what: str) -> StoreError:
        return StoreError(f"{file}: {what}; use another copy of the backup")

    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        if not member.isreg() or member.issparse() or member.name in members:
            raise refuse(f"holds {member.name[:80]!r}, which is no plain file or comes twice")
        if member.name != CONTENTS and not _NAME.fullmatch(member.name):
            raise refuse(f"holds {member.name[:80]!r}, a name that no backup has")
        members[member.name] = member
    contents = members.pop(CONTENTS, None)
    if contents is None:
        raise refuse(f"has no {CONTENTS}, so it is not a complete backup")
    try:
        about = json.loads(_open(archive, contents).read())
        version, schema, hashes = about["format"], str(about["schema"]), dict(about["sha256"])
    except (ValueError, KeyError, TypeError):
        raise refuse(f"{CONTENTS} is damaged") from None
    if version != FORMAT or schema not in migrations.known_revisions():
        raise StoreError(f"{file}: made by a newer Palate (format {version}, schema {schema}); update Palate")
    if set(hashes) != set(members):
        raise refuse("its files are not those that it lists")
    for name, member in members.items():
        if hashlib.file_digest(_open(archive, member), "sha256").hexdigest() != hashes[name]:
            raise refuse(f"{name} differs from what was backed up (SHA-256)")
    return schema, members


def _signatures(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], file: Path, key: Path, *, sign: bool
) -> dict[str, bytes]:
    """The signature of each model folder: made now, or the one that the home's key made before."""
    manifests = {
        name.split("/")[1]: _open(archive, member).read()
        for name, member in members.items()
        if re.fullmatch(f"models/[^/]+/{re.escape(MANIFEST)}", name)
    }
    if not manifests:
        return {}
    if sign or not key.exists():
        # A new key is the home's when the restore is done: one that fails may be tried again in the same way.
        signer = make_key(key if key.exists() else pending(key))
        return {folder: signer.sign(manifest) for folder, manifest in manifests.items()}
    trusted = read_key(key).public_key()
    signatures = {}
    for folder, manifest in manifests.items():
        member = members.get(f"models/{folder}/{SIGNATURE}")
        signature = None if member is None else _open(archive, member).read()
        try:
            verify(manifest, signature, trusted, folder)
        except ModelError:
            raise StoreError(
                f"{file}: model {folder} was not signed with {key}; if you know who made the file, let that key sign "
                "its models with `palate restore --sign`"
            ) from None
        assert signature is not None, "verify refuses that"
        signatures[folder] = signature
    return signatures


def _put_models(
    archive: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    models: Path,
    signatures: Mapping[str, bytes],
) -> int:
    """Write the model folders, each under another name first; they are of no effect until the registry names them."""
    folders: dict[str, list[tarfile.TarInfo]] = {}
    for name, member in members.items():
        if name.startswith("models/"):
            folders.setdefault(name.split("/")[1], []).append(member)
    for folder, files in folders.items():
        temporary, old = models / f".{folder}.restoring", models / f".{folder}.old"
        shutil.rmtree(temporary, ignore_errors=True)
        for member in files:
            target = temporary.joinpath(*member.name.split("/")[2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as output:
                shutil.copyfileobj(_open(archive, member), output)
                output.flush()
                os.fsync(output.fileno())
        if folder in signatures:
            write_atomically(temporary / SIGNATURE, signatures[folder])
        shutil.rmtree(old, ignore_errors=True)
        if (models / folder).exists():
            (models / folder).rename(old)
        temporary.rename(models / folder)
        sync_folder(models)
        shutil.rmtree(old, ignore_errors=True)
    return len(folders)


def _put_tables(
    connection: Connection,
    archive: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    schema: str,
    logged: list[tuple[str, float]],
) -> tuple[dict[str, int], int]:
    """Replace all rows, through the schema that they were backed up in, and erase again who was erased."""
    erased = {*logged, *((row.digest, row.at) for row in connection.execute(select(erasures)))}
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))
    migrations.migrate(connection, schema)
    then = MetaData()
    then.reflect(connection)
    rows = {
        table.name: _put_table(connection, table, _open(archive, members[f"tables/{table.name}.jsonl"]))
        for table in then.sorted_tables
        if f"tables/{table.name}.jsonl" in members
    }
    migrations.migrate(connection, migrations.latest_revision())
    if connection.dialect.name == "postgresql":
        # Rows that came with a number do not move the counter of numbers.
        newest = select(func.coalesce(func.max(events.c.seq), 0) + 1).scalar_subquery()
        connection.execute(select(func.setval(func.pg_get_serial_sequence("events", "seq"), newest, text("false"))))
    salt = bytes.fromhex(connection.scalars(select(settings.c.value).where(settings.c.name == "salt")).one())
    num_erased = erasure.erase_again(connection, salt, erased)
    if erased:
        statement = INSERTS[connection.dialect.name](erasures).on_conflict_do_nothing()
        connection.execute(statement, [{"digest": digest, "at": at} for digest, at in sorted(erased)])
    return rows, num_erased


def _put_table(connection: Connection, table: Table, content: BufferedReader) -> int:
    num_rows = 0
    for rows in _chunks(table, content):
        connection.execute(insert(table), rows)
        num_rows += len(rows)
    return num_rows


def _chunks(table: Table, content: BufferedReader) -> Iterator[list[dict[str, Any]]]:
    binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    rows: list[dict[str, Any]] = []
    for line in content:
        row = json.loads(line)
        for name in binary:
            row[name] = base64.b64decode(row[name])
        rows.append(row)
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _open(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BufferedReader:
    content = archive.extractfile(member)
    assert isinstance(content, BufferedReader), "only plain files were let in"
    return content

"""The store: one database, SQLite or PostgreSQL, opened at the newest schema.

SQLite runs in WAL with `synchronous=FULL`: a commit returns when its bytes are on the disk, readers keep their
snapshot while one writer writes. PostgreSQL runs through psycopg 3 and may have several writing processes.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, insert, make_url, select

from palate.data.files import sync_folder
from palate.errors import ConfigError, DataError, PalateError, StoreError
from palate.store import migrations
from palate.store.driver import run
from palate.store.failures import name_of, translated
from palate.store.locks import Lock, hold
from palate.store.schema import settings

BUSY_SECONDS: Final = 10.0
"""How long a writer waits for a lock that another process holds."""

_SALT = "salt"
_SQLITE_PRAGMAS = (
    # Changing to WAL deletes the first journal. If a power cut undid that, SQLite would roll the store back to nothing;
    # EXTRA syncs the folder too.
    "PRAGMA synchronous = EXTRA",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    "PRAGMA cache_size = -4096",  # KiB
)
_POSTGRES_SETTINGS = (
    "SET synchronous_commit = on",  # else a commit is acknowledged before it is durable
    f"SET lock_timeout = '{int(BUSY_SECONDS)}s'",
)


@final
class Store:
    """A database at the newest schema. Reads go through `read`; writes of a service through a `Writer`."""

    engine: Engine
    dialect: str
    """"sqlite" or "postgresql"."""
    name: str
    """The URL without password, for messages."""
    salt: bytes
    """The key under which ids of erased people are remembered."""

    def __init__(self, engine: Engine) -> None:
        """Take an engine as it is and migrate its database forward; `Store.open` is the usual way.

        Raises:
            StoreError: it cannot be read or written, or was written by a newer version.
        """
        self.engine, self.dialect, self.name = engine, engine.dialect.name, name_of(engine)
        with self.write() as connection:
            hold(connection, Lock.MIGRATION)  # of several processes that start at once, one migrates
            found = migrations.current_revision(connection)
            if found is not None and found not in migrations.known_revisions():
                raise StoreError(
                    f"{self.name}: has schema {found}, written by a newer Palate (this one knows up to "
                    f"{migrations.latest_revision()}); update Palate"
                )
            if found != migrations.latest_revision():
                migrations.migrate(connection, migrations.latest_revision())
            salt = connection.scalar(select(settings.c.value).where(settings.c.name == _SALT))
            if salt is None:
                salt = secrets.token_hex(32)
                connection.execute(insert(settings).values(name=_SALT, value=salt))
        self.salt = bytes.fromhex(salt)

    @staticmethod
    def open(url: str, *, create: bool = True) -> "Store":
        """Open a store and bring its schema up to date.

        Args:
            url: `sqlite:///path` or `postgresql://user:password@host/database`.
            create: whether a database file that is missing is made (a PostgreSQL database has to be there).

        Raises:
            ConfigError: the URL is of neither kind.
            StoreError: it cannot be opened, or was written by a newer version.
        """
        parsed = _parse(url)
        file = Path(parsed.database or "") if parsed.drivername == "sqlite" else None
        if file is not None and not file.exists():
            if not create:
                raise StoreError(f"{file}: there is no such store; `palate serve` makes one")
            _make_file(file.resolve())
        engine = make_engine(parsed)
        try:
            return Store(engine)
        except BaseException:
            engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection that sees one moment of the store, however long it is used.

        Raises:
            StoreError: it cannot be read now.
        """
        with self._translating(), self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end, durably, or not at all; for tools: a service has a `Writer`.

        Raises:
            StoreError: it cannot be written now, or another process kept it locked too long.
        """
        with self._translating(), self.engine.connect() as connection:
            connection = connection.execution_options(begin="IMMEDIATE")
            with connection.begin():
                yield connection

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Open a connection on which each statement commits by itself: for upkeep that no transaction may hold.

        Raises:
            StoreError: it cannot be written now.
        """
        with self._translating(), self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection.execution_options(begin=None)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self.engine.dispose()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except PalateError:
            raise
        except (exc.SQLAlchemyError, OSError, UnicodeEncodeError, OverflowError) as error:
            known = translated(error, self.engine)
            if known is error:
                raise
            raise known from error


def make_engine(url: URL, **arguments: Any) -> Engine:
    """Make an engine with the settings that keep the store's promises; `arguments` go to SQLAlchemy."""
    engine = create_engine(
        url,
        pool_pre_ping=url.drivername != "sqlite",
        json_serializer=_Json().write,
        hide_parameters=True,  # errors are logged, and the values are people's
        **arguments,
    )
    _PREPARE[engine.dialect.name](engine)
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say
        cursor = connection.cursor()
        # First: changing the journal mode needs the lock too.
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A writer that begins as a reader can be refused in the middle; one that begins as a writer waits its turn.
        # None: each statement stands alone, for those that refuse to be part of a transaction.
        kind = connection.get_execution_options().get("begin", "DEFERRED")
        if kind is not None:
            run(connection, f"BEGIN {kind}")


def _prepare_postgres(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            for setting in _POSTGRES_SETTINGS:
                cursor.execute(setting)
        connection.commit()


@final
class _Json:
    """How attributes and lists are written: as text that both databases read back."""

    def __init__(self) -> None:
        self._encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def write(self, value: Any) -> str:
        try:
            return self._encoder.encode(value)
        except ValueError:
            raise DataError("a value cannot be stored: a number that is not finite") from None


_PREPARE = {"sqlite": _prepare_sqlite, "postgresql": _prepare_postgres}


def _parse(url: str) -> URL:
    expected = "expected sqlite:///path or postgresql://user:password@host/database"
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise ConfigError(f"store: not a URL; {expected}") from None
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        query = {"connect_timeout": "10", "application_name": "palate"} | dict(parsed.query)
        return parsed.set(drivername="postgresql+psycopg", query=query)
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise ConfigError(f"store: {parsed.drivername} without a lasting database; {expected}")


def files_of(url: str) -> tuple[Path, ...]:
    """Return the files that SQLite keeps a store in; of a store on PostgreSQL none.

    A process that is connected to the store must not open them (see `file_search`), and nothing else may be written in
    their place.

    Raises:
        ConfigError: the URL is of neither kind.
    """
    parsed = _parse(url)
    if parsed.drivername != "sqlite" or not parsed.database:
        return ()
    file = Path(parsed.database).resolve()  # SQLite follows links too
    return tuple(file.with_name(file.name + ending) for ending in ("", "-wal", "-shm", "-journal"))


def _make_file(file: Path) -> None:
    """Make an empty file whose name is on the disk, readable by its owner alone.

    It gets its name after it was closed: whoever finds it can lock it at once, and nobody here closes it any more.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            _name(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(file.parent)
    except OSError as error:
        raise StoreError(f"{file}: cannot be made ({error.strerror}); choose another place") from None


def _name(temporary: Path, file: Path) -> None:
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass  # another process was first
    except OSError:  # a file system without links
        if not file.exists():
            temporary.rename(file)

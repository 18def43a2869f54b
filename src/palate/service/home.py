"""The folder that a service lives in: database, models and their signing key, work in progress, who was erased."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from palate.errors import ConfigError, StoreError
from palate.store.store import files_of


@dataclass(frozen=True)
class Home:
    """Names in the folder; nothing is made before it is needed."""

    folder: Path

    @property
    def database(self) -> str:
        """The store where no other is named."""
        return f"sqlite:///{self.folder.resolve() / 'palate.db'}"

    @property
    def models(self) -> Path:
        """Complete model folders by model id, without people."""
        return self.folder / "models"

    @property
    def work(self) -> Path:
        """Checkpoints of trainings."""
        return self.folder / "work"

    @property
    def signing_key(self) -> Path:
        """The private key that signs the models; none is loaded that it has not signed."""
        return self.folder / "signing.key"

    @property
    def erasures(self) -> Path:
        """One line for everyone who was ever erased, by digest; a restore reads it."""
        return self.folder / "erasures.log"

    def make(self) -> None:
        """Make the folder, readable by its owner alone.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.models.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be made ({error.strerror}); choose another --home") from None

    @contextmanager
    def locked(self, store: str) -> Iterator[None]:
        """Keep other services out of the folder and, where it lies elsewhere, out of a SQLite store.

        A SQLite store has one process that writes and remembers. With PostgreSQL nobody is kept out.

        Args:
            store: URL of the store.

        Raises:
            StoreError: another service is at work in one of them, or a lock cannot be made.
        """
        files = files_of(store)
        with ExitStack() as held:
            if files:
                held.enter_context(_locked(self.folder / "serve.lock", str(self.folder)))
            if files and files[0].parent != self.folder.resolve():
                held.enter_context(_locked(files[0].with_name(f"{files[0].name}.serve.lock"), store))
            yield


@contextmanager
def _locked(file: Path, what: str) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StoreError(f"{file}: cannot be made ({error.strerror}); choose another place") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"{what}: another `palate serve` is at work here; stop it, or serve several processes from "
                "PostgreSQL (--store postgresql://…)"
            ) from None
        yield
    finally:
        os.close(handle)

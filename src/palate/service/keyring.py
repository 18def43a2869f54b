"""API keys in memory: asked for with every request, so nothing is read for it."""

import hashlib
import secrets
import time

from palate.service.contract import KeyOut, NotFoundError
from palate.service.machine import Machine
from palate.store import keys
from palate.store.keys import Role, StoredKey


class Keyring:
    """The keys that are valid now."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._valid: dict[str, tuple[str, Role]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the keys from the store; blocks.

        Raises:
            StoreError: it cannot be read.
        """
        with self._machine.store.read() as connection:
            found = keys.read_all(connection)
        self._valid = {key.sha256: (key.key_id, key.role) for key in found if key.revoked_at is None}

    def role_of(self, key: str) -> tuple[str, Role] | None:
        """The id and role of a key; None if it is none, or was ended.

        What is looked up is the SHA-256 of 256 random bits: how long that takes tells nothing of the key.
        """
        return self._valid.get(hashlib.sha256(key.encode()).hexdigest())

    async def add(self, role: Role, name: str) -> tuple[KeyOut, str]:
        """Make a key."""
        key, secret = new_key(role, name, time.time())
        await self._machine.write(lambda connection: keys.add(connection, key))
        self._valid[key.sha256] = (key.key_id, key.role)
        return _out(key), secret

    async def all(self) -> list[KeyOut]:
        """All keys, ended ones too."""
        return [_out(key) for key in await self._machine.read(keys.read_all)]

    async def revoke(self, key_id: str) -> KeyOut:
        """End a key.

        Raises:
            NotFoundError: there is none of this id.
        """
        key = await self._machine.write(lambda connection: keys.revoke(connection, key_id, time.time()))
        if key is None:
            raise NotFoundError("no key of this id")
        self._valid.pop(key.sha256, None)
        return _out(key)


def new_key(role: Role, name: str, now: float) -> tuple[StoredKey, str]:
    """Make a key: what is stored of it, and the secret text that is shown once."""
    secret = f"palate_{secrets.token_urlsafe(32)}"
    sha256 = hashlib.sha256(secret.encode()).hexdigest()
    return StoredKey(secrets.token_hex(6), role, sha256, name, now, None), secret


def _out(key: StoredKey) -> KeyOut:
    return KeyOut(key.key_id, key.role, key.name, key.created_at, key.revoked_at)

"""Signed model folders: who wrote a model, beside that it is whole (Ed25519, RFC 8032).

The manifest holds the SHA-256 of every other file, so a signature over its bytes covers the folder. The private key is
a file that its owner alone can read; a service has one in its home.
"""

import os
import tempfile
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from palate.data.files import sync_folder
from palate.errors import ModelError

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
"""File of a signed model folder: the 64 bytes of the signature, nothing else, so no bit of it is without meaning."""


def make_key(file: Path) -> Ed25519PrivateKey:
    """Read a private key; where there is none yet, make one. Of several processes that make it, one's is everyone's.

    Raises:
        ModelError: it cannot be written or read.
    """
    if not file.exists():
        key = Ed25519PrivateKey.generate()
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # its owner's alone
            try:
                with os.fdopen(descriptor, "wb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
                keep(Path(temporary), file)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"{file}: the signing key cannot be written ({error.strerror})") from None
    return read_key(file)


def pending(file: Path) -> Path:
    """Where a new key is until everything that it has to sign at first is signed; then `keep` gives it its name."""
    return file.with_name(f".{file.name}.new")


def keep(temporary: Path, file: Path) -> None:
    """Give a complete file its name, unless another process was faster: a rename would replace what that one wrote.

    Raises:
        OSError: it cannot be named.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    sync_folder(file.parent)


def read_key(file: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ModelError: it is missing, or is none.
    """
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except FileNotFoundError:
        raise ModelError(
            f"{file}: missing, so no model can be verified; put the key back, or see docs/loop.md, The signing key"
        ) from None
    except OSError as error:
        raise ModelError(f"{file}: the signing key cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ModelError(f"{file}: damaged, or no Ed25519 key in PEM; put the right key back") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelError(f"{file}: a key of another kind than Ed25519; put the right key back")
    return key


def verify(manifest: bytes, signature: bytes | None, trusted: Ed25519PublicKey, where: object) -> None:
    """Refuse a manifest that the trusted key has not signed.

    Args:
        manifest: the bytes of the file.
        signature: those of the file beside it; None: there is none.
        trusted: whose signature counts.
        where: the folder, for the message.

    Raises:
        ModelError: there is no signature, or it does not fit.
    """
    if signature is None:
        raise ModelError(f"{where}: {SIGNATURE} is missing, so nobody vouches for this model; restore it from a backup")
    try:
        trusted.verify(signature, manifest)
    except InvalidSignature:
        raise ModelError(
            f"{where}: {SIGNATURE} is not what the trusted key signs this manifest with; restore the folder from a "
            "backup, or the key that it was signed with"
        ) from None

"""Model folders: files by name with a manifest of their hashes, complete or absent, signed or not.

A folder is written under another name, synced and renamed; on reading, every file's hash is checked. Who trusts one key
alone reads what that key vouches for. What the files hold is `palate.recommend.bundle`'s matter.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from palate.errors import ModelError
from palate.recommend.bundle import FILES, FORMAT
from palate.recommend.signing import MANIFEST, SIGNATURE, verify


def check_replaceable(folder: Path) -> None:
    """See that a model may take a folder's place: there is none yet, it is empty, or it holds a model.

    Raises:
        ModelError: it is a file, or holds something else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists())):
        raise ModelError(
            f"{folder}: holds something else than a model (there is no {MANIFEST} in it); name a new folder"
        )


def write_folder(folder: Path, files: Mapping[str, bytes], signer: Ed25519PrivateKey | None = None) -> None:
    """Write a model folder; one that is there already is replaced only when the new one is complete.

    Args:
        folder: where.
        files: what `palate.recommend.bundle.to_files` made.
        signer: signs the manifest, and so every file; None: the folder is unsigned.

    Raises:
        ModelError: the folder cannot be written, or holds something else than a model.
    """
    check_replaceable(folder)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    contents = {**files, MANIFEST: json.dumps({"format": FORMAT, "sha256": hashes}, indent=2).encode()}
    if signer is not None:
        contents[SIGNATURE] = signer.sign(contents[MANIFEST])
    folder = folder.resolve()  # "." has no name beside which to write, and of a link the target is replaced
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same id
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error.strerror}); nothing was changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path, trusted: Ed25519PublicKey | None = None) -> dict[str, bytes]:
    """Read a model folder's files, each as it was written.

    Args:
        folder: what `write_folder` wrote.
        trusted: the key whose signature is asked for; None: that the files fit their manifest is enough.

    Raises:
        ModelError: it is missing, incomplete, altered, of another version, or the trusted key has not signed it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder; train one with `palate train` or `palate demo`")
    try:
        content = (folder / MANIFEST).read_bytes()
        if trusted is not None:
            _refuse_untrusted(folder, content, trusted)
        manifest = json.loads(content)
        version, hashes = manifest["format"], dict(manifest["sha256"])
        if version != FORMAT:
            raise ModelError(
                f"{folder}: written in format {version}, this version reads {FORMAT}; "
                "train it again with `palate train`"
            )
        if set(manifest) != {"format", "sha256"} or set(hashes) != set(FILES):
            raise ModelError(f"{folder}/{MANIFEST}: lists other files than a model has; restore it or train again")
        contents = {name: (folder / name).read_bytes() for name in FILES}
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise ModelError(f"{folder}: {name} is missing, so this is no complete model; train it again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{MANIFEST}: unreadable ({str(error).splitlines()[0]}); train it again") from None
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes.get(name):
            raise ModelError(f"{folder}/{name}: differs from what was saved (SHA-256); restore it or train again")
    return contents


def _refuse_untrusted(folder: Path, manifest: bytes, trusted: Ed25519PublicKey) -> None:
    """Refuse a folder that the key has not signed, or that holds more than it signed."""
    signature = folder / SIGNATURE
    verify(manifest, signature.read_bytes() if signature.exists() else None, trusted, folder)
    # Hidden names are a file system's own (.nfs…, .DS_Store), come by themselves and are never read.
    more = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {*FILES, MANIFEST, SIGNATURE}
    if more:
        raise ModelError(f"{folder}: {min(more)!r} is no part of the signed model; take it out of the folder")

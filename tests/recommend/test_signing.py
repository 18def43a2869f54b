"""Signed model folders: only what the trusted key signed is read, to the last bit of every file."""

import json
import os
import random
import re
import shutil
import stat
import threading
from pathlib import Path

import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from palate.data.catalog import Catalog
from palate.errors import ModelError
from palate.recommend import Recommender
from palate.recommend.signing import MANIFEST, SIGNATURE, make_key, read_key

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
TRUSTED = KEY.public_key()


@pytest.fixture(scope="module")
def signed_model(model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "model"
    model.save(folder, KEY)
    return folder


@pytest.fixture
def folder(signed_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(signed_model, tmp_path / "model"))


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ModelError, match=rf"^{re.escape(str(folder))}[^\n]*{said}[^\n]*\Z"):
        Recommender.load(folder, TRUSTED)


def test_a_signed_model_is_read_with_the_key_and_without(model: Recommender, folder: Path, saved_model: Path) -> None:
    assert Recommender.load(folder, TRUSTED).model_id == Recommender.load(folder).model_id == model.model_id
    assert len((folder / SIGNATURE).read_bytes()) == 64
    for file in saved_model.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), "signing adds a file and changes none"


def test_another_key_or_none_is_refused(model: Recommender, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"manifest\.sig is not what the trusted key signs"):
        Recommender.load(folder, Ed25519PrivateKey.generate().public_key())
    (folder / SIGNATURE).unlink()
    refused(folder, r"manifest\.sig is missing")
    model.save(folder, KEY)
    Recommender.load(folder, TRUSTED)
    model.save(folder)  # replaced by an unsigned one: no signature is left over
    refused(folder, r"manifest\.sig is missing")


def test_files_that_fit_a_manifest_of_their_own_are_refused(model: Recommender, folder: Path, tmp_path: Path) -> None:
    """What hashes alone let through: somebody wrote a whole model, and put the signature of another beside it."""
    new = pl.DataFrame({"item_id": ["new"], "title": ["garden gnome"], "price": [3.0]})
    model.add_items(Catalog.infer(new)).save(tmp_path / "other", KEY)
    Recommender.load(tmp_path / "other", TRUSTED)
    signature = (folder / SIGNATURE).read_bytes()
    (folder / SIGNATURE).write_bytes((tmp_path / "other" / SIGNATURE).read_bytes())
    refused(folder, "trusted key")
    shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True)
    (folder / SIGNATURE).write_bytes(signature)
    Recommender.load(folder)
    refused(folder, "trusted key")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest | {"format": 3},
        lambda manifest: manifest | {"more": 1},
        lambda manifest: manifest | {"sha256": manifest["sha256"] | {"notes.txt": "0" * 64}},
        lambda manifest: manifest | {"sha256": dict(list(manifest["sha256"].items())[1:])},
        lambda manifest: dict(reversed(manifest.items())),
    ],
    ids=["format", "a name more", "a file more", "a file less", "another order"],
)
def test_an_altered_manifest_is_refused(folder: Path, change: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(change(manifest)))  # type: ignore[operator]
    refused(folder, "trusted key")


def test_a_file_that_was_not_signed_is_named(folder: Path) -> None:
    (folder / ".nfs0001").touch()  # a file system's own
    Recommender.load(folder, TRUSTED)
    (folder / "notes.txt").touch()
    Recommender.load(folder)
    refused(folder, r"'notes\.txt' is no part of the signed model; take it out")


@pytest.mark.parametrize("content", [b"", b"x", bytes(63), bytes(64), bytes(65)])
def test_a_signature_of_another_shape_is_refused(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE).write_bytes(content)
    refused(folder, "trusted key")


def test_any_flipped_bit_of_any_file_is_refused(folder: Path) -> None:
    rng = random.Random(0)
    files = sorted(folder.iterdir())
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        with file.open("r+b", buffering=0) as raw:
            for _ in range(60):
                place, bit = rng.randrange(len(content)), rng.randrange(8)
                os.pwrite(raw.fileno(), bytes([content[place] ^ 1 << bit]), place)
                refused(folder, "")
                os.pwrite(raw.fileno(), content[place : place + 1], place)
    Recommender.load(folder, TRUSTED)


def test_a_key_is_made_once_and_its_owner_alone_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    made = make_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]
    again = [make_key(file), read_key(file)]
    assert {key.private_bytes_raw() for key in again} == {made.private_bytes_raw()}


def test_of_several_that_make_a_key_all_get_one(tmp_path: Path) -> None:
    file, start = tmp_path / "signing.key", threading.Barrier(8)
    found = []

    def make() -> None:
        start.wait()
        found.append(make_key(file).private_bytes_raw())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]


def test_a_key_that_cannot_be_written_is_not_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ModelError, match=r"signing\.key: the signing key cannot be written \(No space left on device\)"
    ):
        make_key(tmp_path / "signing.key")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_key_is_refused_and_never_repeated(tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    with pytest.raises(ModelError, match=r"signing\.key: missing"):
        read_key(file)
    with pytest.raises(ModelError, match="cannot be read"):
        read_key(tmp_path)
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"secret", KEY.private_bytes_raw(), other):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"^[^\n]*put the right key back\Z") as refusal:
            make_key(file)  # and it is not replaced by a new one
        assert "secret" not in str(refusal.value)
        assert file.read_bytes() == content

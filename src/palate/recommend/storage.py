"""Model folders: safetensors for every number, JSON for every name, a manifest with the hash of each file.

A folder is written under another name, synced and renamed, so it is complete or absent; on reading, every file's
hash is checked, and nothing is executed. It may be signed: who trusts one key alone reads what that key vouches for.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from palate.backbone.ensemble import Ensemble
from palate.backbone.sequence_model import Catalogue
from palate.config import Config
from palate.data.episodes import History
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeEncoder
from palate.errors import ModelError, PalateError
from palate.meta.evidence import FeatureSpace, Rotation
from palate.meta.head import Items
from palate.meta.item_tasks import ItemPosterior
from palate.recommend.signing import MANIFEST, SIGNATURE, verify

if TYPE_CHECKING:
    from palate.recommend.recommender import Recommender

FORMAT = 5
_FILES = ("model.safetensors", "people.safetensors", "vocabulary.json", "model.json")


def identify(recommender: "Recommender") -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the trained weights."""
    return hashlib.sha256(save(_weights(recommender))).hexdigest()[:16]


def save_recommender(recommender: "Recommender", folder: Path, signer: Ed25519PrivateKey | None = None) -> None:
    """Write a model folder; one that is there already is replaced only when the new one is complete.

    Args:
        recommender: what to write.
        folder: where.
        signer: signs the manifest, and so every file; None: the folder is unsigned.

    Raises:
        ModelError: the folder cannot be written, or holds something else than a model.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists())):
        raise ModelError(f"{folder}: exists and is no model folder; choose another name")
    names = {
        "format": FORMAT,
        "model_id": recommender.model_id,
        "config": recommender.config.to_dict(),
        "num_trained": recommender.num_trained,
        "trained_until": recommender.trained_until,
        "unseen_popularity": recommender.unseen_popularity,
        "titles": recommender.titles,
        "item_encoder": recommender.item_encoder.to_dict(),
        "profile_encoder": recommender.profile_encoder.to_dict(),
        "users": list(recommender.users),
        "training": dict(recommender.training),
    }
    contents = dict(
        zip(
            _FILES,
            (
                save(_weights(recommender) | _derived(recommender)),
                save(_people(recommender)),
                recommender.vocabulary.to_json().encode(),
                json.dumps(names, ensure_ascii=False).encode(),
            ),
            strict=True,
        )
    )
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[MANIFEST] = json.dumps({"format": FORMAT, "sha256": hashes}, indent=2).encode()
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


def load_recommender(folder: Path, trusted: Ed25519PublicKey | None = None) -> "Recommender":
    """Read a model folder.

    Args:
        folder: what `save_recommender` wrote.
        trusted: the key whose signature is asked for; None: that the files fit their manifest is enough.

    Raises:
        ModelError: it is missing, incomplete, altered, of another version, holds a NaN, or the trusted key has not
            signed it.
    """
    contents = _read_verified(folder, trusted)
    try:
        tensors = load(contents["model.safetensors"])
        people = load(contents["people.safetensors"])
        names = json.loads(contents["model.json"])
        vocabulary = Vocabulary.from_json(contents["vocabulary.json"].decode())
        _refuse_non_finite(tensors, folder / "model.safetensors")
        _refuse_non_finite(people, folder / "people.safetensors")
        recommender = _assemble(tensors, people, names, vocabulary)
        recommender.recommend([], 1)  # so that a parameter that is missing or misshapen is found here, not in use
        return recommender
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{folder}: not a Palate model ({' '.join(str(error).split())})") from None
    except PalateError as error:
        raise ModelError(str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}") from None


def _weights(recommender: "Recommender") -> dict[str, Tensor]:
    """Everything that was trained or fitted."""
    tensors = {f"backbone.{name}": value for name, value in recommender.backbone.state_dict().items()}
    tensors |= {f"params.{name}": value for name, value in recommender.params.items()}
    tensors |= {
        "content": recommender.backbone.models()[0].items.content,
        "content_rotation.mean": recommender.content_rotation.mean,
        "content_rotation.axes": recommender.content_rotation.axes,
        "vector_rotation.mean": recommender.space.vector_rotation.mean,
        "vector_rotation.axes": recommender.space.vector_rotation.axes,
        "content_to_evidence": recommender.space.content_to_evidence,
    }
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _derived(recommender: "Recommender") -> dict[str, Tensor]:
    parts = {"items": recommender.items, "base": recommender.base, "item_posterior": recommender.item_posterior}
    return {
        f"{part}.{name}": value.contiguous()
        for part, values in parts.items()
        if values is not None
        for name, value in values._asdict().items()
    }


def _people(recommender: "Recommender") -> dict[str, Tensor]:
    """Histories end to end, with where each begins."""
    histories = list(recommender.users.values())

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)) if arrays else torch.zeros(0, dtype=torch.int64)

    def starts(arrays: list[np.ndarray]) -> Tensor:
        return torch.tensor(np.cumsum([0, *map(len, arrays)]), dtype=torch.int64)

    profiles = list(recommender.profiles.values())  # none where people are kept elsewhere
    items = [history.items for history in histories]
    refused = [history.refused for history in histories]
    return {
        "items": joined(items),
        "items.starts": starts(items),
        "times": joined([history.times for history in histories]),
        "refused": joined(refused),
        "refused.starts": starts(refused),
        "profiles": torch.stack([torch.zeros(recommender.profile_encoder.dim), *profiles])[1:].contiguous(),
    }


def _read_verified(folder: Path, trusted: Ed25519PublicKey | None) -> dict[str, bytes]:
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
        if set(manifest) != {"format", "sha256"} or set(hashes) != set(_FILES):
            raise ModelError(f"{folder}/{MANIFEST}: lists other files than a model has; restore it or train again")
        contents = {name: (folder / name).read_bytes() for name in _FILES}
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
    more = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {*_FILES, MANIFEST, SIGNATURE}
    if more:
        raise ModelError(f"{folder}: {min(more)!r} is no part of the signed model; take it out of the folder")


def _refuse_non_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{file}: tensor {name!r} holds a NaN or infinity; train it again")


def _assemble(
    tensors: Mapping[str, Tensor],
    people: Mapping[str, Tensor],
    names: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> "Recommender":
    from palate.recommend.recommender import Recommender

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    config = Config.from_dict(names["config"], source="model.json")
    state = part("backbone.")
    profile_encoder = AttributeEncoder.from_dict(names["profile_encoder"])
    content = tensors["content"]
    catalogue = Catalogue(torch.zeros(len(content), dtype=torch.int64), content)
    backbone = Ensemble(config.model, config.num_members, catalogue, profile_encoder.dim)
    backbone.load_state_dict(state)
    backbone.eval()
    bounds, refusals = people["items.starts"].tolist(), people["refused.starts"].tolist()
    items, times, refused = (people[name].numpy() for name in ("items", "times", "refused"))
    users = {
        user: History(
            items[bounds[row] : bounds[row + 1]],
            times[bounds[row] : bounds[row + 1]],
            refused[refusals[row] : refusals[row + 1]].astype(np.int64),
        )
        for row, user in enumerate(names["users"])
    }
    return Recommender(
        config=config,
        model_id=names["model_id"],
        backbone=backbone,
        params=part("params."),
        items=Items(**part("items.")),
        num_trained=names["num_trained"],
        vocabulary=vocabulary,
        titles=tuple(names["titles"]),
        item_encoder=AttributeEncoder.from_dict(names["item_encoder"]),
        profile_encoder=profile_encoder,
        content_rotation=Rotation(tensors["content_rotation.mean"], tensors["content_rotation.axes"]),
        space=FeatureSpace(
            Rotation(tensors["vector_rotation.mean"], tensors["vector_rotation.axes"]),
            tensors["content_to_evidence"],
        ),
        unseen_popularity=names["unseen_popularity"],
        users=users,
        profiles=dict(zip(names["users"], people["profiles"], strict=True)),
        training=names["training"],
        trained_until=float(names["trained_until"]),
        item_posterior=ItemPosterior(**part("item_posterior.")),
        base=Items(**part("base.")) if "base.features" in tensors else None,
    )

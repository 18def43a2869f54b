"""The bundle: all parts of a trained model as one plain value, and that value as files.

Safetensors for every number, JSON for every name; nothing in it is executed. `palate.recommend.model_folder` has the
files on disk.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from palate.backbone.ensemble import Ensemble, load_members
from palate.config import Config
from palate.data.event_log import EventLog
from palate.data.record import Record
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeEncoder
from palate.errors import ModelError, PalateError
from palate.meta.evidence import FeatureSpace, Rotation
from palate.meta.head import Items
from palate.meta.item_tasks import ItemPosterior
from palate.meta.learner import Params
from palate.ratings.rating_model import RatingModel
from palate.recommend.item_table import ItemTable
from palate.scorers.evidence import Scorers
from palate.scorers.kin import Kin

FORMAT = 9
_MODEL, _USERS, _VOCABULARY, _NAMES = FILES = (
    "model.safetensors",
    "people.safetensors",
    "vocabulary.json",
    "model.json",
)


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """Everything that is saved of a model."""

    config: Config
    model_id: str
    backbone: Ensemble
    params: Params
    scorers: Scorers
    item_table: ItemTable
    ratings: RatingModel | None
    profile_encoder: AttributeEncoder
    record: Record
    profiles: Mapping[str, Float[Tensor, "profile"]]
    training: Mapping[str, object]
    trained_until: float


def identify(
    backbone: Ensemble, params: Params, scorers: Scorers, items: ItemTable, ratings: RatingModel | None
) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of everything that was trained or fitted."""
    return hashlib.sha256(save(_weights(backbone, params, scorers, items, ratings))).hexdigest()[:16]


def to_files(bundle: Bundle) -> dict[str, bytes]:
    """A bundle as the contents of files, by name."""
    items = bundle.item_table
    names = {
        "format": FORMAT,
        "model_id": bundle.model_id,
        "config": bundle.config.to_dict(),
        "num_trained": items.num_trained,
        "trained_until": bundle.trained_until,
        "unseen_popularity": items.unseen_popularity,
        "titles": items.titles,
        "item_encoder": items.encoder.to_dict(),
        "profile_encoder": bundle.profile_encoder.to_dict(),
        "users": bundle.record.users,
        "kinds": bundle.record.kinds,
        "training": dict(bundle.training),
        "scorers": {name: scorer.setting for name, scorer in bundle.scorers.fitted.items()},
    }
    return {
        _MODEL: save(_weights(bundle.backbone, bundle.params, bundle.scorers, items, bundle.ratings) | _derived(items)),
        _USERS: save(_of_users(bundle)),
        _VOCABULARY: items.vocabulary.to_json().encode(),
        _NAMES: json.dumps(names, ensure_ascii=False).encode(),
    }


def from_files(files: Mapping[str, bytes], where: object) -> Bundle:
    """The bundle that `to_files` was given.

    Args:
        files: contents by name.
        where: what they are of, for messages.

    Raises:
        ModelError: they are no bundle, or hold a NaN.
    """
    with refusing_what_is_no_model(where):
        tensors, people = load(files[_MODEL]), load(files[_USERS])
        names = json.loads(files[_NAMES])
        vocabulary = Vocabulary.from_json(files[_VOCABULARY].decode())
        _refuse_non_finite(tensors, f"{where}/{_MODEL}")
        _refuse_non_finite(people, f"{where}/{_USERS}")
        return _assemble(tensors, people, names, vocabulary)


@contextmanager
def refusing_what_is_no_model(where: object) -> Iterator[None]:
    """Turn whatever goes wrong with a damaged model into a `ModelError` that says where it is."""
    try:
        yield
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{where}: not a Palate model ({' '.join(str(error).split())})") from None
    except PalateError as error:
        raise ModelError(str(error) if str(error).startswith(str(where)) else f"{where}: {error}") from None


def _weights(
    backbone: Ensemble, params: Params, scorers: Scorers, items: ItemTable, ratings: RatingModel | None
) -> dict[str, Tensor]:
    """Everything that was trained or fitted."""
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors |= {f"params.{name}": value for name, value in params.items()}
    tensors |= {f"scorers.{name}": torch.from_numpy(value) for name, value in scorers.to_arrays().items()}
    if ratings is not None:
        tensors |= {f"ratings.{name}": value for name, value in ratings.to_tensors().items()}
    tensors |= {
        "content_rotation.mean": items.content_rotation.mean,
        "content_rotation.axes": items.content_rotation.axes,
        "vector_rotation.mean": items.space.vector_rotation.mean,
        "vector_rotation.axes": items.space.vector_rotation.axes,
        "content_to_evidence": items.space.content_to_evidence,
    }
    content = backbone.models()[0].items.content
    if content is not None:
        tensors["content"] = content
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _derived(items: ItemTable) -> dict[str, Tensor]:
    parts = {"items": items.rows, "base": items.base, "item_posterior": items.posterior}
    return {
        f"{part}.{name}": value.contiguous()
        for part, values in parts.items()
        if values is not None
        for name, value in values._asdict().items()
    } | {f"kin.{name}": torch.from_numpy(value) for name, value in items.kin._asdict().items()}


_OF_EVENTS = ("items", "seconds", "kinds", "values", "sessions")


def _of_users(bundle: Bundle) -> dict[str, Tensor]:
    """Everyone's events end to end, with where each person begins, and their profiles."""
    log, profiles = bundle.record.log, list(bundle.profiles.values())  # none where people are kept elsewhere
    columns = {name: getattr(log, name) for name in ("offsets", *_OF_EVENTS)}
    return {
        **{f"events.{name}": torch.from_numpy(column) for name, column in columns.items() if column is not None},
        "profiles": torch.stack([torch.zeros(bundle.profile_encoder.dim), *profiles])[1:].contiguous(),
    }


def _refuse_non_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{file}: tensor {name!r} holds a NaN or infinity; train it again")


def _assemble(
    tensors: Mapping[str, Tensor], people: Mapping[str, Tensor], names: Mapping[str, Any], vocabulary: Vocabulary
) -> Bundle:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    config = Config.from_dict(names["config"], source=_NAMES)
    profile_encoder = AttributeEncoder.from_dict(names["profile_encoder"])
    weights = [part(f"backbone.members.{member}.") for member in range(config.num_members)]
    content = tensors["content"] if "items.project.weight" in weights[0] else None
    backbone = load_members(config.model, weights, content, names["num_trained"])
    items = ItemTable(
        vocabulary=vocabulary,
        titles=tuple(names["titles"]),
        rows=Items(**part("items.")),
        num_trained=names["num_trained"],
        encoder=AttributeEncoder.from_dict(names["item_encoder"]),
        content_rotation=Rotation(tensors["content_rotation.mean"], tensors["content_rotation.axes"]),
        space=FeatureSpace(
            Rotation(tensors["vector_rotation.mean"], tensors["vector_rotation.axes"]),
            tensors["content_to_evidence"],
        ),
        unseen_popularity=names["unseen_popularity"],
        posterior=ItemPosterior(**part("item_posterior.")),
        kin=Kin(**{name: value.numpy() for name, value in part("kin.").items()}),
        base=Items(**part("base.")) if "base.features" in tensors else None,
    )
    ratings = part("ratings.")
    return Bundle(
        config=config,
        model_id=names["model_id"],
        backbone=backbone,
        params=part("params."),
        scorers=Scorers.from_arrays({k: v.numpy() for k, v in part("scorers.").items()}, names["scorers"]),
        item_table=items,
        ratings=RatingModel.from_tensors(ratings, config.ratings) if ratings else None,
        profile_encoder=profile_encoder,
        record=_record(people, names["users"], names["kinds"], len(vocabulary)),
        profiles=dict(zip(names["users"], people["profiles"], strict=True)),
        training=names["training"],
        trained_until=float(names["trained_until"]),
    )


def _record(people: Mapping[str, Tensor], users: Sequence[str], kinds: Sequence[str], num_items: int) -> Record:
    columns = {name: people[f"events.{name}"].numpy() for name in _OF_EVENTS if f"events.{name}" in people}
    log = EventLog(offsets=people["events.offsets"].numpy(), **columns)
    if len(users) != log.num_users or not 0 <= log.items.min(initial=0) <= log.items.max(initial=0) < num_items:
        raise ValueError(f"events of {log.num_users} people with {num_items} items do not fit the names")
    return Record(tuple(users), tuple(kinds), log)

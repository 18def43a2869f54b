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

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from palate.backbone.ensemble import Ensemble, load_members
from palate.config import Config
from palate.data.episodes import History, any_rated
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

FORMAT = 8
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
    users: Mapping[str, History]
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
        "users": list(bundle.users),
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


def _of_users(bundle: Bundle) -> dict[str, Tensor]:
    """Histories end to end, with where each begins."""
    histories = list(bundle.users.values())

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)) if arrays else torch.zeros(0, dtype=torch.int64)

    def starts(arrays: list[np.ndarray]) -> Tensor:
        return torch.tensor(np.cumsum([0, *map(len, arrays)]), dtype=torch.int64)

    profiles = list(bundle.profiles.values())  # none where people are kept elsewhere
    items = [history.items for history in histories]
    refused = [history.refused for history in histories]
    return {
        "items": joined(items),
        "items.starts": starts(items),
        "times": joined([history.times for history in histories]),
        **_ratings_of(histories),
        "refused": joined(refused),
        "refused.starts": starts(refused),
        "profiles": torch.stack([torch.zeros(bundle.profile_encoder.dim), *profiles])[1:].contiguous(),
    }


def _ratings_of(histories: Sequence[History]) -> dict[str, Tensor]:
    """The ratings, and which of all the items have one: a NaN in a file is damage."""
    rows = [np.full(len(one.items), np.nan) if one.ratings is None else one.ratings for one in histories]
    every = np.concatenate([np.zeros(0), *rows])
    known = ~np.isnan(every)
    return {"rated": torch.from_numpy(known), "ratings": torch.from_numpy(every[known])}


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
        users=_histories(people, names["users"]),
        profiles=dict(zip(names["users"], people["profiles"], strict=True)),
        training=names["training"],
        trained_until=float(names["trained_until"]),
    )


def _histories(people: Mapping[str, Tensor], users: list[str]) -> dict[str, History]:
    starts, refusals = people["items.starts"].tolist(), people["refused.starts"].tolist()
    items, times, refused = (people[name].numpy() for name in ("items", "times", "refused"))
    ratings = np.full(len(items), np.nan)
    ratings[people["rated"].numpy()] = people["ratings"].numpy()
    return {
        user: History(
            items[starts[row] : starts[row + 1]],
            times[starts[row] : starts[row + 1]],
            refused[refusals[row] : refusals[row + 1]].astype(np.int64),
            ratings=any_rated(ratings[starts[row] : starts[row + 1]]),
        )
        for row, user in enumerate(users)
    }

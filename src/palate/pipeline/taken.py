"""A shared model that `palate pretrain` has trained, taken as the backbone of a recommender as it is.

The head above it is meta-trained on people whom it has not seen: those whom `palate events` left out by their ids, and
those who came after the last event that it has learned from.
"""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch

from palate.backbone.ensemble import Trained
from palate.backbone.sequence_model import Catalogue
from palate.backbone.warm_start import content_width, renew_model
from palate.config import Config
from palate.data.choices import Choices
from palate.data.episodes import is_held_out
from palate.errors import ConfigError, DataError
from palate.pipeline.newcomers import LEAST_NEWCOMERS
from palate.pipeline.preparing import Prepared
from palate.pretrain import Pretrained, load_model


def take_backbone(config: Config) -> tuple[Pretrained, Config]:
    """Load the model in `config.backbone`; the settings with its shape in them.

    Raises:
        ModelError: the folder holds no trained model.
        ConfigError: settings of the shared model that are not its own, a model that reads what lists do not tell it, or
            one that has seen the events by which it is to be judged.
    """
    assert config.backbone is not None
    taken = load_model(config.backbone)
    model = taken.model.config
    for name, theirs, ours, default in (
        ("model", model, config.model, Config().model),
        ("num_members", 1, config.num_members, Config().num_members),
    ):
        if ours not in (theirs, default):
            raise ConfigError(f"{name}: the backbone in {config.backbone} brings its own; leave [{name}] out")
    if model.num_kinds:
        raise ConfigError(
            f"backbone: the model in {config.backbone} reads kinds of events, which lists do not tell it; pre-train "
            "one with model.num_kinds = 0"
        )
    cut = config.evaluation.cut
    if cut is not None and taken.until >= datetime.fromisoformat(cut).replace(tzinfo=UTC).timestamp():
        raise ConfigError(
            f"backbone: the model in {config.backbone} has learned from events until {_day(taken.until)}, after "
            f"evaluation.cut {cut}: it has seen what it would be judged by; pre-train on the events before"
        )
    return taken, replace(config, model=model, num_members=1)


def newcomers_to(taken: Pretrained, people: Choices, config: Config) -> Choices:
    """The people with enough items whom the model has not seen, in the order of their ids.

    Raises:
        DataError: fewer than three.
    """
    chosen = people.chosen
    able = np.flatnonzero(chosen.lengths() >= config.meta.min_items)
    late = chosen.times[chosen.offsets[able]] > taken.until
    left_out = np.array([is_held_out(people.users[row], taken.held_out) for row in able.tolist()], np.bool_)
    found = people.take(able[late | left_out])
    if len(found) < LEAST_NEWCOMERS or len(found) == len(people):
        raise DataError(
            f"meta-training: {len(found)} of {len(people):,} people have at least {config.meta.min_items} distinct "
            f"items and are new to the model in {config.backbone}, expected at least {LEAST_NEWCOMERS} and others; "
            "write its events with `palate events --held-out 0.05`, or come back with people who came later"
        )
    return found


def as_member(taken: Pretrained, prepared: Prepared) -> Trained:
    """The model for the items of now: those that it knows as it knows them, the others by their content.

    Raises:
        DataError: it knows none of the items, or reads other content than they have.
        ConfigError: an item leaves a table whose rows are shared between items.
    """
    width = content_width(taken.model)
    known = [name for name in prepared.vocabulary.ids if name in taken.items]
    kept = torch.from_numpy(taken.items.index(known))
    if width:
        read, given = taken.model.items.content, prepared.content[: len(known), :width]
        assert read is not None
        if given.shape[1] < width or not torch.allclose(read[kept], given, atol=1e-3):
            raise DataError(
                "backbone: it reads other content of the items than the catalogue gives; write its events with the "
                "catalogue's own text (`palate events --items FILE --text COLUMN`), encoded with the same model"
            )
    if len(taken.model.profile):
        raise DataError("backbone: it reads profiles, which are encoded anew here; pre-train one without")
    counts = torch.from_numpy(np.bincount(prepared.histories.chosen.items, minlength=len(prepared.vocabulary)))
    model = renew_model(taken.model, Catalogue(counts, prepared.content[:, :width] if width else None), kept)
    return Trained(dict(model.state_dict()), tuple(record.loss for record in taken.history))


def _day(seconds: float) -> str:
    return "an unknown day" if np.isinf(seconds) else datetime.fromtimestamp(seconds, UTC).date().isoformat()

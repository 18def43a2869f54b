"""One list: a person's history and a request in, items with scores, propensities and reasons out; nothing is stored.

What explores or diversifies works on the best candidates by score and re-ranks those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from palate.meta.tasks import make_support
from palate.recommend import State
from palate.recommend.diversity import diversify
from palate.recommend.explore import Belief, ExploreConfig, belief_of, explore
from palate.service.contract import Listed, ListRequest, Value
from palate.service.people import Person
from palate.service.shelf import Shelf, kind_of


@dataclass(frozen=True)
class ListConfig:
    """How lists are made."""

    candidates: int = 200
    """The best so many by score are what exploration and diversity choose from; more where a list is longer."""
    explore: ExploreConfig = field(default_factory=lambda: ExploreConfig(strength=0.3))
    """How far exploration goes. On Online Retail, .25 exchanges about a tenth of a list at hardly any cost, and 1 about
    two fifths of it at up to a fifth of the hits."""


class Adapted(NamedTuple):
    """A person as a model sees them."""

    state: State
    personal: bool
    """Whether anything is known of them: an event that the model reads, or an attribute."""
    profile: Float[Tensor, "profile"]
    """What the model reads of their attributes."""
    told: bool
    """Whether the store has these fast weights, or was told of those that the model had for the same events before."""


def adapt(shelf: Shelf, person: Person, now: float) -> Adapted:
    """A person's fast weights for a list at `now`; computed again only after an event, or when a visit is over.

    What the store has kept of someone who was not in memory is taken where it is what would be computed.
    """
    model = shelf.model
    returning = person.returning(now, model.config.model.visit_gap)
    events = (model.model_id, person.position, returning)
    key, before = (shelf.token, events), None
    if person.memory is not None:
        last, adapted = person.memory
        assert isinstance(last, tuple)
        assert isinstance(adapted, Adapted)
        if last == key:
            return adapted
        before = last[1]
    profile, known = encode_profile(shelf, person.attributes)
    history = person.history(shelf.number_of, returning=returning)
    kept, person.kept = person.kept, None
    state = None
    if kept is not None and (kept.model_id, kept.position, kept.returning) == (*events[:2], history.returning):
        state = model.load_state(kept.payload, history, profile)
    # After the shelf alone has moved it is not worth another writing.
    told = state is not None or before == events
    if state is None:
        state = model.adapt_to(history, profile)
    adapted = Adapted(state, known or len(history.items) + len(history.refused) > 0, profile, told)
    person.memory = (key, adapted)
    return adapted


def encode_profile(shelf: Shelf, attributes: Mapping[str, Value]) -> tuple[Float[Tensor, "profile"], bool]:
    """What the model reads of attributes, and whether that is anything.

    Attributes that it was not trained with, or that are of another kind than in training, are not read.
    """
    kinds = {"numeric": "number", "categorical": "text"}
    read = {
        column.name: (str(value).lower() if isinstance(value, bool) else value)
        for column in shelf.model.profile_encoder.columns
        if (value := attributes.get(column.name)) is not None and kind_of(value) == kinds[column.kind]
    }
    return shelf.profile(tuple(read.items())), bool(read)


def make_list(
    shelf: Shelf, state: State, request: ListRequest, config: ListConfig, rng: np.random.Generator
) -> list[Listed]:
    """The list that is asked for; shorter where the filters leave fewer items.

    Raises:
        DataError: a filter that means nothing on this shelf.
        ConfigError: an exploration that the model cannot do.
    """
    model, history = shelf.model, state.history
    allowed = (
        shelf.allowed(request.filter) if request.filter is not None else shelf.listed if len(shelf.unlisted) else None
    )
    named = [number for item_id in request.exclude if (number := shelf.number_of.get(item_id)) is not None]
    seen = [] if request.include_seen else [history.items, history.refused]
    excluded = np.concatenate([np.array(named, np.int64), *seen])
    plain = request.explore == "none" and request.diversity == 0
    count = request.k if plain else max(config.candidates, 2 * request.k)
    places, scores = model.rank(state, count, allowed=allowed, excluded=excluded)
    propensities = np.ones(len(places))
    if not plain and len(places):
        features = model.items.features[torch.from_numpy(places)].numpy()
        directions = model.directions(places)

        def belief() -> Belief:
            return _belief(shelf, state)

        found = explore(
            request.explore,
            scores,
            features,
            belief,
            min(request.k, len(places)),
            rng=rng,
            config=config.explore,
            rank=lambda drawn, k: diversify(drawn, directions, k, request.diversity),
        )
        places, scores, propensities = places[found.chosen], found.values, found.propensity
    reasons = model.reasons(state, places)
    parts = model.parts(state, places) if request.parts else [None] * len(places)
    return [
        Listed(rank, model.vocabulary.ids[place], shelf.title(place), value, propensity, *reason, terms)
        for rank, (place, value, propensity, reason, terms) in enumerate(
            zip(places.tolist(), scores.tolist(), propensities.tolist(), reasons, parts, strict=True),
            start=1,
        )
    ]


def _belief(shelf: Shelf, state: State) -> Belief:
    """What is not known of a person after the events that they were adapted to."""
    model = shelf.model
    recent = state.history.tail(model.config.model.max_events)
    nothing = torch.zeros(model.items.vectors.shape[1])  # the posterior does not look at the state
    support = make_support(recent, model.items.features, nothing)
    return belief_of(
        model.config.meta.learner,
        model.config.learner,
        model.params,
        support,
        state.fast["prior"],
    )

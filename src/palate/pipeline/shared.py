"""The trained members together, and the item features of the head beside them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from palate.backbone.ensemble import Ensemble, Trained, load_members
from palate.config import Config
from palate.data.choices import Choices
from palate.data.event_log import EventLog
from palate.meta.evidence import FeatureSpace, fit_evidence, fit_features, fit_popularity, foretell_evidence
from palate.meta.head import Items
from palate.meta.item_tasks import ItemPosterior, fit_item_posterior, rank_of
from palate.pipeline.preparing import Prepared


class Shared(NamedTuple):
    """A shared model and the item features of its head, fitted on some people."""

    backbone: Ensemble
    items: Items
    space: FeatureSpace
    unseen_popularity: float
    counts: Float[Tensor, "item"]
    """People who chose each item, as popularity counts them."""
    log: EventLog
    """What these people chose."""


def assemble(
    members: Sequence[Trained],
    people: Choices,
    prepared: Prepared,
    content: Float[Tensor, "item content"],
    config: Config,
    until: float,
) -> Shared:
    """Put trained members together and fit the head's item features on the people they were trained on."""
    ensemble = load_members(config.model, [member.weights for member in members], prepared.content, len(content))
    with torch.no_grad():
        vectors = ensemble.item_vectors()
        features, space = fit_features(
            fit_evidence(people.chosen, len(content), config.evidence), content, vectors, config.evidence
        )
        popularity = fit_popularity(people.chosen, len(vectors), config.evidence.half_life, until)
        items = Items(features, vectors, ensemble.item_bias(), popularity.items)
    return Shared(ensemble, items, space, popularity.unseen, popularity.counts, people.chosen)


def alone(shared: Shared, member: int, config: Config) -> tuple[Ensemble, Items]:
    """A shared model of which one member speaks, and its items; what was counted over people is the same."""
    backbone, rank = shared.backbone.alone(member), rank_of(shared.items, config.evidence)
    with torch.no_grad():
        vectors = backbone.item_vectors()
        content = shared.items.features[:, rank : shared.items.features.shape[1] - vectors.shape[1]]
        features, _ = fit_features(shared.items.features[:, :rank], content, vectors, config.evidence)
        return backbone, Items(features, vectors, backbone.item_bias(), shared.items.popularity)


def learn_items(
    shared: Shared, prepared: Prepared, content: Float[Tensor, "item content"], config: Config, until: float
) -> ItemPosterior:
    """Let items of the training data play the new one, and learn what their first choosers say of them."""
    items = shared.items
    with torch.no_grad():
        vectors = shared.backbone.encode_new(prepared.content)
        evidence = items.features[:, : rank_of(items, config.evidence)]
        foretold = Items(
            torch.cat(
                [
                    foretell_evidence(content, evidence, config.evidence),
                    content,
                    shared.space.vector_rotation(vectors),
                ],
                1,
            ),
            vectors,
            items.bias.min().expand(len(vectors)),
            torch.full((len(vectors),), shared.unseen_popularity),
        )
        return fit_item_posterior(
            prepared.histories.chosen,
            items,
            foretold,
            shared.counts,
            config.item_tasks,
            config.evidence,
            until=until,
            seed=config.seed,
        )

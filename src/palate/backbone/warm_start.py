"""Start from a trained model: for a catalogue that has grown, or for another shop whose content reads alike.

People need nothing: the model holds no weights of theirs. Items that are new begin at what their content says, so
that training goes on from there instead of from nothing.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.backbone.item_tower import popularity_bias
from palate.backbone.sequence_model import Catalogue, SequenceModel
from palate.errors import ConfigError, DataError

_OWN = 0.1
"""Scale of another shop's id embeddings at the start: content leads, and every table can still learn."""


def grow_model(model: SequenceModel, catalogue: Catalogue) -> SequenceModel:
    """A model for a larger catalogue whose first items are those of `model`, in the same order.

    Vectors and biases of the items it had are unchanged. New items have their content's vector and the bias that
    their events deserve beside the least popular of the old. The old model is left as it is.

    Raises:
        DataError: fewer items than before, or content of another width (or none, where the model reads it).
        ConfigError: codes that do not go on from those that the item table has.
    """
    known = model.items.num_items
    counts = catalogue.counts
    if len(counts) < known:
        raise DataError(
            f"warm start: {len(counts):,} items, the model has {known:,}; keep the old ones, new ones after"
        )
    _check_content(model, catalogue.content)
    grown = _like(model, catalogue)
    _copy(model, grown, skip=("items.table.", "items.bias"))
    grown.items.table = model.items.table.grow(len(counts), catalogue.codes)
    with torch.no_grad():
        bias = model.items.bias
        fresh = popularity_bias(counts)[known:] - popularity_bias(counts)[:known].min()
        grown.items.bias.copy_(torch.cat([bias, bias.min() + fresh]))
    return grown.train(model.training)


def renew_model(model: SequenceModel, catalogue: Catalogue, kept: Int64[Tensor, "kept"]) -> SequenceModel:
    """A model for a catalogue that items have left and others joined: its first items are items `kept` of `model`.

    What stays keeps its vectors and biases, what is new begins as in `grow_model`. The old model is left as it is.

    Raises:
        DataError: nothing is kept, or as `grow_model`.
        ConfigError: an item leaves a table whose rows are shared between items.
    """
    if len(kept) == 0:
        raise DataError("warm start: none of the items that the model was trained on is left; train from nothing")
    if torch.equal(kept, torch.arange(model.items.num_items)):
        return grow_model(model, catalogue)
    first = catalogue.counts[: len(kept)]
    content = None if catalogue.content is None else catalogue.content[: len(kept)]
    fewer = _like(model, Catalogue(first, content))
    _copy(model, fewer, skip=("items.table.", "items.bias"))
    fewer.items.table = model.items.table.keep(kept)
    with torch.no_grad():
        fewer.items.bias.copy_(model.items.bias[kept])
    return grow_model(fewer.train(model.training), catalogue)


def transfer_model(model: SequenceModel, catalogue: Catalogue) -> SequenceModel:
    """A model for another shop: how sequences are read and how content becomes a vector is taken over, items are not.

    Raises:
        ConfigError: the model reads no content, so nothing of its items would carry over.
        DataError: the other shop's content has another width, or it has none.
    """
    if model.items.project is None:
        raise ConfigError("transfer: the model was trained without content, so that its items mean nothing elsewhere")
    _check_content(model, catalogue.content)
    other = _like(model, catalogue)
    _copy(model, other, skip=("items.table.", "items.bias"))
    with torch.no_grad():
        for parameter in other.items.table.parameters():
            parameter.mul_(_OWN)
    return other.train(model.training)


def content_width(model: SequenceModel) -> int:
    """Content features of an item that the model reads; 0 where it reads none."""
    return 0 if model.items.project is None else model.items.project.in_features


def _check_content(model: SequenceModel, content: Float[Tensor, "item content"] | None) -> None:
    width, given = content_width(model), 0 if content is None else content.shape[1]
    if width != given:
        raise DataError(
            f"warm start: the catalogue has {given} content features an item, the model was trained with {width}; "
            "encode it as in training"
        )


def _like(model: SequenceModel, catalogue: Catalogue) -> SequenceModel:
    """A model of the same settings for another catalogue, with random weights drawn apart from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return SequenceModel(model.config, catalogue, len(model.profile))


def _copy(source: SequenceModel, target: SequenceModel, skip: tuple[str, ...]) -> None:
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith(skip)}
    missing, unexpected = target.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(skip) for name in missing)

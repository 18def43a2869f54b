"""A data set as arrays: items numbered, histories collected, content and profiles encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.choices import Choices, choices_in
from palate.data.dataset import Dataset
from palate.data.record import Record, read_record
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.errors import DataError
from palate.progress import StageHandle
from palate.recommend.content import encode_content
from palate.recommend.recommender import Recommender


class Prepared(NamedTuple):
    """A data set as arrays: what training starts from."""

    vocabulary: Vocabulary
    titles: tuple[str, ...]
    record: Record
    """All that the people did with these items who have chosen at least one of them, by user id in order."""
    histories: Choices
    """What of it are choices, refusals and ratings."""
    profiles: Mapping[str, Float[Tensor, "profile"]]
    content: Float[Tensor, "item content"]
    item_encoder: AttributeEncoder
    profile_encoder: AttributeEncoder


class Indexed(NamedTuple):
    """The events of a data set as numbers, before anything is encoded."""

    vocabulary: Vocabulary
    """Items with at least one choice."""
    record: Record
    """As in `Prepared`."""
    histories: Choices
    """As in `Prepared`."""


def prepare(
    dataset: Dataset, config: Config, stage: StageHandle | None = None, *, start: Recommender | None = None
) -> Prepared:
    """Turn a data set into arrays: `index_events`, then `encode`.

    Raises: as they do.
    """
    first = () if start is None else start.vocabulary.ids[: start.num_trained]
    return encode(dataset, index_events(dataset, config, first=first), config, stage, start=start)


def index_events(dataset: Dataset, config: Config, *, first: Sequence[str] = ()) -> Indexed:
    """Number the items and collect the histories; only items and people with choices count, others teach nothing.

    Of the items those in `first` come first, in that order.

    Raises:
        DataError: no event is a choice.
    """
    chosen = dataset.interactions.filter(~pl.col("event_type").is_in(list(config.negative_events)))
    if chosen.is_empty():
        raise DataError(
            f"{dataset.name}: every event is of a type in negative_events {config.negative_events}; "
            "nothing says what people choose"
        )
    ids = chosen["item_id"].unique().sort()
    if first:
        before = pl.Series("item_id", first, dtype=pl.String)
        ids = pl.concat([before.filter(before.is_in(ids.implode())), ids.filter(~ids.is_in(before.implode()))])
    vocabulary = Vocabulary(tuple(ids))
    known = dataset.interactions.filter(pl.col("item_id").is_in(vocabulary.frame["item_id"].implode()))
    record = read_record(known, vocabulary)
    histories = choices_in(record, config.meaning)
    able = np.flatnonzero(histories.chosen.lengths() > 0)
    return Indexed(vocabulary, record.take(able), histories.take(able))


def encode(
    dataset: Dataset,
    indexed: Indexed,
    config: Config,
    stage: StageHandle | None = None,
    *,
    start: Recommender | None = None,
) -> Prepared:
    """Encode the content of the indexed items and the profiles of the people; with `start`, as that model does.

    Raises:
        DataError: an attribute is missing that `start` reads.
    """
    vocabulary, record, histories = indexed
    catalog = _rows(dataset.items, vocabulary)
    people = pl.DataFrame({"user_id": histories.users}).join(
        dataset.users.frame, on="user_id", how="left", maintain_order="left"
    )

    def on_texts(done: int, of: int) -> None:
        if stage is not None:
            stage.step(done, of, "texts")

    if start is not None:
        item_encoder, profile_encoder = start.item_table.encoder, start.profile_encoder
        content = start.encode_items(catalog, on_texts)
    else:
        # Overrides are by column name, and a name belongs to the table that has it.
        item_encoder = AttributeEncoder.fit(
            catalog.frame,
            catalog.numeric,
            catalog.categorical,
            _overrides_for(config.attributes, (*catalog.numeric, *catalog.categorical)),
        )
        columns = (*dataset.users.numeric, *dataset.users.categorical)
        profile_encoder = AttributeEncoder.fit(
            people, dataset.users.numeric, dataset.users.categorical, _overrides_for(config.attributes, columns)
        )
        content = encode_content(catalog, item_encoder, config.text, on_texts)
    encoded = torch.from_numpy(profile_encoder.transform(people))
    titles = catalog.titles()
    return Prepared(
        vocabulary,
        tuple(titles[name] for name in vocabulary.ids),
        record,
        histories,
        dict(zip(histories, encoded, strict=True)),
        content,
        item_encoder,
        profile_encoder,
    )


def _rows(catalog: Catalog, vocabulary: Vocabulary) -> Catalog:
    """The rows of a catalogue in the order of a vocabulary."""
    order = vocabulary.frame.select("item_id")
    return replace(catalog, frame=order.join(catalog.frame, on="item_id", how="left", maintain_order="left"))


def _overrides_for(config: AttributeConfig, columns: Sequence[str]) -> AttributeConfig:
    return replace(config, overrides={k: v for k, v in config.overrides.items() if k in columns})

"""The item table: what a recommender knows of its items, from their ids to the rows that scoring reads.

A table is never changed: what adds items or takes in events returns another one. The first `num_trained` items had
events in training; the others are known by their content alone until people choose them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from palate.data.catalog import Catalog
from palate.data.choices import read_choices
from palate.data.episodes import EMPTY_HISTORY, EventMeaning, History
from palate.data.log import validate_interactions
from palate.data.times import parse_time
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeEncoder
from palate.encoders.text import TextConfig
from palate.errors import DataError
from palate.meta.evidence import EvidenceConfig, FeatureSpace, Rotation
from palate.meta.head import Items, ScoringRows, scoring_rows
from palate.meta.item_choices import ItemChoices
from palate.meta.item_tasks import ItemPosterior, ItemTaskConfig
from palate.recommend.content import encode_content
from palate.scorers.kin import Kin, find_kin


@dataclass(frozen=True, eq=False, repr=False)
class ItemTable:
    """Items in the order of their numbers."""

    vocabulary: Vocabulary
    """Their ids; the place of an id is the item's number."""
    titles: tuple[str, ...]
    rows: Items
    """What scoring reads of each item."""
    num_trained: int
    """The first so many items had events in training."""
    encoder: AttributeEncoder
    """Of their attributes."""
    content_rotation: Rotation
    space: FeatureSpace
    """How an item without events becomes a row."""
    unseen_popularity: float
    posterior: ItemPosterior
    """How rows follow events after training."""
    kin: Kin
    """The relatives by content of the items that came after training."""
    base: Items | None = None
    """The rows before any such events, where `rows` has taken some in."""

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def rows_of_training(self) -> Items:
        """The rows before any events after training."""
        return self.rows if self.base is None else self.base

    @cached_property
    def scoring_rows(self) -> ScoringRows:
        """The rows as one person's list reads them."""
        return scoring_rows(self.rows)

    def rows_from(self, number: int) -> Items:
        """The rows of the items from this number on."""
        return Items(*(column[number:] for column in self.rows))

    def unknown(self, catalog: Catalog) -> Catalog | None:
        """The items of a catalogue that are not in this table; None: it has them all."""
        frame = catalog.frame.filter(~pl.col("item_id").is_in(self._ids))
        return None if frame.is_empty() else replace(catalog, frame=frame)

    def encode(
        self, catalog: Catalog, text: TextConfig, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "item content"]:
        """Encode the rows of a catalogue as in training; what training did not read, a new column or text, is left out.

        Raises:
            DataError: the catalogue lacks an attribute or the text that the model was trained with.
        """
        width = len(self.content_rotation.mean)
        if width == self.encoder.dim + 1:  # one empty feature is all that a catalogue without texts has
            catalog = replace(catalog, text=None)
        content = encode_content(catalog, self.encoder, text, progress)
        if content.shape[1] != width:
            given = "no text column" if catalog.text is None else f"the text column {catalog.text!r}"
            raise DataError(
                f"catalogue: {given} gives {content.shape[1]} features an item, the model was trained with {width}; "
                "describe the new items as in training"
            )
        return content

    def with_items(
        self, catalog: Catalog, content: Float[Tensor, "item content"], vectors: Float[Tensor, "item dim"]
    ) -> "ItemTable":
        """The table with more items at its end.

        Args:
            catalog: items that are not in the table yet.
            content: what `encode` makes of them.
            vectors: what the backbone makes of their content.
        """
        titles, ids = catalog.titles(), tuple(catalog.frame["item_id"])
        turned = self.content_rotation(content)
        added = Items(
            self.space.new_items(turned, vectors),
            vectors,
            self.rows.bias[: self.num_trained].min().expand(len(vectors)),
            torch.full((len(vectors),), self.unseen_popularity),
        )
        return replace(
            self,
            rows=_joined(self.rows, added),
            base=None if self.base is None else _joined(self.base, added),
            vocabulary=Vocabulary((*self.vocabulary.ids, *ids)),
            titles=(*self.titles, *(titles[name] for name in ids)),
            kin=self.kin.joined(find_kin(self._known_content, turned.numpy())),
        )

    def no_choices(self, half_life: float) -> ItemChoices:
        """What `with_choices` reads before anything was chosen."""
        return ItemChoices(self.posterior, half_life)

    def read_choices(
        self,
        events: pl.DataFrame,
        users: Mapping[str, History],
        half_life: float,
        meaning: EventMeaning,
        now: datetime | str | None,
    ) -> tuple[ItemChoices, float]:
        """What people have chosen since training, and the moment up to which that is, in seconds since 1970-01-01.

        Args:
            events: user_id, item_id and timestamp at least. Items that are not in the table are passed over.
            users: histories of people in training.
            half_life: days after which a choice counts half; see `EvidenceConfig`.
            meaning: what types of events say.
            now: the moment, naive UTC; None: that of the newest event.

        Raises:
            DataError: a malformed table, or an event later than `now`.
        """
        log = validate_interactions(events, source="events")
        moment = log["timestamp"].max() if now is None else parse_time(now, what="now")
        assert isinstance(moment, datetime)
        late = log.filter(pl.col("timestamp") > moment)
        if not late.is_empty():
            raise DataError(f"events: one is at {late['timestamp'][0]}, after now ({moment}); leave it out")
        since = read_choices(log.filter(pl.col("item_id").is_in(self._ids)), self.vocabulary, meaning)
        choices = self.no_choices(half_life)
        choices.exchange({}, {user: users.get(user, EMPTY_HISTORY).then(own) for user, own in since.items()})
        return choices, (moment - datetime(1970, 1, 1)).total_seconds()

    def with_choices(
        self, choices: ItemChoices, now: float, tasks: ItemTaskConfig, evidence: EvidenceConfig
    ) -> "ItemTable":
        """The table after choices that came after training; without any of them it is `without_choices`.

        Args:
            choices: begun by `no_choices` of a table of the same training.
            now: the moment up to which the shelf time of items is counted, in seconds since 1970-01-01.
            tasks: how a new item's row follows its first events.
            evidence: how the evidence was fitted.
        """
        base = self.rows_of_training
        return replace(self, rows=choices.rows(base, now, tasks, evidence, self.space), base=base)

    def without_choices(self) -> "ItemTable":
        """The table as it is before any events after training."""
        return self if self.base is None else replace(self, rows=self.base, base=None)

    @property
    def _known_content(self) -> Float[np.ndarray, "known content"]:
        """The content of the items in training: the features between their evidence and their vectors."""
        content, vector = (rotation.axes.shape[1] for rotation in (self.content_rotation, self.space.vector_rotation))
        features = self.rows_of_training.features[: self.num_trained]
        return np.asarray(features[:, features.shape[1] - vector - content : features.shape[1] - vector].numpy())

    @property
    def _ids(self) -> pl.Series:
        """All ids, as polars looks for a value among them."""
        return self.vocabulary.frame["item_id"].implode()


def _joined(first: Items, second: Items) -> Items:
    return Items(*(torch.cat([one, other]) for one, other in zip(first, second, strict=True)))

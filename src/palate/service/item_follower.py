"""What was chosen since a model was trained, kept up as events are stored: only people who did something are read.

After a start, an erasure or when an item becomes known to the model that was chosen before, all is read again, in
parts. Nothing of it is stored: events are the truth.
"""

import time

import polars as pl

from palate.data.choices import Choices, read_choices
from palate.meta.item_choices import ItemChoices
from palate.recommend import Recommender
from palate.store import Store, erasure, events

_PEOPLE = 64
"""Whose events are in memory at once."""
_REST = 1.0
"""After so many people, as a share of the time that they took: lists need the machine too."""
_MISSED = 10_000
"""Unknown items that are remembered; beyond, any new item makes all be read again."""


class ItemFollower:
    """Follows a store for one model; `catch_up` is called by one thread at a time."""

    def __init__(self) -> None:
        self._choices: ItemChoices | None = None
        self._seq = self._erasures = self._known = 0
        self._missed: set[str] = set()
        """Items that were chosen and are not known to the model."""

    def catch_up(self, store: Store, model: Recommender, up_to_seq: int) -> ItemChoices:
        """Take in what was stored up to an event.

        Args:
            store: where.
            model: with the same weights each time, and at least the items of the time before.
            up_to_seq: what `events.settled` said.

        Raises:
            StoreError: it cannot be read; the next call begins anew.
        """
        choices, self._choices = self._choices, None  # what fails half way is not gone on with
        with store.read() as connection:
            erasures = erasure.count(connection)
            if choices is None or erasures != self._erasures or self._has_become_known(model):
                choices, self._seq, self._missed = model.no_choices(), 0, set()
            since = None if self._seq else model.trained_until
            people = events.people_since(connection, self._seq, up_to_seq, since)
        for start in range(0, len(people), _PEOPLE):
            began, some = time.perf_counter(), people[start : start + _PEOPLE]
            with store.read() as connection:
                done = events.read_choices(connection, some, up_to_seq)
            known = done["item_id"].is_in(model.vocabulary.frame["item_id"].implode())
            self._missed.update(done.filter(~known)["item_id"].unique())
            done = done.filter(known)
            before = _histories(done.filter(pl.col("seq") <= self._seq), model) if self._seq else {}
            choices.exchange(before, _histories(done, model))
            time.sleep(_REST * (time.perf_counter() - began))
        self._seq, self._erasures, self._known = up_to_seq, erasures, len(model.vocabulary)
        self._choices = choices
        return choices

    def _has_become_known(self, model: Recommender) -> bool:
        if len(self._missed) > _MISSED:
            return len(model.vocabulary) > self._known
        return any(item_id in model.vocabulary for item_id in self._missed)


def _histories(done: pl.DataFrame, model: Recommender) -> Choices:
    frame = done.with_columns(timestamp=pl.from_epoch((pl.col("seconds") * 1e6).round().cast(pl.Int64), time_unit="us"))
    return read_choices(frame, model.vocabulary, model.config.meaning._replace(rating=frozenset()))

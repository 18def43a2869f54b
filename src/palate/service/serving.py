"""What is served: the model for everyone and, at times, another one for some; and lists made with them.

Which model someone gets depends on a keyed hash of their id alone. `variants` is exchanged as a whole: a list is made
from what it was when the request came to be answered.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from palate.errors import ConfigError, DataError, PalateError, StoreError
from palate.evaluation.ab import assign
from palate.recommend import Recommender
from palate.service.contract import (
    ListOut,
    ListRequest,
    NotFoundError,
    PredictedRating,
    PredictOut,
    PredictRequest,
    RefusedError,
)
from palate.service.lists import Adapted, ListConfig, adapt, make_list
from palate.service.people import Cursor, People, Person
from palate.service.shelf import Shelf

Variant = Literal["served", "canary"]


class Variants(NamedTuple):
    """The models that serve, on their shelves."""

    served: Shelf
    canary: Shelf | None = None
    share: float = 0.0
    """Part of the people that the canary serves."""

    def of(self, who: str, key: bytes) -> tuple[Variant, Shelf]:
        """The variant of someone."""
        if self.canary is None:
            return "served", self.served
        if assign(who, {"served": 1 - self.share, "canary": self.share}, key) == "canary":
            return "canary", self.canary
        return "served", self.served


class Made(NamedTuple):
    """A list and what went into it."""

    list: ListOut
    request: ListRequest
    seconds: float
    """What making it took."""


class ListError(PalateError):
    """A model failed to make a list, through no fault of the request; the message is the model's id."""


class Serving:
    """Makes lists. One thread calls `lists`; `variants` may be exchanged by any."""

    def __init__(
        self,
        variants: Variants,
        people: People,
        config: ListConfig,
        key: bytes,
        cursors: Callable[[Sequence[str]], Mapping[str, Cursor]] | None = None,
        rng: np.random.Generator | None = None,
        note: Callable[[str, Recommender, Person, Adapted], None] | None = None,
    ) -> None:
        """Take what lists are made with.

        Args:
            variants: the models.
            people: those who have an id.
            config: how lists are made.
            key: of the hash by which people fall to a variant.
            cursors: asks the store how it stands with people; for one that other processes write to as well.
            rng: of exploration.
            note: told of someone with an id whom a model has adapted to.
        """
        self.variants = variants
        self._people = people
        self._config = config
        self._key = key
        self._cursors = cursors
        self._rng = rng or np.random.default_rng()
        self._note = note
        self._nobody = Person({})

    def lists(self, requests: Sequence[ListRequest], now: float) -> list[Made]:
        """Make lists, all from the models that serve at this moment.

        Raises:
            DataError: a filter that means nothing.
            ConfigError: an exploration that the model cannot do.
            StoreError: a person cannot be read.
            ListError: a model failed.
        """
        variants = self.variants
        named = [request.user_id for request in requests if request.user_id is not None]
        found = None if self._cursors is None or not named else self._cursors(named)
        made = []
        for request in requests:
            start = time.perf_counter()
            variant, shelf = variants.of(request.user_id or secrets.token_hex(8), self._key)
            try:
                adapted = self._adapt(shelf, request, found, now)
                items = make_list(shelf, adapted.state, request, self._config, self._rng)
            except (DataError, ConfigError, StoreError):
                raise
            except Exception as error:
                raise ListError(shelf.model.model_id) from error
            listed = ListOut(secrets.token_hex(12), shelf.model.model_id, variant, not adapted.personal, items)
            made.append(Made(listed, request, time.perf_counter() - start))
        return made

    def predict(self, request: PredictRequest, now: float) -> PredictOut:
        """Say how someone would rate items.

        Raises:
            NotFoundError: an item that the model does not know.
            RefusedError: the model has learned no ratings.
            StoreError: the person cannot be read.
        """
        found = None if self._cursors is None or request.user_id is None else self._cursors([request.user_id])
        _, shelf = self.variants.of(request.user_id or secrets.token_hex(8), self._key)
        if shelf.model.ratings is None:
            raise RefusedError("the served model has learned no ratings: send events that rate and retrain")
        for place, item in enumerate(request.items):
            if item not in shelf.number_of:
                raise NotFoundError(f"items: nothing is known of number {place}, counted from 0")
        adapted = self._adapt(shelf, request, found, now)
        lines = shelf.model.predict_for(adapted.state.history, adapted.profile, request.items)
        return PredictOut(
            shelf.model.model_id,
            [
                PredictedRating(
                    line.item_id,
                    shelf.title(shelf.number_of[line.item_id]),
                    line.mean,
                    line.median,
                    list(line.distribution),
                    list(line.distribution.values()),
                )
                for line in lines
            ],
        )

    def adapted(self, user_id: str, now: float) -> tuple[Shelf, Person, Adapted] | None:
        """How the model sees someone; None: nobody knows them."""
        found = None if self._cursors is None else self._cursors([user_id])
        with self._people.lock:
            person = self._person(user_id, found)
            if person is None:
                return None
            _, shelf = self.variants.of(user_id, self._key)
            return shelf, person, self._adapt_known(shelf, user_id, person, now)

    def _adapt(
        self, shelf: Shelf, request: ListRequest | PredictRequest, found: Mapping[str, Cursor] | None, now: float
    ) -> Adapted:
        if request.user_id is None:
            return adapt(shelf, _of_session(request, shelf, now), now)
        with self._people.lock:  # no event is taken in between: what was learned belongs to the events
            person = self._person(request.user_id, found)
            if person is None:
                return adapt(shelf, self._nobody, now)
            return self._adapt_known(shelf, request.user_id, person, now)

    def _adapt_known(self, shelf: Shelf, user_id: str, person: Person, now: float) -> Adapted:
        before = person.memory
        adapted = adapt(shelf, person, now)
        if self._note is not None and person.memory is not before:
            self._note(user_id, shelf.model, person, adapted)
        return adapted

    def _person(self, user_id: str, found: Mapping[str, Cursor] | None) -> Person | None:
        if found is None:
            return self._people.get(user_id)
        cursor = found.get(user_id)
        if cursor is None:
            self._people.forget(user_id)
            return None
        return self._people.get(user_id, cursor)


def _of_session(request: ListRequest | PredictRequest, shelf: Shelf, now: float) -> Person:
    """Someone without an id, from the events of a request; events without a time come after those before them."""
    person = Person(request.profile)
    for event in sorted(request.events, key=lambda event: event.time_or(now)):
        person.take(event, now, shelf.model.config.meaning)
    return person

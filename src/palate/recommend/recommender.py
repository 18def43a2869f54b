"""The recommender: a trained model as one object, over the parts that hold and use it.

What is known of items is the item table's, how fast weights come about `adaptation`'s, how a list is ranked and
explained `ranking`'s and `explanation`'s, what is saved the bundle's.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from palate.backbone.ensemble import Ensemble
from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.choices import Choices, choices_in
from palate.data.episodes import History, is_another_visit
from palate.data.record import NO_RECORD, Record
from palate.data.times import parse_time
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeEncoder
from palate.errors import DataError
from palate.meta.head import Items, ScoringRows, metric, score_parts, search_query, search_rows
from palate.meta.item_choices import ItemChoices
from palate.meta.learner import Params
from palate.ratings.rating_model import RatingModel
from palate.recommend import fast_weight_cache
from palate.recommend.adaptation import Adaptation
from palate.recommend.bundle import Bundle, from_files, refusing_what_is_no_model, to_files
from palate.recommend.event_input import EventInput, read_history
from palate.recommend.explanation import Explainer
from palate.recommend.item_table import ItemTable
from palate.recommend.model_folder import read_folder, write_folder
from palate.recommend.predictions import RatingPrediction, describe_ratings
from palate.recommend.profile_input import encode_profile
from palate.recommend.ranking import Ranked, rank_all, rank_by_index, sample_histories
from palate.recommend.retrieval import Index, RetrievalConfig, build_index
from palate.recommend.state import State
from palate.scorers.evidence import Scorers


class Recommendation(NamedTuple):
    """One line of a list."""

    rank: int
    """From 1."""
    item_id: str
    title: str
    score: float
    """Comparable within one list only."""
    reason: str
    """For people: why this item."""
    because: str | None
    """Id of the item among the person's events that speaks most for this one, if any does."""
    parts: Mapping[str, float]
    """What each scorer adds to the score: the sequence model ("sequence"), the adapted weights ("adapted"),
    "popularity", and the item-item scorers by their names."""


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A trained model. It is never changed: methods that add to it return another one.

    A copy is therefore the model itself, what it has computed so far included. Pickling it, as joblib, multiprocessing
    and Ray do, writes the files of `save`, users' histories and `retrieval` included: no code, and no index, which the
    other process builds again when it is asked. For files that are kept or come from others use `save` and `load`,
    which verify what they read and execute nothing.
    """

    config: Config
    model_id: str
    """Hash of the weights."""
    backbone: Ensemble
    params: Params
    """Of the head."""
    scorers: Scorers
    """What goes with what."""
    item_table: ItemTable
    ratings: RatingModel | None
    """What people make of items they rate; None: nobody rated any in training."""
    profile_encoder: AttributeEncoder
    record: Record
    """All events of the people in training."""
    profiles: Mapping[str, Float[Tensor, "profile"]]
    """Encoded profiles of the people in training."""
    training: Mapping[str, object]
    """How the training went: curves and counts."""
    trained_until: float
    """Time of the newest event in training, in seconds since 1970-01-01."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """How the best of a large catalogue are found: above `retrieval.dense_until` items by an index of them.
    Not part of the saved model: `dataclasses.replace` sets another."""

    def __repr__(self) -> str:
        until = datetime.fromtimestamp(self.trained_until, UTC)
        return (
            f"<palate.Recommender {self.model_id}: {len(self.vocabulary):,} items ({self.num_trained:,} in training), "
            f"{len(self.record.users):,} users, trained until {until:%Y-%m-%d %H:%M}, "
            f"learner {self.config.meta.learner}, {self.config.num_members} members>"
        )

    def __copy__(self) -> "Recommender":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recommender":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (to_files(self._bundle), self.retrieval)

    def without_people(self) -> "Recommender":
        """The model alone, without the people that it was trained on: for who keeps people elsewhere."""
        return replace(self, record=NO_RECORD, profiles={})

    @cached_property
    def users(self) -> Choices:
        """What the people in training have chosen, refused and rated, by user id."""
        return choices_in(self.record, self.config.meaning)

    @property
    def items(self) -> Items:
        """What scoring reads of each item, in the order of the vocabulary."""
        return self.item_table.rows

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids of all items."""
        return self.item_table.vocabulary

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles of all items."""
        return self.item_table.titles

    @property
    def num_trained(self) -> int:
        """The first so many items of the vocabulary had events in training; the others have content alone."""
        return self.item_table.num_trained

    def adapt(
        self,
        events: EventInput,
        *,
        profile: Mapping[str, object] | None = None,
        at: datetime | str | None = None,
        returning: bool | None = None,
    ) -> State:
        """Compute a person's fast weights from their events; the shared weights stay as they are.

        `events` is the id of a person in training, a table of events (one person's, `item_id` at least), item ids
        from the oldest to the newest (none: a person without history), or ratings by item id in that order. `profile`
        gives attributes by name, for people who are not in training. `at` is when the list is asked for (naive UTC; by
        default now): where the last event is longer ago than `model.visit_gap`, it is for another visit. Events without
        times go on. `returning` says it outright.

        Raises:
            DataError: an unknown person or item, a malformed table, or events of several people.
            ConfigError: a profile attribute that the model does not know.
        """
        history, last = read_history(events, self.users, self.vocabulary, self.config.meaning)
        features = (
            self.profiles[events] if isinstance(events, str) and profile is None else self.encode_profile(profile)
        )
        if returning is None:
            moment = datetime.now(UTC) if at is None else parse_time(at, what="at").replace(tzinfo=UTC)
            returning = is_another_visit(last, moment.timestamp(), self.config.model.visit_gap)
        return self.adapt_to(history._replace(returning=returning and len(history.items) > 0), features)

    def adapt_to(self, history: History, profile: Float[Tensor, "profile"]) -> State:
        """`adapt` for who keeps histories and encoded profiles (`encode_profile`) already, as a service does.

        Items of the history are numbers of this model's vocabulary.
        """
        return State(self.model_id, self._adaptation.adapt(self.items, history, profile), history)

    def recommend(
        self,
        events: EventInput | State,
        k: int = 10,
        *,
        profile: Mapping[str, object] | None = None,
        at: datetime | str | None = None,
        returning: bool | None = None,
        exclude: Collection[str] = (),
        include_seen: bool = False,
        candidates: Collection[str] | None = None,
    ) -> list[Recommendation]:
        """List the `k` best items for a person, best first; fewer where the filters leave fewer.

        `events`, `profile`, `at` and `returning` as in `adapt`, or `events` is a `State`. Items that the person has
        chosen or refused are left out unless `include_seen`; `exclude` leaves out more, `candidates` leaves in no
        others.

        Raises:
            DataError: as `adapt`, or an unknown id in a filter.
            ConfigError: k is below 1.
            ModelError: the state was made by another model, or knows items added that this one lacks.
        """
        state = events if isinstance(events, State) else self.adapt(events, profile=profile, at=at, returning=returning)
        state.check(self.model_id, len(self.vocabulary))
        excluded = self.vocabulary.index(list(exclude))
        if not include_seen:
            excluded = np.concatenate([excluded, state.history.items, state.history.refused])
        allowed = None
        if candidates is not None:
            allowed = np.zeros(len(self.vocabulary), np.bool_)
            allowed[self.vocabulary.index(list(candidates))] = True
        places, values = self.rank(state, k, allowed=allowed, excluded=excluded)
        reasons, parts = self.reasons(state, places), self.parts(state, places)
        return [
            Recommendation(
                rank, self.vocabulary.ids[place], self.titles[place], value, *reasons[rank - 1], parts[rank - 1]
            )
            for rank, (place, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True), start=1)
        ]

    def rank(
        self,
        state: State,
        k: int,
        *,
        allowed: Bool[np.ndarray, "item"] | None = None,
        excluded: Int64[np.ndarray, "excluded"],
    ) -> Ranked:
        """The `k` best items as numbers of the vocabulary, the best first, and their scores.

        Only items that are `allowed` (None: all) and not `excluded`; fewer where fewer are left. The state must be this
        model's, which is not checked here.
        """
        recent = state.history.tail(self.config.model.max_events).items
        filters: dict[str, Any] = {
            "evidence": self.scorers.contribution(recent, state.fast["scorers"].numpy(), self.item_table.kin),
            "allowed": allowed,
            "excluded": excluded,
        }
        if len(self.vocabulary) > self.retrieval.dense_until:
            return rank_by_index(self._index, state.fast, k, **filters)
        return rank_all(self.item_table.scoring_rows, state.fast, k, **filters)

    def predict(
        self, events: EventInput, items: Sequence[str], *, profile: Mapping[str, object] | None = None
    ) -> list[RatingPrediction]:
        """Say how a person would rate items, given those that they have rated; without any, how people like them do.

        Args:
            events: as in `adapt`; those that rate count (`rating_events`), the others say nothing here.
            items: the ids of the items asked about.
            profile: as in `adapt`.

        Returns:
            A distribution over the ratings for each item, in the order asked for.

        Raises:
            DataError: the model was trained without ratings, an unknown person or item, or as `adapt`.
            ConfigError: a profile attribute that the model does not know.
        """
        history, _ = read_history(events, self.users, self.vocabulary, self.config.meaning)
        known = self.profiles[events] if isinstance(events, str) and profile is None else self.encode_profile(profile)
        return self.predict_for(history, known, items)

    def predict_for(
        self, history: History, profile: Float[Tensor, "profile"], items: Sequence[str]
    ) -> list[RatingPrediction]:
        """`predict` for who keeps histories and encoded profiles already, as a service does.

        Raises:
            DataError: the model was trained without ratings, or an unknown item.
        """
        if self.ratings is None:
            kinds = ", ".join(self.config.rating_events) or "none"
            raise DataError(
                f"model {self.model_id} has learned no ratings; train it on events of a type in rating_events "
                f"({kinds}) with the rating as weight, or on a table with a column `rating`"
            )
        asked = self.vocabulary.index(list(items))
        found = self.ratings.predict(*history.rated(), asked, profile, self.item_table.kin)
        return describe_ratings(list(items), [self.titles[place] for place in asked], found, self.ratings.levels)

    def score_many(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """Adapt to many people at once and score the whole catalogue for each: `adapt` + `score`, batched."""
        return self._adaptation.score_many(self.items, self.item_table.kin, histories, profiles)

    def backbone_scores(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """What the shared model alone says, without fast weights."""
        return self._adaptation.backbone_scores(self.items, histories, profiles)

    def dump_state(self, state: State, profile: Float[Tensor, "profile"]) -> bytes:
        """The fast weights that `adapt_to` gave for this profile, to be stored; see `load_state`."""
        rest, inputs = self._adaptation.from_profile(profile), self._inputs(state.history, profile)
        return fast_weight_cache.to_bytes(state.fast, rest, inputs)

    def load_state(self, payload: bytes, history: History, profile: Float[Tensor, "profile"]) -> State | None:
        """What `adapt_to` would give, from the bytes of `dump_state`; None where they are damaged or of other inputs.

        Other inputs are another model, history or profile, or rows that moved since of items that came after training.
        """
        rest, inputs = self._adaptation.from_profile(profile), self._inputs(history, profile)
        fast = fast_weight_cache.from_bytes(payload, rest, inputs)
        return None if fast is None else State(self.model_id, fast, history)

    def directions(self, places: Int64[np.ndarray, "place"]) -> Float[np.ndarray, "place feature"]:
        """Items as unit vectors in the metric that the learner has learned: how alike two are is their product."""
        return self._explainer.directions(places)

    def reasons(self, state: State, places: Int64[np.ndarray, "place"]) -> list[tuple[str, str | None]]:
        """Say in words why each of these items is in a list.

        With it the event that is nearest to the item in the learned metric, where one is near at all.
        """
        return self._explainer.reasons(state.history.tail(self.config.model.max_events).items, places)

    def parts(self, state: State, places: Int64[np.ndarray, "place"]) -> list[dict[str, float]]:
        """What each scorer adds to the score of each of these items; see `Recommendation.parts`."""
        recent = state.history.tail(self.config.model.max_events).items
        with torch.inference_mode():
            rows = ScoringRows(*(column[torch.from_numpy(places)] for column in self.item_table.scoring_rows))
            terms = {name: value.numpy() for name, value in score_parts(state.fast, rows).items()}
        terms |= self.scorers.each_contribution(recent, state.fast["scorers"].numpy(), self.item_table.kin, places)
        return [{name: float(value[row]) for name, value in terms.items()} for row in range(len(places))]

    def similar_items(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """List the items nearest to one in the metric that the learner has learned; the score is a cosine.

        Raises:
            DataError: an unknown item.
            ConfigError: k is below 1.
        """
        place = int(self.vocabulary.index([item_id])[0])
        ids, titles, reason = self.vocabulary.ids, self.titles, f"similar to {self.titles[place]}"
        return [
            Recommendation(rank, ids[other], titles[other], cosine, reason, item_id, {"cosine": cosine})
            for rank, (other, cosine) in enumerate(self._explainer.nearest(place, k), start=1)
        ]

    def add_items(self, catalog: Catalog) -> "Recommender":
        """Return a recommender that also lists the items of a catalogue that it does not know yet, by their content.

        Raises:
            DataError: the catalogue lacks an attribute or the text that the model was trained with.
        """
        new = self.item_table.unknown(catalog)
        if new is None:
            return self
        content = self.encode_items(new)
        with torch.inference_mode():
            table = self.item_table.with_items(new, content, self.backbone.encode_new(content))
            added = search_rows(table.rows_from(len(self.vocabulary))).numpy()
        return self._with(table, lambda index: index.with_added(added))

    def with_item_events(self, events: pl.DataFrame, *, now: datetime | str | None = None) -> "Recommender":
        """Return a recommender whose items have taken in what happened since training; weights stay as they are.

        Items that came after training and have been chosen since get a row from their content and their choosers, and
        the popularity of all items follows (`evidence.half_life` says how fast old choices fade). All of it is
        computed from the rows that training left, so that `events` are all events since, each time, and no matter in
        how many steps. States stay valid: fast weights mean the same as before.

        Args:
            events: user_id, item_id and timestamp at least. Events before `trained_until` count for nobody's
                popularity; they say what else the choosers of new items had chosen, where these are not in `users`.
                Items that the catalogue lacks are passed over; add them first.
            now: the moment up to which the shelf time of items is counted, naive UTC; by default the newest event's.

        Raises:
            DataError: a malformed table, or an event later than `now`.
        """
        if events.is_empty():
            return self if self.item_table.base is None else replace(self, item_table=self.item_table.without_choices())
        half_life, meaning = self.config.evidence.half_life, self.config.meaning
        return self.with_item_choices(*self.item_table.read_choices(events, self.users, half_life, meaning, now))

    def no_choices(self) -> ItemChoices:
        """Return what `with_item_choices` reads before anything was chosen; fill it with whole histories."""
        return self.item_table.no_choices(self.config.evidence.half_life)

    def with_item_choices(self, choices: ItemChoices, now: float) -> "Recommender":
        """Like `with_item_events`, from choices that are kept up as events come: each counts once however often read.

        Args:
            choices: begun by `no_choices` of a recommender with the same weights.
            now: the moment up to which the shelf time of items is counted, in seconds since 1970-01-01.
        """
        with torch.inference_mode():
            table = self.item_table.with_choices(choices, now, self.config.item_tasks, self.config.evidence)
        return self._with(table, lambda index: index.with_vectors(search_rows(table.rows).numpy()))

    def encode_items(
        self, catalog: Catalog, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "item content"]:
        """Encode the rows of a catalogue as in training; what training did not read, a new column or text, is left out.

        Raises:
            DataError: the catalogue lacks an attribute or the text that the model was trained with.
        """
        return self.item_table.encode(catalog, self.config.text, progress)

    def encode_profile(self, profile: Mapping[str, object] | None) -> Float[Tensor, "profile"]:
        """Encode a person's attributes; missing ones count as unknown.

        Raises:
            ConfigError: an attribute that the model does not know.
            DataError: a value of the wrong type.
        """
        return encode_profile(self.profile_encoder, profile)

    def save(self, folder: str | Path, signer: Ed25519PrivateKey | None = None) -> None:
        """Write the model folder: complete or not at all; see `palate.recommend.model_folder`.

        Args:
            folder: where; a model that is there is replaced.
            signer: the key to sign it with; None: it is verified by its hashes alone.

        Raises:
            ModelError: the folder cannot be written.
        """
        write_folder(Path(folder), to_files(self._bundle), signer)

    @staticmethod
    def load(folder: str | Path, trusted: Ed25519PublicKey | None = None) -> "Recommender":
        """Read a model folder.

        Args:
            folder: what `save` wrote.
            trusted: the key that must have signed it; None: that the files fit their manifest is enough.

        Raises:
            ModelError: it is missing, incomplete, altered, of another version, holds a NaN, or the trusted key has not
                signed it.
        """
        folder = Path(folder)
        bundle = from_files(read_folder(folder, trusted), folder)
        with refusing_what_is_no_model(folder):
            recommender = _of(bundle)
            recommender.recommend([], 1)  # so that a parameter that is missing or misshapen is found here, not in use
        return recommender

    # ---------------------------------------------------------------------------------------------- inside

    @property
    def _bundle(self) -> Bundle:
        return Bundle(**{part.name: getattr(self, part.name) for part in fields(Bundle)})

    @cached_property
    def _adaptation(self) -> Adaptation:
        return Adaptation(self.config, self.backbone, self.params, self.scorers)

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.item_table, metric(self.params))

    @cached_property
    def _index(self) -> Index:
        """All items, searched by inner product; tuned by what people in training would have asked along their way."""
        people = self.users
        sample = sample_histories(people.histories(), self.retrieval.num_samples)
        queries = [
            search_query(self.adapt_to(history, self.profiles[people.users[place]]).fast).float().numpy()
            for place, history in sample
        ]
        rows = search_rows(self.items).numpy()
        return build_index(rows, self.retrieval, queries=np.stack(queries) if queries else None)

    def _with(self, table: ItemTable, changed: Callable[[Index], Index]) -> "Recommender":
        """The recommender of another item table of the same weights.

        What was computed of the weights goes along, and an index that is at hand, changed: both cost much less than
        being made again.
        """
        other = replace(self, item_table=table)
        if "_adaptation" in self.__dict__:
            other.__dict__["_adaptation"] = self._adaptation
        if "_index" in self.__dict__:
            other.__dict__["_index"] = changed(self._index)
        return other

    def _inputs(self, history: History, profile: Float[Tensor, "profile"]) -> bytes:
        """What adapting to a person reads."""
        if not self.config.model.rated:
            history = history._replace(ratings=None)
        return fast_weight_cache.describe_inputs(
            self.model_id, self.items, self.num_trained, self.config.model.max_events, history, profile
        )


def _of(bundle: Bundle, retrieval: RetrievalConfig | None = None) -> Recommender:
    parts = {part.name: getattr(bundle, part.name) for part in fields(bundle)}
    return Recommender(**parts, retrieval=retrieval or RetrievalConfig())


def _unpickled(files: Mapping[str, bytes], retrieval: RetrievalConfig) -> Recommender:
    """The recommender that `Recommender.__reduce__` took apart."""
    return _of(from_files(files, "model"), retrieval)

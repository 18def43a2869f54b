"""The recommender: shared weights, one person's fast weights, and the list that follows from them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Ensemble
from palate.backbone.reader import Reader
from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.episodes import EMPTY_HISTORY, History, build_histories
from palate.data.event_log import from_histories
from palate.data.log import read_ids, require_columns, validate_interactions
from palate.data.times import parse_time
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeEncoder
from palate.errors import ConfigError, DataError, ModelError
from palate.meta.adapter import Adapter
from palate.meta.evidence import FeatureSpace, Rotation
from palate.meta.head import (
    Head,
    Items,
    Profile,
    ScoringRows,
    make_head,
    metric,
    score_rows,
    scoring_rows,
    search_query,
    search_rows,
)
from palate.meta.item_choices import ItemChoices
from palate.meta.item_tasks import ItemPosterior
from palate.meta.learner import Fast, Params
from palate.meta.tasks import make_support, make_supports
from palate.meta.training import score_supports
from palate.metrics import NO_ITEM, top_k
from palate.recommend import kept_state
from palate.recommend.content import encode_content
from palate.recommend.retrieval import Index, RetrievalConfig, build_index

_TOGETHER = 256
"""People who are adapted to at once: the features of their supports are in memory together."""
_FIRST = 8
"""Half the queries that an index is tuned by come from people with fewer events than this."""
_LEAST = 1e-12
"""What a length is taken to be at least."""
_NEAR = 0.1
"""Cosine above which an event is named as the reason for an item."""


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


@dataclass(frozen=True, eq=False)
class State:
    """One person's fast weights after their events; valid for the model that made it, and for no other."""

    model_id: str
    fast: Fast
    history: History


@dataclass(frozen=True, eq=False)
class Recommender:
    """A trained model. It is never changed: methods that add to it return another one."""

    config: Config
    model_id: str
    """Hash of the weights."""
    backbone: Ensemble
    params: Params
    items: Items
    """What scoring reads of each item, in the order of the vocabulary."""
    num_trained: int
    """The first so many items of the vocabulary had events in training; the others have content alone."""
    vocabulary: Vocabulary
    titles: tuple[str, ...]
    item_encoder: AttributeEncoder
    profile_encoder: AttributeEncoder
    content_rotation: Rotation
    space: FeatureSpace
    unseen_popularity: float
    users: Mapping[str, History]
    """Histories of the people in training."""
    profiles: Mapping[str, Float[Tensor, "profile"]]
    """Encoded profiles of the people in training."""
    training: Mapping[str, object]
    """How the training went: curves and counts."""
    trained_until: float
    """Time of the newest event in training, in seconds since 1970-01-01."""
    item_posterior: ItemPosterior
    """How the rows of items follow events after training; see `with_item_events`."""
    base: Items | None = None
    """The rows before any such events, where `items` has taken some in."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """How the best of a large catalogue are found: above `retrieval.dense_until` items by an index of them.
    Not part of the saved model: `dataclasses.replace` sets another."""

    def adapt(
        self,
        events: "str | pl.DataFrame | Sequence[str]",
        *,
        profile: Mapping[str, object] | None = None,
        returning: bool | None = None,
    ) -> State:
        """Compute a person's fast weights from their events; the shared weights stay as they are.

        `events` is the id of a person in training, a table of events (one person's, `item_id` at least), or item ids
        from the oldest to the newest (none: a person without history). `profile` gives attributes by name, for
        people who are not in training. `returning` says whether the list is for another visit than that of the last
        event: by default it is for a person in training, while given events go on.

        Raises:
            DataError: an unknown person or item, a malformed table, or events of several people.
            ConfigError: a profile attribute that the model does not know.
        """
        history, features = self._read(events, profile)
        if returning is None:
            returning = isinstance(events, str)
        history = history._replace(returning=returning and len(history.items) > 0)
        with torch.inference_mode():
            fast = self._adapt_one(history, features)
        return State(self.model_id, fast, history)

    def recommend(
        self,
        events: "str | pl.DataFrame | Sequence[str] | State",
        k: int = 10,
        *,
        profile: Mapping[str, object] | None = None,
        returning: bool | None = None,
        exclude: Collection[str] = (),
        include_seen: bool = False,
        candidates: Collection[str] | None = None,
    ) -> list[Recommendation]:
        """List the `k` best items for a person, best first; fewer where the filters leave fewer.

        `events`, `profile` and `returning` as in `adapt`, or `events` is a `State`. Items that the person has chosen
        or refused are left out unless `include_seen`; `exclude` leaves out more, `candidates` leaves in no others.

        Raises:
            DataError: as `adapt`, or an unknown id in a filter.
            ConfigError: k is below 1.
            ModelError: the state was made by another model, or knows items added that this one lacks.
        """
        state = events if isinstance(events, State) else self.adapt(events, profile=profile, returning=returning)
        if state.model_id != self.model_id:
            raise ModelError(
                f"the state was made by model {state.model_id}, this is {self.model_id}; adapt again from the events"
            )
        # `add_items` keeps the weights and so the model id: the state may know items that this catalogue lacks.
        named = np.concatenate([state.history.items, state.history.refused])
        if named.max(initial=-1) >= len(self.vocabulary):
            raise ModelError(
                f"the state names items beyond the {len(self.vocabulary):,} of this model; add those items to it first"
            )
        excluded = self._excluded(state.history, exclude, include_seen)
        allowed = None
        if candidates is not None:
            allowed = np.zeros(len(self.vocabulary), np.bool_)
            allowed[self.vocabulary.index(list(candidates))] = True
        places, values = self.rank(state, k, allowed=allowed, excluded=excluded)
        reasons = self.reasons(state, places)
        return [
            Recommendation(rank, self.vocabulary.ids[place], self.titles[place], value, *reasons[rank - 1])
            for rank, (place, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True), start=1)
        ]

    def adapt_to(self, history: History, profile: Float[Tensor, "profile"]) -> State:
        """`adapt` for who keeps histories and encoded profiles (`encode_profile`) already, as a service does.

        Items of the history are numbers of this model's vocabulary.
        """
        with torch.inference_mode():
            return State(self.model_id, self._adapt_one(history, profile), history)

    def keep(self, state: State, profile: Float[Tensor, "profile"]) -> bytes:
        """The fast weights that `adapt_to` gave for this profile, to be stored; see `recall`."""
        with torch.inference_mode():
            rest = self._adapter.rest(profile)
            return kept_state.to_bytes(state.fast, rest, self._inputs(state.history, profile))

    def recall(self, payload: bytes, history: History, profile: Float[Tensor, "profile"]) -> State | None:
        """What `adapt_to` would give, from the bytes of `keep`; None where they are damaged or of other inputs.

        Other inputs are another model, history or profile, or rows that moved since of items that came after training.
        """
        with torch.inference_mode():
            fast = kept_state.from_bytes(payload, self._adapter.rest(profile), self._inputs(history, profile))
        return None if fast is None else State(self.model_id, fast, history)

    def rank(
        self,
        state: State,
        k: int,
        *,
        allowed: Bool[np.ndarray, "item"] | None = None,
        excluded: Int64[np.ndarray, "excluded"],
    ) -> tuple[Int64[np.ndarray, "place"], Float[np.ndarray, "place"]]:
        """The `k` best items as numbers of the vocabulary, the best first, and their scores.

        Only items that are `allowed` (None: all) and not `excluded`; fewer where fewer are left. The state must be this
        model's, which is not checked here.
        """
        if len(self.vocabulary) > self.retrieval.dense_until:
            query = search_query(state.fast).float()[None].numpy()
            found = self._index.search(query, k, allowed=allowed, excluded=[excluded])
            kept = found.items[0] != NO_ITEM
            return found.items[0][kept], found.scores[0][kept]
        with torch.inference_mode():
            scores = score_rows(state.fast, self._scoring_rows).numpy()
        scores = scores.copy() if allowed is None else np.where(allowed, scores, -np.inf)
        scores[excluded] = -np.inf
        ranked = top_k(scores[None], k)[0]
        places = ranked[ranked >= 0]
        return places, scores[places]

    def score_many(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """Adapt to many people at once and score the whole catalogue for each: `adapt` + `score`, batched."""
        scores = np.zeros((len(histories), len(self.vocabulary)), np.float32)
        for start in range(0, len(histories), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            scores[some] = self._score_some(histories[some], profiles[some])
        return scores

    def _score_some(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        with torch.inference_mode():
            states = self._states(histories, profiles)
            before = self._states([EMPTY_HISTORY] * len(histories), profiles)
            recent = [history.tail(self.config.model.max_events) for history in histories]
            supports = make_supports(recent, self.items.features, states)
            scores = score_supports(self._head, self.params, self.items, Profile(profiles, before), supports)
        return np.asarray(scores.numpy())

    def directions(self, places: Int64[np.ndarray, "place"]) -> Float[np.ndarray, "place feature"]:
        """Items as unit vectors in the metric that the learner has learned: how alike two are is their product."""
        rows: Float[np.ndarray, "place feature"] = self.items.features.numpy().take(places, 0)
        rows *= self._metric.numpy()
        rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), _LEAST)[:, None]
        return rows

    def reasons(self, state: State, places: Int64[np.ndarray, "place"]) -> list[tuple[str, str | None]]:
        """Say in words why each of these items is in a list.

        With it the event that is nearest to the item in the learned metric, where one is near at all.
        """
        recent = state.history.tail(self.config.model.max_events).items
        if len(recent) == 0:
            return [("popular with people like you", None)] * len(places)
        directions = self.directions(np.concatenate([places, recent]))
        cosine = directions[: len(places)] @ directions[len(places) :].T
        return [
            (f"goes with {self.titles[recent[event]]}", self.vocabulary.ids[recent[event]])
            if value > _NEAR
            else ("fits your recent choices", None)
            for value, event in zip(cosine.max(1).tolist(), cosine.argmax(1).tolist(), strict=True)
        ]

    def backbone_scores(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """What the shared model alone says, without fast weights."""
        with torch.inference_mode():
            states = self._states(histories, profiles)
            scores = states @ self.items.vectors.T + self.items.bias
        return np.asarray(scores.numpy())

    def similar_items(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """List the items nearest to one in the metric that the learner has learned; the score is a cosine.

        Raises:
            DataError: an unknown item.
            ConfigError: k is below 1.
        """
        place = int(self.vocabulary.index([item_id])[0])
        with torch.inference_mode():
            cosine = (self._directions @ self._directions[place]).numpy().copy()
        cosine[place] = -np.inf
        ranked = top_k(cosine[None], k)[0]
        return [
            Recommendation(
                rank,
                self.vocabulary.ids[other],
                self.titles[other],
                float(cosine[other]),
                f"similar to {self.titles[place]}",
                item_id,
            )
            for rank, other in enumerate(ranked[ranked >= 0].tolist(), start=1)
        ]

    def add_items(self, catalog: Catalog) -> "Recommender":
        """Return a recommender that also lists the items of a catalogue that it does not know yet, by their content.

        Raises:
            DataError: the catalogue lacks an attribute or the text that the model was trained with.
        """
        frame = catalog.frame.filter(~pl.col("item_id").is_in(self.vocabulary.frame["item_id"].implode()))
        if frame.is_empty():
            return self
        new = replace(catalog, frame=frame)
        content = self.encode_items(new)
        with torch.inference_mode():
            vectors = self.backbone.encode_new(content)
            features = self.space.new_items(self.content_rotation(content), vectors)
            bias = self.items.bias[: self.num_trained].min().expand(len(vectors))
            popularity = torch.full((len(vectors),), self.unseen_popularity)
            added = Items(features, vectors, bias, popularity)
        titles = new.titles()
        ids = tuple(frame["item_id"])
        longer = replace(
            self,
            items=_joined(self.items, added),
            base=None if self.base is None else _joined(self.base, added),
            vocabulary=Vocabulary((*self.vocabulary.ids, *ids)),
            titles=(*self.titles, *(titles[name] for name in ids)),
        )
        self._hand_index(longer, lambda index: index.with_added(search_rows(added).numpy()))
        return longer

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
        base = self.items if self.base is None else self.base
        if events.is_empty():
            return self if self.base is None else replace(self, items=base, base=None)
        log = validate_interactions(events, source="events")
        moment = log["timestamp"].max() if now is None else parse_time(now, what="now")
        assert isinstance(moment, datetime)
        late = log.filter(pl.col("timestamp") > moment)
        if not late.is_empty():
            raise DataError(f"events: one is at {late['timestamp'][0]}, after now ({moment}); leave it out")
        log = log.filter(pl.col("item_id").is_in(self.vocabulary.frame["item_id"].implode()))
        people = build_histories(log, self.vocabulary, self.config.negative_events)
        choices = self.no_choices()
        choices.exchange(
            {}, {user: _after(self.users.get(user, EMPTY_HISTORY), since) for user, since in people.items()}
        )
        return self.with_item_choices(choices, (moment - datetime(1970, 1, 1)).total_seconds())

    def no_choices(self) -> ItemChoices:
        """Return what `with_item_choices` reads before anything was chosen; fill it with whole histories."""
        return ItemChoices(self.item_posterior, self.config.evidence.half_life)

    def with_item_choices(self, choices: ItemChoices, now: float) -> "Recommender":
        """Like `with_item_events`, from choices that are kept up as events come: each counts once however often read.

        Args:
            choices: begun by `no_choices` of a recommender with the same weights.
            now: the moment up to which the shelf time of items is counted, in seconds since 1970-01-01.
        """
        base = self.items if self.base is None else self.base
        with torch.inference_mode():
            items = choices.rows(base, now, self.config.item_tasks, self.config.evidence, self.space)
        moved = replace(self, items=items, base=base)
        self._hand_index(moved, lambda index: index.with_vectors(search_rows(moved.items).numpy()))
        return moved

    def encode_items(
        self, catalog: Catalog, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "item content"]:
        """Encode the rows of a catalogue as in training; what training did not read, a new column or text, is left out.

        Raises:
            DataError: the catalogue lacks an attribute or the text that the model was trained with.
        """
        width = len(self.content_rotation.mean)
        if width == self.item_encoder.dim + 1:  # one empty feature is all that a catalogue without texts has
            catalog = replace(catalog, text=None)
        content = encode_content(catalog, self.item_encoder, self.config.text, progress)
        if content.shape[1] != width:
            text = "no text column" if catalog.text is None else f"the text column {catalog.text!r}"
            raise DataError(
                f"catalogue: {text} gives {content.shape[1]} features an item, the model was trained with {width}; "
                "describe the new items as in training"
            )
        return content

    def encode_profile(self, profile: Mapping[str, object] | None) -> Float[Tensor, "profile"]:
        """Encode a person's attributes; missing ones count as unknown.

        Raises:
            ConfigError: an attribute that the model does not know.
            DataError: a value of the wrong type.
        """
        columns = self.profile_encoder.columns
        given = dict(profile or {})
        unknown = sorted(set(given).difference(column.name for column in columns))
        if unknown:
            known = ", ".join(column.name for column in columns) or "none"
            raise ConfigError(f"profile attribute {unknown[0]!r} is unknown; the model knows: {known}")
        kinds = {"numeric": pl.Float64, "categorical": pl.String}
        try:
            row = pl.DataFrame(
                {column.name: pl.Series([given.get(column.name)], dtype=kinds[column.kind]) for column in columns}
                or {"": [None]}
            )
        except TypeError:
            expected = ", ".join(f"{c.name}: {'a number' if c.kind == 'numeric' else 'text'}" for c in columns)
            raise DataError(f"profile {given} has a value of the wrong type; expected {expected}") from None
        return torch.from_numpy(self.profile_encoder.transform(row)[0])

    def save(self, folder: str | Path, signer: Ed25519PrivateKey | None = None) -> None:
        """Write the model folder: complete or not at all; see `palate.recommend.storage`.

        Args:
            folder: where; a model that is there is replaced.
            signer: the key to sign it with; None: it is verified by its hashes alone.

        Raises:
            ModelError: the folder cannot be written.
        """
        from palate.recommend.storage import save_recommender

        save_recommender(self, Path(folder), signer)

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
        from palate.recommend.storage import load_recommender

        return load_recommender(Path(folder), trusted)

    # ---------------------------------------------------------------------------------------------- inside

    @cached_property
    def _head(self) -> Head:
        num_profile, num_features = self.params["prior.profile"].shape
        return make_head(self.config.meta.learner, num_features, num_profile, self.config.learner)

    @cached_property
    def _scoring_rows(self) -> ScoringRows:
        return scoring_rows(self.items)

    @cached_property
    def _metric(self) -> Float[Tensor, "feature"]:
        return metric(self.params)

    @cached_property
    def _directions(self) -> Float[Tensor, "item feature"]:
        """Items as unit vectors in the head's metric."""
        return torch.nn.functional.normalize(self.items.features * self._metric, dim=1)

    @cached_property
    def _index(self) -> Index:
        """All items, searched by inner product; tuned by what people in training would have asked along their way."""
        rows = search_rows(self.items).numpy()
        users = list(self.users)[:: max(1, len(self.users) // self.retrieval.num_samples)]
        with torch.inference_mode():
            queries = [
                search_query(self._adapt_one(_begun(self.users[user], place), self.profiles[user])).float().numpy()
                for place, user in enumerate(users)
            ]
        return build_index(rows, self.retrieval, queries=np.stack(queries) if queries else None)

    def _hand_index(self, to: "Recommender", changed: Callable[[Index], Index]) -> None:
        """Give an index that is at hand to another recommender, changed: that costs much less than another build."""
        index = self.__dict__.get("_index")
        if index is not None:
            to.__dict__["_index"] = changed(index)

    def _states(
        self, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[Tensor, "user dim"]:
        returning = np.array([history.returning for history in histories], np.bool_)
        read = inputs(from_histories(histories), self.config.model.max_events, returning=returning)
        return self.backbone.last_states(read._replace(profiles=profiles), self.items.vectors)

    @cached_property
    def _adapter(self) -> Adapter:
        return Adapter(self.config.meta.learner, self.config.learner, self.params)

    def _inputs(self, history: History, profile: Float[Tensor, "profile"]) -> bytes:
        """What adapting to a person reads."""
        return kept_state.describe_inputs(
            self.model_id, self.items, self.num_trained, self.config.model.max_events, history, profile
        )

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.backbone)

    def _adapt_one(self, history: History, profile: Float[Tensor, "profile"]) -> Fast:
        """`score_many` for one person, without the cost of vectorising."""
        state = self._reader.state(history, profile, self.items.vectors)
        support = make_support(history.tail(self.config.model.max_events), self.items.features, state)
        return self._adapter.adapt(profile, support)

    def _read(
        self, events: "str | pl.DataFrame | Sequence[str]", profile: Mapping[str, object] | None
    ) -> tuple[History, Float[Tensor, "profile"]]:
        """Turn what the caller has into a history and profile features."""
        if isinstance(events, str):
            if events not in self.users:
                raise DataError(
                    f"user {events!r} is not among the {len(self.users):,} people in training; "
                    "pass their events instead"
                )
            features = self.profiles[events] if profile is None else self.encode_profile(profile)
            return self.users[events], features
        if not isinstance(events, pl.DataFrame):
            chosen = dict.fromkeys(self._places(events))
            # Without times the order is all that is known: one session, in this order.
            return History(
                np.fromiter(chosen, np.int64, len(chosen)), np.zeros(len(chosen)), np.zeros(0, np.int64)
            ), self.encode_profile(profile)
        features = self.encode_profile(profile)
        if events.is_empty():
            return EMPTY_HISTORY, features
        require_columns(events, ("item_id",), source="events")
        owner = events.get_column("user_id", default=None)
        if owner is None or (owner.dtype == pl.String and (owner == "").all()):
            events = events.with_columns(user_id=pl.lit("anonymous"))
        if "timestamp" not in events.columns:  # the rows are in order then, and nothing is known of the gaps
            seconds = pl.duration(seconds=pl.int_range(pl.len()))
            events = events.with_columns(timestamp=pl.datetime(1970, 1, 1) + seconds)
        log = validate_interactions(events, source="events")
        people = log["user_id"].unique(maintain_order=True).to_list()
        if len(people) > 1:
            raise DataError(
                f'events, column "user_id": {len(people)} people ({people[0]!r}, {people[1]!r}, …); '
                "pass the events of one person"
            )
        self._places(read_ids(events["item_id"], source="events").to_list())
        histories = build_histories(log, self.vocabulary, self.config.negative_events)
        return histories[people[0]], features

    def _places(self, item_ids: Sequence[str]) -> list[int]:
        """Vocabulary indices; an unknown id is refused with its row."""
        try:
            places: list[int] = self.vocabulary.index(item_ids).tolist()
        except DataError as error:
            row = next(row for row, item in enumerate(item_ids, start=1) if item not in self.vocabulary)
            raise DataError(f'events: row {row}, column "item_id": {error}; drop it or add the item') from None
        return places

    def _excluded(
        self, history: History, exclude: Collection[str], include_seen: bool
    ) -> Int64[np.ndarray, "excluded"]:
        """Numbers of the items that a list may not hold."""
        named = self.vocabulary.index(list(exclude))
        return named if include_seen else np.concatenate([named, history.items, history.refused])


def _begun(history: History, place: int) -> History:
    """A history or, every other time, its first events: what people ask moves as they go on."""
    length = len(history.items) if place % 2 else place // 2 % _FIRST
    return history.head(length)


def _joined(first: Items, second: Items) -> Items:
    return Items(*(torch.cat([one, other]) for one, other in zip(first, second, strict=True)))


def _after(before: History, since: History) -> History:
    """What a person chose in training and after it."""
    if not len(before.items):
        return since
    new = ~np.isin(since.items, before.items)
    return History(
        np.concatenate([before.items, since.items[new]]),
        np.concatenate([before.times, since.times[new]]),
        since.refused,
    )

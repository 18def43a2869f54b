"""From histories to fast weights and scores, with the weights of one model: one person at a time, or many at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Ensemble
from palate.backbone.reader import Reader
from palate.config import Config
from palate.data.episodes import EMPTY_HISTORY, History
from palate.data.event_log import from_histories, from_sequences
from palate.meta.adapter import Adapter
from palate.meta.head import Head, Items, Profile, learned_or_fixed, make_head
from palate.meta.learner import Fast, Params
from palate.meta.tasks import make_support, make_supports
from palate.meta.training import score_supports
from palate.scorers.evidence import Scorers
from palate.scorers.kin import Kin

_TOGETHER = 256
"""People who are adapted to at once: the features of their supports are in memory together."""


@dataclass(frozen=True, eq=False, repr=False)
class Adaptation:
    """The backbone that reads a history, the head that adapts and the item-item scorers; none may change afterwards."""

    config: Config
    backbone: Ensemble
    params: Params
    scorers: Scorers

    def adapt(self, items: Items, history: History, profile: Float[Tensor, "profile"]) -> Fast:
        """One person's fast weights: what `score_many` scores with, without the cost of vectorising."""
        with torch.inference_mode():
            state = self._reader.state(history, profile, items.vectors)
            support = make_support(history.tail(self.config.model.max_events), items.features, state)
            return self._adapter.adapt(profile, support)

    def from_profile(self, profile: Float[Tensor, "profile"]) -> Fast:
        """What of the fast weights follows from the profile alone, whatever the events."""
        with torch.inference_mode():
            return self._adapter.rest(profile)

    def score_many(
        self, items: Items, kin: Kin, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """Adapt to many people and score all items for each."""
        scores = np.zeros((len(histories), len(items.popularity)), np.float32)
        for start in range(0, len(histories), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            scores[some] = self._score_some(items, kin, histories[some], profiles[some])
        return scores

    def backbone_scores(
        self, items: Items, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        """What the backbone alone says, without fast weights."""
        with torch.inference_mode():
            scores = self._states(items, histories, profiles) @ items.vectors.T + items.bias
        return np.asarray(scores.numpy())

    def _score_some(
        self, items: Items, kin: Kin, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[np.ndarray, "user item"]:
        with torch.inference_mode():
            states = self._states(items, histories, profiles)
            before = self._states(items, [EMPTY_HISTORY] * len(histories), profiles)
            recent = from_histories(histories).recent(self.config.model.max_events)
            refused = from_sequences(history.refused for history in histories)
            supports = make_supports(recent, refused, _returning(histories), items.features, states)
            profile = Profile(profiles, before)
            return score_supports(self._head, self.params, items, self.scorers, profile, supports, recent, kin)

    def _states(
        self, items: Items, histories: Sequence[History], profiles: Float[Tensor, "user profile"]
    ) -> Float[Tensor, "user dim"]:
        model = self.config.model
        log = from_histories(histories, rated=model.rated)
        read = inputs(log, model.max_events, returning=_returning(histories))
        return self.backbone.last_states(read._replace(profiles=profiles), items.vectors)

    @cached_property
    def _head(self) -> Head:
        num_profile, num_features = learned_or_fixed(self.params, "prior.profile").shape
        num_scorers = self.scorers.num_features
        return make_head(self.config.meta.learner, num_features, num_profile, self.config.learner, num_scorers)

    @cached_property
    def _adapter(self) -> Adapter:
        return Adapter(self.config.meta.learner, self.config.learner, self.params)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.backbone)


def _returning(histories: Sequence[History]) -> Bool[np.ndarray, "user"]:
    return np.array([history.returning for history in histories], np.bool_)

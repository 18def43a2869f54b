"""One person read by all members of an ensemble in one pass: what a list waits for.

A person's few events are small matrices, so that time goes into the number of operations, not into arithmetic. Members
are therefore stacked along a first axis, and the last block computes the last position alone. The states are those of
`Ensemble.states` up to rounding.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from palate.backbone.blocks import Block, Pairs, classify_time, make_pairs, stack
from palate.backbone.ensemble import Ensemble
from palate.backbone.sequence_model import DAY, HOUR
from palate.data.episodes import History
from palate.errors import DataError

_FIRST, _NORM = ("start", "resume"), ("weight", "bias")


class Reader:
    """What it needs of the members' weights, copied when it is made: they must not change afterwards."""

    def __init__(self, ensemble: Ensemble) -> None:
        models = ensemble.models()
        config = self._config = ensemble.config
        self._start, self._resume = (stack(getattr(model, name) for model in models)[:, None] for name in _FIRST)
        self._profile = stack(model.profile for model in models)
        self._place, self._visit, self._gap, self._hour, self._weekday = (
            stack(getattr(model, name) for model in models) if getattr(models[0], name) is not None else None
            for name in ("place", "visit", "gap", "hour", "weekday")
        )
        rates = [model.value for model in models if model.value is not None]
        self._value = None
        if rates:
            self._value = [stack(rate.weight.T for rate in rates), stack(rate.bias for rate in rates)[:, None]]
        layers: list[Sequence[Block]] = list(zip(*(model.blocks for model in models), strict=True))
        self._layers = [type(blocks[0]).stacked(blocks) for blocks in layers]
        self._norm = [stack(getattr(model.norm, name) for model in models)[:, None] for name in _NORM]
        self._scale = math.sqrt(config.dim)
        self._longest = make_pairs(config.max_events + 1, None)

    def state(
        self, history: History, profile: Float[Tensor, "profile"], vectors: Float[Tensor, "item dim"]
    ) -> Float[Tensor, "dim"]:
        """The state after a person's last event, member after member; `vectors` are those of all items.

        Raises:
            DataError: the members read what a history does not tell, kinds of events.
        """
        config = self._config
        if config.num_kinds:
            raise DataError("the model reads kinds and the events have none; give them, or train without")
        recent = history.tail(config.max_events)
        first = self._start if len(recent.items) == len(history.items) else self._resume
        if self._profile.shape[1]:
            first = first + (profile @ self._profile)[:, None]
        x = first
        if len(recent.items):
            tokens = vectors[torch.from_numpy(recent.items)].view(len(recent.items), -1, config.dim).transpose(0, 1)
            x = torch.cat([first, self._with_features(tokens * self._scale, recent)], 1)
        width = x.shape[1]
        if self._place is not None:
            x = x + self._place[:, :width]
        pairs = self._pairs(width, recent)
        for number, layer in enumerate(self._layers, start=1):
            x = layer(x, pairs, number == len(self._layers))
        weight, bias = self._norm
        return torch.addcmul(bias, layer_norm(x[:, -1:], (config.dim,)), weight).flatten()

    def _with_features(self, tokens: Float[Tensor, "member event dim"], recent: History) -> Tensor:
        """Add what is known of the events beside their items."""
        seconds = recent.times
        if self._value is not None and recent.ratings is not None:
            weight, bias = self._value
            values = torch.from_numpy(recent.ratings.astype(np.float32))[:, None]
            tokens = tokens + torch.where(values.isnan(), 0.0, values.nan_to_num() * weight + bias)
        if self._visit is not None:
            another = np.zeros((len(seconds), 1), np.float32)
            another[:-1, 0] = np.diff(seconds) > HOUR * self._config.visit_gap
            another[-1] = recent.returning
            tokens = torch.addcmul(tokens, torch.from_numpy(another), self._visit[:, None])
        if self._gap is not None:
            gaps = np.maximum(np.diff(seconds, prepend=seconds[:1]), 0)
            tokens = tokens + self._gap[:, classify_time(torch.from_numpy(gaps))]
        if self._hour is not None and self._weekday is not None:
            tokens = tokens + self._hour[:, torch.from_numpy((seconds // HOUR % 24).astype(np.int64))]
            tokens = tokens + self._weekday[:, torch.from_numpy((seconds // DAY % 7).astype(np.int64))]
        return tokens

    def _pairs(self, width: int, recent: History) -> Pairs:
        future, distance = (of_longest[:width, :width] for of_longest in self._longest[:2])
        if not self._config.timed:
            return Pairs(future, distance, None)
        events = recent.times if len(recent.times) else np.zeros(1)
        # The first token happens with the first event.
        seconds = torch.from_numpy(np.concatenate([events[:1], events])[None, :width])
        return make_pairs(width, seconds)

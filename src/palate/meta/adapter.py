"""Fast weights of one person after another, with parameters that do not change: what a list waits for.

`Head.begin` and `Head.adapt` are written for differentiation and for many people at once; for one person their time
goes into the number of operations. Here those that depend on the support's size alone are kept, and a learner with a
`quick` entry is computed in numpy, whose calls cost less than PyTorch's. All others are adapted by the head itself.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import softplus

from palate.meta.head import (
    EPSILON,
    Support,
    gate_inputs,
    learned_or_fixed,
    make_head,
    own_parameters,
    prior_deviation,
    prior_mean,
    scorer_weights,
)
from palate.meta.learner import Fast, Params
from palate.meta.table import find_learner, read_settings


class Adapter:
    """Adapts to one person at a time; the parameters are copied or kept, and must not change afterwards.

    Raises:
        ConfigError: an unknown learner or setting.
    """

    def __init__(self, learner: str, settings: Mapping[str, Any], params: Params) -> None:
        num_profile, num_features = learned_or_fixed(params, "prior.profile").shape
        self._head = make_head(learner, num_features, num_profile, settings, len(params["scorers.weight"]))
        self._params = params
        entry = find_learner(learner)
        own = {name: value.numpy() for name, value in own_parameters(params).items()}
        quick = entry.quick
        self._solve = None if quick is None or entry.by_feature else quick(read_settings(learner, settings), own)
        self._vectors, self._features = (
            np.ascontiguousarray(params[f"fixed.{name}_covariance"].numpy()) for name in ("vector", "feature")
        )
        self._nothing = torch.zeros(num_features)
        self._scales: dict[int, Float32[np.ndarray, "feature"]] = {}
        self._gates: dict[tuple[int, bool], tuple[float, float, Tensor]] = {}

    def adapt(self, profile: Float[Tensor, "profile"], support: Support) -> Fast:
        """The fast weights after a support in which every event counts 1: `Head.adapt` from `Head.begin`."""
        params, size = self._params, len(support.weight)
        if self._solve is None or not bool(support.weight[0]):
            return self._head.adapt(params, self._head.begin(params, profile), support)
        mean = self._mean(profile)
        features, scale = support.features.numpy(), self._scale(size)
        moved = self._solve(features * scale, support.target.numpy() - features @ mean.numpy())
        to_state, to_delta, scorers = self._gate(size, bool(support.returning))
        query = np.append(support.state.numpy(), np.float32(1))
        delta = moved * scale
        return {
            "state": torch.from_numpy(query * (to_state / _spread(query, self._vectors))),
            "delta": torch.from_numpy(delta * (to_delta / _spread(delta, self._features))),
            "prior": mean,
            "popularity": params["popularity"],
            "scorers": scorers,
            "start.weight": self._nothing,
        }

    def rest(self, profile: Float[Tensor, "profile"]) -> Fast:
        """What of the fast weights follows from the profile alone, whatever the events."""
        if self._solve is None:
            own = self._head.begin(self._params, profile)
        else:
            own = {"prior": self._mean(profile), "start.weight": self._nothing}
        return {**own, "popularity": self._params["popularity"]}

    def _mean(self, profile: Float[Tensor, "profile"]) -> Float[Tensor, "feature"]:
        return prior_mean(self._params, profile)

    def _scale(self, size: int) -> Float32[np.ndarray, "feature"]:
        found = self._scales.get(size)
        if found is None:
            found = self._scales[size] = prior_deviation(self._params, torch.tensor(float(size))).numpy()
        return found

    def _gate(self, size: int, returning: bool) -> tuple[float, float, Float[Tensor, "scorer_feature"]]:
        found = self._gates.get((size, returning))
        if found is None:
            told = gate_inputs(torch.tensor(float(size)), torch.tensor(float(returning)))
            to_state, to_delta = softplus(self._params["gates"] @ told).tolist()
            found = self._gates[size, returning] = to_state, to_delta, scorer_weights(self._params, told)
        return found


def _spread(query: Float32[np.ndarray, "feature"], covariance: Float32[np.ndarray, "feature feature"]) -> float:
    return math.sqrt(float(query @ (covariance @ query)) + EPSILON)

"""A logarithmic opinion pool: the probabilities of networks and features of collaborative filtering as one answer.

p(level) ∝ network(level)^trust · exp(place(level) · ⟨weights, features⟩ + bias(level)), where the places of the levels
go from 0 to 1. With trust 1 and no weights the networks speak alone; with trust 0 the order by any increasing gain is
that of the features' sum. It is fitted by likelihood, a convex problem, on people whom no part of it has seen, with a
penalty that draws it to the networks alone. Genest and Zidek, Combining probability distributions: a critique and an
annotated bibliography, 1986, doi 10.1214/ss/1177013825; with two levels it is stacking by logistic regression (Wolpert,
Stacked generalization, 1992, doi 10.1016/S0893-6080(05)80023-1).
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]
import scipy.special  # type: ignore[import-untyped]
from jaxtyping import Float, Int64

_RIDGE = 1.0
"""Penalty on the squared distance from the networks alone, beside the log loss summed over people's events."""
_LEAST = 1e-6
"""Probabilities of the networks are read as at least this."""


class Pool(NamedTuple):
    """A fitted pool."""

    trust: float
    """Exponent of the networks' probabilities."""
    weights: Float[np.ndarray, "feature"]
    bias: Float[np.ndarray, "level"]

    def mix(
        self, probabilities: Float[np.ndarray, "query level"], features: Float[np.ndarray, "query feature"]
    ) -> Float[np.ndarray, "query level"]:
        """Probabilities of the levels."""
        places = np.linspace(0, 1, len(self.bias))
        logits = self.trust * _log(probabilities) + (features @ self.weights)[:, None] * places + self.bias
        mixed: Float[np.ndarray, "query level"] = scipy.special.softmax(logits, axis=1)
        return mixed


def fit_pool(
    probabilities: Float[np.ndarray, "event level"],
    features: Float[np.ndarray, "event feature"],
    level: Int64[np.ndarray, "event"],
    weight: Float[np.ndarray, "event"],
) -> Pool:
    """Fit on events of people who were held out of the networks and of what the features are from.

    Args:
        probabilities: of the networks.
        features: on any scale; they are standardised here.
        level: place of the answer among the levels.
        weight: of each event in the loss.
    """
    logs, num_levels = _log(probabilities), probabilities.shape[1]
    places = np.linspace(0, 1, num_levels)
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    standard = (features - mean) / scale
    answered = np.eye(num_levels)[level]
    start = np.r_[1.0, np.zeros(features.shape[1] + num_levels)]

    def loss(parameters: Float[np.ndarray, "parameter"]) -> tuple[float, Float[np.ndarray, "parameter"]]:
        trust, weights, bias = parameters[0], parameters[1:-num_levels], parameters[-num_levels:]
        logits = trust * logs + (standard @ weights)[:, None] * places + bias
        log_mixed = scipy.special.log_softmax(logits, axis=1)
        error = (np.exp(log_mixed) - answered) * weight[:, None]
        away = parameters - start
        slope = np.r_[(error * logs).sum(), (error @ places) @ standard, error.sum(0)] + 2 * _RIDGE * away
        return float(-(weight * (answered * log_mixed).sum(1)).sum() + _RIDGE * away @ away), slope

    bounds = [(0, None)] + [(None, None)] * (len(start) - 1)
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[1:-num_levels] / scale
    return Pool(float(found[0]), weights, found[-num_levels:] - places * (weights @ mean))


def _log(probabilities: Float[np.ndarray, "event level"]) -> Float[np.ndarray, "event level"]:
    logs: Float[np.ndarray, "event level"] = np.log(np.maximum(probabilities.astype(np.float64), _LEAST))
    return logs

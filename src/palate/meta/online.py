"""Bayesian linear regression for one person at serving speed: fit a few events, then take in one at a time.

target = ⟨w, x⟩ + noise, w ~ N(mean, diag(variance)), noise ~ N(0, σ² / weight): Bishop, Pattern Recognition and Machine
Learning, 2006, eq. 3.50–3.53; the dual form is Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006,
ch. 2. With prior deviations D, scaled events X (rows √weight · x D) and X Xᵀ + σ² I = L Lᵀ, the posterior is

    covariance = D (I − Qᵀ Q) D,  Q = L⁻¹ X        mean = prior mean + D Qᵀ L⁻¹ residual

An event adds one row to Q, the Kalman gain q = (x − Qᵀ Q x) / √(‖x‖² − ‖Q x‖² + σ²): two n × d products, cheaper than
the d × d covariance while there are fewer events than features. Draws are by Matheron's rule (Wilson et al.,
Efficiently Sampling Functions from Gaussian Process Posteriors, 2020, arXiv:2002.09309, eq. 9): with z ~ N(0, I) over
features, e ~ N(0, I) over events and R Rᵀ = I − Q Qᵀ (after a fit R = σ L⁻¹), D (z − Qᵀ (Q z + R e)) has exactly this
covariance.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy.linalg.lapack import dpotrf, dtrtri  # type: ignore[import-untyped]

from palate.errors import NumericalError

_JITTER = 1e-12
"""In prior variances: below what a single-precision draw shows."""


@dataclass(frozen=True)
class Prior:
    """What is believed about a person before the first event; checked once, shared by everyone."""

    mean: Float[ndarray, "feature"]
    variance: Float[ndarray, "feature"]
    noise: float
    """Noise variance σ² of an event of weight 1."""

    def __post_init__(self) -> None:
        if not (self.variance > 0).all():
            raise ValueError(f"variance has an entry of {self.variance.min()}, expected only positive ones")
        if not self.noise > 0:
            raise ValueError(f"noise is {self.noise}, expected a positive variance")

    @cached_property
    def deviation(self) -> Float[ndarray, "feature"]:
        """Square root of the variance, float64."""
        deviation: Float[ndarray, "feature"] = np.sqrt(self.variance, dtype=np.float64)
        return deviation

    def fit(
        self,
        features: Float[ndarray, "event feature"],
        target: Float[ndarray, "event"],
        weight: Float[ndarray, "event"],
    ) -> "Posterior":
        """The posterior of these events; an event of weight 0 is not looked at."""
        if weight.size and weight.min() <= 0:
            if weight.min() < 0:
                raise ValueError(f"weight has an entry of {weight.min()}, expected none below 0")
            real = weight > 0
            features, target, weight = features[real], target[real], weight[real]
        mean, share = self.mean.astype(np.float64), np.sqrt(weight, dtype=np.float64)
        if not len(share):
            return Posterior(self, mean, np.empty((0, len(mean))))
        rows = features * self.deviation
        rows *= share[:, None]
        residual = (target - features @ mean) * share
        if len(rows) > len(mean):
            # Exact: the noise is now the same for all rows, so only the products of the columns matter.
            both = _triangle(np.column_stack([rows, residual]))
            rows, residual = np.ascontiguousarray(both[:, :-1]), both[:, -1]
        system = rows @ rows.T
        system.ravel()[:: len(system) + 1] += self.noise
        # `system` is symmetric, so it need not be copied for column order.
        factor, failed = dpotrf(system.T, lower=1, overwrite_a=1)
        # Of some ten events, a product with the inverse takes less time than a solve for all features.
        inverse, _ = dtrtri(factor, lower=1, overwrite_c=1)
        with np.errstate(invalid="ignore"):
            gains = inverse @ rows
            mean += self.deviation * ((inverse @ residual) @ gains)
        # NOTE: a NaN does not count as failed for every LAPACK, but it always reaches the mean.
        if failed or not isfinite(mean @ mean):
            raise NumericalError(
                f"fit of {len(weight)} events: no finite posterior; are all features and targets finite?"
            )
        return Posterior(self, mean, gains, inverse)


class Posterior:
    """What is believed about a person; `update` changes it in place."""

    def __init__(
        self,
        prior: Prior,
        mean: Float[ndarray, "feature"],
        gains: Float[ndarray, "event feature"],
        inverse: Float[ndarray, "event event"] | None = None,
    ) -> None:
        """`gains` is the Q of the module's docstring, `inverse` its L⁻¹ where that is known."""
        self.mean = mean
        self._prior = prior
        self._inverse = inverse
        self._buffer = gains  # grows by doubling; rows past _count are free
        self._count = len(gains)

    def copy(self) -> "Posterior":
        """An independent one."""
        return Posterior(self._prior, self.mean.copy(), self._buffer[: self._count].copy(), self._inverse)

    def update(self, features: Float[ndarray, "feature"], target: float, weight: float = 1.0) -> None:
        """Take in one more event; equal to a fit of all events so far."""
        if weight == 0:
            return
        if weight < 0:
            raise ValueError(f"weight is {weight}, expected none below 0")
        gains, deviation = self._buffer[: self._count], self._prior.deviation
        row = features * deviation
        seen = gains @ row
        spread = float(row @ row - seen @ seen) + self._prior.noise / weight
        if not spread > 0:
            raise NumericalError(
                f"update: the predictive variance is {spread}, expected a positive number; are all features finite?"
            )
        row -= seen @ gains
        row /= spread**0.5
        surprise = (target - float(features @ self.mean)) / spread**0.5
        if not isfinite(surprise):
            raise NumericalError(f"update: the target is {target} and the surprise {surprise}, expected finite numbers")
        self.mean += row * deviation * surprise
        self._inverse = None
        self._append(row)

    def score(self, items: Float[ndarray, "item feature"]) -> Float[ndarray, "item"]:
        """Expected target of each item, in the precision of `items`."""
        scores: Float[ndarray, "item"] = items @ self.mean.astype(items.dtype)
        return scores

    def variance(self, items: Float[ndarray, "item feature"]) -> Float[ndarray, "item"]:
        """How much is still unknown about each item's expected target, without the noise of an event.

        In the precision of `items`, relative to the variance before any event.
        """
        gains = self._buffer[: self._count] * self._prior.deviation
        seen = items @ gains.T.astype(items.dtype)
        before = np.square(items) @ self._prior.variance.astype(items.dtype)
        unknown: Float[ndarray, "item"] = np.maximum(before - np.einsum("ie,ie->i", seen, seen), 0)
        return unknown

    def draw(self, num_draws: int, rng: np.random.Generator) -> Float32[ndarray, "draw feature"]:
        """Departures of the weights from their mean, drawn from the posterior, in single precision."""
        gains = self._buffer[: self._count]
        drawn = rng.standard_normal((num_draws, len(self.mean)), np.float32)
        if self._count:
            root = _left_over(gains) if self._inverse is None else self._prior.noise**0.5 * self._inverse
            single = gains.astype(np.float32)
            seen = drawn @ single.T
            seen += (root @ rng.standard_normal((len(gains), num_draws))).T
            drawn -= seen @ single
        drawn *= self._prior.deviation.astype(np.float32)
        return drawn

    def _append(self, row: Float[ndarray, "feature"]) -> None:
        if self._count == len(self._buffer):
            gains = self._buffer
            if len(gains) >= 2 * len(row):
                # More rows than features say nothing more; once in as many events as there are features.
                gains = _triangle(gains)
            self._count = len(gains)
            self._buffer = np.empty((min(max(2 * self._count, 8), 2 * len(row)), len(row)))
            self._buffer[: self._count] = gains
        self._buffer[self._count] = row
        self._count += 1


def _left_over(gains: Float[ndarray, "event feature"]) -> Float[ndarray, "event event"]:
    """Lower triangular R with R Rᵀ = I − Q Qᵀ."""
    left = np.eye(len(gains)) - gains @ gains.T
    # NOTE: of a noise far below the squares of the events, rounding may leave nothing to factor.
    left.ravel()[:: len(left) + 1] += _JITTER
    root, _ = dpotrf(left.T, lower=1, overwrite_a=1)
    return np.asarray(root)


def _triangle(rows: Float[ndarray, "row column"]) -> Float[ndarray, "few column"]:
    """At most as many rows as columns, with the same products of columns."""
    return np.asarray(np.linalg.qr(rows, mode="r"))

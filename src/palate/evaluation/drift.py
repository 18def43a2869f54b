"""Drift: whether what comes in now is still like what the model was trained on.

`stability_index` compares two samples or two tables of counts by the population stability index, Σ (q − p) log(q / p)
over bins, the symmetric Kullback–Leibler divergence (Kullback & Leibler, 1951, doi 10.1214/aoms/1177729694). The custom
is to worry from 0.1 and to act from 0.25, but without drift it is about (bins − 1)(1/n + 1/m) times a chi-square over
its degrees of freedom (Yurdakul, Statistical Properties of the Population Stability Index, 2018, theorem 3.1), so a
small sample alone can pass 0.25; the p-value knows the sizes.

`Adwin` watches a stream and forgets what is no longer true: ADWIN2 of Bifet & Gavaldà, Learning from Time-Changing Data
with Adaptive Windowing, 2007, doi 10.1137/1.9781611972771.42. It keeps the longest window in which no two halves W₀,
W₁ differ by more than (section 3.1 and equation 3.1 there)

    ε = √(2/m · variance · log(2/δ′)) + 2/(3m) · log(2/δ′),   1/m = 1/|W₀| + 1/|W₁|,   δ′ = δ / log |W|

and drops the oldest part when two do. The window is an exponential histogram (Datar et al., Maintaining Stream
Statistics over Sliding Windows, 2002, doi 10.1137/S0097539701398363): at most five buckets of each size 1, 2, 4, …
hold its sums, O(log n) numbers for n outcomes, and only borders of buckets are tried.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy.stats import chi2  # type: ignore[import-untyped]

from palate.errors import ConfigError, DataError, NumericalError

_SMOOTHING = 0.5
"""Added to every count (Jeffreys' prior), so that an empty bin costs much but not everything."""
_MAX_BUCKETS = 5
"""Of one size: the M of the paper."""
_FEWEST = 5
"""Outcomes that a half of the window needs."""


class Stability(NamedTuple):
    """How far two distributions are apart."""

    value: float
    """The population stability index, from 0; in nats."""
    p_value: float
    """Probability of an index at least as high when both are samples of one distribution."""
    num_bins: int


def stability_index(
    reference: Float[np.ndarray, "old"], current: Float[np.ndarray, "new"], *, num_bins: int = 10
) -> Stability:
    """Compare two samples of a number, in bins that hold equal shares of the reference.

    Borders are quantiles of the reference, and the outer bins are open; a value on a border belongs to the bin above.
    A number that several quantiles fall on gets a bin of its own.

    Raises:
        ConfigError: fewer than two bins are asked for.
        DataError: a sample is empty.
        NumericalError: a value is NaN.
    """
    if num_bins < 2:
        raise ConfigError(f"num_bins is {num_bins}; expected at least 2")
    for name, sample in (("reference", reference), ("current", current)):
        if not len(sample):
            raise DataError(f"drift: the {name} sample is empty")
        if np.isnan(sample).any():
            raise NumericalError(f"drift: the {name} sample holds NaN")
    quantiles = np.quantile(reference.astype(np.float64), np.arange(1, num_bins) / num_bins, method="higher")
    borders, times = np.unique(quantiles, return_counts=True)
    borders = np.union1d(borders, np.nextafter(borders[times > 1], np.inf))
    old, new = (
        np.bincount(np.searchsorted(borders, sample, side="right"), minlength=len(borders) + 1)
        for sample in (reference, current)
    )
    return _compare(old.astype(np.float64), new.astype(np.float64))


def stability_of_counts(reference: Mapping[str, int], current: Mapping[str, int]) -> Stability:
    """Compare two tables of counts, such as events by type; a name that only one has counts 0 in the other.

    Raises:
        DataError: a table has no counts, or one below 0.
    """
    names = sorted(set(reference) | set(current))
    old, new = (np.array([table.get(name, 0) for name in names], np.float64) for table in (reference, current))
    for name, counts in (("reference", old), ("current", new)):
        if not counts.sum() > 0 or counts.min() < 0:
            raise DataError(f"drift: the {name} counts should be at least 0, and some above")
    return _compare(old, new)


class Adwin:
    """A window over a stream of bounded outcomes, as long as its halves agree; `observe` changes it in place."""

    def __init__(self, *, delta: float = 0.002, lowest: float = 0.0, highest: float = 1.0, every: int = 32) -> None:
        """Start with an empty window.

        Args:
            delta: confidence of a cut: lower is slower and surer.
            lowest: least value of an outcome.
            highest: greatest value of an outcome.
            every: outcomes between two looks for a cut.

        Raises:
            ConfigError: a setting out of range.
        """
        if not 0 < delta < 1:
            raise ConfigError(f"delta is {delta}; expected a number between 0 and 1, such as 0.002")
        if not (math.isfinite(highest - lowest) and lowest < highest):
            raise ConfigError(f"outcomes range from {lowest} to {highest}; expected a finite, growing range")
        if every < 1:
            raise ConfigError(f"every is {every}; it must be at least 1")
        self._delta, self._lowest, self._range, self._every = delta, lowest, highest - lowest, every
        self._levels: list[list[tuple[float, float]]] = [[]]
        """For each size 2^level the (sum, squared distances from its mean) of its buckets, the oldest first."""
        self._seen = 0

    def observe(self, value: float) -> bool:
        """Take in one more outcome; say whether the window was cut, because what it began with is no longer true.

        Raises:
            NumericalError: the outcome is not inside the range.
        """
        if not self._lowest <= value <= self._lowest + self._range:
            raise NumericalError(f"outcome is {value}; expected {self._lowest} to {self._lowest + self._range}")
        self._levels[0].append(((value - self._lowest) / self._range, 0.0))
        for level, buckets in enumerate(self._levels):
            if len(buckets) <= _MAX_BUCKETS:
                break
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(_join(buckets.pop(0), buckets.pop(0), 1 << level))
        self._seen += 1
        return self._seen % self._every == 0 and self._cut()

    @property
    def width(self) -> int:
        """Outcomes in the window."""
        return sum(len(buckets) << level for level, buckets in enumerate(self._levels))

    @property
    def mean(self) -> float:
        """Of the window; NaN when nothing was seen."""
        total, width = math.fsum(part for buckets in self._levels for part, _ in buckets), self.width
        return self._lowest + self._range * total / width if width else math.nan

    @property
    def num_buckets(self) -> int:
        """Pairs of numbers that are held."""
        return sum(len(buckets) for buckets in self._levels)

    def _cut(self) -> bool:
        """Drop the oldest bucket as long as any two halves of the window differ."""
        cut = False
        while self._halves_differ():
            self._levels[-1].pop(0)
            while len(self._levels) > 1 and not self._levels[-1]:
                self._levels.pop()
            cut = True
        return cut

    def _halves_differ(self) -> bool:
        oldest_first: Float64[np.ndarray, "bucket 3"] = np.array(
            [
                (1 << level, total, squares)
                for level in range(len(self._levels) - 1, -1, -1)
                for total, squares in self._levels[level]
            ]
        ).reshape(-1, 3)
        sizes, sums, inner = oldest_first.T
        num, total = sizes.sum(), sums.sum()
        if num < 2 * _FEWEST:
            return False
        old, old_sum = np.cumsum(sizes)[:-1], np.cumsum(sums)[:-1]
        new = num - old
        variance = (inner + sizes * np.square(sums / sizes - total / num)).sum() / num
        log_error = math.log(2 * math.log(num) / self._delta)
        inverse = 1 / old + 1 / new
        apart = np.abs(old_sum / old - (total - old_sum) / new)
        allowed = np.sqrt(2 * inverse * variance * log_error) + 2 / 3 * inverse * log_error
        return bool(((apart > allowed) & (old >= _FEWEST) & (new >= _FEWEST)).any())


def _join(one: tuple[float, float], other: tuple[float, float], size: int) -> tuple[float, float]:
    """Two buckets of one size as one: the squared distances grow by what is between their means."""
    return one[0] + other[0], one[1] + other[1] + (one[0] - other[0]) ** 2 / (2 * size)


def _compare(old: Float64[np.ndarray, "bin"], new: Float64[np.ndarray, "bin"]) -> Stability:
    num_old, num_new = old.sum(), new.sum()
    used = (old > 0) | (new > 0)
    old, new = old[used] + _SMOOTHING, new[used] + _SMOOTHING
    p, q = old / old.sum(), new / new.sum()
    value = float(((q - p) * np.log(q / p)).sum())
    degrees = len(p) - 1
    p_value = float(chi2.sf(value / (1 / num_old + 1 / num_new), degrees)) if degrees else 1.0
    return Stability(value, p_value, len(p))

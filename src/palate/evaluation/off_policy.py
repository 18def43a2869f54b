"""Off-policy evaluation: what another way of making lists would have earned, from the lists that were shown.

A log says which items were shown in a context (one list), with which probability the list was to hold each, and what
each earned. A target policy is the probability with which it would show items in the same contexts. The value is the
expected sum of rewards of a list, under the assumption that an item earns the same whatever stands around it. With
weights w = target / propensity of the shown items, summed over the items of a context and averaged over N contexts:

    IPS    1/N Σ w r                                   Horvitz & Thompson, 1952, doi 10.1080/01621459.1952.10483446
    SNIPS  (1/N Σ target) · Σ w r / Σ w                Swaminathan & Joachims, The Self-Normalized Estimator for
                                                       Counterfactual Learning, 2015, eq. 8; Σ target is 1 for one item
    DR     1/N (Σ target · r̂ + Σ w (r − r̂))            Dudík, Langford & Li, Doubly Robust Policy Evaluation and
                                                       Learning, 2011, arXiv:1103.4601, eq. 2

Σ target runs over all that the target would show, so DR needs a model's estimate r̂ of the reward for each of those and
for each shown item. IPS is unbiased where the propensities are right and above 0 wherever the target's are; SNIPS gives
up a little of that for less variance; DR is right where either propensities or estimates are, and needs less of the log
the better the estimates. Weights above `clip` are cut to it (Ionides, Truncated Importance Sampling, 2008, doi
10.1198/106186008X320456), which trades variance for bias towards 0 (of DR: towards the model); how many were is told.

One person's lists are not independent, so intervals are over people: the asymptotic one by the variance of the
linearised estimator's sums by person (Liang & Zeger, Longitudinal Data Analysis Using Generalized Linear Models, 1986,
doi 10.1093/biomet/73.1.13), and the percentile bootstrap that draws people whole (Efron, 1979).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64
from scipy.stats import norm  # type: ignore[import-untyped]

from palate.errors import ConfigError, DataError
from palate.significance import CELLS_AT_ONCE, Interval

_LOG_COLUMNS = ("context", "user_id", "item_id", "propensity", "reward")
_TARGET_COLUMNS = ("context", "item_id", "probability")


@dataclass(frozen=True)
class OffPolicyConfig:
    """How estimates are made and how sure they are."""

    clip: float = 100.0
    """Greatest weight of a shown item; infinity cuts none."""
    level: float = 0.95
    """Confidence level of both intervals."""
    num_resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; expected a weight above 0, or infinity")
        if not 0 < self.level < 1:
            raise ConfigError(f"level: the confidence level is {self.level}; expected a share between 0 and 1")
        if self.num_resamples < 1:
            raise ConfigError(f"num_resamples: got {self.num_resamples}; expected at least 1; 1000 is a good number")


class OffPolicyValue(NamedTuple):
    """What an estimator says of a policy's value, in units of reward a list."""

    asymptotic: Interval
    """The estimate, with its interval by the central limit theorem over people."""
    bootstrap: Interval
    """The same estimate, with its percentile bootstrap interval over people."""


class Overlap(NamedTuple):
    """How much of the log speaks of the target; figures of all estimators rest on it."""

    num_people: int
    num_contexts: int
    num_matched: int
    """Shown items that the target might show too."""
    effective_size: float
    """(Σ w)² / Σ w²: so many items shown by the target itself would tell as much (Kish, 1965)."""
    largest_weight: float
    """Before clipping."""
    clipped: float
    """Share of the matched items whose weight was cut."""
    coverage: float
    """Mean weight of a context over what it should be, the target's own: well below 1 where the target wants items that
    the log never shows (or weights were cut), and values are too low by as much."""


class OffPolicyReport(NamedTuple):
    """Every estimate that the log allows, by name."""

    overlap: Overlap
    values: Mapping[str, OffPolicyValue]
    """By a name in `ESTIMATORS`; those that read estimates only where there are any."""


class _Sums(NamedTuple):
    """Sums over a person's contexts; row by person, or by resample."""

    contexts: Float64[np.ndarray, "row"]
    target: Float64[np.ndarray, "row"]
    """Of target probabilities."""
    weight: Float64[np.ndarray, "row"]
    gain: Float64[np.ndarray, "row"]
    """Of weight times reward."""
    model: Float64[np.ndarray, "row"]
    """Of target probability times estimate."""
    surprise: Float64[np.ndarray, "row"]
    """Of weight times what the reward is above the estimate."""


class Estimator(NamedTuple):
    """One line of the table: how a value follows from sums, and how it moves with each person's."""

    value: Callable[[_Sums], Float64[np.ndarray, "row"]]
    influence: Callable[[_Sums, _Sums], Float64[np.ndarray, "row"]]
    """(sums by person, their total) to what each person adds to the value, to first order."""
    reads_estimates: bool = False


def evaluate_off_policy(
    log: pl.DataFrame, target: pl.DataFrame, config: OffPolicyConfig | None = None
) -> OffPolicyReport:
    """Estimate a target policy's value from logged lists.

    Args:
        log: a row for each shown item: `context` (the list's id), `user_id`, `item_id`, `propensity` (probability that
            the list was to hold the item), `reward`, and `estimate` (the model's guess of the reward) for DR.
        target: a row for each item that the target may show: `context`, `item_id`, `probability`, and `estimate` for
            DR. A context that the log lacks is not read; every one of the log must be here.
        config: clipping and intervals.

    Raises:
        DataError: a column is missing, holds nulls, or a value that it cannot have (a propensity of 0 or NaN would make
            the estimate meaningless); a row twice; fewer than two people; or no overlap of log and target.
    """
    config = config or OffPolicyConfig()
    with_estimates = "estimate" in log.columns
    if with_estimates != ("estimate" in target.columns):
        raise DataError('column "estimate" is in one table only; give it in both log and target, or in neither')
    log = _checked(log, _LOG_COLUMNS, "log", with_estimates)
    target = _checked(target, _TARGET_COLUMNS, "target", with_estimates)
    _check_range(log, "propensity", "log", above_zero=True)
    _check_range(target, "probability", "target", above_zero=False)
    log, target = (frame.sort("context", "item_id") for frame in (log, target))  # sums of floats depend on the order
    people = log.group_by("context", maintain_order=True).agg(
        pl.col("user_id").n_unique().alias("owners"), pl.col("user_id").first()
    )
    if people["owners"].max() != 1:
        name = people.filter(pl.col("owners") > 1)["context"].min()
        raise DataError(f'log: context {name!r} is of several people; a context is one list, of one "user_id"')
    if len(people["user_id"].unique()) < 2:
        raise DataError("log: expected the lists of at least two people: intervals are over people")
    planned = target.join(people.select("context"), on="context", how="semi", maintain_order="left")
    unplanned = people.join(planned, on="context", how="anti")
    if len(unplanned):
        raise DataError(
            f"target: {len(unplanned)} contexts of the log are missing, such as {unplanned['context'].min()!r}; "
            "say what the target would show in each"
        )
    shown = log.join(
        planned.select("context", "item_id", "probability"),
        on=("context", "item_id"),
        how="left",
        maintain_order="left",
    ).with_columns(raw=pl.col("probability").fill_null(0.0) / pl.col("propensity"))
    matched = shown.filter(pl.col("raw") > 0)
    if matched.is_empty():
        raise DataError("no overlap: the target would show none of the logged items; log with exploration on")
    shown = shown.with_columns(weight=pl.col("raw").clip(upper_bound=config.clip))
    sums = _sums_by_person(people, shown, planned)
    weights = shown["weight"].to_numpy()
    overlap = Overlap(
        num_people=len(sums.contexts),
        num_contexts=len(people),
        num_matched=len(matched),
        effective_size=float(weights.sum() ** 2 / np.square(weights).sum()),
        largest_weight=float(matched["raw"].to_numpy().max()),
        clipped=float((matched["raw"].to_numpy() > config.clip).mean()),
        coverage=float(sums.weight.sum() / sums.target.sum()),
    )
    rows = _resampled(sums, config)
    values = {
        name: _estimate(estimator, sums, rows, config)
        for name, estimator in ESTIMATORS.items()
        if with_estimates or not estimator.reads_estimates
    }
    return OffPolicyReport(overlap, values)


def _estimate(estimator: Estimator, sums: _Sums, resampled: _Sums, config: OffPolicyConfig) -> OffPolicyValue:
    total = _Sums(*(column.sum(keepdims=True) for column in sums))
    value = float(estimator.value(total)[0])
    influence = estimator.influence(sums, total)
    num_people = len(influence)
    deviation = float(np.sqrt(np.square(influence).sum() * num_people / (num_people - 1)))
    half = float(norm.ppf(0.5 + config.level / 2)) * deviation
    drawn = estimator.value(resampled)
    low, high = np.nanquantile(drawn, [(1 - config.level) / 2, (1 + config.level) / 2])
    return OffPolicyValue(Interval(value, value - half, value + half), Interval(value, float(low), float(high)))


def _sums_by_person(people: pl.DataFrame, shown: pl.DataFrame, planned: pl.DataFrame) -> _Sums:
    """Add up the log by person, in the order of their ids."""
    # Without estimates the model is taken to expect nothing; no estimator that reads it runs then.
    guess = pl.col("estimate") if "estimate" in shown.columns else pl.lit(0.0)
    earned = shown.group_by("context", maintain_order=True).agg(
        pl.col("weight").sum(),
        gain=(pl.col("weight") * pl.col("reward")).sum(),
        surprise=(pl.col("weight") * (pl.col("reward") - guess)).sum(),
    )
    wanted = planned.group_by("context", maintain_order=True).agg(
        target=pl.col("probability").sum(), model=(pl.col("probability") * guess).sum()
    )
    table = (
        people.join(earned, on="context")
        .join(wanted, on="context")
        .sort("user_id", "context")
        .group_by("user_id", maintain_order=True)
        .agg(pl.len().cast(pl.Float64).alias("contexts"), pl.col("target", "weight", "gain", "model", "surprise").sum())
    )
    return _Sums(*(table[name].to_numpy().astype(np.float64) for name in _Sums._fields))


def _resampled(sums: _Sums, config: OffPolicyConfig) -> _Sums:
    """The totals of people drawn with replacement, a row for each resample."""
    rng = np.random.default_rng(config.seed)
    table = np.stack(sums, 1)
    num_people = len(table)
    rows = np.empty((config.num_resamples, table.shape[1]))
    chunk = max(1, CELLS_AT_ONCE // num_people)
    for start in range(0, config.num_resamples, chunk):
        stop = min(start + chunk, config.num_resamples)
        drawn = rng.integers(num_people, size=(stop - start, num_people))
        drawn += np.arange(stop - start)[:, None] * num_people
        times = np.bincount(drawn.ravel(), minlength=(stop - start) * num_people).reshape(-1, num_people)
        rows[start:stop] = times @ table
    return _Sums(*np.ascontiguousarray(rows.T))


def _checked(frame: pl.DataFrame, columns: tuple[str, ...], name: str, with_estimates: bool) -> pl.DataFrame:
    """The columns that are read, numbers as Float64; nothing is missing and no row is there twice."""
    for column in columns:
        if column not in frame.columns:
            raise DataError(f"{name}: no column {column!r}; expected {', '.join(columns)}")
    if frame.is_empty():
        raise DataError(f"{name}: the table has no rows")
    names = (*columns, "estimate") if with_estimates else columns
    numbers = [column for column in names if column not in ("context", "user_id", "item_id")]
    frame = frame.select(names)
    for column in names:
        if frame[column].null_count():
            row = int(frame[column].is_null().to_numpy().argmax()) + 1
            raise DataError(f"{name}: row {row}, column {column!r} is empty")
    for column in numbers:
        if not frame[column].dtype.is_numeric():
            raise DataError(f"{name}: column {column!r} is of type {frame[column].dtype}; expected numbers")
        broken = ~np.isfinite(frame[column].cast(pl.Float64).to_numpy())
        if broken.any():
            raise DataError(f"{name}: row {int(broken.argmax()) + 1}, column {column!r} is NaN or infinite")
    twice = frame.select(pl.struct("context", "item_id").is_duplicated()).to_series()
    if twice.any():
        row = int(twice.to_numpy().argmax()) + 1
        raise DataError(f"{name}: row {row}: the item is in its context more than once")
    return frame.with_columns(pl.col(numbers).cast(pl.Float64))


def _check_range(frame: pl.DataFrame, column: str, name: str, *, above_zero: bool) -> None:
    values = frame[column].to_numpy()
    wrong = (values > 1) | (values < 0) | (above_zero & (values == 0))
    if wrong.any():
        row = int(wrong.argmax())
        least = "above 0" if above_zero else "of at least 0"
        raise DataError(f"{name}: row {row + 1}, {column} is {values[row]}; expected a probability {least}, up to 1")


def _ips(sums: _Sums) -> Float64[np.ndarray, "row"]:
    return np.asarray(sums.gain / sums.contexts)


def _ips_influence(person: _Sums, total: _Sums) -> Float64[np.ndarray, "row"]:
    return np.asarray((person.gain - _ips(total) * person.contexts) / total.contexts)


def _snips(sums: _Sums) -> Float64[np.ndarray, "row"]:
    """NaN where a resample holds no weight at all."""
    per_weight = np.divide(sums.gain, sums.weight, out=np.full_like(sums.gain, np.nan), where=sums.weight > 0)
    return np.asarray(sums.target / sums.contexts * per_weight)


def _snips_influence(person: _Sums, total: _Sums) -> Float64[np.ndarray, "row"]:
    size, per_weight = total.target / total.contexts, total.gain / total.weight
    return np.asarray(
        size * (person.gain - per_weight * person.weight) / total.weight
        + per_weight * (person.target - size * person.contexts) / total.contexts
    )


def _doubly_robust(sums: _Sums) -> Float64[np.ndarray, "row"]:
    return np.asarray((sums.model + sums.surprise) / sums.contexts)


def _doubly_robust_influence(person: _Sums, total: _Sums) -> Float64[np.ndarray, "row"]:
    return np.asarray((person.model + person.surprise - _doubly_robust(total) * person.contexts) / total.contexts)


ESTIMATORS: Mapping[str, Estimator] = {
    "ips": Estimator(_ips, _ips_influence),
    "snips": Estimator(_snips, _snips_influence),
    "dr": Estimator(_doubly_robust, _doubly_robust_influence, reads_estimates=True),
}

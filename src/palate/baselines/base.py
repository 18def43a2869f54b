"""What every baseline shares: its form, its data, ties broken by popularity, the choice of settings.

A baseline is a pure function from a purchase matrix and a config to a `Scorer`. The matrix is dense:
3,314 people × 3,389 items take 45 MB in float32, and each item-item matrix 46 MB more (EASE works in float64
and holds three of 92 MB for a moment).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, Int

from palate.errors import DataError, NumericalError

Scorer: TypeAlias = Callable[[Sequence[Int[np.ndarray, "_"]]], Float32[np.ndarray, "user item"]]
"""Scores every item for each person, given the indices of the items that the person has bought.

Order and repeats in a support do not matter. Items of the support are scored like any other: whether they may
be listed again is the caller's choice. Raises DataError for an index outside the catalogue.
"""

Config = TypeVar("Config")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class BaselineEntry(Generic[Prepared, Config]):
    """One baseline in the table: `prepare` does once what all of its settings share."""

    prepare: Callable[[Float32[np.ndarray, "user item"]], Prepared]
    fit_prepared: Callable[[Prepared, Config], Scorer]
    configs: tuple[Config, ...]
    """The grid that validation selects from; the first one is the default."""
    learns: bool = True
    """False for the reference points that know nothing; all others rank by popularity without support."""

    def fit(self, matrix: Float32[np.ndarray, "user item"], config: Config) -> Scorer:
        """Fit one setting on a 0/1 purchase matrix; DataError where the matrix is not that."""
        return self.fit_prepared(self.prepare(matrix), config)


class Trial(NamedTuple):
    """One setting of a grid and what validation said of it (higher is better)."""

    config: Any
    value: float


class Selection(NamedTuple):
    """The best setting of a grid, its scorer (fitted on the matrix that was given) and the whole table."""

    config: Any
    scorer: Scorer
    table: tuple[Trial, ...]


def select(
    entry: BaselineEntry[Any, Any],
    matrix: Float32[np.ndarray, "user item"],
    validate: Callable[[Scorer], float],
) -> Selection:
    """Fit every setting of `entry` on `matrix` and keep the one that `validate` values highest.

    Equal values keep the earlier setting. One fitted scorer is held at a time beside the best so far.

    Raises:
        NumericalError: `validate` returned NaN.
    """
    prepared = entry.prepare(matrix)
    best: tuple[Trial, Scorer] | None = None
    table: list[Trial] = []
    for config in entry.configs:
        scorer = entry.fit_prepared(prepared, config)
        trial = Trial(config, float(validate(scorer)))
        if np.isnan(trial.value):
            raise NumericalError(f"validation of {config} gave NaN; expected a number; check the validation users")
        table.append(trial)
        if best is None or trial.value > best[0].value:
            best = (trial, scorer)
    assert best is not None, "a baseline has at least one setting"
    return Selection(best[0].config, best[1], tuple(table))


def check_purchases(matrix: Float32[np.ndarray, "user item"]) -> Float32[np.ndarray, "user item"]:
    """Return the matrix as it is; DataError where it is not a 0/1 matrix with at least one purchase."""
    wrong = (matrix != 0) & (matrix != 1)
    if wrong.any():
        user, item = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise DataError(
            f"purchase matrix: user row {user}, item column {item} holds {matrix[user, item]};"
            " expected 0 or 1; mark an item as bought or not"
        )
    if not matrix.any():
        raise DataError(f"purchase matrix: shape {matrix.shape} holds no purchase; expected at least one")
    return matrix


def item_popularity(matrix: Float32[np.ndarray, "user item"]) -> Float32[np.ndarray, "item"]:
    """Share of people who bought each item, in [0, 1]."""
    shares: Float32[np.ndarray, "item"] = check_purchases(matrix).mean(axis=0, dtype=np.float64).astype(np.float32)
    return shares


class CoPurchases(NamedTuple):
    """All that item-item methods need to know of the purchases."""

    counts: Float32[np.ndarray, "item item"]
    """How many people bought both items; on the diagonal, how many bought it (exact up to 16 million)."""
    popularity: Float32[np.ndarray, "item"]


def count_co_purchases(matrix: Float32[np.ndarray, "user item"]) -> CoPurchases:
    """Count joint purchases (the Gram matrix): 0.3 s for 2,700 people × 3,300 items on one core."""
    popularity = item_popularity(matrix)
    return CoPurchases(matrix.T @ matrix, popularity)


def each_support(supports: Sequence[Int[np.ndarray, "_"]], num_items: int) -> Iterator[Int[np.ndarray, "_"]]:
    """Yield each support sorted and without repeats, so that sums over it always round the same way."""
    for row, support in enumerate(supports):
        items = np.unique(support)
        if len(items) and (items[0] < 0 or items[-1] >= num_items):
            outside = items[0] if items[0] < 0 else items[-1]
            raise DataError(
                f"support: user row {row} names item {outside}; expected indices in 0..{num_items - 1};"
                " drop items that the matrix does not hold"
            )
        yield items


def break_ties(
    evidence: Float32[np.ndarray, "item"], popularity: Float32[np.ndarray, "item"]
) -> Float32[np.ndarray, "item"]:
    """Order the items without evidence (score 0) by popularity, and leave every other score as it is.

    What is added stays below half a unit in the last place of the smallest non-zero score (2^-25 of it in
    float32), so it rounds away everywhere but at zero and cannot flip real evidence. Without any evidence the
    result is the popularity itself.
    """
    sizes = np.abs(evidence)
    smallest = sizes[sizes > 0].min(initial=np.inf)
    scale = 2.0**-26 * float(smallest) if np.isfinite(smallest) else 1.0
    return evidence + np.float32(scale) * popularity


def linear_scorer(weights: Float32[np.ndarray, "item item"], popularity: Float32[np.ndarray, "item"]) -> Scorer:
    """Score by the sum of the rows of an item-item matrix that the support names."""

    def score(supports: Sequence[Int[np.ndarray, "_"]]) -> Float32[np.ndarray, "user item"]:
        scores = np.empty((len(supports), len(popularity)), dtype=np.float32)
        # Supports are short: adding a few rows each is cheaper than one dense product, and what one person
        # gets does not depend on who else is in the batch.
        for row, items in enumerate(each_support(supports, len(popularity))):
            scores[row] = break_ties(weights[items].sum(axis=0), popularity)
        return scores

    return score

"""Content of items as kernels, which say how alike two items are, from a frame and a text encoder.

A kernel is positive semidefinite with a mean of 1 on its diagonal. Categories that an item may have several of, such
as genres or cast, overlap as a share; times and numbers are radial; texts are cosines of their vectors. Products of
kernels ask for both at once. A weighted sum of kernels is a covariance: Gönen & Alpaydın, Multiple kernel learning
algorithms, JMLR 12, 2011.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp  # type: ignore[import-untyped]
from jaxtyping import Float

from palate.errors import ConfigError, DataError

Kernel = Float[np.ndarray, "item item"]
_NEAR, _SHARP = 0.3, 0.15  # how fast likeness falls with the cosine of two texts
_NUMBERS_WIDTH = 1.5
_ABSENT = frozenset({"", "n/a", "nan", "none"})
_OWN_NAMES = ("numbers", "text", "text-near", "text-sharp")  # of kernels; others are called like their column


@dataclass(frozen=True)
class ContentSpec:
    """Which columns of the items' frame say what."""

    categories: Mapping[str, str] = field(default_factory=dict)
    """Column to the separator of its values; an empty separator means one value a row."""
    groups: str | None = None
    """The one of `categories` whose values are few and broad: products with time and text."""
    time: str | None = None
    """Numeric column of when the item is from, such as a year."""
    time_scale: float = 8.0
    """Distance in `time` at which likeness has fallen to 0.6."""
    time_range: tuple[float, float] = (-float("inf"), float("inf"))
    """The numeric column that the recommender reads of `time` is cut to this range;
    end it where the training items do, so that nothing extrapolates."""
    texts: tuple[str, ...] = ()
    """Columns that are joined to one text."""
    numbers: tuple[str, ...] = ()
    """Further numeric columns, such as the length of a text."""

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups not in self.categories:
            raise ConfigError(f"content.groups is {self.groups!r}; expected one of {', '.join(self.categories)}")
        if self.time_scale <= 0:
            raise ConfigError(f"content.time_scale is {self.time_scale}; expected above 0")
        if not self.time_range[0] < self.time_range[1]:
            raise ConfigError(f"content.time_range is {self.time_range}; expected the lower end first")
        for name in (*self.categories, self.time):
            if name in _OWN_NAMES:
                raise ConfigError(f"content column {name!r} has the name of a kernel; rename the column")
        if not (self.categories or self.time or self.texts or self.numbers):
            raise ConfigError("content names no column; expected categories, time, texts or numbers")


def item_kernels(
    items: pl.DataFrame, spec: ContentSpec, encode: Callable[[list[str]], Any] | None = None
) -> dict[str, Kernel]:
    """Kernels of the rows of `items`, by name.

    Args:
        items: one row an item; missing values are read as nothing, and missing numbers as the mean.
        spec: which columns.
        encode: texts to an array or tensor with a vector a row, such as `palate.encoders.encode_texts` with its config.

    Raises:
        ConfigError: texts without `encode`.
        DataError: a column is absent or of the wrong type, or the vectors do not fit the texts.
    """
    if not items.height:
        raise DataError("the items' frame has no rows; content needs at least one item")
    kernels: dict[str, Kernel] = {}
    for column, separator in spec.categories.items():
        kernels[column] = _overlap(_indicators(_column(items, column), separator))
    if spec.time is not None:
        kernels[spec.time] = _radial(_numbers(items, spec.time)[:, None] / spec.time_scale)
    if spec.numbers:
        numbers = _standard(np.stack([_numbers(items, column) for column in spec.numbers], 1))
        width = _NUMBERS_WIDTH * np.sqrt(len(spec.numbers) / 2)
        kernels["numbers"] = _radial(numbers / width)
    if spec.texts:
        vectors = _encoded(items, spec, encode)
        centred = vectors - vectors.mean(0)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        cosine = centred / np.maximum(length, 1e-12)
        kernels["text"] = cosine @ cosine.T
        kernels["text-near"] = np.exp((kernels["text"] - 1) / _NEAR)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        kernels["text-sharp"] = np.exp((unit @ unit.T - 1) / _SHARP)
    together = [spec.groups, spec.time, "text-near"]
    for first, second in ((0, 1), (2, 0), (2, 1)):
        left, right = together[first], together[second]
        if left in kernels and right in kernels:
            kernels[f"{left} × {right}"] = kernels[left] * kernels[right]
    return {name: _normalised(kernel) for name, kernel in kernels.items()}


def _column(items: pl.DataFrame, name: str) -> pl.Series:
    if name not in items.columns:
        raise DataError(f"content column {name!r} is not in the items' frame, which has: {', '.join(items.columns)}")
    return items[name]


def _numbers(items: pl.DataFrame, name: str) -> Float[np.ndarray, "item"]:
    series = _column(items, name)
    if not series.dtype.is_numeric():
        raise DataError(f"content column {name!r} is {series.dtype}, not numeric; cast it, or call it a category")
    values = series.cast(pl.Float64).to_numpy().copy()
    if np.isinf(values).any() or np.isnan(values).all():
        raise DataError(f"content column {name!r} is infinite in a row or has no value; correct it or leave it out")
    values[np.isnan(values)] = np.nanmean(values)
    return values


def _indicators(series: pl.Series, separator: str) -> Any:
    """Sparse (item, value): 1 where the item has the value."""
    rows, columns, places = [], [], dict[str, int]()
    for row, cell in enumerate(series.cast(pl.String).fill_null("").to_list()):
        for value in dict.fromkeys(part.strip() for part in (cell.split(separator) if separator else [cell])):
            if value.lower() not in _ABSENT:
                rows.append(row)
                columns.append(places.setdefault(value, len(places)))
    if not rows:
        raise DataError(f"content column {series.name!r} has no value in any row; leave it out")
    return sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(series), len(places)))


def _overlap(present: Any) -> Kernel:
    """Cosine of two sets: shared values over the root of the product of their sizes; 0 for an empty set."""
    size = np.maximum(np.asarray(present.sum(1))[:, 0], 1)
    rows = sp.diags(1 / np.sqrt(size)) @ present
    return np.asarray((rows @ rows.T).toarray())


def _radial(points: Float[np.ndarray, "item dimension"]) -> Kernel:
    squares = (points**2).sum(1)
    distance = squares[:, None] + squares - 2 * points @ points.T
    return np.asarray(np.exp(-0.5 * distance.clip(0)))


def _standard(values: Float[np.ndarray, "item feature"]) -> Float[np.ndarray, "item feature"]:
    return np.asarray((values - values.mean(0)) / np.maximum(values.std(0), 1e-9))


def _normalised(kernel: Kernel) -> Kernel:
    return np.asarray(kernel / kernel.diagonal().mean())


def _encoded(
    items: pl.DataFrame, spec: ContentSpec, encode: Callable[[list[str]], Any] | None
) -> Float[np.ndarray, "item dimension"]:
    if encode is None:
        raise ConfigError("content.texts needs `encode`, a function from texts to vectors; pass one or drop the texts")
    columns = [_column(items, name).cast(pl.String).fill_null("").to_list() for name in spec.texts]
    vectors = np.asarray(encode([". ".join(parts) for parts in zip(*columns, strict=True)]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != items.height or not np.isfinite(vectors).all():
        raise DataError(f"`encode` gave {vectors.shape} for {items.height} texts; expected a finite vector a text")
    return vectors

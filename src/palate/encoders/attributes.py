"""Numeric and categorical attributes as one row of floats: fitted on training rows only, applied to any row.

A column goes through one entry of NUMERIC_ENCODERS or CATEGORICAL_ENCODERS. An entry is a few pure functions
over a plain state that JSON can hold, so a fitted encoder is saved as text and shows what it learned. Nothing
here looks at a target, and the order of the training rows changes nothing, to the last bit.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64

from palate.errors import ConfigError, DataError, ModelError

State = dict[str, Any]  # what one column learned: numbers, strings and lists of them
_LARGEST = float(np.finfo(np.float32).max)
_MAX_KNOTS = 1000  # of a quantile curve; a finer one would only store the noise of the training rows

# -------------------------------------------------------------------------------------------- numeric entries


class NumericEncoder(NamedTuple):
    """One way to scale a number."""

    fit: Callable[[Float64[np.ndarray, "row"]], State]
    """From the observed training values, sorted and finite, at least one."""
    apply: Callable[[Float64[np.ndarray, "row"], State], Float64[np.ndarray, "row"]]
    """From finite values, whether seen in training or not."""


def _affine(offset: float, scales: Sequence[float], values: Float64[np.ndarray, "row"]) -> State:
    """The first scale that is more than rounding noise beside the values; 1 if none is (constant)."""
    noise = 1e-12 * float(np.abs(values).max())
    scale = next((scale for scale in scales if scale > noise), 1.0)
    return {"offset": float(offset), "scale": float(scale)}


def _apply_affine(values: Float64[np.ndarray, "row"], state: State) -> Float64[np.ndarray, "row"]:
    return np.asarray((values - state["offset"]) / state["scale"])


def _fit_standard(values: Float64[np.ndarray, "row"]) -> State:
    return _affine(values.mean(), [values.std()], values)


def _fit_min_max(values: Float64[np.ndarray, "row"]) -> State:
    return _affine(values[0], [values[-1] - values[0]], values)


def _fit_robust(values: Float64[np.ndarray, "row"]) -> State:
    """Median and interquartile range; the standard deviation where more than half of the values are equal."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return _affine(median, [high - low, values.std()], values)


def _signed_log(values: Float64[np.ndarray, "row"]) -> Float64[np.ndarray, "row"]:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _fit_quantile(values: Float64[np.ndarray, "row"], level: Callable[[float], float]) -> State:
    """Knots (value, level of its mid-rank / count): strictly between 0 and 1; ties share one level."""
    knots, counts = np.unique(values, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(values)
    kept = np.unique(np.linspace(0, len(knots) - 1, min(len(knots), _MAX_KNOTS)).round().astype(np.int64))
    return {"values": knots[kept].tolist(), "levels": [level(float(rank)) for rank in ranks[kept]]}


def _apply_quantile(values: Float64[np.ndarray, "row"], state: State) -> Float64[np.ndarray, "row"]:
    """Straight lines between knots; a value beyond the training range gets the level of the nearest end."""
    return np.asarray(np.interp(values, state["values"], state["levels"]))


NUMERIC_ENCODERS: dict[str, NumericEncoder] = {
    "none": NumericEncoder(lambda values: {}, lambda values, state: values),
    "standard": NumericEncoder(_fit_standard, _apply_affine),
    "min-max": NumericEncoder(_fit_min_max, _apply_affine),
    "robust": NumericEncoder(_fit_robust, _apply_affine),
    "log-standard": NumericEncoder(
        lambda values: _fit_standard(_signed_log(values)),
        lambda values, state: _apply_affine(_signed_log(values), state),
    ),
    "quantile-uniform": NumericEncoder(lambda values: _fit_quantile(values, float), _apply_quantile),
    "quantile-normal": NumericEncoder(lambda values: _fit_quantile(values, NormalDist().inv_cdf), _apply_quantile),
}

# ---------------------------------------------------------------------------------------- categorical entries


class CategoricalEncoder(NamedTuple):
    """One way to turn a category into numbers; None stands for a missing value."""

    fit: "Callable[[Sequence[str | None], AttributeConfig], State]"
    """From the values of all training rows."""
    apply: Callable[[Sequence[str | None], State], Float32[np.ndarray, "value feature"]]
    """From distinct values, whether seen in training or not."""
    names: Callable[[State], tuple[str, ...]]
    """What to append to the column's name for each feature."""


def _frequent(values: Sequence[str | None], config: "AttributeConfig") -> State:
    """The categories with at least `min_count` training rows, in alphabetical order."""
    counts = Counter(value for value in values if value is not None)
    return {"categories": sorted(value for value, count in counts.items() if count >= config.min_count)}


def _apply_one_hot(values: Sequence[str | None], state: State) -> Float32[np.ndarray, "value feature"]:
    """The last feature is for everything else: rare in training, unseen or missing."""
    position = {category: index for index, category in enumerate(state["categories"])}
    return _unit_rows([position.get(value, len(position)) for value in values], len(position) + 1)


def _fit_frequency(values: Sequence[str | None], config: "AttributeConfig") -> State:
    counts = Counter(value for value in values if value is not None)
    return {"shares": {value: counts[value] / len(values) for value in sorted(counts)}}


def _apply_frequency(values: Sequence[str | None], state: State) -> Float32[np.ndarray, "value 1"]:
    """The share of training rows with this category; 0 for an unseen or missing one."""
    return np.array([[state["shares"].get(value, 0.0)] for value in values], dtype=np.float32).reshape(-1, 1)


def _apply_hashing(values: Sequence[str | None], state: State) -> Float32[np.ndarray, "value feature"]:
    """A one in the bucket of the category, seen or not; no one at all for a missing value."""
    width = state["num_buckets"]
    buckets = [None if value is None else _stable_hash(value) % width for value in values]
    return _unit_rows(buckets, width)


def _stable_hash(value: str) -> int:
    # Not hash(): Python salts it per process.
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")


def _apply_ordinal(values: Sequence[str | None], state: State) -> Float32[np.ndarray, "value 1"]:
    """1, 2, … in alphabetical order, the row of an embedding table; 0 for rare, unseen and missing values."""
    position = {category: index for index, category in enumerate(state["categories"], start=1)}
    return np.array([[position.get(value, 0)] for value in values], dtype=np.float32).reshape(-1, 1)


def _unit_rows(positions: Sequence[int | None], width: int) -> Float32[np.ndarray, "value feature"]:
    rows = np.zeros((len(positions), width), dtype=np.float32)
    for row, position in enumerate(positions):
        if position is not None:
            rows[row, position] = 1.0
    return rows


CATEGORICAL_ENCODERS: dict[str, CategoricalEncoder] = {
    "one-hot": CategoricalEncoder(
        _frequent,
        _apply_one_hot,
        lambda state: (*(f"={category}" for category in state["categories"]), ":other"),
    ),
    "frequency": CategoricalEncoder(_fit_frequency, _apply_frequency, lambda state: (":frequency",)),
    "hashing": CategoricalEncoder(
        lambda values, config: {"num_buckets": config.num_buckets},
        _apply_hashing,
        lambda state: tuple(f"#{bucket}" for bucket in range(state["num_buckets"])),
    ),
    "ordinal": CategoricalEncoder(_frequent, _apply_ordinal, lambda state: (":index",)),
}

# ------------------------------------------------------------------------------------------------ the encoder


@dataclass(frozen=True)
class AttributeConfig:
    """Which encoder each attribute column goes through."""

    numeric: str = "standard"
    """Name in NUMERIC_ENCODERS for numeric columns without an override."""
    categorical: str = "one-hot"
    """Name in CATEGORICAL_ENCODERS for categorical columns without an override."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Column name to the encoder for that column alone."""
    min_count: int = 1
    """Training rows that a category needs to count as known (one-hot and ordinal)."""
    num_buckets: int = 32
    """Features of a hashed column."""

    def __post_init__(self) -> None:
        _check_encoder("numeric", self.numeric, NUMERIC_ENCODERS)
        _check_encoder("categorical", self.categorical, CATEGORICAL_ENCODERS)
        for setting, value in (("min_count", self.min_count), ("num_buckets", self.num_buckets)):
            if value < 1:
                raise ConfigError(f"attribute {setting} is {value}; it must be at least 1")


@dataclass(frozen=True)
class AttributeColumn:
    """A fitted column: what it is called, how it is encoded and what was learned from the training rows."""

    name: str
    kind: Literal["numeric", "categorical"]
    encoder: str
    state: State


@dataclass(frozen=True)
class AttributeEncoder:
    """Fitted columns, numeric ones first, in the order they were asked for."""

    columns: tuple[AttributeColumn, ...]

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        numeric: Sequence[str],
        categorical: Sequence[str],
        config: AttributeConfig,
    ) -> "AttributeEncoder":
        """Learn scales and categories from training rows.

        A missing number is read as the mean of its column; a column with any missing in training also gets an
        indicator feature.

        Raises:
            DataError: no rows, an absent column, a type that does not fit, NaN, infinity or no value at all.
            ConfigError: a column is named twice, an override is for no column or of the other kind.
        """
        names = [*numeric, *categorical]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"attribute column {twice[0]!r} is named twice; name it once")
        unknown = sorted(set(config.overrides) - set(names))
        if unknown:
            raise ConfigError(f"attribute overrides name {unknown[0]!r}, which is not an attribute column; drop it")
        if frame.height == 0:
            raise DataError("the training frame has no rows; attributes need at least one row to be fitted")
        return cls(
            (
                *(_fit_numeric_column(_column(frame, name), config) for name in numeric),
                *(_fit_categorical_column(_column(frame, name), config) for name in categorical),
            )
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name a feature: 'price', 'price:missing', 'colour=red', 'colour:other', 'shop#3', …"""
        return tuple(name for column in self.columns for name in _feature_names(column))

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.feature_names)

    def transform(self, frame: pl.DataFrame) -> Float32[np.ndarray, "row feature"]:
        """Encode any rows, seen in training or not; every result is finite.

        Raises:
            DataError: an absent column, a type that does not fit, NaN or infinity, or a value so far outside
                the training range that its scaled form does not fit a float32.
        """
        blocks = [_apply_column(column, _column(frame, column.name)) for column in self.columns]
        return np.hstack([np.zeros((frame.height, 0), dtype=np.float32), *blocks])

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as plain values that `json.dumps` takes."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "AttributeEncoder":
        """The encoder that `to_dict` saved.

        Raises:
            ModelError: the content is not what `to_dict` writes.
        """
        try:
            columns = tuple(AttributeColumn(**column) for column in saved["columns"])
            for column in columns:
                _probe(column)
        except (AttributeError, DataError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the saved attribute encoder is damaged ({type(error).__name__}: {error}); fit and save it again"
            ) from error
        return cls(columns)


def _probe(column: AttributeColumn) -> None:
    """Encode what every column takes, so that a damaged state fails on loading, not in use.

    A number that training saw, which is the mean: any other may be far outside a narrow training range.
    """
    values = pl.Series([None, column.state["mean"]]) if column.kind == "numeric" else pl.Series([None, "?"])
    with np.errstate(all="ignore"):
        width = _apply_column(column, values.alias(column.name)).shape[1]
    if width != len(_feature_names(column)):
        raise ValueError(f"column {column.name!r} has {width} features")


def _check_encoder(kind: str, encoder: str, table: Mapping[str, Any]) -> None:
    if encoder not in table:
        raise ConfigError(f"{kind} encoder {encoder!r} is unknown; choose one of {', '.join(table)}")


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        raise DataError(f"attribute column {name!r} is not in the frame, which has: {', '.join(frame.columns)}")
    return frame[name]


def _fit_numeric_column(series: pl.Series, config: AttributeConfig) -> AttributeColumn:
    encoder = config.overrides.get(series.name, config.numeric)
    _check_encoder(f"column {series.name!r}: numeric", encoder, NUMERIC_ENCODERS)
    numbers, missing = _numbers(series)
    # Sorted, because a floating-point sum depends on the order of its terms.
    observed = np.sort(numbers[~missing])
    if observed.size == 0:
        raise DataError(f"attribute column {series.name!r} has no value in the training rows; leave it out")
    state = {
        "mean": float(observed.mean()),
        "indicator": bool(missing.any()),
        "scaling": NUMERIC_ENCODERS[encoder].fit(observed),
    }
    return AttributeColumn(series.name, "numeric", encoder, state)


def _fit_categorical_column(series: pl.Series, config: AttributeConfig) -> AttributeColumn:
    encoder = config.overrides.get(series.name, config.categorical)
    _check_encoder(f"column {series.name!r}: categorical", encoder, CATEGORICAL_ENCODERS)
    state = CATEGORICAL_ENCODERS[encoder].fit(_categories(series), config)
    return AttributeColumn(series.name, "categorical", encoder, state)


def _feature_names(column: AttributeColumn) -> tuple[str, ...]:
    if column.kind == "numeric":
        return (column.name, f"{column.name}:missing") if column.state["indicator"] else (column.name,)
    names = CATEGORICAL_ENCODERS[column.encoder].names(column.state)
    return tuple(column.name + name for name in names)


def _apply_column(column: AttributeColumn, series: pl.Series) -> Float32[np.ndarray, "row feature"]:
    if column.kind == "categorical":
        categories = _categories(series)
        distinct = {category: index for index, category in enumerate(dict.fromkeys(categories))}
        encoded = CATEGORICAL_ENCODERS[column.encoder].apply(list(distinct), column.state)
        return encoded[[distinct[category] for category in categories]]
    numbers, missing = _numbers(series)
    filled = np.where(missing, column.state["mean"], numbers)
    scaled = NUMERIC_ENCODERS[column.encoder].apply(filled, column.state["scaling"])
    outside = np.flatnonzero(~(np.abs(scaled) <= _LARGEST))
    if outside.size:
        row = int(outside[0])
        raise DataError(
            f"attribute column {series.name!r}, row {row} (from 0): {filled[row]} is too far outside the "
            f"training range for the {column.encoder!r} encoder; correct it or use a quantile encoder"
        )
    features = [scaled, missing] if column.state["indicator"] else [scaled]
    return np.stack(features, axis=1).astype(np.float32)


def _numbers(series: pl.Series) -> tuple[Float64[np.ndarray, "row"], Bool[np.ndarray, "row"]]:
    """Values, and where they are missing; at a missing row the value is 0."""
    if not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null)):
        raise DataError(
            f"attribute column {series.name!r} is {series.dtype}, not numeric; cast it, or call it categorical"
        )
    missing = series.is_null().to_numpy()
    numbers = series.cast(pl.Float64).fill_null(0.0).to_numpy()
    bad = np.flatnonzero(~(np.abs(numbers) <= _LARGEST))
    if bad.size:
        row = int(bad[0])
        raise DataError(
            f"attribute column {series.name!r}, row {row} (from 0): {numbers[row]} is not a finite number "
            "below 3.4e38; make it null if it is missing"
        )
    return numbers, missing


def _categories(series: pl.Series) -> list[str | None]:
    """Values as text. Floats are refused: 1 and 1.0 would be two categories, by accident of file format."""
    if not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null)):
        raise DataError(
            f"attribute column {series.name!r} is {series.dtype}; a category is text, an integer or a Boolean: cast it"
        )
    return series.cast(pl.String).to_list()

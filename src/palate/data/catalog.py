"""What is known without behaviour: the catalogue of items and the profiles of people.

Both are a table of one row an id and a statement of which columns are numbers and which are categories; a
catalogue also names the text by which an item is encoded and shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from palate.data.log import require_columns, validate_items, validate_users
from palate.errors import DataError

# Columns taken as an item's text, the best first; the others of these are free text, not categories.
TEXT_NAMES = ("title", "name", "description", "text")


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items and their attributes.

    Attributes:
        frame: one row an item: `item_id` (text, unique) and the columns named below; others are left out.
        text: the text column that is encoded and shown, or None; a missing text is null.
        numeric: number columns; a missing number is null, every other one is finite.
        categorical: text columns of categories; a missing one is null.

    Raises:
        DataError: a named column is absent or of the wrong type, a number is not finite, an id is missing or
            repeated.
    """

    frame: pl.DataFrame
    text: str | None
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    def __post_init__(self) -> None:
        frame = validate_items(self.frame, source="catalogue")
        text = self.categorical if self.text is None else (self.text, *self.categorical)
        object.__setattr__(self, "frame", _checked(frame, "item_id", text, self.numeric, what="catalogue"))

    @classmethod
    def infer(cls, frame: pl.DataFrame) -> "Catalog":
        """Guess what each column is, by name and type.

        A text column named title, name, description or text (the first of these that exists) is the text;
        numbers are numeric; other text and true/false columns are categorical. Columns of other types, and
        free text that was not chosen, are left out.

        Raises:
            DataError: as the constructor.
        """
        frame = _plain_types(frame, "item_id")
        texts = [name for name in TEXT_NAMES if frame.schema.get(name) == pl.String]
        numeric, categorical = _attributes(frame, skip=("item_id", *texts))
        return cls(frame, texts[0] if texts else None, numeric, categorical)

    @classmethod
    def from_ids(cls, item_ids: Iterable[str]) -> "Catalog":
        """Make a catalogue of items about which nothing else is known, sorted by id; repeats count once."""
        return cls(pl.DataFrame({"item_id": sorted(set(item_ids))}, schema={"item_id": pl.String}), None, (), ())

    def titles(self) -> dict[str, str]:
        """Return what to show for each item: its text, or its id where there is none."""
        shown = pl.col("item_id") if self.text is None else pl.coalesce(self.text, "item_id")
        return dict(self.frame.select("item_id", shown.alias("shown")).iter_rows())


@dataclass(frozen=True, eq=False)
class Profiles:
    """The people and their attributes: as `Catalog`, by `user_id` and without a text.

    Raises:
        DataError: a named column is absent or of the wrong type, a number is not finite, an id is missing or
            repeated.
    """

    frame: pl.DataFrame
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    def __post_init__(self) -> None:
        frame = validate_users(self.frame, source="profiles")
        columns = _checked(frame, "user_id", self.categorical, self.numeric, what="profiles")
        object.__setattr__(self, "frame", columns)

    @classmethod
    def infer(cls, frame: pl.DataFrame) -> "Profiles":
        """Guess what each column is: numbers are numeric, text and true/false columns categorical.

        Raises:
            DataError: as the constructor.
        """
        frame = _plain_types(frame, "user_id")
        return cls(frame, *_attributes(frame, skip=("user_id",)))

    @classmethod
    def from_ids(cls, user_ids: Iterable[str]) -> "Profiles":
        """Make profiles of people about whom nothing else is known, sorted by id; repeats count once."""
        return cls(pl.DataFrame({"user_id": sorted(set(user_ids))}, schema={"user_id": pl.String}), (), ())


def _plain_types(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """Enumerations and truth values as String, the types of which a CSV knows nothing."""
    return frame.with_columns(pl.col(pl.Boolean, pl.Categorical, pl.Enum).exclude(key).cast(pl.String))


def _attributes(frame: pl.DataFrame, *, skip: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    skipped = set(skip)
    rest = [(name, dtype) for name, dtype in frame.schema.items() if name not in skipped]
    return (
        tuple(name for name, dtype in rest if dtype.is_numeric()),
        tuple(name for name, dtype in rest if dtype == pl.String),
    )


def _checked(
    frame: pl.DataFrame, key: str, text: tuple[str, ...], numeric: tuple[str, ...], *, what: str
) -> pl.DataFrame:
    """The key and the named columns, in the order of the frame, with numbers as Float64."""
    names = (key, *text, *numeric)
    require_columns(frame, names, source=what)
    for name in names:
        dtype = frame.schema[name]
        if names.count(name) > 1:
            raise DataError(f'{what}: column "{name}" is named for two parts; choose one')
        if name in text and dtype != pl.String:
            raise DataError(f'{what}: column "{name}" has type {dtype}; expected text (String)')
        if name in numeric and not dtype.is_numeric():
            raise DataError(f'{what}: column "{name}" has type {dtype}; expected numbers')
    plain = frame.select(pl.col(name) for name in frame.columns if name in names)
    plain = plain.with_columns(pl.col(numeric).cast(pl.Float64)) if numeric else plain
    for name in numeric:
        broken = plain.filter(~pl.col(name).is_finite())
        if not broken.is_empty():
            owner, value = broken[key][0], broken[name][0]
            raise DataError(
                f'{what}: column "{name}" of {key} {owner!r} is {value!r}; expected a finite number or null'
            )
    return plain

"""What is known of an item or a person: names with plain values, changed one by one."""

import math
from collections.abc import Mapping, Sequence

import polars as pl

from palate.errors import DataError

Value = str | int | float | bool | None
"""Of an attribute; None takes it away."""


def merged(old: Mapping[str, Value], changes: Mapping[str, Value]) -> dict[str, Value]:
    """Return attributes with changes made: those not named stay, None takes one away.

    Raises:
        DataError: a number is not finite.
    """
    if any(isinstance(value, float) and not math.isfinite(value) for value in changes.values()):
        raise DataError("attributes: a number is not finite; leave the attribute out or give None")
    both = dict(old) | dict(changes)
    return {name: value for name, value in both.items() if value is not None}


def as_frame(key: str, rows: Sequence[tuple[str, Mapping[str, Value]]]) -> pl.DataFrame:
    """Return a table with a column of ids and one for each attribute that any row has.

    A column is of numbers (Float64) or of Booleans where all its values are; else of text.

    Args:
        key: name of the column of ids; an attribute of the same name is left out.
        rows: ids with their attributes.
    """
    names = dict.fromkeys(name for _, attributes in rows for name in attributes if name != key)
    columns = [pl.Series(key, [row[0] for row in rows], dtype=pl.String())]
    columns += [_column(name, [attributes.get(name) for _, attributes in rows]) for name in names]
    return pl.DataFrame(columns)


def _column(name: str, values: Sequence[Value]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean())
    if kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64())
    return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String())

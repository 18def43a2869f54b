"""The columnar interaction log: one schema for every source, and the checks by which a table becomes one."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

import polars as pl

from palate.data.times import EXPECTED, parse_time, parse_timestamps
from palate.errors import DataError

INTERACTION_SCHEMA: Final = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event_type": pl.String(),
        "weight": pl.Float64(),
        "timestamp": pl.Datetime("us"),  # naive, UTC
        "event_id": pl.String(),  # null where the source names no events
        "session_id": pl.String(),  # null where the source names no sessions
    }
)

DEFAULT_EVENT_TYPE = "interaction"
RATING_EVENT_TYPE = "rating"
_CLOCK_TOLERANCE = timedelta(days=1)


def validate_interactions(frame: pl.DataFrame, *, source: str, now: datetime | None = None) -> pl.DataFrame:
    """Check and normalise a table of events; every row is kept or the whole table is refused.

    Args:
        frame: needs `user_id`, `item_id` and `timestamp` (text, or whole numbers for ids; see `times` for the
            readable times). `event_type` defaults to "interaction" and `weight` to 1.0 where the column is
            absent; `event_id` and `session_id` become null columns. Where there is a column `rating`, a row that has
            one is an event of type "rating" with it as weight; beside `event_type` it must be of that type, and
            beside `weight` it is refused. Any other column is left out.
        source: what to call the table in errors, such as a file name.
        now: events after this moment (naive means UTC) are refused; by default the current time plus one day.

    Returns:
        The events in `INTERACTION_SCHEMA`, sorted by time; events of the same time keep the order of the
        table.

    Raises:
        DataError: a column or a value is missing or unreadable, the table is empty, an event is in the
            future, or an `event_id` occurs twice. Rows are counted from 1 without the header, so that row 1
            is the second line of a CSV.
    """
    require_columns(frame, ("user_id", "item_id", "timestamp"), source=source)
    if frame.is_empty():
        raise DataError(f"{source}: the table has no rows; at least one interaction is needed")
    defaults = {"event_type": DEFAULT_EVENT_TYPE, "weight": 1.0, "event_id": None, "session_id": None}
    if "rating" in frame.columns:
        frame = _read_ratings(frame, source)
    absent = [pl.lit(value).alias(name) for name, value in defaults.items() if name not in frame.columns]
    table = frame.with_columns(absent)
    columns = {
        "user_id": read_ids(table["user_id"], source=source),
        "item_id": read_ids(table["item_id"], source=source),
        "event_type": _filled(table["event_type"], source),
        "weight": _weights(table["weight"], source),
        "timestamp": _timestamps(table["timestamp"], source, now),
        "event_id": _text(table["event_id"], source),
        "session_id": _text(table["session_id"], source),
    }
    _refuse_repeats(columns["event_id"], source)
    return pl.DataFrame(columns, schema=INTERACTION_SCHEMA).sort("timestamp", maintain_order=True)


def validate_items(frame: pl.DataFrame, *, source: str) -> pl.DataFrame:
    """Check a table of items: `item_id` is never missing and never twice; ids become text, the rest stays.

    Raises:
        DataError: naming the source, the row (counted from 1 without the header) and the column.
    """
    return _validate_entities(frame, "item_id", source)


def validate_users(frame: pl.DataFrame, *, source: str) -> pl.DataFrame:
    """Check a table of people: `user_id` is never missing and never twice; ids become text, the rest stays.

    Raises:
        DataError: naming the source, the row (counted from 1 without the header) and the column.
    """
    return _validate_entities(frame, "user_id", source)


def require_columns(frame: pl.DataFrame, names: Iterable[str], *, source: str) -> None:
    """Refuse a table that lacks a column, saying which columns it has.

    Raises:
        DataError: the first missing column, the columns found, and how to rename one.
    """
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f'{source}: no column "{name}"; found: {", ".join(frame.columns) or "none"}; '
                f"rename it or pass columns={{'your_name': '{name}'}}"
            )


def read_ids(values: pl.Series, *, source: str) -> pl.Series:
    """Read a column of ids as text: text, whole numbers and categories are ids; nothing may be missing.

    Raises:
        DataError: the first row with a missing or unusable id, or the type of the column.
    """
    if values.dtype.is_float():
        # Readers that know no missing integers turn 17850 into 17850.0; a fraction is no id.
        row = _first_true(~(values.is_finite() & (values.abs() < 2**53) & (values == values.floor())))
        if row is not None:
            _fail(source, row, values.name, f"{values[row]!r} is not an id; expected text or a whole number")
        values = values.cast(pl.Int64)
    return _filled(values, source)


def _validate_entities(frame: pl.DataFrame, key: str, source: str) -> pl.DataFrame:
    require_columns(frame, (key,), source=source)
    if frame.is_empty():
        raise DataError(f'{source}: the table has no rows; at least one "{key}" is needed')
    ids = read_ids(frame[key], source=source)
    _refuse_repeats(ids, source)
    return frame.with_columns(ids)


def _fail(source: str, row: int, column: str, problem: str) -> NoReturn:
    raise DataError(f'{source}: row {row + 1} (data row, header not counted), column "{column}": {problem}')


def _first_true(mask: pl.Series) -> int | None:
    return mask.arg_max() if mask.any() else None


def _text(values: pl.Series, source: str) -> pl.Series:
    dtype = values.dtype
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        _fail(source, 0, values.name, f"the column has type {dtype}; expected text or whole numbers")
    return values.cast(pl.String)


def _filled(values: pl.Series, source: str) -> pl.Series:
    text = _text(values, source)
    row = _first_true(text.is_null() | (text.str.strip_chars() == "").fill_null(False))
    if row is not None:
        _fail(source, row, values.name, "the value is missing; fill it in or remove the row")
    return text


def _read_ratings(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Rows with a rating as events that rate; an empty text is none."""
    rating = pl.col("rating")
    if frame.schema["rating"] == pl.String:
        rating = pl.when(rating.str.strip_chars() != "").then(rating)
    there = rating.is_not_null()
    rated = frame.select(there).to_series()
    if "weight" in frame.columns and (row := _first_true(rated)) is not None:
        _fail(source, row, "rating", 'a rating is a weight, and there is a column "weight" too; leave one of them out')
    other = pl.lit(DEFAULT_EVENT_TYPE)
    if "event_type" in frame.columns:
        other = pl.col("event_type")
        row = _first_true(rated & (frame["event_type"].cast(pl.String).fill_null("") != RATING_EVENT_TYPE))
        if row is not None:
            _fail(
                source,
                row,
                "rating",
                f"the event is of type {frame['event_type'][row]!r}; give the rating a row of its own, of type "
                f"{RATING_EVENT_TYPE!r}, or leave event_type out",
            )
    return frame.with_columns(
        event_type=pl.when(there).then(pl.lit(RATING_EVENT_TYPE)).otherwise(other),
        weight=rating.fill_null(pl.lit(1)),
    )


def _weights(values: pl.Series, source: str) -> pl.Series:
    if not (values.dtype.is_numeric() or values.dtype in (pl.String, pl.Null)):
        _fail(source, 0, values.name, f"the column has type {values.dtype}; expected numbers")
    written = values.str.strip_chars() if values.dtype == pl.String else values
    numbers = written.cast(pl.Float64, strict=False)
    row = _first_true(numbers.is_null())
    if row is not None:
        _fail(source, row, values.name, f"{_shown(values, row)}; expected a number")
    row = _first_true(~numbers.is_finite())
    if row is not None:
        _fail(source, row, values.name, f"{values[row]!r} is not finite; expected a finite number")
    return numbers


def _timestamps(values: pl.Series, source: str, now: datetime | None) -> pl.Series:
    times = parse_timestamps(values)
    row = _first_true(times.is_null())
    if row is not None:
        _fail(source, row, values.name, f"{_shown(values, row)}; {EXPECTED}")
    current = datetime.now(UTC) + _CLOCK_TOLERANCE if now is None else now
    limit = parse_time(current, what="now")
    row = _first_true(times > limit)
    if row is not None:
        _fail(
            source,
            row,
            values.name,
            f"{times[row]} lies in the future (now is {limit}); correct the time or its zone",
        )
    return times


def _shown(values: pl.Series, row: int) -> str:
    return "the value is missing" if values[row] is None else f"cannot read {values[row]!r}"


def _refuse_repeats(values: pl.Series, source: str) -> None:
    row = _first_true(values.is_not_null() & ~values.is_first_distinct())
    if row is not None:
        first = values.index_of(values[row])
        earlier = "?" if first is None else first + 1
        _fail(
            source,
            row,
            values.name,
            f"{values[row]!r} was already used in row {earlier}; each may occur only once",
        )

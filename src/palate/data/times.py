"""Reading clock times: whatever a log writes becomes naive UTC with microseconds.

Accepted are `Datetime` columns (an aware one is converted to UTC, a naive one is taken as UTC), `Date`
columns (midnight), ISO 8601 text (`2011-09-01`, `2011-09-01 08:26`, `2011-09-01T08:26:00.5+02:00`, also mixed
in one column), and unix seconds as whole or decimal numbers, also written as text.
"""

from datetime import UTC, datetime

import polars as pl

from palate.errors import DataError

EXPECTED = "expected ISO 8601 (2011-09-01 or 2011-09-01T08:26:00Z) or unix seconds (not milliseconds, not yyyymmdd)"

_ISO = (
    r"^\s*(?<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?<clock>\d{2}:\d{2})(?::(?<second>\d{2}(?:\.\d{1,9})?))?"
    r"\s*(?<zone>Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?\s*$"
)
_NUMBER = r"^\s*[+-]?\d+(?:\.\d*)?\s*$"
_COMPACT_DAY = r"^(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])$"
# 10^11 seconds is the year 5138; milliseconds passed that number in 1973.
_MAX_SECONDS = 1e11


def parse_timestamps(values: pl.Series) -> pl.Series:
    """Read a column of times; the result is naive UTC `Datetime("us")`, null where a value cannot be read.

    A column in which every number looks like a calendar day (20110901) is not read as seconds: all of it
    becomes null.
    """
    dtype = values.dtype
    if isinstance(dtype, pl.Datetime):
        aware = dtype.time_zone is not None
        utc = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if aware else values
        return utc.cast(pl.Datetime("us"))
    if dtype == pl.Date:
        return values.cast(pl.Datetime("us"))
    if dtype.is_integer() or dtype.is_float():
        return _from_seconds(values)
    if dtype == pl.String:
        seconds = _from_seconds(values.set(~values.str.contains(_NUMBER).fill_null(False), None))
        return _from_iso(values).fill_null(seconds)
    return pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))


def parse_time(value: datetime | str, *, what: str) -> datetime:
    """Read one time as naive UTC; `what` names it in the error.

    Raises:
        DataError: the text is not a time.
    """
    if isinstance(value, datetime):
        return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    parsed = parse_timestamps(pl.Series([value])).item()
    if not isinstance(parsed, datetime):
        raise DataError(f"{what}: cannot read {value!r} as a time; {EXPECTED}")
    return parsed


def _from_seconds(values: pl.Series) -> pl.Series:
    is_day = values.cast(pl.String).str.strip_chars().str.contains(_COMPACT_DAY)
    seconds = values.str.strip_chars().cast(pl.Float64) if values.dtype == pl.String else values.cast(pl.Float64)
    readable = seconds.is_finite() & (seconds.abs() < _MAX_SECONDS)
    if len(values) > values.null_count() and bool(is_day.all()):
        readable = pl.Series([False] * len(values))
    # A float64 holds today's unix time in steps of 0.2 microseconds, so one rounding is exact.
    return (seconds.set(~readable, None) * 1e6).round(0).cast(pl.Int64).cast(pl.Datetime("us"))


def _from_iso(values: pl.Series) -> pl.Series:
    part = values.str.extract_groups(_ISO).struct
    clock = part.field("clock").fill_null("00:00")
    second = part.field("second").fill_null("00")
    local = (part.field("day") + "T" + clock + ":" + second).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False
    )
    zone = part.field("zone").fill_null("Z").str.replace("Z", "+0000", literal=True).str.replace(":", "", literal=True)
    minutes = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(3, 2).cast(pl.Int64)
    sign = 1 - 2 * zone.str.starts_with("-").cast(pl.Int64)
    return local - (sign * minutes * 60_000_000).cast(pl.Duration("us"))

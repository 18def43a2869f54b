"""Times in every accepted form, against the standard library."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.times import parse_time, parse_timestamps
from palate.errors import DataError

MOMENT = datetime(2011, 9, 1, 8, 26)
SECONDS = int(MOMENT.replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2011-09-01", datetime(2011, 9, 1)),
        ("2011-09-01 08:26", MOMENT),
        ("2011-09-01T08:26:00", MOMENT),
        ("2011-09-01T08:26:00Z", MOMENT),
        ("2011-09-01T10:26:00+02:00", MOMENT),
        ("2011-09-01T03:56:00-0430", MOMENT),
        (" 2011-09-01T08:26:00.250 ", MOMENT + timedelta(milliseconds=250)),
        (str(SECONDS), MOMENT),
        (f"{SECONDS}.5", MOMENT + timedelta(seconds=0.5)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59)),
    ],
)
def test_text_is_read(written: str, expected: datetime) -> None:
    assert parse_timestamps(pl.Series([written])).to_list() == [expected]


@pytest.mark.parametrize(
    "written",
    [
        "01/12/2010 08:26",
        "2011-02-30",
        "2011-09-01T25:00",
        "2011-09-01T08:26:00+25:00",
        "20110901",
        str(SECONDS * 1000),
        "soon",
        "",
        "nan",
    ],
)
def test_text_that_is_no_time_becomes_null(written: str) -> None:
    assert parse_timestamps(pl.Series([written])).to_list() == [None]


def test_one_column_may_mix_forms() -> None:
    values = pl.Series(["2011-09-01T08:26Z", str(SECONDS), None, "2011-09-01 10:26:00+02:00", "never"])
    assert parse_timestamps(values).to_list() == [MOMENT, MOMENT, None, MOMENT, None]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([MOMENT]),
        pl.Series([MOMENT], dtype=pl.Datetime("ns")),
        pl.Series([MOMENT.replace(tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([SECONDS]),
        pl.Series([SECONDS], dtype=pl.UInt32),
        pl.Series([float(SECONDS)]),
    ],
)
def test_column_types(values: pl.Series) -> None:
    parsed = parse_timestamps(values)
    assert parsed.dtype == pl.Datetime("us")
    assert parsed.to_list() == [MOMENT]


def test_days_are_midnight_and_other_types_are_no_times() -> None:
    assert parse_timestamps(pl.Series([date(2011, 9, 1)])).to_list() == [datetime(2011, 9, 1)]
    assert parse_timestamps(pl.Series([True])).to_list() == [None]
    assert parse_timestamps(pl.Series([float("nan"), float("inf")])).to_list() == [None, None]


@given(
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
    offset=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_iso_text_agrees_with_the_standard_library(moment: datetime, offset: timezone) -> None:
    aware = moment.replace(tzinfo=offset)
    expected = aware.astimezone(UTC).replace(tzinfo=None)
    assert parse_timestamps(pl.Series([aware.isoformat()])).to_list() == [expected]
    assert parse_time(aware.isoformat(), what="cut") == parse_time(aware, what="cut") == expected


@given(st.integers(-(10**15), 4 * 10**15))
def test_decimal_seconds_keep_the_microsecond(micros: int) -> None:
    expected = datetime(1970, 1, 1) + timedelta(microseconds=micros)
    assert parse_timestamps(pl.Series([micros / 1e6])).to_list() == [expected]


def test_a_single_time_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"^cut: cannot read 'autumn' as a time; expected ISO 8601"):
        parse_time("autumn", what="cut")

"""What makes a table an interaction log, and the words with which it is refused."""

import re
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.log import INTERACTION_SCHEMA, validate_interactions, validate_items, validate_users
from palate.errors import DataError

NOW = datetime(2020, 1, 1)
COUNTED = "(data row, header not counted), column"


def table(**columns: object) -> pl.DataFrame:
    base: dict[str, object] = {
        "user_id": ["ann", "bob", "ann"],
        "item_id": [7, 8, 9],
        "timestamp": ["2011-01-03", "2011-01-01", "2011-01-03"],
    }
    return pl.DataFrame({**base, **columns}, strict=False)


def test_defaults_types_and_order() -> None:
    log = validate_interactions(table(colour=["red", "red", "red"]), source="log", now=NOW)
    assert log.schema == INTERACTION_SCHEMA
    assert log.rows() == [
        ("bob", "8", "interaction", 1.0, datetime(2011, 1, 1), None, None),
        ("ann", "7", "interaction", 1.0, datetime(2011, 1, 3), None, None),
        ("ann", "9", "interaction", 1.0, datetime(2011, 1, 3), None, None),
    ]


def test_given_columns_are_kept() -> None:
    frame = table(event_type=["buy", "view", "buy"], weight=["2", "-0.5", "1e3"], event_id=[1, 2, 3], session_id="s")
    log = validate_interactions(frame, source="log", now=NOW)
    assert log.select("event_type", "weight", "event_id", "session_id").rows() == [
        ("view", -0.5, "2", "s"),
        ("buy", 2.0, "1", "s"),
        ("buy", 1000.0, "3", "s"),
    ]


def test_whole_floats_are_ids() -> None:
    assert validate_interactions(table(user_id=[17850.0, 1.0, 2.0]), source="log", now=NOW)["user_id"].to_list() == [
        "1",
        "17850",
        "2",
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user_id": ["ann", None, "ann"]},
            f'log: row 2 {COUNTED} "user_id": the value is missing; fill it in or remove the row',
        ),
        ({"item_id": ["a", "b", "  "]}, f'row 3 {COUNTED} "item_id": the value is missing'),
        ({"user_id": [1.0, 2.5, 3.0]}, f'row 2 {COUNTED} "user_id": 2.5 is not an id'),
        ({"user_id": [1.0, 2.0, float("inf")]}, f'row 3 {COUNTED} "user_id": inf is not'),
        ({"user_id": [True, False, True]}, 'column "user_id": the column has type Boolean; expected text'),
        ({"event_type": ["buy", "buy", None]}, f'row 3 {COUNTED} "event_type": the value'),
        ({"weight": [1.0, 2.0, float("nan")]}, 'column "weight": nan is not finite'),
        ({"weight": [1.0, float("-inf"), 1.0]}, f'row 2 {COUNTED} "weight": -inf is not'),
        ({"weight": ["1", "many", "2"]}, f"row 2 {COUNTED} \"weight\": cannot read 'many'"),
        ({"weight": [1.0, None, 1.0]}, f'row 2 {COUNTED} "weight": the value is missing'),
        ({"weight": [datetime(2011, 1, 1)] * 3}, 'column "weight": the column has type Datetime'),
        (
            {"timestamp": ["2011-01-01", "2011-01-01", "yesterday"]},
            "column \"timestamp\": cannot read 'yesterday'; expected ISO 8601",
        ),
        (
            {"timestamp": ["2011-01-01", None, "2011-01-01"]},
            f'row 2 {COUNTED} "timestamp": the value is missing',
        ),
        (
            {"timestamp": ["2011-01-01", "2020-01-02", "2011-01-01"]},
            f'row 2 {COUNTED} "timestamp": 2020-01-02 00:00:00 lies in the future (now is 2020-01-01 00:00:00)',
        ),
        ({"event_id": ["x", "y", "x"]}, f"row 3 {COUNTED} \"event_id\": 'x' was already used in row 1"),
    ],
)
def test_bad_values_are_refused_by_row_and_column(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        validate_interactions(table(**columns), source="log", now=NOW)
    assert "\n" not in str(caught.value)


def test_a_missing_column_says_what_was_found_and_how_to_rename() -> None:
    with pytest.raises(DataError) as caught:
        validate_interactions(table().rename({"item_id": "sku"}), source="log.csv")
    assert str(caught.value) == (
        'log.csv: no column "item_id"; found: user_id, sku, timestamp; '
        "rename it or pass columns={'your_name': 'item_id'}"
    )


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(DataError, match="log: the table has no rows"):
        validate_interactions(table().clear(), source="log")


def test_without_a_now_the_clock_decides() -> None:
    tomorrow_noon = datetime.now(UTC).timestamp() + 36 * 3600
    with pytest.raises(DataError, match="lies in the future"):
        validate_interactions(table(timestamp=[0, 0, tomorrow_noon]), source="log")
    in_an_hour = datetime.now(UTC).timestamp() + 3600
    assert validate_interactions(table(timestamp=[0, 0, in_an_hour]), source="log").height == 3


def test_an_aware_now_is_converted() -> None:
    now = datetime.fromisoformat("2011-01-03T01:00:00+02:00")
    with pytest.raises(DataError, match=r"now is 2011-01-02 23:00:00"):
        validate_interactions(table(), source="log", now=now)


def test_missing_event_ids_may_repeat() -> None:
    log = validate_interactions(table(event_id=[None, None, "x"]), source="log", now=NOW)
    assert log["event_id"].to_list() == [None, None, "x"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_no_row_is_lost_and_ties_keep_their_order(rows: list[tuple[int, int]]) -> None:
    frame = pl.DataFrame(
        {
            "user_id": [user for user, _ in rows],
            "item_id": range(len(rows)),
            "timestamp": [second for _, second in rows],
        }
    )
    log = validate_interactions(frame, source="log", now=NOW)
    expected = sorted(range(len(rows)), key=lambda row: rows[row][1])
    assert log["item_id"].to_list() == [str(row) for row in expected]
    assert log["user_id"].to_list() == [str(rows[row][0]) for row in expected]


@pytest.mark.parametrize(("check", "key"), [(validate_items, "item_id"), (validate_users, "user_id")])
def test_entities_have_unique_ids_and_keep_their_columns(check: object, key: str) -> None:
    assert callable(check)
    frame = pl.DataFrame({key: [1, 2], "colour": ["red", None]})
    assert check(frame, source="t").rows() == [("1", "red"), ("2", None)]
    with pytest.raises(DataError, match=rf't: row 2 .*column "{key}": \'1\' was already used in row 1'):
        check(pl.DataFrame({key: [1, 1]}), source="t")
    with pytest.raises(DataError, match=f'column "{key}": the value is missing'):
        check(pl.DataFrame({key: ["a", None]}), source="t")
    with pytest.raises(DataError, match=f't: no column "{key}"'):
        check(pl.DataFrame({"colour": ["red"]}), source="t")
    with pytest.raises(DataError, match="no rows"):
        check(frame.clear(), source="t")


def test_a_rating_makes_an_event_that_rates() -> None:
    rows = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": ["2011-01-01"] * 3}
    for ratings in ([4.0, None, 2.5], ["4", "", "2.5"]):
        log = validate_interactions(pl.DataFrame(rows | {"rating": ratings}), source="log")
        assert log.select("event_type", "weight").rows() == [("rating", 4.0), ("interaction", 1.0), ("rating", 2.5)]
    typed = pl.DataFrame(rows | {"rating": [4.0, None, 2.5], "event_type": ["rating", "view", "rating"]})
    log = validate_interactions(typed, source="log")
    assert log.select("event_type", "weight").rows() == [("rating", 4.0), ("view", 1.0), ("rating", 2.5)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"event_type": ["view", "view"]}, r'row 2 .*"rating": the event is of type \'view\'; give the rating a row'),
        ({"event_type": [None, None]}, r'row 2 .*"rating": the event is of type None'),
        ({"weight": [1.0, 1.0]}, r'row 2 .*"rating": a rating is a weight, and there is a column "weight" too'),
    ],
)
def test_a_rating_that_would_be_lost_is_refused(columns: dict[str, object], message: str) -> None:
    rows = {"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": ["2011-01-01"] * 2, "rating": [None, 5.0]}
    with pytest.raises(DataError, match=rf"^log: {message}[^\n]*\Z"):
        validate_interactions(pl.DataFrame(rows | columns), source="log")

"""The record of behaviour: nothing that a table says is lost, and it can be told again."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.log import INTERACTION_SCHEMA, validate_interactions
from palate.data.record import NO_RECORD, Record, read_record
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError

VOCABULARY = Vocabulary(("a", "b", "c"))


def table(rows: list[tuple[str, str, str, float, int, str | None]]) -> pl.DataFrame:
    """Events as (person, item, type, weight, minute, session)."""
    frame = pl.DataFrame(
        [(*row[:4], datetime(2024, 1, 1) + timedelta(minutes=row[4], microseconds=7 * row[4]), row[5]) for row in rows],
        schema={
            "user_id": pl.String,
            "item_id": pl.String,
            "event_type": pl.String,
            "weight": pl.Float64,
            "timestamp": pl.Datetime("us"),
            "session_id": pl.String,
        },
        orient="row",
    )
    return validate_interactions(frame, source="test")


ROWS = [
    ("v", "c", "view", 1.0, 0, "s2"),
    ("u", "a", "buy", 3.0, 1, None),
    ("u", "b", "rating", 4.5, 2, "s1"),
    ("u", "a", "buy", 1.0, 3, "s1"),
    ("v", "c", "view", 1.0, 3, None),
]


def test_repeats_kinds_weights_and_sessions_stay() -> None:
    users, kinds, log = read_record(table(ROWS), VOCABULARY)
    assert users == ("u", "v")
    assert kinds == ("buy", "rating", "view")
    assert log.items.tolist() == [0, 1, 0, 2, 2]
    assert log.offsets.tolist() == [0, 3, 5]
    assert log.kinds.tolist() == [0, 1, 0, 2, 2]
    assert log.values.tolist() == [3.0, 4.5, 1.0, 1.0, 1.0]
    assert log.sessions.tolist() == [-1, 0, 0, 1, -1]
    assert np.diff(log.times[:3]).tolist() == pytest.approx([60.000007] * 2)


def test_a_table_without_weights_or_sessions_has_none() -> None:
    plain = table(ROWS)
    assert read_record(plain.drop("weight", "session_id"), VOCABULARY).log.values is None
    assert read_record(plain.drop("session_id"), VOCABULARY).log.sessions is None
    assert read_record(plain.with_columns(session_id=pl.lit(None, pl.String)), VOCABULARY).log.sessions is None


def test_an_unknown_item_is_named() -> None:
    with pytest.raises(DataError, match="unknown id 'c'"):
        read_record(table(ROWS), Vocabulary(("a", "b")))


def test_some_people_are_taken_with_their_ids() -> None:
    record = read_record(table(ROWS), VOCABULARY)
    users, kinds, log = record.take(np.array([1]))
    assert users == ("v",)
    assert kinds == record.kinds
    assert log.items.tolist() == [2, 2]
    assert log.sessions.tolist() == [1, -1]
    assert len(NO_RECORD.log) == len(NO_RECORD.users) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("uvw"),
            st.sampled_from("abc"),
            st.sampled_from(["view", "buy", "return"]),
            st.floats(-1e6, 1e6),
            st.integers(0, 60 * 24 * 365),
            st.sampled_from([None, "x", "y"]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_record_can_be_told_again(rows: list[tuple[str, str, str, float, int, str | None]]) -> None:
    given_rows = table(rows)
    told = read_record(given_rows, VOCABULARY).to_interactions(VOCABULARY)
    assert told.schema == INTERACTION_SCHEMA
    assert told["timestamp"].is_sorted()
    by_person = given_rows.sort("user_id", maintain_order=True)
    again = told.sort("user_id", maintain_order=True)
    for name in ("user_id", "item_id", "event_type", "weight", "timestamp"):
        assert again[name].equals(by_person[name])
    # Sessions are called otherwise, but the same events are of one.
    pairs = set(zip(again["session_id"], by_person["session_id"], strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    assert all((one is None) == (other is None) for one, other in pairs)
    same: Record = read_record(told, VOCABULARY)
    assert same.users == tuple(sorted({row[0] for row in rows}))

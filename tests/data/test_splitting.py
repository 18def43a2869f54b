"""The temporal split on a log small enough to check by eye."""

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.log import validate_interactions
from palate.data.splitting import default_cut, temporal_split
from palate.errors import ConfigError, DataError

# Days of January 2011: ann is warm, bob only trains, cat is cold; item c is cold, d is never touched.
EVENTS = [
    ("ann", "a", 1),
    ("bob", "b", 2),
    ("ann", "c", 5),
    ("cat", "a", 5),
    ("cat", "c", 6),
    ("ann", "b", 7),
]


def build(events: list[tuple[str, str, int]]) -> Dataset:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "day"], orient="row")
    frame = frame.with_columns(timestamp=pl.datetime(2011, 1, pl.col("day")))
    log = validate_interactions(frame, source="t")
    return Dataset("tiny", log, Catalog.from_ids(["a", "b", "c", "d"]), Profiles.from_ids(log["user_id"]))


def pairs(log: pl.DataFrame) -> list[tuple[str, str, int]]:
    return log.select("user_id", "item_id", pl.col("timestamp").dt.day()).rows()


@pytest.mark.parametrize("cut", [datetime(2011, 1, 5), "2011-01-05", datetime(2011, 1, 5, tzinfo=UTC)])
def test_the_two_sides(cut: datetime | str) -> None:
    split = temporal_split(build(EVENTS), cut)
    assert split.cut == datetime(2011, 1, 5)
    assert pairs(split.train) == EVENTS[:2]
    assert pairs(split.warm_user_events) == [("ann", "c", 5), ("ann", "b", 7)]
    assert pairs(split.cold_user_events) == [("cat", "a", 5), ("cat", "c", 6)]
    assert (split.train_users, split.train_items, split.cold_items) == (("ann", "bob"), ("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("2011-01-01", "no events before it; the data runs from 2011-01-01 00:00:00.* to 2011-01-07"),
        ("2011-01-08", "no events after it; the data runs from 2011-01-01"),
        ("2011-01-07", "everyone after the cut 2011-01-07 00:00:00 was seen before it.*runs from 2011-01-01"),
        ("spring", "cut: cannot read 'spring'"),
    ],
)
def test_useless_cuts_are_refused(cut: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        temporal_split(build(EVENTS), cut)


def test_default_cut() -> None:
    data = build(EVENTS)
    assert default_cut(data) == datetime(2011, 1, 6)  # four of six events lie before it, five would be too many
    assert default_cut(data, 0.5) == datetime(2011, 1, 5)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"expected a share between 0 and 1"):
            default_cut(data, fraction)
    empty = Dataset("none", data.interactions.clear(), data.items, data.users)
    with pytest.raises(DataError, match=r"none: there are no events"):
        default_cut(empty)
    with pytest.raises(DataError, match=r"none: .*the data has no events"):
        temporal_split(empty, "2011-01-01")


event = st.tuples(st.sampled_from(["u", "v", "w", "x"]), st.sampled_from("abcd"), st.integers(1, 9))


@given(st.lists(event, min_size=1, max_size=25), st.integers(1, 9))
def test_every_event_is_on_one_side(events: list[tuple[str, str, int]], day: int) -> None:
    data = build(events)
    try:
        split = temporal_split(data, datetime(2011, 1, day))
    except DataError:
        before = {user for user, _, when in events if when < day}
        assert not before or not {user for user, _, when in events if when >= day} - before
        return
    sides = [split.train, split.warm_user_events, split.cold_user_events]
    assert sorted(row for side in sides for row in pairs(side)) == sorted(events)
    assert set(split.train_users).isdisjoint(split.cold_user_events["user_id"])
    assert set(split.train_items).isdisjoint(split.cold_items)
    assert set(split.train_items).union(split.cold_items) == {item for _, item, _ in events}


@given(st.lists(event, min_size=1, max_size=25), st.floats(0.01, 0.99))
def test_default_cut_leaves_at_most_its_share_before(events: list[tuple[str, str, int]], fraction: float) -> None:
    data = build(events)
    times = data.interactions["timestamp"]
    cut = default_cut(data, fraction)
    assert (times < cut).sum() <= fraction * len(times) < (times <= cut).sum()

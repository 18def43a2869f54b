"""A data set agrees with itself, and its fingerprint sees every value."""

from datetime import datetime

import polars as pl
import pytest

from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.log import validate_interactions
from palate.errors import DataError

NOW = datetime(2020, 1, 1)
EVENTS = pl.DataFrame(
    {
        "user_id": ["u", "v", "u"],
        "item_id": ["a", "a", "b"],
        "timestamp": [10, 20, 30],
        "weight": [1.0, 2.0, 3.0],
    }
)
ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", None, "C"], "price": [1.0, None, 2.0]})


def build(events: pl.DataFrame = EVENTS, items: pl.DataFrame = ITEMS, name: str = "tiny") -> Dataset:
    log = validate_interactions(events, source="t", now=NOW)
    return Dataset(name, log, Catalog.infer(items), Profiles.from_ids(log["user_id"]))


def test_summary() -> None:
    assert build().summary() == {
        "num_users": 2,
        "num_items": 2,
        "num_interactions": 3,
        "first": "1970-01-01T00:00:10",
        "last": "1970-01-01T00:00:30",
    }


def test_the_fingerprint_is_the_content() -> None:
    # A constant: it must be the same on every machine and after every change of the code that stores data.
    assert build().fingerprint() == "25b57624130877e860ec71f2b57a5a8cf70d2cc56d6c13685ea670e7920cb4f2"
    assert build(name="another name").fingerprint() == build().fingerprint()
    chunks = pl.concat([EVENTS[:1], EVENTS[1:]], rechunk=False)
    assert build(chunks).fingerprint() == build().fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        build(EVENTS.with_columns(weight=pl.Series([1.0, 2.0, 3.5]))),
        build(EVENTS.with_columns(timestamp=pl.Series([10, 20, 31]))),
        build(EVENTS.with_columns(user_id=pl.Series(["u", "v", "v"]))),
        build(EVENTS.with_columns(event_id=pl.Series(["1", None, None]))),
        build(EVENTS.with_columns(event_id=pl.Series([None, "1", None]))),
        build(items=ITEMS.with_columns(price=pl.Series([1.0, 0.0, 2.0]))),
        build(items=ITEMS.with_columns(title=pl.Series(["A", "", "C"]))),
        build(items=ITEMS.with_columns(title=pl.Series(["AC", None, ""]))),
        build(items=ITEMS.rename({"price": "cost"})),
        build(items=ITEMS[:2]),
    ],
)
def test_the_fingerprint_sees_every_change(changed: Dataset) -> None:
    assert changed.fingerprint() != build().fingerprint()


def test_interactions_must_fit() -> None:
    log = build().interactions
    items, users = Catalog.infer(ITEMS), Profiles.from_ids(["u", "v"])
    with pytest.raises(
        DataError, match=r"bad: 1 values of item_id in the interactions are not in the catalogue, first 'b'"
    ):
        Dataset("bad", log, Catalog.from_ids(["a"]), users)
    with pytest.raises(DataError, match=r"bad: 1 values of user_id .* profiles, first 'u'"):
        Dataset("bad", log, items, Profiles.from_ids(["v"]))
    with pytest.raises(DataError, match=r"not sorted by time"):
        Dataset("bad", log.reverse(), items, users)
    with pytest.raises(DataError, match=r"pass them through validate_interactions"):
        Dataset("bad", log.drop("weight"), items, users)

"""What the recommender accepts as a person's events, and what it refuses in one line."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning, History
from palate.data.vocabulary import Vocabulary
from palate.errors import ConfigError, DataError, ModelError
from palate.recommend import Recommender
from palate.recommend.event_input import EventInput, read_history
from people import choices_of

ITEMS = ["garden-01", "kitchen-02", "garden-04"]


def table(items: list[str], **columns: object) -> pl.DataFrame:
    """Events a second apart."""
    times = [datetime(2024, 3, 1) + timedelta(seconds=row) for row in range(len(items))]
    return pl.DataFrame({"item_id": items, "timestamp": times, **columns})


def events_of(dataset: Dataset, user: str) -> pl.DataFrame:
    return dataset.interactions.filter(pl.col("user_id") == user)


def profile_of(dataset: Dataset, user: str) -> dict[str, object]:
    row = dataset.users.frame.row(by_predicate=pl.col("user_id") == user, named=True)
    return {name: value for name, value in row.items() if name != "user_id"}


def test_a_known_id_gives_the_list_of_that_persons_events_and_profile(model: Recommender, early_shop: Dataset) -> None:
    for user in ("user-000", "user-001", "user-008"):
        events, profile = events_of(early_shop, user), profile_of(early_shop, user)
        assert model.recommend(user) == model.recommend(events, profile=profile)


def test_a_person_who_comes_back_gets_another_list_than_one_who_goes_on(
    model: Recommender, early_shop: Dataset
) -> None:
    """Whoever asks, and however the person is named: it is the time of the request that decides."""
    visits = replace(model, config=replace(model.config, model=replace(model.config.model, visit_gap=12.0)))
    events, profile = events_of(early_shop, "user-003"), profile_of(early_shop, "user-003")
    newest = events["timestamp"].max()
    assert isinstance(newest, datetime)
    on, back = (model.recommend(events, 5, profile=profile, returning=value) for value in (False, True))
    assert [row.score for row in on] != [row.score for row in back]
    for asked in ("user-003", events):
        told = None if isinstance(asked, str) else profile
        assert model.recommend(asked, 5, profile=told) == on, "this model does not tell visits apart"
        assert visits.recommend(asked, 5, profile=told) == back, "years ago"
        for hours, expected in ((0, on), (12, on), (12.001, back)):
            moment = newest + timedelta(hours=hours)
            assert visits.recommend(asked, 5, profile=told, at=moment) == expected
            assert visits.recommend(asked, 5, profile=told, at=moment.isoformat()) == expected
        assert visits.recommend(asked, 5, profile=told, returning=False) == on
    undated = events.drop("timestamp")
    assert visits.recommend(undated, 5, profile=profile, at="2100-01-01") == on, "nobody knows when that was"
    assert visits.recommend([], 5, returning=True) == visits.recommend([], 5)
    with pytest.raises(DataError, match="at: cannot read 'soon' as a time"):
        visits.recommend(ITEMS, at="soon")


def test_a_list_of_ids_is_a_table_of_events_seconds_apart(model: Recommender) -> None:
    expected = model.recommend(ITEMS)
    assert model.recommend(table(ITEMS)) == expected
    assert model.recommend(tuple(ITEMS)) == expected
    assert model.recommend(model.adapt(ITEMS)) == expected


def test_rows_without_a_time_are_in_order(model: Recommender) -> None:
    assert model.recommend(pl.DataFrame({"item_id": ITEMS})) == model.recommend(ITEMS)
    assert model.recommend(ITEMS[::-1]) != model.recommend(ITEMS)


def test_rows_with_times_are_put_in_order(model: Recommender) -> None:
    assert model.recommend(table(ITEMS).reverse()) == model.recommend(ITEMS)


def test_a_repeat_adds_nothing(model: Recommender) -> None:
    assert model.recommend([*ITEMS, ITEMS[0]]) == model.recommend(ITEMS)


@pytest.mark.parametrize("users", [[1, 1, 1], ["a", "a", "a"], ["", "", ""]], ids=str)
def test_whose_events_they_are_does_not_matter(model: Recommender, users: list[object]) -> None:
    assert model.recommend(table(ITEMS, user_id=users)) == model.recommend(ITEMS)


def test_no_events_is_a_person_without_history(model: Recommender) -> None:
    expected = model.recommend([])
    assert len(expected) == 10
    assert model.recommend(table([])) == expected
    assert model.recommend(()) == expected
    assert {line.reason for line in expected} == {"popular with people like you"}
    assert {line.because for line in expected} == {None}


def test_a_profile_changes_the_first_list(model: Recommender) -> None:
    lists = [model.recommend([], profile=profile) for profile in (None, {"country": "Italy"}, {"country": "Spain"})]
    assert lists[0] != lists[1] != lists[2]
    assert model.recommend([], profile={"age": None, "country": None}) == lists[0]


def test_a_profile_given_with_a_known_id_stands_in_for_the_saved_one(model: Recommender, early_shop: Dataset) -> None:
    expected = model.recommend(events_of(early_shop, "user-000"), profile={"country": "Italy"})
    assert model.recommend("user-000", profile={"country": "Italy"}) == expected
    assert model.recommend("user-000") != expected


def refused(error: type[Exception], *parts: str) -> "pytest.RaisesExc[Exception]":
    """One line that names these, in this order."""
    pattern = "[^\n]*".join(["^", *map(re.escape, parts), r"\Z"])
    return pytest.raises(error, match=pattern)


def test_an_unknown_person(model: Recommender) -> None:
    with refused(DataError, "user 'user-999'", "110 people", "pass their events"):
        model.recommend("user-999")


def test_an_unknown_item_is_named_with_its_row_and_the_nearest(model: Recommender) -> None:
    with refused(DataError, "events: row 2", '"item_id"', "'kitchen-1'", "nearest known: 'kitchen-1"):
        model.recommend(["garden-01", "kitchen-1"])
    late_first = table(["garden-01", "toys-999"]).reverse()
    with refused(DataError, "events: row 1", "'toys-999'"):
        model.recommend(late_first)


def test_an_id_that_a_reader_made_a_float_is_still_a_whole_number(model: Recommender) -> None:
    with refused(DataError, "events: row 1", "'85123'"):
        model.recommend(pl.DataFrame({"item_id": [85123.0]}))


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        (table(["garden-01", "garden-02"], user_id=["a", "b"]), ["2 people", "'a'", "'b'"]),
        (table(["garden-01"]).drop("item_id"), ["no column", "item_id"]),
        (table(["garden-01"]).with_columns(timestamp=pl.lit(datetime.now(UTC) + timedelta(days=3))), ["future"]),
        (table(["garden-01"]).with_columns(timestamp=pl.lit("yesterday")), ["row 1", "timestamp", "yesterday"]),
        (table(["garden-01", "garden-02"], weight=[1.0, float("nan")]), ["row 2", "weight", "not finite"]),
        (pl.DataFrame({"item_id": ["garden-01", None]}), ["row 2", "item_id", "missing"]),
    ],
    ids=["two people", "no item column", "future", "unreadable time", "NaN weight", "missing item"],
)
def test_a_malformed_table(model: Recommender, events: pl.DataFrame, parts: list[str]) -> None:
    with refused(DataError, "events", *parts):
        model.recommend(events)


def test_a_profile_attribute_that_the_model_does_not_know(model: Recommender) -> None:
    with refused(ConfigError, "'height'", "age, country"):
        model.recommend([], profile={"height": 180})


@pytest.mark.parametrize("profile", [{"age": "old"}, {"country": 3}, {"age": float("nan")}], ids=str)
def test_a_profile_value_of_the_wrong_kind(model: Recommender, profile: dict[str, object]) -> None:
    with refused(DataError, str(next(iter(profile)))):
        model.recommend([], profile=profile)


def test_a_state_of_another_model(model: Recommender) -> None:
    other = replace(model, model_id="0" * 16)
    with refused(ModelError, "0000000000000000", model.model_id):
        model.recommend(other.adapt(ITEMS))


@pytest.mark.parametrize("k", [0, -1])
def test_a_list_of_no_places(model: Recommender, k: int) -> None:
    with refused(ConfigError, f"{k}; expected at least 1"):
        model.recommend(ITEMS, k)
    with refused(ConfigError, f"{k}; expected at least 1"):
        model.similar_items("garden-01", k)


def test_an_unknown_id_in_a_filter(model: Recommender) -> None:
    with refused(DataError, "'garden-099'", "nearest known"):
        model.recommend(ITEMS, exclude=["garden-01", "garden-099"])
    with refused(DataError, "'garden-099'", "nearest known"):
        model.recommend(ITEMS, candidates=["garden-01", "garden-099"])


def test_reading_a_person_changes_nothing_in_the_model(model: Recommender) -> None:
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    params = {name: value.clone() for name, value in model.params.items()}
    items = [value.clone() for value in model.items]
    first = model.recommend(ITEMS)
    model.adapt("user-000")
    model.recommend(table(ITEMS, event_type=["purchase", "cancel", "purchase"]))
    model.score_many([model.users["user-001"]], model.encode_profile(None)[None])
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(torch.equal(value, params[name]) for name, value in model.params.items())
    assert all(torch.equal(value, old) for value, old in zip(model.items, items, strict=True))
    assert model.recommend(ITEMS) == first
    assert np.array_equal(model.adapt(ITEMS).fast["delta"], model.adapt(ITEMS).fast["delta"])


MEANING = EventMeaning(frozenset({"cancel"}), frozenset({"rating"}))
VOCABULARY = Vocabulary(("a", "b", "c", "d"))
USERS = choices_of({"ann": History(np.array([1, 2]), np.array([5.0, 6.0]), np.array([3]))})


def read(events: EventInput) -> tuple[list[int], list[float], list[int]]:
    history, _ = read_history(events, USERS, VOCABULARY, MEANING)
    return history.items.tolist(), history.times.tolist(), history.refused.tolist()


def test_read_history_without_a_model() -> None:
    assert read("ann") == ([1, 2], [5.0, 6.0], [3])
    assert read_history("ann", USERS, VOCABULARY, MEANING)[1] == 6.0
    assert read_history([], USERS, VOCABULARY, MEANING)[1] is read_history(["a"], USERS, VOCABULARY, MEANING)[1] is None
    assert read([]) == read(pl.DataFrame()) == ([], [], [])
    assert read(["c", "a", "c"]) == read(("c", "a")) == ([2, 0], [0.0, 0.0], [])
    assert read(pl.DataFrame({"item_id": ["c", "a"]})) == ([2, 0], [0.0, 1.0], [])
    table = {"item_id": ["c", "a", "b"], "event_type": ["buy", "cancel", "buy"], "timestamp": [30, 10, 20]}
    assert read(pl.DataFrame(table).with_columns(pl.from_epoch("timestamp"))) == ([1, 2], [20.0, 30.0], [0])
    assert read_history(pl.DataFrame(table).drop("timestamp"), USERS, VOCABULARY, MEANING)[1] is None
    dated = pl.DataFrame(table).with_columns(pl.from_epoch("timestamp"))
    assert read_history(dated, USERS, VOCABULARY, MEANING)[1] == 30.0
    for unknown, said in (("bob", "user 'bob' is not among the 1 people"), (["a", "z"], "events: row 2")):
        with pytest.raises(DataError, match=said):
            read(unknown)

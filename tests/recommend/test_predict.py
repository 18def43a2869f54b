"""Ratings foretold by a recommender: trained, saved, loaded and asked as everyone asks."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from palate.data.catalog import Catalog
from palate.errors import ConfigError, DataError
from palate.recommend import Recommender

FAN = {"toys-00": 4.0, "toys-01": 5.0, "garden-00": 1.0, "kitchen-02": 1.0}


@pytest.fixture(scope="module")
def loaded(rated_model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("rated")
    rated_model.save(folder)
    return Recommender.load(folder)


def test_a_stranger_who_rates_toys_high_is_foretold_to_like_toys(loaded: Recommender) -> None:
    toy, spade = loaded.predict(FAN, ["toys-05", "garden-05"])
    assert toy.mean > spade.mean + 1
    assert (toy.item_id, toy.title) == ("toys-05", loaded.titles[loaded.vocabulary.ids.index("toys-05")])
    for line in (toy, spade):
        assert list(line.distribution) == [1.0, 2.0, 4.0, 5.0]
        assert sum(line.distribution.values()) == pytest.approx(1)
        assert line.mean == pytest.approx(sum(level * chance for level, chance in line.distribution.items()))
        assert line.median in line.distribution


def test_saving_and_loading_changes_nothing(loaded: Recommender, rated_model: Recommender) -> None:
    asked = list(loaded.vocabulary.ids)
    assert loaded.predict(FAN, asked) == rated_model.predict(FAN, asked)
    user = next(iter(loaded.users))
    assert loaded.predict(user, asked) == rated_model.predict(user, asked)
    for name, history in rated_model.users.items():
        np.testing.assert_array_equal(loaded.users[name].ratings, history.ratings)


def test_a_table_ratings_by_id_and_a_known_person_say_the_same(loaded: Recommender) -> None:
    asked = ["toys-07", "kitchen-07"]
    table = pl.DataFrame({"item_id": list(FAN), "rating": list(FAN.values())})
    assert loaded.predict(table, asked) == loaded.predict(FAN, asked)
    events = pl.DataFrame({"item_id": list(FAN), "weight": list(FAN.values()), "event_type": "rating"})
    assert loaded.predict(events, asked) == loaded.predict(FAN, asked)
    user, history = next(iter(loaded.users.items()))
    own = {loaded.vocabulary.ids[item]: rating for item, rating in zip(*history.rated(), strict=True)}
    known = loaded.predict_for(history, loaded.profiles[user], asked)
    assert loaded.predict(user, asked) == known
    assert [line.mean for line in loaded.predict(own, asked)] != [line.mean for line in loaded.predict([], asked)]


def test_events_that_do_not_rate_say_nothing_of_ratings(loaded: Recommender) -> None:
    assert loaded.predict(["toys-00", "toys-01"], ["toys-05"]) == loaded.predict([], ["toys-05"])


def test_a_rating_changed_later_counts_as_it_is_now(loaded: Recommender) -> None:
    times = [datetime(2024, 1, 1), datetime(2024, 1, 2), datetime(2024, 1, 3)]
    items = ["toys-00", "garden-00", "toys-00"]
    changed = pl.DataFrame({"item_id": items, "rating": [1.0, 4.0, 5.0], "timestamp": times})
    expected = loaded.predict({"toys-00": 5.0, "garden-00": 4.0}, ["toys-05"])
    assert loaded.predict(changed, ["toys-05"]) == expected


def test_an_item_that_came_after_training_has_a_rating_too(loaded: Recommender) -> None:
    same = loaded.titles[loaded.vocabulary.ids.index("toys-03")]
    new = pl.DataFrame({"item_id": ["new"], "title": [same], "price": [9.0]})
    grown = loaded.add_items(Catalog.infer(new))
    (line,) = grown.predict(FAN, ["new"])
    toys = [line.mean for line in grown.predict(FAN, ["toys-03", "toys-04"])]
    others = [line.mean for line in grown.predict(FAN, ["garden-03", "kitchen-03"])]
    assert abs(line.mean - np.mean(toys)) < abs(line.mean - np.mean(others))


def test_the_lists_of_a_rating_model_are_still_lists(loaded: Recommender) -> None:
    assert len(loaded.recommend(FAN, 5)) == 5
    assert [line.item_id for line in loaded.recommend(FAN, 5)] == [
        line.item_id for line in loaded.recommend(list(FAN), 5)
    ]


def test_what_cannot_be_asked_is_said(loaded: Recommender, model: Recommender) -> None:
    with pytest.raises(DataError, match="has learned no ratings; train it on events of a type in rating_events"):
        model.predict([], ["toys-00"])
    with pytest.raises(DataError, match="nothing"):
        loaded.predict(FAN, ["nothing"])
    with pytest.raises(DataError, match="nothing"):
        loaded.predict({"nothing": 3.0}, ["toys-00"])
    with pytest.raises(DataError, match="'toys-01' is not finite"):
        loaded.predict({"toys-00": 3.0, "toys-01": float("nan")}, ["toys-00"])
    with pytest.raises(ConfigError, match="shoe"):
        loaded.predict(FAN, ["toys-00"], profile={"shoe": 42})
    assert loaded.predict(FAN, []) == []


def test_how_good_it_is_stands_in_the_record(loaded: Recommender) -> None:
    quality = loaded.training["ratings"]
    assert isinstance(quality, dict)
    assert quality["num_people"] >= 5
    assert quality["error"] < quality["baseline"]

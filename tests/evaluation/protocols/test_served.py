"""The recommender as a method of a protocol."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from palate.config import Config
from palate.evaluation.protocols import served
from palate.evaluation.protocols.base import Bench, Draw, Features, Setting
from palate.evaluation.protocols.content import ContentSpec
from palate.evaluation.protocols.served import catalogue_of, ratings_as_events
from palate.ratings.tasks import Ratings, Task
from palate.recommend import Recommender

NUM_USERS, NUM_TEST, NUM_ITEMS = 80, 12, 30


def setting() -> Setting:
    items = pl.DataFrame(
        {
            "item_id": range(NUM_ITEMS),
            "title": [f"film {'loud' if item % 2 else 'quiet'}" for item in range(NUM_ITEMS)],
            "kind": ["a|b", None] * (NUM_ITEMS // 2),
            "year": [1990, 2050] * (NUM_ITEMS // 2),
        }
    )
    content = ContentSpec({"kind": "|"}, groups="kind", time="year", time_range=(1980.0, 2000.0), texts=("title",))
    return Setting(np.eye(2)[np.arange(NUM_USERS + NUM_TEST) % 2], items, content)


def no_features(setting: Setting, draw: Draw) -> Features:
    raise AssertionError("the recommender reads none")


def bench(ratings: Ratings, about: Setting) -> Bench:
    return Bench(about, Draw(3, ratings, None, {}), no_features, lambda line: None)


def tasks(values: np.ndarray, known: int) -> list[Task]:
    rng, found = np.random.default_rng(5), []
    for user in range(NUM_USERS, NUM_USERS + NUM_TEST):
        order = rng.permutation(NUM_ITEMS)
        support, query = order[:known], order[known:]
        found.append(Task(user, support, values[user, support], query, np.full(len(query), np.nan)))
    return found


def test_content_is_a_catalogue() -> None:
    catalogue = catalogue_of(setting())
    assert catalogue.text == "text"
    assert catalogue.frame["text"].to_list()[:2] == ["film quiet. a|b", "film loud. "]
    assert catalogue.numeric == ("year", "kind a", "kind b")
    assert catalogue.frame.select("year", "kind a").rows()[:2] == [(1990.0, 1.0), (2000.0, 0.0)]
    bare = catalogue_of(Setting(np.zeros((3, 0)), pl.DataFrame({"item_id": [5, 7]}), None))
    assert bare.frame["item_id"].to_list() == ["000000", "000001"], "rows, not the ids of the file"


def test_events_keep_the_order_of_each_person() -> None:
    ratings = Ratings(np.array([1, 0, 1]), np.array([4, 2, 3]), np.array([5.0, 1.0, 0.0]))
    events = ratings_as_events(ratings)
    assert events.select("user_id", "item_id", "weight", "event_type").rows() == [
        ("000000", "000002", 1.0, "rating"),
        ("000001", "000004", 5.0, "rating"),
        ("000001", "000003", 0.0, "rating"),
    ]
    first, second = events["timestamp"].to_list()[1:]
    assert first < second


def test_ratings_are_those_that_the_recommender_foretells(
    rated_model: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People like either the even items or the odd ones."""
    rng = np.random.default_rng(0)
    taste = np.arange(NUM_USERS + NUM_TEST) % 2
    liked = taste[:, None] == np.arange(NUM_ITEMS) % 2
    values = np.clip(np.where(liked, 5, 1) + rng.integers(-1, 2, liked.shape), 1, 5).astype(np.float64)
    users, items = (grid.ravel() for grid in np.mgrid[:NUM_USERS, :NUM_ITEMS])
    config = replace(rated_model.config, evaluation=Config().evaluation)
    models: list[Recommender] = []
    load = Recommender.load
    monkeypatch.setattr(served.Recommender, "load", lambda *one, **more: models.append(load(*one, **more)) or models[0])
    method = served.served_ratings(config, "exponential")
    predict = method(bench(Ratings(users, items, values[:NUM_USERS].ravel()), setting()))
    [model] = models
    assert model.config.seed == 3
    asked = tasks(values, 10)
    found = predict("any", asked)
    truth = [values[task.user, task.query_items] for task in asked]
    error = np.mean([np.abs(said.rating - real).mean() for said, real in zip(found, truth, strict=True)])
    assert error < 0.9, "without knowing the person it is 2"
    for said, real in zip(found, truth, strict=True):
        assert said.score[real >= 4].mean() > said.score[real <= 2].mean()
    names = [f"{item:06}" for item in range(NUM_ITEMS)]
    task = asked[0]
    given = dict(zip([names[item] for item in task.support_items], task.support_values.tolist(), strict=True))
    profile = {"profile 00": float(task.user % 2 == 0), "profile 01": float(task.user % 2 == 1)}
    again = model.predict(given, [names[item] for item in task.query_items], profile=profile)
    np.testing.assert_allclose([line.median for line in again], found[0].rating)


def test_choices_are_ratings_of_two_levels(rated_model: Recommender) -> None:
    """Each person chooses most of one half of the items and refuses most of the other; nothing is known of either."""
    rng = np.random.default_rng(1)
    taste = np.arange(NUM_USERS + NUM_TEST) % 2
    own = taste[:, None] == np.arange(NUM_ITEMS) % 2
    values = (rng.random(own.shape) < np.where(own, 0.9, 0.1)).astype(np.float64)
    users, items = (grid.ravel() for grid in np.mgrid[:NUM_USERS, :NUM_ITEMS])
    config = replace(rated_model.config, evaluation=Config().evaluation)
    bare = Setting(np.zeros((NUM_USERS + NUM_TEST, 0)), pl.DataFrame({"item_id": range(NUM_ITEMS)}), None)
    predict = served.served_ratings(config, "linear")(bench(Ratings(users, items, values[:NUM_USERS].ravel()), bare))
    asked = tasks(values, 10)
    found = list(zip(asked, predict("any", asked), strict=True))
    liked = [own[task.user, task.query_items] for task, _ in found]
    gaps = [said.score[mine].mean() - said.score[~mine].mean() for mine, (_, said) in zip(liked, found, strict=True)]
    assert np.mean(gaps) > 0.1
    assert np.mean(np.array(gaps) > 0) > 0.7
    assert all(set(said.rating) <= {0.0, 1.0} for _, said in found)

"""What holds for every baseline of ratings, and what each of them says by hand."""

import numpy as np
import pytest

from palate.baselines import RATING_BASELINES, ExplicitALSConfig, RatingData
from palate.errors import ConfigError
from palate.ratings.tasks import Ratings, Task

NUM_USERS, NUM_ITEMS = 50, 20
RNG = np.random.default_rng(0)
TASTE = RNG.normal(size=(NUM_USERS + 1, 2))
VECTORS = RNG.normal(size=(NUM_ITEMS, 2))
WORLD = np.clip(np.round(3 + TASTE @ VECTORS.T), 1, 5)


def data(values: np.ndarray = WORLD) -> RatingData:
    """The last three items have no rating, and some people have few."""
    seen = np.random.default_rng(1).random((NUM_USERS, NUM_ITEMS)) < np.linspace(0.9, 0.2, NUM_ITEMS)
    seen[:, -3:] = False
    users, items = np.nonzero(seen)
    content = np.column_stack([np.ones(NUM_ITEMS), VECTORS])
    return RatingData(Ratings(users, items, values[users, items]), NUM_ITEMS, lambda: content)


def task(num_support: int, values: np.ndarray = WORLD) -> Task:
    """Of the ten items that are asked for, three are new."""
    items = np.random.default_rng(2).permutation(NUM_ITEMS - 3)
    support, query = items[:num_support], np.concatenate([items[10:], np.arange(NUM_ITEMS - 3, NUM_ITEMS)])
    return Task(NUM_USERS, support, values[NUM_USERS, support], query, np.full(len(query), np.nan))


@pytest.mark.parametrize("baseline", RATING_BASELINES.values(), ids=RATING_BASELINES.keys())
@pytest.mark.parametrize("num_support", [0, 1, 10])
def test_ratings_and_scores_are_finite_and_repeat(baseline, num_support: int) -> None:
    first, again = (
        baseline.fit(data(), baseline.config)(task(num_support), np.random.default_rng(3)) for _ in range(2)
    )
    for values, same in zip(first, again, strict=True):
        assert values.shape == (10,)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, same, rtol=1e-12)


@pytest.mark.parametrize("label", [label for label in RATING_BASELINES if label != "random"])
def test_the_unit_of_the_ratings_is_free(label: str) -> None:
    baseline = RATING_BASELINES[label]
    half, whole = (
        baseline.fit(data(unit * WORLD), baseline.config)(task(6, unit * WORLD), np.random.default_rng(3))
        for unit in (0.5, 1.0)
    )
    np.testing.assert_allclose(2 * np.array(half), np.array(whole), rtol=1e-9)


def test_of_choices_popularity_counts_those_chosen() -> None:
    users, items = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    chosen = np.array([1.0, 0, 0, 1, 0, 1, 1, 0, 0])
    one = RatingData(Ratings(users, items, chosen), 3, lambda: np.ones((3, 1)))
    asked = Task(3, np.zeros(0, np.int64), np.zeros(0), np.arange(3), np.full(3, np.nan))
    baseline = RATING_BASELINES["popularity"]
    _, scores = baseline.fit(one, baseline.config)(asked, np.random.default_rng(0))
    assert np.argsort(-scores).tolist() == [0, 2, 1]
    _, rated = baseline.fit(one._replace(ratings=one.ratings._replace(values=chosen + 1)), baseline.config)(
        asked, np.random.default_rng(0)
    )
    np.testing.assert_allclose(rated, rated[0], rtol=1e-12, err_msg="all three were rated by all three people")


def test_a_persons_taste_is_found_and_new_items_are_read_by_content() -> None:
    errors = {}
    for label in ("item mean + user bias", "ALS + per-user ridge"):
        baseline = RATING_BASELINES[label]
        rating, _ = baseline.fit(data(), baseline.config)(task(10), np.random.default_rng(0))
        asked = task(10).query_items
        errors[label] = np.abs(rating - WORLD[NUM_USERS, asked])
    assert errors["ALS + per-user ridge"].mean() < errors["item mean + user bias"].mean() - 0.1
    new = task(10).query_items >= NUM_ITEMS - 3
    assert errors["ALS + per-user ridge"][new].mean() < errors["item mean + user bias"][new].mean()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_factors", 0),
        ("num_iterations", 0),
        ("regularisation", 0.0),
        ("person_penalty", 0.0),
        ("content_penalty", 0.0),
        ("growth", -1.0),
        ("seed", -1),
    ],
)
def test_refuses_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"explicit_als\.{name}: got {value}"):
        ExplicitALSConfig(**{name: value})

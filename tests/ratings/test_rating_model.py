"""Ratings as a recommender answers them: what it says of people it has not met, and of items that came later."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.factors import FactorConfig
from palate.ratings.knowledge import KnowledgeConfig
from palate.ratings.rater_network import NetworkConfig
from palate.ratings.rater_training import RaterConfig
from palate.ratings.rating_fit import RatingQuality, describe_content, fit_rating_model, why_not
from palate.ratings.rating_model import RatingModel, RatingsConfig
from palate.ratings.tasks import Ratings, Task
from palate.scorers.kin import NUM_RELATIVES, Kin, no_kin

USERS, ITEMS, UNSEEN = 120, 30, 4
CONFIG = RatingsConfig(
    KnowledgeConfig(FactorConfig(num_factors=3, num_sweeps=8), num_folds=3, num_fold_sweeps=3),
    RaterConfig(NetworkConfig(width=16), num_steps=120, batch_size=16, support_sizes=(2, 12)),
    RaterConfig(
        NetworkConfig(width=16), num_steps=80, batch_size=16, support_sizes=(2, 12), cold_share=1.0, cold_support=0.5
    ),
    SamplerConfig(dim=3, num_burn_in=8, num_samples=8),
    most_events=20,
)


class World(NamedTuple):
    """Half of the people like the first half of the items, half the second; content tells the halves apart."""

    ratings: Ratings
    content: Tensor
    likes_first: np.ndarray


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    first = np.arange(ITEMS) < ITEMS // 2
    likes = rng.random(USERS) < 0.5
    users, items = np.nonzero(rng.random((USERS, ITEMS - UNSEEN)) < 0.6)
    wanted = np.where(first[items] == likes[users], 4, 2) + rng.integers(0, 2, len(users))
    order = rng.permutation(len(users))
    order = order[np.argsort(users[order], kind="stable")]
    content = torch.from_numpy(
        np.c_[np.where(first, 1.0, -1.0)[:, None] + rng.normal(0, 0.1, (ITEMS, 3)), rng.normal(0, 1, (ITEMS, 2))]
    )
    return World(Ratings(users[order], items[order], wanted[order].astype(float)), content.float(), likes)


@pytest.fixture(scope="module")
def fitted(world: World) -> tuple[RatingModel, RatingQuality | None]:
    return fit(world, CONFIG)


def fit(
    world: World, config: RatingsConfig, ratings: Ratings | None = None
) -> tuple[RatingModel, RatingQuality | None]:
    profiles = np.zeros((USERS, 0))
    return fit_rating_model(
        ratings or world.ratings, profiles, world.content, 3, config, num_known=ITEMS - UNSEEN, seed=0
    )


NOBODY = torch.zeros(0)
FAN = (np.arange(6), np.array([5.0, 4.0, 5.0, 5.0, 4.0, 5.0]))


def expected(
    model: RatingModel, items: np.ndarray, ratings: np.ndarray, asked: np.ndarray, kin: Kin | None = None
) -> np.ndarray:
    return model.predict(items, ratings, asked, NOBODY, kin or no_kin()) @ model.levels


def test_a_few_ratings_tell_what_a_stranger_likes(fitted: tuple[RatingModel, RatingQuality | None]) -> None:
    model, quality = fitted
    before = expected(model, np.zeros(0, np.int64), np.zeros(0), np.arange(ITEMS))
    after = expected(model, *FAN, np.arange(ITEMS))
    first = np.arange(ITEMS) < ITEMS // 2
    assert abs(before[first].mean() - before[~first].mean()) < 0.5
    assert after[first].mean() > after[~first].mean() + 1
    assert quality is not None
    assert quality.error < quality.baseline
    assert quality.difference[2] < 0
    assert quality.num_people == USERS // 4


def test_one_persons_answer_is_what_the_rater_says_from_the_whole_tables(
    fitted: tuple[RatingModel, RatingQuality | None],
) -> None:
    """The fast path reads a few rows; the slow one all of them."""
    model = replace(fitted[0], pooled=None)
    items, ratings, asked = np.array([9, 2, 25, 2 + 18]), np.array([2.0, 5.0, 3.0, 4.0]), np.array([7, 29, 2, 7])
    task = Task(0, items, ratings, asked, np.zeros(len(asked)))
    known, new = (rater.predict([task], np.zeros((1, 0)))[0] for rater in (model.rater, model.new_items))
    slow = np.where((asked < ITEMS - UNSEEN)[:, None], known, new)  # item 29 has no rating
    assert not np.allclose(known[1], new[1], atol=1e-3)
    fast = model.predict(items, ratings, asked, NOBODY, no_kin())
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fast[0], fast[3])


def test_of_items_that_the_factors_cover_both_parts_speak_and_of_others_the_networks_alone(
    fitted: tuple[RatingModel, RatingQuality | None],
) -> None:
    model, _ = fitted
    assert model.pooled is not None
    asked = np.array([7, ITEMS - 1, 12, ITEMS - UNSEEN])
    alone = replace(model, pooled=None).predict(*FAN, asked, NOBODY, no_kin())
    found = model.predict(*FAN, asked, NOBODY, no_kin())
    np.testing.assert_allclose(found[[1, 3]], alone[[1, 3]], rtol=1e-6)
    filtering, pool = model.pooled
    features = filtering.features(FAN[0], (FAN[1] - 2) / 3, asked[[0, 2]], np.zeros(0))
    np.testing.assert_allclose(found[[0, 2]], pool.mix(alone[[0, 2]], features), rtol=1e-6)
    assert not np.allclose(found[0], alone[0], atol=1e-3)


@pytest.fixture(scope="module")
def chosen(world: World) -> RatingModel:
    """Of ratings with two levels."""
    return fit(world, CONFIG, world.ratings._replace(values=np.where(world.ratings.values > 3, 7.0, -1.0)))[0]


def test_two_levels_are_choices(chosen: RatingModel) -> None:
    first = np.arange(ITEMS) < ITEMS // 2
    fan = expected(chosen, FAN[0], np.full(6, 7.0), np.arange(ITEMS))
    foe = expected(chosen, FAN[0], np.full(6, -1.0), np.arange(ITEMS))
    assert fan[first].mean() > fan[~first].mean() + 3
    assert fan[first].mean() > foe[first].mean() + 1
    asked = np.arange(ITEMS)
    again = RatingModel.from_tensors(chosen.to_tensors(), CONFIG)
    np.testing.assert_array_equal(expected(again, *FAN, asked), expected(chosen, *FAN, asked))


def test_too_few_people_to_weigh_the_parts_leave_the_networks_alone(world: World) -> None:
    few = world.ratings.of(np.arange(25))
    model, quality = fit(world, replace(CONFIG, knowledge=replace(CONFIG.knowledge, num_folds=2)), few)
    assert model.pooled is None
    assert quality is None
    again = RatingModel.from_tensors(model.to_tensors(), CONFIG)
    np.testing.assert_array_equal(expected(again, *FAN, np.arange(5)), expected(model, *FAN, np.arange(5)))


def test_the_most_recent_ratings_are_read(fitted: tuple[RatingModel, RatingQuality | None]) -> None:
    model, _ = fitted
    few = replace(model, most_events=3)
    items, ratings = np.array([20, 21, 22, 0, 1, 2]), np.full(6, 5.0)
    np.testing.assert_array_equal(
        few.predict(items, ratings, np.arange(4), NOBODY, no_kin()),
        few.predict(items[3:], ratings[3:], np.arange(4), NOBODY, no_kin()),
    )


def test_a_rating_between_two_levels_counts_as_the_nearer_one(
    fitted: tuple[RatingModel, RatingQuality | None],
) -> None:
    model, _ = fitted
    near = expected(model, np.array([0]), np.array([4.6]), np.arange(3))
    np.testing.assert_array_equal(near, expected(model, np.array([0]), np.array([5.0]), np.arange(3)))
    np.testing.assert_array_equal(
        expected(model, np.array([0]), np.array([99.0]), np.arange(3)),
        expected(model, np.array([0]), np.array([5.0]), np.arange(3)),
    )


def test_an_item_that_came_later_is_read_as_its_relatives_by_content(
    fitted: tuple[RatingModel, RatingQuality | None],
) -> None:
    model, _ = fitted
    known = ITEMS - UNSEEN
    relatives = np.zeros((UNSEEN + 2, NUM_RELATIVES), np.int64)
    weights = np.zeros((UNSEEN + 2, NUM_RELATIVES), np.float32)
    relatives[UNSEEN], relatives[UNSEEN + 1] = np.arange(NUM_RELATIVES), np.arange(known - NUM_RELATIVES, known)
    weights[UNSEEN:] = 0.1
    found = expected(model, *FAN, np.array([ITEMS, ITEMS + 1]), Kin(relatives, weights))
    assert found[0] > found[1] + 0.5
    # And a rating of such an item tells something of taste.
    told = expected(model, np.array([ITEMS, ITEMS]), np.array([5.0, 5.0]), np.array([0, 25]), Kin(relatives, weights))
    assert told[0] > told[1]
    # Of an item without relatives nothing is known, which is no reason to fail.
    alone = Kin(relatives, np.zeros_like(weights))
    assert np.isfinite(expected(model, *FAN, np.array([ITEMS]), alone)).all()


def test_an_item_of_the_catalogue_that_nobody_rated_is_read_by_its_content(
    fitted: tuple[RatingModel, RatingQuality | None],
) -> None:
    model, _ = fitted
    reversed_fan = (np.arange(20, 26), FAN[1])
    unseen = np.arange(ITEMS - UNSEEN, ITEMS)  # all like the second half
    assert expected(model, *reversed_fan, unseen).mean() > expected(model, *FAN, unseen).mean() + 0.5


def test_it_comes_back_from_its_tensors(fitted: tuple[RatingModel, RatingQuality | None]) -> None:
    model, _ = fitted
    again = RatingModel.from_tensors(model.to_tensors(), CONFIG)
    asked = np.arange(ITEMS)
    np.testing.assert_array_equal(
        again.predict(*FAN, asked, NOBODY, no_kin()), model.predict(*FAN, asked, NOBODY, no_kin())
    )


def test_the_same_seed_gives_the_same_model(world: World, fitted: tuple[RatingModel, RatingQuality | None]) -> None:
    again, quality = fit(world, CONFIG)
    assert quality == fitted[1]
    for name, value in again.to_tensors().items():
        assert torch.equal(value, fitted[0].to_tensors()[name]), name


def test_those_kept_aside_have_no_part_in_the_networks(
    world: World, fitted: tuple[RatingModel, RatingQuality | None]
) -> None:
    """Every fourth person's ratings turned round change what the parts weigh, and the factors, which read everyone."""
    aside = np.isin(world.ratings.users, np.arange(0, USERS, 4))
    turned = np.where(aside, 7 - world.ratings.values, world.ratings.values).clip(2, 5)
    again, quality = fit(world, CONFIG, world.ratings._replace(values=turned))
    assert quality != fitted[1]
    for name, value in again.to_tensors().items():
        if not name.startswith(("ratings.", "pool.")):
            assert torch.equal(value, fitted[0].to_tensors()[name]), name
    one, other = again.pooled, fitted[0].pooled
    assert one is not None
    assert other is not None
    assert one.pool.trust != other.pool.trust


def test_many_distinct_ratings_are_read_in_steps(world: World) -> None:
    rng = np.random.default_rng(1)
    fine = world.ratings._replace(values=world.ratings.values + rng.uniform(0, 0.9, len(world.ratings.values)))
    few = replace(CONFIG.rater, num_steps=3)
    short = replace(CONFIG, rater=few, new_items=replace(few, cold_share=1.0))
    model, _ = fit(world, short, fine)
    assert 2 < len(model.levels) <= 32
    assert np.isclose(
        np.diff(model.levels) / np.diff(model.levels).min(),
        np.round(np.diff(model.levels) / np.diff(model.levels).min()),
    ).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ratings: Ratings(*(part[:40] for part in ratings)), "12 are needed"),
        (lambda ratings: Ratings(*(part[:0] for part in ratings)), "0 people have 8 ratings"),
        (lambda ratings: ratings._replace(values=np.full(len(ratings.values), 3.0)), "all ratings are 3"),
    ],
)
def test_too_little_to_learn_from_is_said_in_words(world: World, change: object, says: str) -> None:
    assert why_not(world.ratings, CONFIG) is None
    assert says in str(why_not(change(world.ratings), CONFIG))  # type: ignore[operator]


def test_content_without_any_difference_is_no_content() -> None:
    described = describe_content(torch.zeros(5, 3), 1)
    assert described.features.shape == (5, 0)
    assert described.kernels.num_kernels == 2
    everything = torch.arange(5)
    assert torch.isfinite(described.kernels.between(everything, everything)).all()

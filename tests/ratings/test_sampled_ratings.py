"""Features of ratings by sampled factors: what they find in a planted world, and what they must not read."""

import numpy as np
import pytest
import torch

from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.sampled_ratings import Levels, SampledRatings, fit_sampled_ratings, mean_matrix, mid_ranks
from palate.ratings.tasks import Ratings

NUM_USERS, NUM_TRAINING, NUM_ITEMS, NUM_COLD = 150, 100, 40, 4
SMALL = SamplerConfig(dim=3, num_burn_in=15, num_samples=15)


class World:
    """People like one half of the content or the other; the last items are rated by nobody in training."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        taste = rng.choice([-1.0, 1.0], NUM_USERS)
        side = rng.choice([-1.0, 1.0], NUM_ITEMS)
        self.profiles = np.c_[taste * 0.5 + rng.standard_normal(NUM_USERS), rng.standard_normal(NUM_USERS)]
        self.content = np.c_[side, rng.standard_normal(NUM_ITEMS)]
        self.liking = 0.5 + 0.1 * rng.standard_normal(NUM_ITEMS) + 0.22 * np.outer(taste, side)
        noise = rng.choice([-0.12, 0.12], NUM_USERS)[:, None] + 0.12 * rng.standard_normal(self.liking.shape)
        self.values = ((self.liking + noise) * 4).round().clip(0, 4) / 4
        users, items = np.nonzero(rng.random((NUM_TRAINING, NUM_ITEMS - NUM_COLD)) < 0.5)
        self.training = Ratings(users, items, self.values[users, items])
        self.order = np.stack([rng.permutation(NUM_ITEMS - NUM_COLD) for _ in range(NUM_USERS)])

    def quality(self, model: SampledRatings, size: int) -> np.ndarray:
        """Mean correlation of each feature and liking over the new people."""
        found = []
        for user in range(NUM_TRAINING, NUM_USERS):
            told, asked = self.order[user, :size], self.order[user, -12:]
            features = model.features(told, self.values[user, told], asked, self.profiles[user])
            found.append([np.corrcoef(column, self.liking[user, asked])[0, 1] for column in features.T])
        return np.asarray(np.mean(found, 0))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def fit(world: World, config: SamplerConfig = SMALL, seed: int = 0) -> SampledRatings:
    return fit_sampled_ratings(world.training, world.profiles, world.content, config, seed=seed)


@pytest.fixture(scope="module")
def model(world: World) -> SampledRatings:
    return fit(world)


def test_planted_tastes_are_found_and_more_support_helps(world: World, model: SampledRatings) -> None:
    quality = np.array([world.quality(model, size) for size in (0, 2, 6, 20)])
    assert (np.diff(quality, axis=0) > 0).all()
    assert (quality[-1] > 0.85).all()
    assert (quality[-1] > quality[0] + 0.2).all()


def test_features_are_on_one_scale(world: World, model: SampledRatings) -> None:
    features = np.concatenate(
        [model.features(row[:20], world.values[user, row[:20]], row[20:], world.profiles[user])
         for user, row in enumerate(world.order)]
    )  # fmt: skip
    spread = features.std(0)
    assert 0.4 < spread.min() <= spread.max() < 1.2
    np.testing.assert_allclose(features.mean(0), 0, atol=0.2)


def test_items_without_ratings_and_those_that_came_later_are_not_covered(world: World, model: SampledRatings) -> None:
    asked = np.array([0, NUM_ITEMS - NUM_COLD, NUM_ITEMS - 1, NUM_ITEMS, 10 * NUM_ITEMS])
    assert model.covers(asked).tolist() == [True, False, False, False, False]
    told, values = np.array([0, 1, 2]), np.array([1.0, 0.0, 0.5])
    plain = model.features(told, values, np.arange(5), world.profiles[0])
    more = model.features(np.r_[told, asked[1:]], np.r_[values, np.ones(4)], np.arange(5), world.profiles[0])
    np.testing.assert_array_equal(plain, more)


def test_the_order_of_the_support_does_not_matter_and_what_is_rated_twice_counts_once(
    world: World, model: SampledRatings
) -> None:
    told, values = np.array([3, 9, 20]), np.array([0.0, 1.0, 0.75])
    expected = model.features(told, values, np.arange(8), world.profiles[1])
    turned = model.features(told[::-1], values[::-1], np.arange(8), world.profiles[1])
    np.testing.assert_allclose(turned, expected, rtol=1e-5, atol=1e-6)
    raw = model.features(np.array([3, 3, 9, 20]), np.array([0.0, 0.5, 1.0, 0.75]), np.arange(8), world.profiles[1])
    mean = model.features(told, np.array([0.25, 1.0, 0.75]), np.arange(8), world.profiles[1])
    np.testing.assert_allclose(raw[:, 0], mean[:, 0], rtol=1e-5, atol=1e-6)


def test_the_most_rated_items_and_some_people_are_read_of_many(world: World) -> None:
    few = fit(world, SamplerConfig(dim=3, num_burn_in=15, num_samples=15, most_people=60, most_items=20))
    counts = np.bincount(world.training.items, minlength=NUM_ITEMS)
    covered = few.covers(np.arange(NUM_ITEMS))
    assert covered.sum() == 20
    assert counts[covered].min() >= counts[~covered].max()
    told = np.flatnonzero(covered)[:8]
    assert np.isfinite(few.features(told, np.ones(8), np.flatnonzero(covered), world.profiles[0])).all()


def test_seeds_repeat_and_tensors_are_the_model(world: World, model: SampledRatings) -> None:
    asked, told, values = np.arange(9), np.array([12, 30]), np.array([1.0, 0.25])
    expected = model.features(told, values, asked, world.profiles[2])
    assert fit(world).features(told, values, asked, world.profiles[2]).tobytes() == expected.tobytes()
    assert fit(world, seed=1).features(told, values, asked, world.profiles[2]).tobytes() != expected.tobytes()
    tensors = model.to_tensors()
    assert all(torch.isfinite(value).all() for value in tensors.values())
    again = SampledRatings.from_tensors(tensors)
    assert again.features(told, values, asked, world.profiles[2]).tobytes() == expected.tobytes()


def test_without_content_and_profiles_it_still_ranks(world: World) -> None:
    bare = World()
    bare.profiles, bare.content = np.zeros((NUM_USERS, 0)), np.zeros((NUM_ITEMS, 0))
    assert (bare.quality(fit(bare), 20) > 0.7).all()


def test_all_sweeps_of_both_chains_are_reported(world: World) -> None:
    told: list[tuple[int, int, float]] = []
    config = SamplerConfig(dim=1, num_burn_in=1, num_samples=2)
    fit_sampled_ratings(
        world.training, world.profiles, world.content, config, seed=0, on_step=lambda *step: told.append(step)
    )
    assert [step[:2] for step in told] == [(place, 6) for place in range(1, 7)]


def test_mid_ranks_are_counted() -> None:
    values, people = np.array([1.0, 2.0, 2.0, 5.0, 3.0]), np.array([0, 0, 0, 0, 2])
    levels = Levels(np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.5, 1.0, 1.0, 2.5]))
    found = mid_ranks(values, people, 3, levels)
    for place, (value, person) in enumerate(zip(values, people, strict=True)):
        own = values[people == person]
        below = (own < value).sum() + levels.pseudo_counts[levels.values < value].sum()
        equals = (own == value).sum() + levels.pseudo_counts[levels.values == value].sum()
        np.testing.assert_allclose(found[place], (below + equals / 2) / (len(own) + 5))


def test_a_rating_that_training_has_not_met_has_a_rank() -> None:
    levels = Levels(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    found = mid_ranks(np.array([0.0, 2.0, 9.0]), np.arange(3), 3, levels)
    np.testing.assert_allclose(found, [1 / 3, 2 / 3, 2 / 3])


def test_a_pair_that_is_rated_twice_has_its_mean() -> None:
    values, seen = mean_matrix(np.array([0, 0, 1]), np.array([2, 2, 0]), np.array([1.0, 4.0, 3.0]), (2, 3))
    np.testing.assert_array_equal(values, [[0, 0, 2.5], [3, 0, 0]])
    np.testing.assert_array_equal(seen, [[0, 0, 1], [1, 0, 0]])

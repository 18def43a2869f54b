"""Features of choices: by hand, and what they find in a world of planted tastes."""

import numpy as np
import pytest
import torch

from palate.ratings.bayesian_factors import SamplerConfig, predict
from palate.ratings.sampled_choices import SampledChoices, fit_sampled_choices, log_share
from palate.ratings.tasks import Ratings

NUM_USERS, NUM_TRAINING, NUM_ITEMS, NUM_TASTES = 120, 90, 50, 3
NOBODYS = (47, 48, 49)
SMALL = SamplerConfig(dim=3, num_burn_in=6, num_samples=8)
NO_PROFILE = np.zeros(0)


class World:
    """Each person chooses items of their taste; as many others are sampled. Three items are chosen by nobody."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.taste, self.kind = rng.integers(NUM_TASTES, size=NUM_USERS), np.arange(NUM_ITEMS) % NUM_TASTES
        appeal = rng.gamma(2.0, 1.0, NUM_ITEMS)
        appeal[list(NOBODYS)] = 0
        self.items, self.values = [], []
        for user in range(NUM_USERS):
            chance = appeal * np.where(self.kind == self.taste[user], 6.0, 1.0)
            chosen = rng.choice(NUM_ITEMS, 12, replace=False, p=chance / chance.sum())
            others = rng.choice(np.setdiff1d(np.arange(NUM_ITEMS), chosen), 12, replace=False)
            order = rng.permutation(24)
            self.items.append(np.r_[chosen, others][order])
            self.values.append(np.r_[np.ones(12), np.zeros(12)][order])
        users = np.repeat(np.arange(NUM_TRAINING), 24)
        self.training = Ratings(
            users, np.concatenate(self.items[:NUM_TRAINING]), np.concatenate(self.values[:NUM_TRAINING])
        )
        self.chosen = np.zeros((NUM_TRAINING, NUM_ITEMS))
        self.chosen[users, self.training.items] = self.training.values


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def fit(world: World, seed: int = 0, config: SamplerConfig = SMALL) -> SampledChoices:
    return fit_sampled_choices(world.training, NUM_ITEMS, config, seed=seed)


@pytest.fixture(scope="module")
def model(world: World) -> SampledChoices:
    return fit(world)


def test_scores_count_what_was_chosen_together(world: World, model: SampledChoices) -> None:
    told, values, asked = np.array([3, 8, 11, 20]), np.array([1.0, 0.0, 1.0, 0.0]), np.array([5, 30, NOBODYS[0]])
    found = model.features(told, values, asked, NO_PROFILE)
    count = world.chosen.sum(0)
    both = world.chosen.T @ world.chosen * (1 - np.eye(NUM_ITEMS))
    own, logs = [3, 11], np.log(count + 0.5)
    np.testing.assert_allclose(found[:, 0], logs[asked])
    np.testing.assert_array_equal(found[:, 1], [0, 0, 1])
    np.testing.assert_array_equal(found[:, 2], count[asked] == 1)
    typical = np.mean([logs[row > 0].mean() for row in world.chosen])
    np.testing.assert_allclose(found[:, 3], logs[asked] * (logs[own].mean() - typical))
    active = count > 0
    for column, table in (
        (4, both / np.sqrt(np.outer(count + 3, count + 3))),
        (5, both / (count[:, None] + 2)),
        (6, (both > 0).astype(float)),
    ):
        expected = np.zeros(NUM_ITEMS)
        expected[active] = log_share(table[own].sum(0)[active], 0.3)
        np.testing.assert_allclose(found[:, column], expected[asked], rtol=1e-5)
    shrunk = (both / (count[:, None] + 5))[own].sum(0) + 0.004 * (count + 0.5)
    np.testing.assert_allclose(found[:, 7], (np.log(shrunk) - logs)[asked], rtol=1e-5)
    lift = np.log((both + 1) / (np.outer(count, count) / NUM_TRAINING + 1))[own].sum(0)
    np.testing.assert_allclose(found[:, 8], np.where(active, lift, 0)[asked], rtol=1e-5)


def test_the_factors_read_every_item_and_those_that_were_shown_most(world: World, model: SampledChoices) -> None:
    told, values = np.array([3, 8, 11, 20]), np.array([1.0, 0.0, 1.0, 0.0])
    active = np.flatnonzero(world.chosen.sum(0))
    spread = (world.chosen.sum(0)[active] / NUM_TRAINING) ** 0.25
    chosen, weight = np.zeros(len(active)), np.full(len(active), 0.1)
    chosen[np.searchsorted(active, [3, 11])] = 1
    weight[np.searchsorted(active, told)] = 1
    rows = model.factors.items
    score = predict(model.factors, rows, chosen / spread, weight, NO_PROFILE, rows) * spread
    found = model.features(told, values, active, NO_PROFILE)
    np.testing.assert_allclose(found[:, 9], score, rtol=1e-5)
    np.testing.assert_allclose(found[:, 10], log_share(score, 1.5), rtol=1e-5)


def test_planted_tastes_are_found(world: World, model: SampledChoices) -> None:
    for size, least in ((4, 0.05), (12, 0.15)):
        wins = []
        for user in range(NUM_TRAINING, NUM_USERS):
            items, values = world.items[user], world.values[user]
            score = model.features(items[:size], values[:size], items[12:], NO_PROFILE)[:, 9]
            yes, no = score[values[12:] == 1], score[values[12:] == 0]
            wins.append((yes[:, None] > no).mean())
        assert np.mean(wins) > 0.6 + least


def test_the_order_of_the_support_does_not_matter_and_what_came_later_is_not_read(
    world: World, model: SampledChoices
) -> None:
    items, values = world.items[100][:9], world.values[100][:9]
    expected = model.features(items, values, np.arange(NUM_ITEMS), NO_PROFILE)
    turned = model.features(items[::-1], values[::-1], np.arange(NUM_ITEMS), NO_PROFILE)
    np.testing.assert_allclose(turned, expected, rtol=1e-9)
    later = model.features(np.r_[items, 99], np.r_[values, 1.0], np.arange(NUM_ITEMS), NO_PROFILE)
    np.testing.assert_array_equal(later, expected)
    assert model.covers(np.array([0, NOBODYS[0], NUM_ITEMS, 99])).tolist() == [True, True, False, False]


def test_no_support_gives_a_finite_prior(model: SampledChoices) -> None:
    nothing = np.zeros(0, np.int64)
    found = model.features(nothing, np.zeros(0), np.arange(NUM_ITEMS), NO_PROFILE)
    assert np.isfinite(found).all()
    assert not found[:, 3:7].any()


def test_of_many_items_the_most_chosen_are_covered(world: World) -> None:
    few = fit(world, config=SamplerConfig(dim=3, num_burn_in=6, num_samples=8, most_people=40, most_items=20))
    covered = few.covers(np.arange(NUM_ITEMS))
    count = world.chosen.sum(0)
    assert covered.sum() == 20 + len(NOBODYS)
    assert count[covered & (count > 0)].min() >= count[~covered].max()
    assert covered[list(NOBODYS)].all()
    found = few.features(np.arange(NUM_ITEMS), np.ones(NUM_ITEMS), np.flatnonzero(covered), NO_PROFILE)
    assert np.isfinite(found).all()


def test_seeds_repeat_and_tensors_are_the_model(world: World, model: SampledChoices) -> None:
    asked, told, values = np.arange(9), np.array([12, 30]), np.array([1.0, 0.0])
    expected = model.features(told, values, asked, NO_PROFILE)
    assert fit(world).features(told, values, asked, NO_PROFILE).tobytes() == expected.tobytes()
    assert fit(world, seed=1).features(told, values, asked, NO_PROFILE).tobytes() != expected.tobytes()
    tensors = model.to_tensors()
    assert all(torch.isfinite(value).all() for value in tensors.values())
    again = SampledChoices.from_tensors(tensors)
    assert again.features(told, values, asked, NO_PROFILE).tobytes() == expected.tobytes()


def test_shares_are_relative_to_the_person() -> None:
    np.testing.assert_allclose(
        log_share(np.array([0.0, 2.0, -1.0, 4.0]), 0.3), [np.log((value / 1.5 + 0.3) / 0.3) for value in (0, 2, 0, 4)]
    )
    assert not log_share(np.zeros(3), 0.3).any()

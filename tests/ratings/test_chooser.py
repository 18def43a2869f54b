"""The chooser on a world of planted tastes; its combiner and its features by references."""

from dataclasses import replace

import numpy as np
import pytest

from palate.errors import ConfigError, DataError
from palate.ratings.bayesian_factors import SamplerConfig, predict
from palate.ratings.candidate_features import candidate_features, fit_scorers, log_share
from palate.ratings.chooser import Chooser, ChooserConfig, fit_chooser, redraw
from palate.ratings.combiner import CombinerConfig, combine, fit_combiner
from palate.ratings.tasks import Ratings, Task

NUM_USERS, NUM_TRAINING, NUM_ITEMS, NUM_TASTES = 120, 90, 50, 3
NOBODYS = (47, 48, 49)
SMALL = ChooserConfig(
    factors=SamplerConfig(dim=3, num_burn_in=6, num_samples=8),
    combiner=CombinerConfig(num_trees=20, min_leaf_events=20),
    num_folds=3,
    num_redraws=2,
    support_size=10,
)


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

    def tasks(self, size: int) -> list[Task]:
        made = []
        for user in range(NUM_TRAINING, NUM_USERS):
            items, values = self.items[user], self.values[user]
            made.append(Task(user, items[:size], values[:size], items[12:], values[12:]))
        return made

    def quality(self, model: Chooser, size: int) -> float:
        """Chance that a chosen item is scored above one that was not."""
        tasks = self.tasks(size)
        wins = []
        for scores, task in zip(model.score(tasks), tasks, strict=True):
            yes, no = scores[task.query_values == 1], scores[task.query_values == 0]
            wins.append(((yes[:, None] > no) + 0.5 * (yes[:, None] == no)).mean())
        return float(np.mean(wins))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def model(world: World) -> Chooser:
    return fit_chooser(world.training, NUM_ITEMS, SMALL, seed=0)


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


def test_planted_tastes_are_found_and_more_support_helps(world: World, model: Chooser) -> None:
    quality = [world.quality(model, size) for size in (0, 4, 12)]
    assert quality == sorted(quality)
    assert quality[0] > 0.6  # popularity
    assert quality[-1] > quality[0] + 0.05


def test_query_values_and_profiles_are_never_read(world: World, model: Chooser) -> None:
    tasks = world.tasks(8)
    blind = [task._replace(query_values=np.full(len(task.query_items), np.nan), user=0) for task in tasks]
    assert equal(model.score(tasks), model.score(blind))


def test_the_order_of_the_support_and_other_people_do_not_matter(world: World, model: Chooser) -> None:
    tasks = world.tasks(8)
    turned = [
        task._replace(support_items=task.support_items[::-1], support_values=task.support_values[::-1])
        for task in tasks
    ]
    expected = model.score(tasks)
    assert equal(expected, model.score(turned))
    for place in (0, 5):
        np.testing.assert_allclose(model.score([tasks[place]])[0], expected[place], rtol=1e-9)
    mixed = [tasks[0], world.tasks(0)[1], world.tasks(12)[2]]
    np.testing.assert_allclose(model.score(mixed)[0], expected[0], rtol=1e-9)


def test_each_query_item_is_scored_by_itself(world: World, model: Chooser) -> None:
    task = world.tasks(8)[0]
    scores, some = model.score([task, task._replace(query_items=task.query_items[:3])])
    np.testing.assert_allclose(some, scores[:3], rtol=1e-9)
    nothing = task._replace(query_items=task.query_items[:0])
    assert [len(found) for found in model.score([nothing])] == [0]
    assert [len(found) for found in model.score([nothing, task])] == [0, 12]


def test_no_support_gives_a_finite_prior_that_follows_popularity(world: World, model: Chooser) -> None:
    none = np.zeros(0, np.int64)
    (scores,) = model.score([Task(0, none, np.zeros(0), np.arange(NUM_ITEMS), np.zeros(NUM_ITEMS))])
    assert np.isfinite(scores).all()
    popularity = model.scorers.neighbourhood.popularity
    assert np.corrcoef(np.argsort(np.argsort(scores)), np.argsort(np.argsort(popularity)))[0, 1] > 0.9


def test_items_that_nobody_chose_score_alike_and_low(world: World, model: Chooser) -> None:
    task = world.tasks(8)[0]._replace(query_items=np.arange(NUM_ITEMS))
    (scores,) = model.score([task])
    cold = scores[list(NOBODYS)]
    np.testing.assert_allclose(cold, cold[0], rtol=1e-12)
    assert cold[0] < np.quantile(scores, 0.2)


def test_seeds_repeat(world: World, model: Chooser) -> None:
    tasks = world.tasks(8)
    assert equal(model.score(tasks), fit_chooser(world.training, NUM_ITEMS, SMALL, seed=0).score(tasks))
    assert not equal(model.score(tasks), fit_chooser(world.training, NUM_ITEMS, SMALL, seed=1).score(tasks))


def test_from_chance_nothing_is_learned() -> None:
    """The combiner would trust any score that has seen the very choices it is asked about."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(NUM_ITEMS)[:24] for _ in range(60)])
    chance = Ratings(np.repeat(np.arange(60), 24), items, np.tile([1.0, 0.0], 60 * 12))
    model = fit_chooser(chance, NUM_ITEMS, SMALL, seed=0)
    orders = [rng.permutation(NUM_ITEMS) for _ in range(30)]
    tasks = [Task(0, order[:10], np.tile([1.0, 0.0], 5), order[10:], np.zeros(40)) for order in orders]
    assert np.std(np.concatenate(model.score(tasks))) < 0.4


def test_an_episode_is_the_person_s_own_events_once() -> None:
    items, values = np.arange(10, 16), np.array([0.0, 1, 0, 1, 0, 1])
    task = redraw(items, values, 4, np.random.default_rng(0))
    assert (len(task.support_items), len(task.query_items)) == (4, 2)
    together = np.r_[task.support_items, task.query_items]
    assert sorted(together) == list(items)
    np.testing.assert_array_equal(np.r_[task.support_values, task.query_values], values[together - 10])


class TestFeatures:
    def test_each_candidate_reads_its_own_column(self, world: World) -> None:
        chosen = np.zeros((NUM_TRAINING, NUM_ITEMS))
        events = world.training
        kept = events.values == 1
        chosen[events.users[kept], events.items[kept]] = 1
        scorers = fit_scorers(chosen[10:], SMALL.factors, seed=0)
        support, shown = chosen[:2] * (np.arange(NUM_ITEMS) < 25), np.ones((2, NUM_ITEMS)) * (np.arange(NUM_ITEMS) < 25)
        rows, candidates = np.array([0, 1, 1]), np.array([30, 30, NOBODYS[0]])
        found = candidate_features(scorers, support, shown, rows, candidates, 0.1)
        popularity = chosen[10:].sum(0)
        np.testing.assert_allclose(found[:, 0], np.log(popularity[candidates] + 0.5))
        np.testing.assert_array_equal(found[:, 1], [0, 0, 1])
        logs = np.log(popularity + 0.5)
        typical = np.mean([logs[row > 0].mean() for row in chosen[10:]])
        for place in range(3):
            own = logs[support[rows[place]] > 0].mean() - typical
            np.testing.assert_allclose(found[place, 3], found[place, 0] * own)
        active = np.flatnonzero(popularity)
        scores = predict(
            scorers.factors,
            support[:, active] / scorers.spread,
            np.where(shown[:, active] > 0, 1.0, 0.1),
            np.zeros((2, 0)),
        )
        column = list(active).index(30)
        np.testing.assert_allclose(found[:2, -2], scores[:, column] * scorers.spread[column])
        assert found[2, -2] == 0

    def test_shares_are_relative_to_the_person(self) -> None:
        scores = np.array([[0.0, 2.0, -1.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        found = log_share(scores, 0.3)
        np.testing.assert_allclose(found[0], [np.log((value / 1.5 + 0.3) / 0.3) for value in (0, 2, 0, 4)])
        assert not found[1].any()


class TestCombiner:
    def test_the_regression_is_at_the_minimum_of_its_loss(self) -> None:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((400, 3)) * [1.0, 5.0, 0.1] + 2
        labels = (rng.random(400) < 1 / (1 + np.exp(-features[:, 0] + 2))).astype(float)
        config = CombinerConfig(logistic_ridge=4.0, num_trees=3, min_leaf_events=5)
        combiner = fit_combiner(features, labels, config, num_repeats=2, seed=0)
        standard = (features - features.mean(0)) / features.std(0)
        weights = combiner.linear.coef_[0]
        error = 1 / (1 + np.exp(-(standard @ weights + combiner.linear.intercept_))) - labels
        np.testing.assert_allclose(standard.T @ error + 2 * 4.0 * 2 * weights, 0, atol=1e-2)
        np.testing.assert_allclose(error.sum(), 0, atol=1e-2)
        expected = (standard @ weights + combiner.linear.intercept_ + combiner.trees.decision_function(features)) / 2
        np.testing.assert_allclose(combine(combiner, features), expected, rtol=1e-6)

    def test_the_trees_bend(self) -> None:
        rng = np.random.default_rng(0)
        features = rng.uniform(-1, 1, (2_000, 1))
        labels = (np.abs(features[:, 0]) > 0.5).astype(float)
        combiner = fit_combiner(features, labels, CombinerConfig(num_trees=30, min_leaf_events=20), seed=0)
        scores = combine(combiner, features)
        assert scores[labels == 1].min() > scores[labels == 0].mean() + 0.5


class TestErrors:
    def test_values_other_than_choices(self, world: World, model: Chooser) -> None:
        stars = world.training._replace(values=world.training.values + 1)
        with pytest.raises(DataError, match=r"training choices: a value is .*; expected 1 for chosen and 0"):
            fit_chooser(stars, NUM_ITEMS, SMALL, seed=0)
        task = world.tasks(4)[0]
        with pytest.raises(DataError, match=r"few-shot tasks, support: a value is 0\.5"):
            model.score([task._replace(support_values=np.full(4, 0.5))])

    def test_bad_rows(self, world: World, model: Chooser) -> None:
        with pytest.raises(DataError, match="is not in the table of 10 rows"):
            fit_chooser(world.training, 10, SMALL, seed=0)
        with pytest.raises(DataError, match="there are none"):
            fit_chooser(world.training.of(np.array([999])), NUM_ITEMS, SMALL, seed=0)
        with pytest.raises(DataError, match="there are none"):
            model.score([])
        with pytest.raises(DataError, match="names a row that is not there"):
            model.score([world.tasks(4)[0]._replace(query_items=np.array([NUM_ITEMS]))])

    def test_too_little_to_learn_from(self, world: World) -> None:
        with pytest.raises(DataError, match=r"2 people; expected at least chooser\.num_folds = 3"):
            fit_chooser(world.training.of(np.array([0, 1])), NUM_ITEMS, SMALL, seed=0)
        with pytest.raises(DataError, match=r"of 0 query events 0 are chosen"):
            fit_chooser(world.training, NUM_ITEMS, replace(SMALL, support_size=24), seed=0)
        none = world.training._replace(values=np.zeros(len(world.training.values)))
        with pytest.raises(DataError, match="has chosen nothing"):
            fit_chooser(none, NUM_ITEMS, SMALL, seed=0)

    @pytest.mark.parametrize(
        ("name", "value"), [("num_folds", 1), ("num_redraws", 0), ("support_size", -1), ("unobserved_weight", 1.5)]
    )
    def test_a_bad_setting_is_named(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=rf"chooser\.{name} is {value}; expected"):
            ChooserConfig(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_trees", 0),
            ("num_leaves", 1),
            ("min_leaf_events", 0),
            ("logistic_ridge", 0.0),
            ("tree_learning_rate", -0.1),
        ],
    )
    def test_a_bad_setting_of_the_combiner_is_named(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=rf"combiner\.{name} is {value}; expected"):
            CombinerConfig(**{name: value})  # type: ignore[arg-type]

"""The ranker on a world of planted tastes, and its mid-ranks by counting."""

from dataclasses import replace

import numpy as np
import pytest

from palate.errors import ConfigError, DataError, NumericalError
from palate.ratings.bayesian_factors import SamplerConfig, predict
from palate.ratings.implicit_profile import profile_of
from palate.ratings.ranker import Levels, Ranker, RankerConfig, fit_ranker, mid_ranks
from palate.ratings.tasks import Ratings, Task

NUM_USERS, NUM_TRAINING, NUM_ITEMS, NUM_COLD = 110, 80, 40, 4
SMALL = RankerConfig(
    factors=SamplerConfig(dim=2, num_burn_in=12, num_samples=12),
    targets=("midrank", "raw"),
    profile_dim=3,
    item_profile_dim=3,
)


class World:
    """People like one half of the content or the other; the last items are rated by nobody in training."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        taste = rng.choice([-1.0, 1.0], NUM_USERS)
        side = rng.choice([-1.0, 1.0], NUM_ITEMS)
        side[-NUM_COLD:] = [1, 1, -1, -1]
        self.user_features = np.c_[taste * 0.5 + rng.standard_normal(NUM_USERS), rng.standard_normal(NUM_USERS)]
        self.item_features = np.c_[side, rng.standard_normal(NUM_ITEMS)]
        self.item_features[-NUM_COLD:, 1] = 0
        self.liking = 3 + 0.4 * rng.standard_normal(NUM_ITEMS) + 0.9 * np.outer(taste, side)
        noisy = self.liking + rng.choice([-0.5, 0.5], NUM_USERS)[:, None] + 0.5 * rng.standard_normal(self.liking.shape)
        self.ratings = noisy.round().clip(1, 5)
        events = [(u, i) for u in range(NUM_TRAINING) for i in range(NUM_ITEMS - NUM_COLD) if rng.random() < 0.5]
        users, items = np.array(events).T
        self.training = Ratings(users, items, self.ratings[users, items])
        self.order = np.stack([rng.permutation(NUM_ITEMS - NUM_COLD) for _ in range(NUM_USERS)])

    def tasks(self, size: int) -> list[Task]:
        """New people: `size` items of support, the last 12 of their order and the cold items as query."""
        cold = np.arange(NUM_ITEMS - NUM_COLD, NUM_ITEMS)
        made = []
        for user in range(NUM_TRAINING, NUM_USERS):
            support, query = self.order[user, :size], np.r_[self.order[user, -12:], cold]
            values = self.ratings[user]
            made.append(Task(user, support, values[support], query, values[query]))
        return made

    def quality(self, model: Ranker, size: int) -> float:
        """Mean correlation of scores and liking over the new people."""
        tasks = self.tasks(size)
        scores = model.score(tasks, self.user_features)
        pairs = zip(scores, tasks, strict=True)
        return float(np.mean([np.corrcoef(s, self.liking[t.user, t.query_items])[0, 1] for s, t in pairs]))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def fit(world: World, *, seed: int = 0, config: RankerConfig = SMALL) -> Ranker:
    return fit_ranker(world.training, NUM_ITEMS, world.user_features, world.item_features, config, seed=seed)


@pytest.fixture(scope="module")
def model(world: World) -> Ranker:
    return fit(world)


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


def test_planted_tastes_are_found_and_more_support_helps(world: World, model: Ranker) -> None:
    quality = [world.quality(model, size) for size in (0, 2, 6, 20)]
    assert quality == sorted(quality)
    assert quality[-1] > 0.85
    assert quality[-1] > quality[0] + 0.3


@pytest.mark.parametrize("target", ["midrank", "raw"])
def test_either_target_alone_finds_them(world: World, target: str) -> None:
    assert world.quality(fit(world, config=replace(SMALL, targets=(target,))), 20) > 0.85


def test_chains_are_averaged_on_one_scale(world: World, model: Ranker) -> None:
    tasks = world.tasks(6)
    alone = [model._replace(chains=(chain,)).score(tasks, world.user_features) for chain in model.chains]
    for both, first, second in zip(model.score(tasks, world.user_features), *alone, strict=True):
        np.testing.assert_allclose(both, (first + second) / 2)
    spread = [np.std(np.concatenate(scores)) for scores in alone]
    assert 0.7 < spread[0] / spread[1] < 1.4


def test_a_task_is_scored_from_its_support_its_profile_and_its_set_of_items(world: World, model: Ranker) -> None:
    """By the parts, a person at a time."""
    tasks = world.tasks(6)
    for scores, task in zip(model.score(tasks, world.user_features), tasks, strict=True):
        values, seen = np.zeros((2, 1, NUM_ITEMS)), np.zeros((1, NUM_ITEMS))
        nobody = np.zeros(6, np.int64)
        values[:, 0, task.support_items] = mid_ranks(task.support_values, nobody, 1, model.levels), task.support_values
        seen[0, task.support_items] = 1
        profile = world.user_features[task.user] - world.user_features[:NUM_TRAINING].mean(0)
        features = np.array([[*profile, *profile_of(model.profile, seen)[0]]])
        parts = [
            predict(chain.factors, own, seen, features)[0, task.query_items] / chain.scale
            for chain, own in zip(model.chains, values, strict=True)
        ]
        np.testing.assert_allclose(scores, np.mean(parts, 0), rtol=1e-9)


def test_query_values_are_never_read(world: World, model: Ranker) -> None:
    tasks = world.tasks(6)
    blind = [task._replace(query_values=np.full(len(task.query_items), np.nan)) for task in tasks]
    assert equal(model.score(tasks, world.user_features), model.score(blind, world.user_features))


def test_the_order_of_the_support_and_other_people_do_not_matter(world: World, model: Ranker) -> None:
    tasks = world.tasks(8)
    turned = [
        task._replace(support_items=task.support_items[::-1], support_values=task.support_values[::-1])
        for task in tasks
    ]
    expected = model.score(tasks, world.user_features)
    for one, two in zip(expected, model.score(turned, world.user_features), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)
    for place in (0, 7):
        np.testing.assert_allclose(expected[place], model.score([tasks[place]], world.user_features)[0], rtol=1e-9)
    # People with longer or no support beside them pad the same tables.
    mixed = [tasks[0], world.tasks(0)[1], world.tasks(20)[2]]
    np.testing.assert_allclose(expected[0], model.score(mixed, world.user_features)[0], rtol=1e-9)


def test_each_query_item_is_scored_by_itself(world: World, model: Ranker) -> None:
    task = world.tasks(6)[0]
    turned = task._replace(query_items=task.query_items[::-1])
    scores, reverse = model.score([task, turned], world.user_features)
    np.testing.assert_array_equal(scores, reverse[::-1])
    nothing = task._replace(query_items=task.query_items[:0], query_values=task.query_values[:0])
    assert len(model.score([nothing], world.user_features)[0]) == 0


def test_no_support_gives_a_finite_prior_that_profiles_move(world: World, model: Ranker) -> None:
    task = world.tasks(0)[0]
    features = world.user_features.copy()
    (prior,) = model.score([task], features)
    assert np.isfinite(prior).all()
    features[task.user] = [2.0, 0.0]
    (one,) = model.score([task], features)
    features[task.user] = [-2.0, 0.0]
    (other,) = model.score([task], features)
    side = world.item_features[task.query_items, 0]
    assert (one - other)[side > 0].mean() > (one - other)[side < 0].mean() + 1  # in standard deviations


def test_items_that_nobody_rated_are_read_by_content(world: World, model: Ranker) -> None:
    correct = []
    for scores, task in zip(model.score(world.tasks(20), world.user_features), world.tasks(20), strict=True):
        cold = scores[-NUM_COLD:]
        np.testing.assert_allclose(cold[[0, 2]], cold[[1, 3]], rtol=1e-9)  # equal content, equal score
        correct.append((cold[0] > cold[2]) == (world.liking[task.user, -4] > world.liking[task.user, -2]))
    assert np.mean(correct) > 0.8


def test_seeds_repeat_and_the_profiles_of_others_are_not_read(world: World, model: Ranker) -> None:
    tasks = world.tasks(6)
    assert equal(model.score(tasks, world.user_features), fit(world).score(tasks, world.user_features))
    assert not equal(model.score(tasks, world.user_features), fit(world, seed=1).score(tasks, world.user_features))
    features = world.user_features.copy()
    features[NUM_TRAINING:] = 99.0
    other = fit_ranker(world.training, NUM_ITEMS, features, world.item_features, SMALL, seed=0)
    assert equal(model.score(tasks, world.user_features), other.score(tasks, world.user_features))


def test_without_features_and_profiles_it_still_ranks(world: World) -> None:
    config = replace(SMALL, profile_dim=0, item_profile_dim=0)
    model = fit_ranker(world.training, NUM_ITEMS, np.zeros((NUM_USERS, 0)), np.zeros((NUM_ITEMS, 0)), config, seed=0)
    tasks = world.tasks(20)
    pairs = zip(model.score(tasks, np.zeros((NUM_USERS, 0))), tasks, strict=True)
    found = [np.corrcoef(s[:12], world.liking[t.user, t.query_items[:12]])[0, 1] for s, t in pairs]
    assert np.mean(found) > 0.7


def test_all_sweeps_of_all_chains_are_reported(world: World) -> None:
    told: list[tuple[int, int, float]] = []
    config = replace(SMALL, factors=SamplerConfig(dim=1, num_burn_in=1, num_samples=2))
    fit_ranker(
        world.training,
        NUM_ITEMS,
        world.user_features,
        world.item_features,
        config,
        seed=0,
        on_step=lambda *step: told.append(step),
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


class TestErrors:
    def test_bad_features_and_tasks(self, world: World, model: Ranker) -> None:
        task = world.tasks(2)[0]
        features = world.user_features.copy()
        features[task.user, 1] = np.nan
        with pytest.raises(DataError, match=rf"user features, row {task.user}, column 1: nan"):
            model.score([task], features)
        with pytest.raises(DataError, match="3 columns; expected the 2 of training"):
            model.score([task], np.zeros((NUM_USERS, 3)))
        with pytest.raises(DataError, match="there are none"):
            model.score([], world.user_features)
        with pytest.raises(DataError, match="names a row that is not there"):
            model.score([task._replace(user=NUM_USERS)], world.user_features)
        broken = world.item_features.copy()
        broken[3, 0] = np.inf
        with pytest.raises(DataError, match="item features, row 3, column 0: inf"):
            fit_ranker(world.training, NUM_ITEMS, world.user_features, broken, SMALL, seed=0)
        with pytest.raises(DataError, match=r"item features have 40 rows; expected num_items = 41"):
            fit_ranker(world.training, 41, world.user_features, world.item_features, SMALL, seed=0)

    def test_ratings_that_are_all_the_same(self, world: World) -> None:
        same = world.training._replace(values=np.full(len(world.training.values), 4.0))
        with pytest.raises(DataError, match=r"ranker, chain 0 \(raw\): all values are 4"):
            fit_ranker(
                same, NUM_ITEMS, world.user_features, world.item_features, replace(SMALL, targets=("raw",)), seed=0
            )

    def test_divergence_names_the_chain(self, world: World) -> None:
        huge = world.item_features.copy()
        huge[:, 0] *= 1e160
        with (
            np.errstate(all="ignore"),
            pytest.raises(NumericalError, match=r"ranker, chain 0 \(midrank\): .* at sweep 1"),
        ):
            fit_ranker(world.training, NUM_ITEMS, world.user_features, huge, SMALL, seed=0)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"targets": ()}, r"ranker\.targets is \(\); expected one or more of midrank, raw"),
            ({"targets": ("rank",)}, r"ranker\.targets is \('rank',\)"),
            ({"profile_dim": -1}, r"ranker\.profile_dim is -1"),
            ({"midrank_pseudo": 0.0}, r"ranker\.midrank_pseudo is 0\.0; expected above 0"),
        ],
    )
    def test_a_bad_setting_is_named(self, settings: dict[str, object], match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            RankerConfig(**settings)  # type: ignore[arg-type]

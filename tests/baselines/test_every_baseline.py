"""What holds for every entry of the table: no evidence means popularity, a planted taste is found."""

import numpy as np
import pytest

from palate.baselines import BASELINES, fit_popularity, select
from palate.errors import DataError, NumericalError

LEARNING = {name: entry for name, entry in BASELINES.items() if entry.learns}
PERSONAL = {name: entry for name, entry in LEARNING.items() if name != "popularity"}
NOBODY_KNOWN: list[np.ndarray] = [np.array([], dtype=np.int64)]


def purchases(seed: int, num_users: int = 50, num_items: int = 30) -> np.ndarray:
    """Long-tailed purchases; the last item was never bought."""
    rng = np.random.default_rng(seed)
    matrix = (rng.random((num_users, num_items)) < np.linspace(0.6, 0.05, num_items)).astype(np.float32)
    matrix[:, -1] = 0
    return matrix


def two_tastes(seed: int, num_users: int = 80) -> np.ndarray:
    """Items 0..19 for one half of the people, 20..39 for the other, who are fewer: the unpopular taste."""
    rng = np.random.default_rng(seed)
    likes_first = np.arange(num_users) < 0.6 * num_users
    belongs = likes_first[:, None] == (np.arange(40) < 20)
    return (rng.random((num_users, 40)) < np.where(belongs, 0.5, 0.03)).astype(np.float32)


@pytest.mark.parametrize("entry", BASELINES.values(), ids=BASELINES.keys())
class TestEveryBaseline:
    def test_scores_are_finite_and_one_row_a_person(self, entry) -> None:
        for config in entry.configs:
            scores = entry.fit(purchases(0), config)([np.array([3, 4]), np.array([29]), *NOBODY_KNOWN])
            assert scores.shape == (3, 30)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()

    def test_no_people_gives_no_rows(self, entry) -> None:
        assert entry.fit(purchases(0), entry.configs[0])([]).shape == (0, 30)

    def test_order_and_repeats_of_the_support_change_nothing(self, entry) -> None:
        scorer = entry.fit(purchases(0), entry.configs[0])
        supports = [np.array([7, 2, 19, 11, 28]), np.array([0, 1])]
        shuffled = [np.array([28, 11, 2, 7, 19, 2, 2]), np.array([1, 0, 1])]
        np.testing.assert_array_equal(scorer(supports), scorer(shuffled))

    def test_same_bytes_from_the_same_data(self, entry) -> None:
        first = entry.fit(purchases(0), entry.configs[0])([np.array([3, 4])])
        again = entry.fit(purchases(0), entry.configs[0])([np.array([3, 4])])
        assert first.tobytes() == again.tobytes()

    def test_fitting_and_scoring_leave_their_input_alone(self, entry) -> None:
        matrix, support = purchases(0), np.array([4, 3])
        entry.fit(matrix, entry.configs[0])([support])
        np.testing.assert_array_equal(matrix, purchases(0))
        assert support.tolist() == [4, 3]

    def test_preparing_once_fits_as_preparing_each_time(self, entry) -> None:
        prepared = entry.prepare(purchases(0))
        shared = [entry.fit_prepared(prepared, config)([np.array([3])]) for config in entry.configs]
        alone = [entry.fit(purchases(0), config)([np.array([3])]) for config in entry.configs]
        np.testing.assert_array_equal(shared, alone)

    def test_refuses_what_is_not_a_purchase_matrix(self, entry) -> None:
        for bad in (2.0, np.nan, -1.0):
            matrix = purchases(0)
            matrix[3, 7] = bad
            with pytest.raises(DataError, match="user row 3, item column 7"):
                entry.fit(matrix, entry.configs[0])
        with pytest.raises(DataError, match="no purchase"):
            entry.fit(np.zeros((3, 4), np.float32), entry.configs[0])

    @pytest.mark.parametrize("item", [-1, 30])
    def test_refuses_an_item_outside_the_catalogue(self, entry, item: int) -> None:
        scorer = entry.fit(purchases(0), entry.configs[0])
        with pytest.raises(DataError, match=rf"user row 1 names item {item}; expected indices in 0\.\.29"):
            scorer([np.array([2]), np.array([2, item])])


@pytest.mark.parametrize("entry", LEARNING.values(), ids=LEARNING.keys())
def test_an_empty_support_gives_the_popularity_ranking(entry) -> None:
    matrix = purchases(1)
    expected = np.argsort(-matrix.sum(axis=0), kind="stable")
    for config in entry.configs:
        scores = entry.fit(matrix, config)(NOBODY_KNOWN)
        np.testing.assert_array_equal(np.argsort(-scores[0], kind="stable"), expected)


def taste_found(scorer, seed: int = 99) -> float:
    """Share of fresh people's unseen purchases among as many best-scored items, after three purchases."""
    people = two_tastes(seed)
    people = people[people.sum(axis=1) > 5]
    supports = [np.flatnonzero(row)[::3][:3] for row in people]
    scores = scorer(supports)
    found = []
    for row, bought, support in zip(scores, people, supports, strict=True):
        row[support] = -np.inf
        unseen = set(np.flatnonzero(bought).tolist()) - set(support.tolist())
        listed = np.argsort(-row, kind="stable")[: len(unseen)]
        found.append(len(unseen & set(listed.tolist())) / len(unseen))
    return float(np.mean(found))


@pytest.mark.parametrize("entry", PERSONAL.values(), ids=PERSONAL.keys())
def test_personal_baselines_find_a_planted_taste(entry) -> None:
    popularity = taste_found(fit_popularity(two_tastes(0)), seed=100)
    chosen = select(entry, two_tastes(0), taste_found)
    # Half of what is left of a taste is bought by each who has it; popularity sees one taste of two.
    assert taste_found(chosen.scorer, seed=100) > popularity + 0.1


class TestSelect:
    def test_keeps_the_best_setting_and_the_whole_table(self) -> None:
        entry = BASELINES["item_knn"]
        values = iter([0.1, 0.3, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
        chosen = select(entry, purchases(0), lambda scorer: next(values))
        assert chosen.config == entry.configs[1], "of two equal values the earlier setting is kept"
        assert [trial.config for trial in chosen.table] == list(entry.configs)
        assert [trial.value for trial in chosen.table[:3]] == [0.1, 0.3, 0.2]
        support = [np.array([3, 5])]
        expected = entry.fit(purchases(0), entry.configs[1])(support)
        np.testing.assert_array_equal(chosen.scorer(support), expected)

    def test_refuses_a_validation_that_gives_nan(self) -> None:
        with pytest.raises(NumericalError, match=r"PopularityConfig\(\) gave NaN"):
            select(BASELINES["popularity"], purchases(0), lambda scorer: float("nan"))

"""What holds for every entry of the table: no evidence means popularity, a planted taste is found."""

import numpy as np
import pytest

from palate.baselines import BASELINES, NEWCOMER_BASELINES, ListBaseline, NoSettings, RandomConfig, select
from palate.data.event_log import EventLog, from_sequences
from palate.errors import DataError, NumericalError

NUM_ITEMS = 30
EVERY = {
    f"{name}, {task}": getattr(line, task)
    for name, line in BASELINES.items()
    for task in ("newcomers", "sequences", "cold_sequences")
    if getattr(line, task) is not None
}
LEARNING = {name: entry for name, entry in EVERY.items() if not name.startswith(("constant", "random"))}
PERSONAL = {
    name: entry for name, entry in NEWCOMER_BASELINES.items() if name not in ("constant", "random", "popularity")
}
NOBODY_KNOWN = from_sequences([[]])


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


def log_of(matrix: np.ndarray) -> EventLog:
    return from_sequences([np.flatnonzero(row) for row in matrix])


def first_fit(entry: ListBaseline, log: EventLog):
    return entry.fit(log, NUM_ITEMS, entry.configs[0], entry.decays[0])


@pytest.mark.parametrize("entry", EVERY.values(), ids=EVERY.keys())
class TestEveryBaseline:
    def test_scores_are_finite_and_one_row_a_person(self, entry) -> None:
        for config in entry.configs:
            for decay in entry.decays:
                scorer = entry.fit(log_of(purchases(0)), NUM_ITEMS, config, decay)
                scores = scorer(from_sequences([[3, 4], [29], []]))
                assert scores.shape == (3, NUM_ITEMS)
                assert scores.dtype == np.float32
                assert np.isfinite(scores).all()

    def test_no_people_gives_no_rows(self, entry) -> None:
        assert first_fit(entry, log_of(purchases(0)))(from_sequences([])).shape == (0, NUM_ITEMS)

    def test_without_decay_the_order_of_events_changes_nothing(self, entry) -> None:
        scorer = entry.fit(log_of(purchases(0)), NUM_ITEMS, entry.configs[0], 1.0)
        ordered, shuffled = from_sequences([[7, 2, 19, 11, 28], [0, 1]]), from_sequences([[28, 11, 2, 7, 19], [1, 0]])
        np.testing.assert_array_equal(scorer(ordered), scorer(shuffled))

    def test_same_bytes_from_the_same_data(self, entry) -> None:
        first, again = (first_fit(entry, log_of(purchases(0)))(from_sequences([[3, 4]])) for _ in range(2))
        assert first.tobytes() == again.tobytes()

    def test_fitting_and_scoring_leave_their_input_alone(self, entry) -> None:
        log, events = log_of(purchases(0)), from_sequences([[4, 3, 4]])
        for decay in (*entry.decays, 1.0):
            entry.fit(log, NUM_ITEMS, entry.configs[0], decay)(events)
        np.testing.assert_array_equal(log.items, log_of(purchases(0)).items)
        assert (events.items.tolist(), events.offsets.tolist()) == ([4, 3, 4], [0, 3])

    def test_refuses_training_events_that_cannot_be_fitted(self, entry) -> None:
        with pytest.raises(DataError, match="training events: 2 people have none"):
            first_fit(entry, from_sequences([[], []]))
        for item in (-1, NUM_ITEMS):
            with pytest.raises(DataError, match=rf"training events name item {item}; expected indices in 0\.\.29"):
                first_fit(entry, from_sequences([[2], [2, item]]))

    @pytest.mark.parametrize("item", [-1, NUM_ITEMS])
    def test_refuses_an_item_outside_the_catalogue(self, entry, item: int) -> None:
        scorer = first_fit(entry, log_of(purchases(0)))
        with pytest.raises(DataError, match=rf"user row 2 names item {item}; expected indices in 0\.\.29"):
            scorer(from_sequences([[2], [], [2, item]]))


@pytest.mark.parametrize("entry", LEARNING.values(), ids=LEARNING.keys())
def test_a_person_without_events_gets_the_popularity_ranking(entry) -> None:
    matrix = purchases(1)
    expected = np.argsort(-matrix.sum(axis=0), kind="stable")
    for config in entry.configs:
        scores = entry.fit(log_of(matrix), NUM_ITEMS, config, entry.decays[0])(NOBODY_KNOWN)
        np.testing.assert_array_equal(np.argsort(-scores[0], kind="stable"), expected)


def taste_found(scorer, seed: int = 99) -> float:
    """Share of fresh people's unseen purchases among as many best-scored items, after three purchases."""
    people = two_tastes(seed)
    people = people[people.sum(axis=1) > 5]
    supports = [np.flatnonzero(row)[::3][:3] for row in people]
    scores = scorer(from_sequences(supports))
    found = []
    for row, bought, support in zip(scores, people, supports, strict=True):
        row[support] = -np.inf
        unseen = set(np.flatnonzero(bought).tolist()) - set(support.tolist())
        listed = np.argsort(-row, kind="stable")[: len(unseen)]
        found.append(len(unseen & set(listed.tolist())) / len(unseen))
    return float(np.mean(found))


@pytest.mark.parametrize("entry", PERSONAL.values(), ids=PERSONAL.keys())
def test_personal_baselines_find_a_planted_taste(entry) -> None:
    training = log_of(two_tastes(0))
    popularity = taste_found(NEWCOMER_BASELINES["popularity"].fit(training, 40, NoSettings(), 1.0), seed=100)
    chosen = select(entry, training, 40, taste_found)
    # Half of what is left of a taste is bought by each who has it; popularity sees one taste of two.
    assert taste_found(chosen.scorer, seed=100) > popularity + 0.1


class TestSelect:
    def test_keeps_the_best_setting_and_the_whole_table(self) -> None:
        entry, log = NEWCOMER_BASELINES["item_knn"], log_of(purchases(0))
        values = iter([0.1, 0.3, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
        chosen = select(entry, log, NUM_ITEMS, lambda scorer: next(values))
        assert chosen.settings == {"shrink": 30.0, "top_k": 50}
        assert chosen.config == entry.configs[1], "of two equal values the earlier setting is kept"
        assert [trial.config for trial in chosen.table] == list(entry.configs)
        assert [trial.value for trial in chosen.table[:3]] == [0.1, 0.3, 0.2]
        support = from_sequences([[3, 5]])
        expected = entry.fit(log, NUM_ITEMS, entry.configs[1], 1.0)(support)
        np.testing.assert_array_equal(chosen.scorer(support), expected)

    def test_fits_once_a_config_and_tries_every_decay_with_it(self) -> None:
        fitted: list[int] = []

        def fit(training: EventLog, num_items: int, config: RandomConfig):
            fitted.append(config.seed)
            return lambda shown: np.asarray(config.seed + shown.toarray(), np.float32)

        entry = ListBaseline("counting", fit, (RandomConfig(1), RandomConfig(2)), (0.5, 1.0))
        events = from_sequences([[0, 0]])
        chosen = select(entry, log_of(purchases(0)), NUM_ITEMS, lambda scorer: float(scorer(events)[0, 0]))
        assert fitted == [1, 2]
        assert [trial.value for trial in chosen.table] == [2.5, 3.0, 3.5, 4.0]
        assert (chosen.config, chosen.decay) == (RandomConfig(2), 1.0)
        assert chosen.settings == {"seed": 2, "decay": 1.0}

    def test_refuses_a_validation_that_gives_nan(self) -> None:
        entry = NEWCOMER_BASELINES["popularity"]
        with pytest.raises(NumericalError, match=r"NoSettings\(\) with decay 1\.0 gave NaN"):
            select(entry, log_of(purchases(0)), NUM_ITEMS, lambda scorer: float("nan"))

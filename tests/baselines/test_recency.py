"""Item-item baselines with recency against slow, obvious computations, and on worlds whose answer is planted."""

import numpy as np
import pytest

from palate.baselines import NEWCOMER_BASELINES, SEQUENCE_BASELINES, EASEConfig, Scorer, select
from palate.baselines.base import at_decay
from palate.baselines.linear import linear_model
from palate.data.event_log import EventLog, from_sequences
from palate.evaluation.sequential.leave_one_out import Held, figures, leave_one_out, rank_targets
from palate.scorers.item_weights import co_occurrences, ease_weights, neighbour_weights, transition_weights

NUM_ITEMS = 15


def random_log(seed: int = 0) -> EventLog:
    rng = np.random.default_rng(seed)
    return from_sequences([rng.permutation(NUM_ITEMS)[: rng.integers(0, 10)] for _ in range(60)])


def purchases(log: EventLog) -> np.ndarray:
    matrix = np.zeros((log.num_users, NUM_ITEMS), np.float32)
    for user in range(log.num_users):
        matrix[user, log.items[log.offsets[user] : log.offsets[user + 1]]] = 1
    return matrix


def test_co_occurrences_count_people() -> None:
    log = from_sequences([[0, 1, 0], [1, 2], []])
    assert co_occurrences(log, 3).tolist() == [[1, 1, 0], [1, 2, 1], [0, 1, 1]]
    assert co_occurrences(log, 3).flags.c_contiguous


def test_ease_is_the_inverse_of_the_paper() -> None:
    log = random_log()
    matrix = purchases(log).astype(np.float64)
    inverse = np.linalg.inv(matrix.T @ matrix + 50 * np.eye(NUM_ITEMS))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(ease_weights(log, NUM_ITEMS, 50.0), expected, atol=1e-5)


def test_ease_of_sequences_without_decay_is_that_of_newcomers() -> None:
    log = random_log()
    supports = from_sequences([[1, 5, 7], [3]])
    newcomers, sequences = NEWCOMER_BASELINES["ease"], SEQUENCE_BASELINES["EASE, recency"]
    expected = newcomers.fit(log, NUM_ITEMS, EASEConfig(50.0), 1.0)(supports)
    found = sequences.fit(log, NUM_ITEMS, EASEConfig(50.0, "float32"), 1.0)(supports)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_neighbours_are_shrunk_cosines() -> None:
    log = random_log()
    counts = purchases(log).T @ purchases(log)
    weights = neighbour_weights(log, NUM_ITEMS, 3.0)
    for one in range(NUM_ITEMS):
        for other in range(NUM_ITEMS):
            norm = np.sqrt(counts[one, one] * counts[other, other])
            expected = 0 if one == other else counts[one, other] / (norm + 3)
            assert weights[one, other] == pytest.approx(expected, rel=1e-5)


def test_transitions_stay_within_a_person() -> None:
    log = from_sequences([[0, 1, 2], [], [0, 1], [0, 3]])
    expected = np.zeros((4, 4))
    expected[0, 1], expected[0, 3], expected[1, 2] = 2 / 3, 1 / 3, 1
    np.testing.assert_allclose(transition_weights(log, 4), expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_scores_weigh_events_by_age(decay: float) -> None:
    rng = np.random.default_rng(1)
    weights = rng.random((NUM_ITEMS, NUM_ITEMS)).astype(np.float32)
    rows = [[3, 1, 3, 4], [9], []]
    model = linear_model(weights, np.zeros(NUM_ITEMS, np.float32))
    scores = at_decay(model, NUM_ITEMS, decay)(from_sequences(rows))
    for row, items in enumerate(rows):
        expected = np.zeros(NUM_ITEMS)
        for age, item in enumerate(reversed(items)):
            expected += decay**age * weights[item]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5)


def test_popularity_orders_what_nothing_is_known_of() -> None:
    popularity = np.array([0.1, 0.3, 0.2], np.float32)
    scores = at_decay(linear_model(np.zeros((3, 3), np.float32), popularity), 3, 1.0)(from_sequences([[0], []]))
    assert np.argsort(-scores, axis=1).tolist() == [[1, 2, 0], [1, 2, 0]]


def quality(scorer: Scorer, held: Held, metric: str = "ndcg@10") -> float:
    return float(figures(rank_targets(scorer, held, 40).removed)[metric].mean())


def test_a_chain_of_items_is_found_by_every_baseline_that_reads_order() -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 40, 300)
    log = from_sequences([(start + np.arange(6)) % 40 for start in starts])
    split = leave_one_out(log)
    found = {}
    for name, entry in SEQUENCE_BASELINES.items():
        chosen = select(entry, split.training, 40, lambda scorer: quality(scorer, split.validation))
        assert len(chosen.table) == len(entry.configs) * len(entry.decays)
        found[name] = quality(chosen.scorer, split.test, "hr@5")
    assert found.pop("popularity") < 0.5
    assert min(found.values()) > 0.95, found

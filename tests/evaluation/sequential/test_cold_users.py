"""The cold protocol: known answers, a plain loop beside it, and a model that peeks."""

import math

import numpy as np
import pytest

from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.sequential.cold_users import (
    at_counts,
    average_gain,
    compare,
    judge_later,
    judge_next,
    positions_after,
    split_people,
)
from palate.metrics import ndcg_at_k

NUM_ITEMS = 40


def some_log() -> EventLog:
    rng = np.random.default_rng(0)
    return from_sequences([rng.permutation(NUM_ITEMS)[:size] for size in (1, 2, 6, 9, 16, 30)])


def hashed(inputs: EventLog) -> np.ndarray:
    """Scores that depend on everything read."""
    totals = [inputs.items[a:b].sum() for a, b in zip(inputs.offsets[:-1], inputs.offsets[1:], strict=True)]
    return np.stack([np.random.default_rng(int(total)).random(NUM_ITEMS) for total in totals]).astype(np.float32)


def test_groups_are_whole_and_apart() -> None:
    split = split_people(100, num_test=20, num_validation=10, seed=1)
    assert [len(part) for part in split] == [70, 10, 20]
    assert sorted(np.concatenate(split).tolist()) == list(range(100))
    with pytest.raises(ConfigError, match="empty"):
        split_people(30, num_test=20, num_validation=10)


def test_positions_of_each_size() -> None:
    assert [list(positions_after(size)) for size in (1, 2, 3, 5)] == [[1], [2, 3], [3, 4], [5, 6, 7]]
    assert list(positions_after(100)) == [100, 101, 102, 103, 104]


def test_next_against_a_plain_loop() -> None:
    log, sizes = some_log(), (1, 3, 5, 10)
    found = judge_next(at_counts(hashed), log, NUM_ITEMS, sizes, batch_size=2)
    for user in range(log.num_users):
        history = log.items[log.offsets[user] : log.offsets[user + 1]].tolist()
        for column, size in enumerate(sizes):
            values = []
            for count in positions_after(size):
                if count < len(history):
                    scores = hashed(from_sequences([history[:count]]))[0]
                    left = [item for item in np.argsort(-scores) if item not in history[:count]]
                    rank = left.index(history[count])
                    values.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
            full = len(values) == len(positions_after(size))
            np.testing.assert_allclose(found[user, column], np.mean(values) if full else np.nan)


def test_later_against_a_plain_loop() -> None:
    log, sizes = some_log(), (1, 5)
    found = judge_later(at_counts(hashed), log, NUM_ITEMS, sizes, batch_size=4)
    for user in range(log.num_users):
        history = log.items[log.offsets[user] : log.offsets[user + 1]].tolist()
        for column, size in enumerate(sizes):
            if len(history) <= size:
                assert np.isnan(found[user, column])
                continue
            scores = hashed(from_sequences([history[:size]]))[0]
            left = [item for item in np.argsort(-scores) if item not in history[:size]][:10]
            relevant = np.isin(np.arange(NUM_ITEMS), history[size:])
            expected = ndcg_at_k(np.array([left]), relevant[None])[0]
            np.testing.assert_allclose(found[user, column], expected)


def test_a_scorer_is_shown_the_first_events_alone() -> None:
    log, shown = some_log(), []

    def scorer(inputs: EventLog) -> np.ndarray:
        shown.append(inputs)
        return hashed(inputs)

    at_counts(scorer)(log, [1, 3])
    for count, inputs in zip((1, 3), shown, strict=True):
        assert inputs.lengths().tolist() == np.minimum(log.lengths(), count).tolist()
        for user in range(log.num_users):
            first = log.items[log.offsets[user] : log.offsets[user + 1]][:count]
            assert inputs.items[inputs.offsets[user] : inputs.offsets[user + 1]].tolist() == first.tolist()


def test_gain_of_known_values() -> None:
    theirs = np.array([[0.2, 0.5], [0.4, np.nan], [0.6, 0.5]])
    ours = theirs * np.array([1.1, 1.3])
    gain = average_gain(ours, theirs, num_resamples=50)
    assert (round(gain.mean, 6), round(gain.low, 6), round(gain.high, 6)) == (0.2, 0.2, 0.2)
    rows = compare(ours, theirs, (1, 2), num_resamples=50)
    assert [(row["n"], row["people"]) for row in rows] == [(1, 3), (2, 2)]
    assert rows[1]["ours"] == pytest.approx(0.65)
    with pytest.raises(NumericalError, match="hits nothing"):
        average_gain(ours, theirs * [1, 0])


def test_scores_of_another_shape_and_people_without_events() -> None:
    with pytest.raises(DataError, match="scores are"):
        judge_next(at_counts(hashed), some_log(), NUM_ITEMS + 1, (1,))
    with pytest.raises(DataError, match="nobody"):
        judge_later(at_counts(hashed), some_log(), NUM_ITEMS, (50,))

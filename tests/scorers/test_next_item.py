"""How good a model is at the next item: what is kept from it, and what the figures say of models that are known."""

import json

import numpy as np
import pytest

from palate.data.event_log import EventLog, from_sequences
from palate.errors import NumericalError
from palate.scorers.next_item import describe, hold_out_last, judge_next

NUM_ITEMS = 20


def ring(people: int = 80) -> EventLog:
    """People walk along a ring, each in steps of their own."""
    starts = np.random.default_rng(0).integers(0, NUM_ITEMS, people)
    steps = [(1, 3, 7, -3)[person % 4] * np.arange(2 + person % 5) for person in range(people)]
    return from_sequences([(start + step) % NUM_ITEMS for start, step in zip(starts, steps, strict=True)])


def follow(log: EventLog) -> np.ndarray:
    """Goes on as the last two events do, which counts of pairs cannot."""
    last, before = (log.items[log.offsets[1:] - back].astype(np.int64) for back in (1, 2))
    scores = np.zeros((log.num_users, NUM_ITEMS), np.float32)
    scores[np.arange(log.num_users), (2 * last - before) % NUM_ITEMS] = 1
    return scores


def test_the_last_event_of_those_with_enough_is_kept_and_nothing_else() -> None:
    log = ring()
    held = hold_out_last(log, 1000)
    long = np.flatnonzero(log.lengths() >= 3)
    assert len(held.targets) == len(long)
    assert len(held.training) == len(log) - len(long)
    for row, user in enumerate(long):
        whole = log.items[log.offsets[user] : log.offsets[user + 1]].tolist()
        ends = slice(held.inputs.offsets[row], held.inputs.offsets[row + 1])
        assert held.inputs.items[ends].tolist() == whole[:-1]
        assert held.targets[row] == whole[-1]
        mine = slice(held.training.offsets[user], held.training.offsets[user + 1])
        assert held.training.items[mine].tolist() == whole[:-1]
    some = hold_out_last(log, 10)
    assert len(some.targets) == 10
    none = hold_out_last(log, 0)
    assert len(none.targets) == 0
    assert none.training.items.tolist() == log.items.tolist()


def test_who_knows_the_rule_is_perfect_and_beats_the_floor() -> None:
    quality = judge_next(follow, hold_out_last(ring(600), 1000), NUM_ITEMS)
    assert quality["model"]["ndcg@10"]["mean"] == pytest.approx(1)
    assert quality["popularity"]["ndcg@10"]["mean"] < 0.5
    assert quality["difference"]["mean"] > 0
    assert "beats" in describe(quality)
    assert json.loads(json.dumps(quality)) == quality


def test_who_knows_nothing_is_worse_and_a_nan_is_refused() -> None:
    held = hold_out_last(ring(600), 1000)
    quality = judge_next(lambda log: np.zeros((log.num_users, NUM_ITEMS), np.float32), held, NUM_ITEMS)
    assert quality["model"]["hr@10"]["mean"] == 0
    assert quality["difference"]["to"] == "ease"
    assert "is worse than EASE with recency" in describe(quality)
    with pytest.raises(NumericalError):
        judge_next(lambda log: np.full((log.num_users, NUM_ITEMS), np.nan, np.float32), held, NUM_ITEMS)

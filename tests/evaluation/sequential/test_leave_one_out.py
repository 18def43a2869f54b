"""The split leaks nothing, and targets are ranked as a plain sort would rank them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.event_log import EventLog, from_sequences
from palate.errors import DataError, NumericalError
from palate.evaluation.sequential.leave_one_out import CUTOFFS, figures, leave_one_out, rank_targets

NUM_ITEMS = 12


def random_log(rng: np.random.Generator, num_users: int = 20) -> EventLog:
    return from_sequences([rng.integers(0, NUM_ITEMS, rng.integers(0, 9)) for _ in range(num_users)])


def test_the_last_two_events_are_held_out() -> None:
    split = leave_one_out(from_sequences([[1, 2, 3, 4], [5, 6], [], [7, 8, 9]]))
    assert split.training.items.tolist() == [1, 2, 5, 6, 7]
    assert split.training.offsets.tolist() == [0, 2, 4, 4, 5]
    assert split.validation.users.tolist() == split.test.users.tolist() == [0, 3]
    assert split.validation.targets.tolist() == [3, 8]
    assert split.validation.inputs.items.tolist() == [1, 2, 7]
    assert split.test.targets.tolist() == [4, 9]
    assert split.test.inputs.items.tolist() == [1, 2, 3, 7, 8]


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_other_targets_change_nothing_that_is_learned_from(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    if not (log.lengths() >= 3).any():
        return
    before = leave_one_out(log)
    long = log.lengths() >= 3
    scrambled = log.items.copy()
    scrambled[log.offsets[1:][long] - 1] = rng.integers(0, NUM_ITEMS, long.sum())
    after = leave_one_out(EventLog(scrambled, log.offsets))
    for one, other in ((before.training, after.training), (before.test.inputs, after.test.inputs)):
        assert one.items.tolist() == other.items.tolist()
    assert before.validation.targets.tolist() == after.validation.targets.tolist()
    scrambled[log.offsets[1:][long] - 2] = rng.integers(0, NUM_ITEMS, long.sum())
    after = leave_one_out(EventLog(scrambled, log.offsets))
    assert before.training.items.tolist() == after.training.items.tolist()
    assert before.validation.inputs.items.tolist() == after.validation.inputs.items.tolist()


def test_columns_are_cut_with_the_items() -> None:
    log = EventLog(
        np.arange(7, dtype=np.int32), np.array([0, 3, 7]), np.arange(7.0), values=np.arange(7, dtype=np.float32)
    )
    split = leave_one_out(log)
    for part in (split.training, split.validation.inputs, split.test.inputs):
        assert part.seconds is not None
        assert part.values is not None
        assert part.items.tolist() == part.seconds.tolist() == part.values.tolist()


def test_nobody_long_enough() -> None:
    with pytest.raises(DataError, match="nobody of 2 people has 3 events"):
        leave_one_out(from_sequences([[1, 2], [3]]))


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_ranks_are_those_of_a_sort(levels: int, batch_size: int) -> None:
    rng = np.random.default_rng(levels)
    held = leave_one_out(random_log(rng, 30)).test
    table = rng.integers(0, levels, (len(held.targets), NUM_ITEMS)).astype(np.float32)
    # What a person did last says which row of the table is theirs, whatever the batch.
    rows = iter(range(len(table)))

    def scorer(inputs: EventLog) -> np.ndarray:
        return table[[next(rows) for _ in range(inputs.num_users)]]

    ranks = rank_targets(scorer, held, NUM_ITEMS, batch_size=batch_size)
    for row, target in enumerate(held.targets):
        seen = set(held.inputs.items[held.inputs.offsets[row] : held.inputs.offsets[row + 1]].tolist())
        for removed, found in ((set(), ranks.kept[row]), (seen - {int(target)}, ranks.removed[row])):
            listed = [item for item in range(NUM_ITEMS) if item not in removed]
            # The target goes last among its equals.
            listed.sort(key=lambda item: (-table[row, item], item == target))
            assert found == listed.index(target)


def test_a_constant_scorer_hits_nothing() -> None:
    held = leave_one_out(random_log(np.random.default_rng(0), 50)).test

    def scorer(inputs: EventLog) -> np.ndarray:
        return np.zeros((inputs.num_users, 100), np.float32)

    values = figures(rank_targets(scorer, held, 100).kept)
    assert set(values) == {f"{metric}@{k}" for metric in ("hr", "ndcg") for k in CUTOFFS}
    assert all(value.sum() == 0 for value in values.values())


def test_an_oracle_is_perfect() -> None:
    held = leave_one_out(random_log(np.random.default_rng(0), 50)).test
    answers = iter(np.eye(NUM_ITEMS, dtype=np.float32)[held.targets])

    def scorer(inputs: EventLog) -> np.ndarray:
        return np.stack([next(answers) for _ in range(inputs.num_users)])

    assert all((value == 1).all() for value in figures(rank_targets(scorer, held, NUM_ITEMS).removed).values())


def test_broken_scores_are_refused() -> None:
    held = leave_one_out(random_log(np.random.default_rng(0), 50)).test

    def nan(inputs: EventLog) -> np.ndarray:
        scores = np.zeros((inputs.num_users, NUM_ITEMS), np.float32)
        scores[-1, 0] = np.nan
        return scores

    with pytest.raises(NumericalError, match=r"people 0 to 3 .*user row 3 holds NaN"):
        rank_targets(nan, held, NUM_ITEMS, batch_size=4)
    with pytest.raises(DataError, match=r"expected \(4, 12\)"):
        rank_targets(lambda inputs: np.zeros((inputs.num_users, 5), np.float32), held, NUM_ITEMS, batch_size=4)

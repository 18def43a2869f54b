"""The figures of every line of the table on a small world, as they were when they were recorded."""

import numpy as np
import pytest

from palate.baselines import BASELINES, Scorer, select
from palate.data.event_log import EventLog, from_sequences
from palate.evaluation.sequential.leave_one_out import figures, leave_one_out, rank_targets

NUM_ITEMS = 60
RECORDED = {
    ("constant", "newcomers"): (0.000000, 0.000000),
    ("random", "newcomers"): (0.080422, 0.079586),
    ("popularity", "newcomers"): (0.067674, 0.084939),
    ("item_knn", "newcomers"): (0.324195, 0.272494),
    ("ease", "newcomers"): (0.334844, 0.297725),
    ("als", "newcomers"): (0.353580, 0.308834),
    ("popularity", "sequences"): (0.067674, 0.084939),
    ("transitions", "sequences"): (0.691421, 0.682343),
    ("item_knn", "sequences"): (0.536764, 0.519607),
    ("ease", "sequences"): (0.537228, 0.518005),
    ("popularity", "cold_sequences"): (0.067674, 0.084939),
    ("item_knn", "cold_sequences"): (0.518528, 0.494552),
    ("ease", "cold_sequences"): (0.528193, 0.501267),
}
"""(line, task): nDCG@10 on validation and test."""


def walks(seed: int = 2, num_people: int = 400) -> EventLog:
    """People who go on from an item to one near it; nobody has an item twice."""
    rng = np.random.default_rng(seed)
    steps = [rng.integers(1, 4, rng.integers(3, 12)) for _ in range(num_people)]
    return from_sequences([(rng.integers(NUM_ITEMS) + np.cumsum(step)) % NUM_ITEMS for step in steps])


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("task", ["newcomers", "sequences", "cold_sequences"])
def test_figures_are_those_recorded(name: str, task: str) -> None:
    baseline = getattr(BASELINES[name], task)
    assert (baseline is None) == ((name, task) not in RECORDED)
    if baseline is None:
        return
    split = leave_one_out(walks())

    def validate(scorer: Scorer) -> float:
        return float(figures(rank_targets(scorer, split.validation, NUM_ITEMS).removed)["ndcg@10"].mean())

    chosen = select(baseline, split.training, NUM_ITEMS, validate)
    test = figures(rank_targets(chosen.scorer, split.test, NUM_ITEMS).removed)["ndcg@10"].mean()
    assert (max(trial.value for trial in chosen.table), test) == pytest.approx(RECORDED[name, task], abs=1e-4)

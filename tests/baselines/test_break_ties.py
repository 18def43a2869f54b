"""The popularity tie-break orders what has no evidence and cannot flip what has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palate.baselines.base import break_ties

NUM_ITEMS = 8
SCORE = st.one_of(
    st.just(0.0),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.floats(-(2.0**60), -(2.0**-60), width=32),
)


@given(
    evidence=hnp.arrays(np.float32, NUM_ITEMS, elements=SCORE),
    counts=hnp.arrays(np.int64, NUM_ITEMS, elements=st.integers(0, 5000)),
)
def test_only_zeros_move_and_they_go_by_popularity(evidence: np.ndarray, counts: np.ndarray) -> None:
    popularity = (counts / 5000).astype(np.float32)
    scores = break_ties(evidence, popularity)
    known = evidence != 0
    np.testing.assert_array_equal(scores[known], evidence[known])
    without = ~known
    np.testing.assert_array_equal(
        np.argsort(-scores[without], kind="stable"), np.argsort(-counts[without], kind="stable")
    )
    for one in evidence[known]:
        assert (scores[without] < one).all() if one > 0 else (scores[without] > one).all()


def test_powers_of_two_do_not_move_either() -> None:
    # Below a power of two floats are twice as dense, so the least addition shows there first.
    evidence = np.array([-1.0, 1.0, 0.5, -0.5], dtype=np.float32)
    np.testing.assert_array_equal(break_ties(evidence, np.ones(4, dtype=np.float32)), evidence)


def test_without_any_evidence_it_is_the_popularity() -> None:
    popularity = np.array([0.1, 0.3, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(break_ties(np.zeros(3, dtype=np.float32), popularity), popularity)

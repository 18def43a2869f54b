"""Bootstrap intervals against theory: width, coverage, symmetry, rare false alarms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import ConfigError, DataError, NumericalError
from palate.significance import CELLS_AT_ONCE, bootstrap_interval, clustered_interval, paired_difference


def test_interval_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 1000)
    interval = bootstrap_interval(values, seed=0)
    standard_error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_interval_of_equal_values_is_that_value() -> None:
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(np.array([2.0])) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_truth_as_often_as_it_says(level: float) -> None:
    rng = np.random.default_rng(2)
    worlds = 300
    # Skewed values in [0, 1], as per-user metrics are.
    covered = 0
    for world in range(worlds):
        interval = bootstrap_interval(rng.beta(0.5, 2.0, 120), level=level, num_resamples=300, seed=world)
        covered += interval.low <= 0.2 <= interval.high
    # Three standard errors of the share itself, and a little for the finite sample.
    assert covered / worlds == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / worlds) + 0.015)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_many_users_are_drawn_in_chunks() -> None:
    num_users = CELLS_AT_ONCE // 2 - 1
    values = np.random.default_rng(4).random(num_users)
    interval = bootstrap_interval(values, num_resamples=5)
    assert abs(interval.low - 0.5) < 0.005
    assert interval.low < interval.high


def test_difference_of_paired_users_is_found_where_their_spread_hides_it() -> None:
    rng = np.random.default_rng(5)
    easy_or_hard = rng.random(400)
    b = easy_or_hard
    a = easy_or_hard + 0.02 + rng.normal(0, 0.05, 400)
    found = paired_difference(a, b, seed=0)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.significant
    assert 0 < found.low < found.mean < found.high
    assert found.p_value == pytest.approx(2 / 2001)
    alone_a, alone_b = bootstrap_interval(a), bootstrap_interval(b)
    assert alone_a.low < alone_b.high, "the test's world should need the pairing"


def test_equal_methods_do_not_differ() -> None:
    values = np.random.default_rng(6).random(100)
    found = paired_difference(values, values.copy())
    assert found[:5] == (0.0, 0.0, 0.0, 1.0, False)
    assert found.relative == (0.0, 0.0, 0.0)


def test_chance_differences_are_significant_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(7)
    calls = [paired_difference(rng.random(150), rng.random(150), num_resamples=300, seed=world) for world in range(200)]
    assert 0.01 <= np.mean([call.significant for call in calls]) <= 0.11
    # Under no difference p is uniform.
    assert np.mean([call.p_value for call in calls]) == pytest.approx(0.5, abs=0.08)


@given(seed=st.integers(0, 1000), num_users=st.integers(1, 30))
def test_swapping_the_methods_turns_the_sign(seed: int, num_users: int) -> None:
    a, b = np.random.default_rng(seed).random((2, num_users))
    forth = paired_difference(a, b, num_resamples=200, seed=seed)
    back = paired_difference(b, a, num_resamples=200, seed=seed)
    np.testing.assert_allclose([back.mean, back.low, back.high], [-forth.mean, -forth.high, -forth.low], atol=1e-12)
    assert back.p_value == forth.p_value
    assert back.significant == forth.significant


def test_relative_difference() -> None:
    b = np.random.default_rng(8).random(300)
    found = paired_difference(1.1 * b, b)
    assert found.relative is not None
    # a is 1.1 times b for everyone, so for every resample as well.
    np.testing.assert_allclose(found.relative, [0.1, 0.1, 0.1])


def test_relative_difference_is_left_out_where_the_reference_can_be_zero() -> None:
    b = np.array([0.0, 0.0, 1.0])
    assert paired_difference(np.ones(3), b).relative is None
    assert paired_difference(np.ones(3), np.zeros(3)).relative is None
    assert paired_difference(np.ones(3), -np.ones(3)).relative is None


def test_refuses_bad_input() -> None:
    with pytest.raises(DataError, match="no user"):
        bootstrap_interval(np.zeros(0))
    with pytest.raises(NumericalError, match="user row 1 holds NaN"):
        bootstrap_interval(np.array([0.0, np.nan]))
    with pytest.raises(NumericalError, match="user row 2 holds NaN"):
        paired_difference(np.zeros(3), np.array([0.0, 1.0, np.inf]))
    with pytest.raises(ConfigError, match=r"level is 1\.0"):
        bootstrap_interval(np.ones(3), level=1.0)
    with pytest.raises(ConfigError, match="num_resamples: got 0"):
        paired_difference(np.ones(3), np.ones(3), num_resamples=0)


class TestClustered:
    def test_one_task_a_person_is_the_plain_bootstrap(self) -> None:
        values = np.random.default_rng(0).normal(size=200)
        plain, clustered = bootstrap_interval(values), clustered_interval(values, np.arange(200))
        assert clustered.mean == pytest.approx(plain.mean)
        assert clustered.high - clustered.low == pytest.approx(plain.high - plain.low, rel=0.1)

    def test_repeating_a_person_adds_nothing(self) -> None:
        # Ten draws of the same people who do the same each time: the interval is that of one draw.
        values = np.random.default_rng(1).normal(size=60)
        once = clustered_interval(values, np.arange(60))
        tenfold = clustered_interval(np.tile(values, 10), np.tile(np.arange(60), 10))
        naive = bootstrap_interval(np.tile(values, 10))
        assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.05)
        assert naive.high - naive.low < 0.5 * (once.high - once.low)

    def test_the_mean_is_over_tasks(self) -> None:
        values, people = np.array([0.0, 0.0, 0.0, 1.0]), np.array([7, 7, 7, 3])
        assert clustered_interval(values, people).mean == 0.25

    def test_what_cannot_be_judged_is_refused(self) -> None:
        with pytest.raises(NumericalError, match="NaN"):
            clustered_interval(np.array([0.0, np.nan]), np.arange(2))
        with pytest.raises(DataError):
            clustered_interval(np.zeros(0), np.zeros(0, np.int64))
        with pytest.raises(ConfigError):
            clustered_interval(np.zeros(3), np.arange(3), level=1.0)

"""Monitors of drift against planted shifts, and against none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.drift import Adwin, stability_index, stability_of_counts

counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=2)


def alarm(monitor: Adwin, values: np.ndarray) -> int:
    """Outcomes until the first alarm; all of them when there is none."""
    for place, value in enumerate(values.tolist()):
        if monitor.observe(float(value)):
            return place
    return len(values)


# ------------------------------------------------------------------------------------------ stability index


def test_the_index_is_the_formula_on_smoothed_counts() -> None:
    p, q = np.array([60.5, 40.5]) / 101, np.array([20.5, 30.5]) / 51
    expected = ((q - p) * np.log(q / p)).sum()
    assert stability_of_counts({"a": 60, "b": 40}, {"b": 30, "a": 20}).value == pytest.approx(expected)
    reference = np.concatenate([np.zeros(50), np.ones(50)])
    current = np.concatenate([np.full(20, -3.0), np.full(30, 7.0)])
    p, q = np.array([50.5, 50.5]) / 101, np.array([20.5, 30.5]) / 51
    found = stability_index(reference, current, num_bins=2)
    assert found.num_bins == 2
    assert found.value == pytest.approx(((q - p) * np.log(q / p)).sum())


@given(one=counts, other=counts)
def test_the_index_is_symmetric_and_zero_for_equal_tables(one: dict[str, int], other: dict[str, int]) -> None:
    assert stability_of_counts(one, one).value == 0
    assert stability_of_counts(one, one).p_value == 1
    there, back = stability_of_counts(one, other), stability_of_counts(other, one)
    assert there.value == pytest.approx(back.value)
    assert there.value >= 0


def test_without_drift_the_p_value_is_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [stability_index(rng.lognormal(size=500), rng.lognormal(size=300)) for _ in range(1000)]
    for level in (0.05, 0.5):
        assert np.mean([stability.p_value < level for stability in found]) == pytest.approx(level, abs=0.05)
    assert np.mean([stability.value for stability in found]) == pytest.approx(9 * (1 / 500 + 1 / 300), rel=0.1)


def test_small_samples_pass_the_customary_limit_and_the_p_value_knows() -> None:
    rng = np.random.default_rng(1)
    found = [stability_index(rng.normal(size=60), rng.normal(size=60)) for _ in range(200)]
    assert np.mean([stability.value > 0.25 for stability in found]) > 0.3
    assert np.mean([stability.p_value < 0.01 for stability in found]) < 0.04


def test_a_planted_shift_is_seen_and_more_of_it_more() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=5000)
    shifted = [stability_index(reference, rng.normal(shift, size=5000)) for shift in (0.0, 0.2, 0.5, 1.0)]
    values = [stability.value for stability in shifted]
    assert values == sorted(values)
    assert values[0] < 0.01 < 0.2 < values[2]
    assert shifted[1].p_value < 1e-6


def test_a_number_that_most_values_are_has_its_own_bin() -> None:
    reference = np.concatenate([np.zeros(950), np.arange(1.0, 51.0)])
    same = stability_index(reference, reference.copy())
    assert same == (0.0, 1.0, 2)
    for constant in (-1.0, 1.0, 200.0):
        assert stability_index(reference, np.full(40, constant)).value > 5
        assert stability_index(np.zeros(50), np.full(40, constant)).value > 5
    assert stability_index(np.zeros(50), np.zeros(40)) == (0.0, 1.0, 1)


def test_mistakes_of_samples_are_named() -> None:
    good = np.zeros(5)
    with pytest.raises(DataError, match="current sample is empty"):
        stability_index(good, good[:0])
    with pytest.raises(NumericalError, match="reference sample"):
        stability_index(good * np.nan, good)
    with pytest.raises(ConfigError, match="num_bins"):
        stability_index(good, good, num_bins=1)
    with pytest.raises(DataError, match="reference counts"):
        stability_of_counts({}, {"a": 1})
    with pytest.raises(DataError, match="current counts"):
        stability_of_counts({"a": 1}, {"a": 3, "b": -1})


# ------------------------------------------------------------------------------------------ ADWIN


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_a_steady_stream_raises_no_alarm(rate: float) -> None:
    rng = np.random.default_rng(3)
    alarms = [alarm(Adwin(), rng.random(3000) < rate) < 3000 for _ in range(20)]
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize(("before", "after", "within"), [(0.1, 0.3, 250), (0.1, 0.2, 900), (0.3, 0.1, 400)])
def test_a_planted_shift_raises_one_soon(before: float, after: float, within: int) -> None:
    rng = np.random.default_rng(4)
    delays, means = [], []
    for _ in range(20):
        monitor = Adwin()
        assert alarm(monitor, rng.random(2000) < before) == 2000
        delays.append(alarm(monitor, rng.random(3000) < after))
        for value in (rng.random(2000) < after).tolist():
            monitor.observe(float(value))
        means.append(monitor.mean)
    assert np.median(delays) < within
    assert max(delays) < 3000
    np.testing.assert_allclose(means, after, atol=0.05)


def test_a_greater_shift_is_seen_earlier() -> None:
    rng = np.random.default_rng(5)
    delays = []
    for after in (0.3, 0.5, 0.9):
        monitor = Adwin(every=1)
        alarm(monitor, rng.random(1000) < 0.1)
        delays.append(alarm(monitor, rng.random(2000) < after))
    assert delays == sorted(delays, reverse=True)
    assert delays[-1] < 40


def test_the_window_forgets_what_was_and_keeps_what_is() -> None:
    monitor = Adwin()
    for value in [0.2] * 500 + [0.8] * 500:
        monitor.observe(value)
    assert monitor.mean == pytest.approx(0.8, abs=0.02)
    assert 400 <= monitor.width <= 560


def test_the_histogram_holds_the_sums_of_the_window_in_few_buckets() -> None:
    values = np.random.default_rng(6).uniform(2.0, 5.0, 20_000)
    monitor = Adwin(lowest=2.0, highest=5.0, delta=1e-9)
    for place, value in enumerate(values.tolist(), start=1):
        assert not monitor.observe(value)
        if place in (1, 6, 77, 20_000):
            assert monitor.width == place
            assert monitor.mean == pytest.approx(values[:place].mean())
            assert monitor.num_buckets <= 5 * (math.log2(place) + 1)
    squares = np.array(
        [(1 << level, total, inner) for level, row in enumerate(monitor._levels) for total, inner in row]
    )
    mean = squares[:, 1].sum() / squares[:, 0].sum()
    spread = (squares[:, 2] + squares[:, 0] * (squares[:, 1] / squares[:, 0] - mean) ** 2).sum() / 20_000
    assert spread == pytest.approx(((values - 2) / 3).var())


def test_the_unit_of_outcomes_changes_nothing() -> None:
    values = np.concatenate([np.random.default_rng(7).random(800) * 0.4, np.random.default_rng(8).random(800)])
    plain, scaled = Adwin(), Adwin(lowest=-10.0, highest=30.0)
    assert [plain.observe(value) for value in values.tolist()] == [
        scaled.observe(40 * value - 10) for value in values.tolist()
    ]
    assert scaled.mean == pytest.approx(40 * plain.mean - 10)


def test_looking_seldom_changes_when_an_alarm_comes_but_not_whether() -> None:
    values = np.random.default_rng(9).random(3000) < np.repeat([0.1, 0.5], 1500)
    often, seldom = alarm(Adwin(every=1), values), alarm(Adwin(every=64), values)
    assert 1500 < often <= seldom < 1700
    assert (seldom + 1) % 64 == 0


def test_mistakes_of_streams_are_named() -> None:
    assert math.isnan(Adwin().mean)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(NumericalError, match="outcome"):
            Adwin().observe(value)
    with pytest.raises(ConfigError, match="delta"):
        Adwin(delta=0.0)
    with pytest.raises(ConfigError, match="range"):
        Adwin(lowest=1.0, highest=1.0)
    with pytest.raises(ConfigError, match="every"):
        Adwin(every=0)

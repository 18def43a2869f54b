"""Confidence sequences: right at every look at once, and able to tell; streams are many, so the formulas are repeated
here over whole streams, and one test holds the two against each other."""

import math
from dataclasses import replace

import numpy as np
import pytest

from palate.errors import ConfigError, NumericalError
from palate.evaluation.sequential_test import (
    AsymptoticMean,
    BoundedMean,
    Comparison,
    MeanSequence,
    compare_asymptotic,
    compare_bounded,
)

Bounds = tuple[np.ndarray, np.ndarray]


def bounded(values: np.ndarray, lowest: float, highest: float, level: float = 0.95) -> Bounds:
    """`BoundedMean` at every step of every stream (stream, step)."""
    x = (values - lowest) / (highest - lowest)
    step = np.arange(1, x.shape[1] + 1)
    mean = (0.5 + np.cumsum(x, 1)) / (step + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, 1)) / (step + 1)
    mean = np.pad(mean, ((0, 0), (1, 0)), constant_values=0.5)[:, :-1]
    variance = np.pad(variance, ((0, 0), (1, 0)), constant_values=0.25)[:, :-1]
    log_error = math.log(2 / (1 - level))
    bet = np.minimum(0.5, np.sqrt(2 * log_error / (variance * step * np.log1p(step))))
    psi = (-np.log1p(-bet) - bet) / 4
    half = (log_error + np.cumsum(4 * (x - mean) ** 2 * psi, 1)) / np.cumsum(bet, 1)
    centre = np.cumsum(bet * x, 1) / np.cumsum(bet, 1)
    width = highest - lowest
    return np.maximum(lowest + width * (centre - half), lowest), np.minimum(lowest + width * (centre + half), highest)


def asymptotic(values: np.ndarray, level: float = 0.95, tightest_at: int = 1000, enough: int = 100) -> Bounds:
    """`AsymptoticMean` at every step of every stream."""
    step, error = np.arange(1, values.shape[1] + 1), 1 - level
    one, two, three, four = (np.cumsum(values**power, 1) / step for power in (1, 2, 3, 4))
    variance = np.maximum(two - one**2, 0)
    fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    rho2 = (-2 * math.log(error) + math.log(1 - 2 * math.log(error))) / tightest_at
    half = np.sqrt(2 * (step * rho2 + 1) / (step**2 * rho2) * np.log(np.sqrt(step * rho2 + 1) / error) * variance)
    half[(variance <= 1e-12) | (step * variance**2 < enough * fourth * (1 - 1e-9))] = np.inf
    return one - half, one + half


def pseudo_outcomes(treated: np.ndarray, values: np.ndarray, share: float) -> np.ndarray:
    """The z of `Comparison` at every step of every stream."""
    means = []
    before = [np.cumsum(arm, 1) - arm for arm in (~treated, treated)]
    sums = [np.cumsum(values * arm, 1) - values * arm for arm in (~treated, treated)]
    overall = (sums[0] + sums[1]) / np.maximum(before[0] + before[1], 1)
    for count, total in zip(before, sums, strict=True):
        means.append(np.where(count > 0, total / np.maximum(count, 1), overall))
    away = np.where(treated, (values - means[1]) / share, -(values - means[0]) / (1 - share))
    return np.asarray(means[1] - means[0] + away)


def streams(
    rates: tuple[float, float], share: float, num_streams: int, num_steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    treated = rng.random((num_streams, num_steps)) < share
    return treated, (rng.random(treated.shape) < np.where(treated, rates[1], rates[0])).astype(float)


@pytest.mark.parametrize("state", [BoundedMean(-1.0, 2.0, 0.9), AsymptoticMean(0.9, 200, 20)])
def test_folding_equals_the_formula_over_the_whole_stream(state: MeanSequence) -> None:
    values = np.random.default_rng(0).uniform(-1, 2, 400)
    if isinstance(state, BoundedMean):
        low, high = bounded(values[None], -1.0, 2.0, 0.9)
    else:
        low, high = asymptotic(values[None], 0.9, 200, 20)
    for step, value in enumerate(values.tolist()):
        state = state.observe(value)
        interval = state.interval()
        np.testing.assert_allclose(interval.mean, values[: step + 1].mean(), rtol=1e-9)
        np.testing.assert_allclose(interval[1:], (low[0, step], high[0, step]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_comparison_folds_the_pseudo_outcomes(share: float) -> None:
    treated, values = streams((0.3, 0.5), share, 1, 600, 1)
    z = pseudo_outcomes(treated, values, share)
    expected = {
        "bounded": bounded(z, -(1 + 1e-9) / share, (1 + 1e-9) / share),
        "asymptotic": asymptotic(z, tightest_at=300),
    }
    states = {"bounded": compare_bounded(smallest_share=share), "asymptotic": compare_asymptotic(tightest_at=300)}
    for name, state in states.items():
        for arm, value in zip(treated[0].tolist(), values[0].tolist(), strict=True):
            state = state.observe(arm, value, share)
        interval = state.interval()
        np.testing.assert_allclose(interval.mean, z.mean(), rtol=1e-9)
        np.testing.assert_allclose(interval[1:], [bound[0, -1] for bound in expected[name]], rtol=1e-7)


@pytest.mark.parametrize("rate", [0.02, 0.3])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_peeking_at_every_step_raises_few_false_alarms(rate: float, share: float) -> None:
    treated, values = streams((rate, rate), share, 500, 4000, 2)
    z = pseudo_outcomes(treated, values, share)
    low, high = bounded(z, -1 / share, 1 / share)
    assert ((low > 0) | (high < 0)).any(1).mean() <= 0.05
    low, high = asymptotic(z)
    # It is only nearly right: the rate itself, and three standard errors of it.
    assert ((low > 0) | (high < 0)).any(1).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


def test_the_streams_would_fool_an_ordinary_interval() -> None:
    treated, values = streams((0.3, 0.3), 0.5, 300, 4000, 3)
    z = pseudo_outcomes(treated, values, 0.5)
    step = np.arange(1, 4001)
    mean = np.cumsum(z, 1) / step
    half = 1.96 * np.sqrt((np.cumsum(z**2, 1) / step - mean**2) / step)
    assert (np.abs(mean) > half)[:, 100:].any(1).mean() > 0.25


def test_a_rare_event_in_a_small_arm_would_fool_the_asymptotic_sequence_without_its_guard() -> None:
    treated, values = streams((0.02, 0.02), 0.05, 300, 4000, 4)
    low, high = asymptotic(pseudo_outcomes(treated, values, 0.05), enough=1)
    assert ((low > 0) | (high < 0))[:, 100:].any(1).mean() > 0.3


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_a_mean_is_held_at_all_times_at_once(level: float) -> None:
    values = np.random.default_rng(5).beta(0.5, 2.0, (500, 3000))
    for low, high in (bounded(values, 0, 1, level), asymptotic(values, level)):
        missed = ((low > 0.2) | (high < 0.2)).any(1).mean()
        assert missed <= 1 - level + 3 * math.sqrt(level * (1 - level) / 500)


def test_real_differences_are_found_and_the_asymptotic_sequence_finds_them_earlier() -> None:
    treated, values = streams((0.10, 0.14), 0.5, 200, 12_000, 6)
    z = pseudo_outcomes(treated, values, 0.5)
    found = [bounds[0] > 0 for bounds in (bounded(z, -2.0, 2.0), asymptotic(z))]
    assert [hit.any(1).mean() > 0.9 for hit in found] == [True, True]
    first = [np.median(np.where(hit.any(1), hit.argmax(1), hit.shape[1])) for hit in found]
    assert first[1] < first[0]
    low, high = asymptotic(z)
    assert (low <= 0.04).all(1).mean() > 0.95
    assert (high >= 0.04).all(1).mean() > 0.95


def test_decisions_follow_the_interval() -> None:
    rng = np.random.default_rng(7)
    decided = {}
    for name, rates in {"better": (0.2, 0.6), "worse": (0.6, 0.2), "undecided": (0.4, 0.4)}.items():
        state = compare_bounded()
        for _ in range(1500):
            arm = bool(rng.random() < 0.5)
            state = state.observe(arm, float(rng.random() < rates[arm]))
        decided[name] = state.decision()
        assert state.decision(margin=0.5) == "undecided"
        assert sum(state.counts) == 1500
    assert list(decided) == list(decided.values())


def test_a_share_may_change_on_the_way() -> None:
    """The canary grows from 10 to 50 %; the difference stays what it is, though the arms' plain means drift apart."""
    rng = np.random.default_rng(8)
    ends = []
    for _ in range(10):
        state = compare_asymptotic()
        for share, level in ((0.1, 0.2), (0.5, 0.6)):  # the whole shop changes with the share: Simpson's paradox
            for _ in range(1500):
                arm = bool(rng.random() < share)
                state = state.observe(arm, float(rng.random() < level), share)
        ends.append(state.interval())
    plain = 0.6 * 750 / 900 + 0.2 * 150 / 900 - (0.2 * 1350 + 0.6 * 750) / 2100
    assert plain > 0.1
    assert abs(np.mean([end.mean for end in ends])) < 0.05
    assert np.mean([end.low <= 0 <= end.high for end in ends]) >= 0.9


def test_before_enough_is_seen_nothing_is_said() -> None:
    assert BoundedMean(-1.0, 3.0).interval() == (1.0, -1.0, 3.0)
    state: MeanSequence = AsymptoticMean(enough=10)
    for _ in range(50):
        state = state.observe(0.0)
        assert state.interval() == (0.0, -math.inf, math.inf)
    for _ in range(6):
        state = state.observe(1.0)
        assert state.interval().low == -math.inf
    assert compare_bounded().decision() == "undecided"
    assert compare_asymptotic().decision() == "undecided"


def test_the_range_and_its_unit_change_nothing_but_the_unit() -> None:
    values = np.random.default_rng(9).random(50)
    one, two = BoundedMean(), BoundedMean(10.0, 30.0)
    for value in values.tolist():
        one, two = one.observe(value), two.observe(10 + 20 * value)
    np.testing.assert_allclose(two.interval(), 10 + 20 * np.array(one.interval()))


def test_states_are_values() -> None:
    state = BoundedMean()
    assert state.observe(0.5) is not state
    assert state == BoundedMean()
    assert state.observe(0.5) == state.observe(0.5)
    assert replace(state.observe(0.5), level=0.5).interval().low > state.observe(0.5).interval().low - 1e-12


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_outcomes_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(NumericalError, match="outcome"):
        BoundedMean().observe(value)
    if not math.isfinite(value):
        with pytest.raises(NumericalError, match="outcome"):
            AsymptoticMean().observe(value)
        with pytest.raises(NumericalError, match="outcome"):
            compare_asymptotic().observe(True, value)


def test_a_share_beyond_what_was_promised_is_refused() -> None:
    state = compare_bounded(smallest_share=0.2)
    state = state.observe(False, 0.0, 0.2)
    with pytest.raises(NumericalError):
        state.observe(True, 1.0, 0.05)
    # What was promised holds at the extremes.
    state = compare_bounded(smallest_share=0.2)
    for arm, value in ((False, 1.0), (True, 0.0), (False, 0.0), (True, 1.0), (False, 1.0), (True, 0.0)):
        state = state.observe(arm, value, 0.2)


def test_mistakes_are_named() -> None:
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="level"):
            BoundedMean(level=level)
        with pytest.raises(ConfigError, match="level"):
            compare_asymptotic(level=level)
    with pytest.raises(ConfigError, match="range"):
        BoundedMean(1.0, 1.0)
    with pytest.raises(ConfigError, match="tightest_at"):
        AsymptoticMean(tightest_at=0)
    with pytest.raises(ConfigError, match="enough"):
        AsymptoticMean(enough=0)
    with pytest.raises(ConfigError, match="smallest_share"):
        compare_bounded(smallest_share=0.6)
    with pytest.raises(ConfigError, match="0 is among"):
        compare_bounded(lowest=1.0, highest=5.0)
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="share"):
            Comparison(AsymptoticMean()).observe(True, 1.0, share)
    with pytest.raises(ConfigError, match="margin"):
        compare_bounded().decision(-0.1)

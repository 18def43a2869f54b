"""Off-policy estimates in a world whose truth is known, and against the formulas on a log small enough to write out."""

import math
from functools import cache

import numpy as np
import polars as pl
import pytest

from palate.errors import ConfigError, DataError
from palate.evaluation.off_policy import ESTIMATORS, OffPolicyConfig, OffPolicyReport, _Sums, evaluate_off_policy

KINDS, ITEMS = 3, 4
RATES = np.array([[0.1, 0.3, 0.5, 0.2], [0.6, 0.2, 0.3, 0.1], [0.2, 0.4, 0.1, 0.7]])
"""What an item earns in a context of each kind."""
LOGGING = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.3, 0.3, 0.3, 0.1]])
TARGET = np.array([[0.05, 0.2, 0.7, 0.05], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
TRUTH = float((TARGET * RATES).sum(1).mean())
CONFIG = OffPolicyConfig(num_resamples=200)


def world(
    seed: int,
    *,
    num_people: int = 120,
    guess: np.ndarray = RATES,
    propensity: np.ndarray = LOGGING,
    target: np.ndarray = TARGET,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lists of one item: people with a mood of their own come 1 to 6 times, each time in a context of some kind."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(num_people), rng.integers(1, 7, num_people))
    mood = rng.uniform(-0.1, 0.1, num_people)[person]
    kind = rng.integers(KINDS, size=len(person))
    item = (rng.random(len(person))[:, None] > np.cumsum(LOGGING[kind], 1)[:, :-1]).sum(1)
    reward = (rng.random(len(person)) < RATES[kind, item] + mood).astype(float)
    context = np.arange(len(person))
    log = pl.DataFrame(
        {
            "context": [f"list-{place}" for place in context],
            "user_id": [f"user-{place}" for place in person],
            "item_id": [f"item-{place}" for place in item],
            "propensity": propensity[kind, item],
            "reward": reward,
            "estimate": guess[kind, item],
        }
    )
    plan = pl.DataFrame(
        {
            "context": [f"list-{place}" for place in np.repeat(context, ITEMS)],
            "item_id": [f"item-{place}" for place in np.tile(np.arange(ITEMS), len(context))],
            "probability": target[kind].ravel(),
            "estimate": guess[kind].ravel(),
        }
    )
    return log, plan


@cache
def simulated(kind: str = "right", num_worlds: int = 200) -> list[OffPolicyReport]:
    settings = {
        "right": {},
        "wrong model": {"guess": np.full_like(RATES, 0.9)},
        "wrong propensities": {"propensity": np.full_like(LOGGING, 0.25)},
        "both wrong": {"propensity": np.full_like(LOGGING, 0.25), "guess": np.full_like(RATES, 0.9)},
    }
    return [evaluate_off_policy(*world(seed, **settings[kind]), CONFIG) for seed in range(num_worlds)]


def means(reports: list[OffPolicyReport], name: str) -> np.ndarray:
    return np.array([report.values[name].asymptotic.mean for report in reports])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    reports = simulated()
    for kind in ("asymptotic", "bootstrap"):
        intervals = [getattr(report.values[name], kind) for report in reports]
        covered = np.mean([interval.low <= TRUTH <= interval.high for interval in intervals])
        # Three standard errors of the share itself, and a little for the finite sample.
        assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 200) + 0.015), kind


@pytest.mark.parametrize("name", ESTIMATORS)
def test_widths_are_those_of_the_estimates_themselves(name: str) -> None:
    reports = simulated()
    spread = means(reports, name).std()
    for kind in ("asymptotic", "bootstrap"):
        widths = [getattr(report.values[name], kind) for report in reports]
        assert np.mean([w.high - w.low for w in widths]) / 3.92 == pytest.approx(spread, rel=0.12), kind


@pytest.mark.parametrize("name", ESTIMATORS)
def test_right_propensities_give_the_truth(name: str) -> None:
    for kind in ("right", "wrong model"):
        estimates = means(simulated(kind), name)
        assert estimates.mean() == pytest.approx(TRUTH, abs=4 * estimates.std() / math.sqrt(len(estimates)))


def test_doubly_robust_and_self_normalised_estimates_vary_less() -> None:
    spread = {name: means(simulated(), name).std() for name in ESTIMATORS}
    assert spread["dr"] < 0.8 * spread["ips"]
    assert spread["snips"] < spread["ips"]


def test_wrong_propensities_bias_what_rests_on_them_and_a_right_model_mends_it() -> None:
    reports = simulated("wrong propensities")
    error = {name: means(reports, name).mean() - TRUTH for name in ESTIMATORS}
    assert abs(error["ips"]) > 0.03
    assert abs(error["dr"]) < 0.01
    assert abs(means(simulated("both wrong"), "dr").mean() - TRUTH) > 0.015


def test_people_are_the_unit() -> None:
    """Every list ten times over: the same person's lists bring no news, lists of new people do."""
    log, plan = world(1)
    same = _repeated(log, plan, new_people=False)
    new = _repeated(log, plan, new_people=True)
    width = [
        [
            (values.asymptotic.high - values.asymptotic.low, values.bootstrap.high - values.bootstrap.low)
            for values in evaluate_off_policy(*tables).values.values()
        ]
        for tables in ((log, plan), same, new)
    ]
    np.testing.assert_allclose(width[1], width[0], rtol=0.02)
    np.testing.assert_allclose(width[2], np.array(width[0]) / math.sqrt(10), rtol=0.1)


def _repeated(log: pl.DataFrame, plan: pl.DataFrame, *, new_people: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    def renamed(frame: pl.DataFrame, times: int, columns: list[str]) -> pl.DataFrame:
        return frame.with_columns(pl.concat_str(pl.col(columns), pl.lit(f"-{times}")) for columns in columns)

    own = ["context", "user_id"] if new_people else ["context"]
    return (
        pl.concat([renamed(log, times, own) for times in range(10)]),
        pl.concat([renamed(plan, times, ["context"]) for times in range(10)]),
    )


def small() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two people, three lists of up to two items."""
    log = pl.DataFrame(
        {
            "context": ["a", "a", "b", "c"],
            "user_id": ["u", "u", "u", "v"],
            "item_id": ["x", "y", "x", "z"],
            "propensity": [0.5, 0.8, 0.25, 0.1],
            "reward": [1.0, 0.0, 1.0, 3.0],
            "estimate": [0.5, 0.2, 0.6, 1.0],
        }
    )
    plan = pl.DataFrame(
        {
            "context": ["a", "a", "b", "b", "c", "elsewhere"],
            "item_id": ["x", "z", "x", "y", "z", "x"],
            "probability": [1.0, 1.0, 0.5, 1.0, 0.2, 1.0],
            "estimate": [0.5, 0.1, 0.6, 0.4, 1.0, 9.0],
        }
    )
    return log, plan


def test_values_are_the_formulas() -> None:
    report = evaluate_off_policy(*small())
    # Weights: x in a 2, y in a 0 (the target would not show it), x in b 2, z in c 2.
    ips = (2 * 1 + 2 * 1 + 2 * 3) / 3
    snips = (3.7 / 3) * (10 / 6)
    dr = ((0.5 + 0.1) + (0.3 + 0.4) + 0.2 + 2 * 0.5 + 2 * 0.4 + 2 * 2.0) / 3
    found = [report.values[name].asymptotic.mean for name in ("ips", "snips", "dr")]
    np.testing.assert_allclose(found, [ips, snips, dr])
    overlap = report.overlap
    assert overlap[:3] == (2, 3, 3)
    assert overlap.effective_size == pytest.approx(3.0)
    assert overlap.coverage == pytest.approx(6 / 3.7)
    # By person: contexts 2 and 1, gains 4 and 6; the sandwich with 2 / (2 − 1).
    influence = (np.array([4, 6]) - ips * np.array([2, 1])) / 3
    half = 1.959964 * math.sqrt(2 * np.square(influence).sum())
    assert report.values["ips"].asymptotic.high == pytest.approx(ips + half, rel=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_influence_is_the_derivative(name: str) -> None:
    """Each person's counts for a little more: what the value changes by is their influence."""
    rng = np.random.default_rng(2)
    table = rng.uniform(0.5, 2.0, (6, 30))
    estimator = ESTIMATORS[name]
    sums = _Sums(*table)
    total = _Sums(*table.sum(1, keepdims=True))
    expected = []
    for person in range(30):
        shifts = [
            estimator.value(_Sums(*(table.sum(1) + sign * 1e-6 * table[:, person])[:, None]))[0] for sign in (1, -1)
        ]
        expected.append((shifts[0] - shifts[1]) / 2e-6)
    np.testing.assert_allclose(estimator.influence(sums, total), expected, rtol=1e-5, atol=1e-8)


def test_clipping_cuts_weights_and_tells() -> None:
    log, plan = small()
    log = log.with_columns(propensity=pl.Series([0.5, 0.8, 0.25, 0.01]))
    whole, cut = (evaluate_off_policy(log, plan, OffPolicyConfig(clip=clip)) for clip in (math.inf, 5.0))
    assert (whole.overlap.clipped, cut.overlap.clipped) == (0.0, pytest.approx(1 / 3))
    assert whole.overlap.largest_weight == cut.overlap.largest_weight == pytest.approx(20.0)
    assert whole.values["ips"].asymptotic.mean == pytest.approx((2 + 2 + 60) / 3)
    assert cut.values["ips"].asymptotic.mean == pytest.approx((2 + 2 + 15) / 3)
    assert whole.overlap.effective_size == pytest.approx(24**2 / (4 + 4 + 400))


def test_the_logging_policy_is_worth_what_it_earned() -> None:
    log, _ = world(3)
    _, plan = world(3, target=LOGGING)
    report = evaluate_off_policy(log, plan, CONFIG)
    for name in ("ips", "snips"):
        assert report.values[name].asymptotic.mean == pytest.approx(log["reward"].mean())
    assert report.overlap.effective_size == pytest.approx(len(log))
    assert report.overlap.coverage == pytest.approx(1.0)


def test_items_that_the_log_never_shows_are_seen_in_the_coverage() -> None:
    log, plan = world(4, num_people=400)
    log = log.filter(pl.col("item_id") != "item-3")
    kept = plan.join(log.select("context").unique(), on="context", how="semi")
    report = evaluate_off_policy(log, kept, CONFIG)
    assert report.overlap.coverage < 0.9


def test_order_of_rows_changes_nothing_and_the_seed_is_kept() -> None:
    log, plan = world(5)
    one = evaluate_off_policy(log, plan, CONFIG)
    assert evaluate_off_policy(log.sample(fraction=1.0, shuffle=True, seed=1), plan.reverse(), CONFIG) == one
    other = evaluate_off_policy(log, plan, OffPolicyConfig(num_resamples=200, seed=1))
    assert other.values["ips"].bootstrap != one.values["ips"].bootstrap
    assert other.values["ips"].asymptotic == one.values["ips"].asymptotic


def test_without_estimates_there_is_no_doubly_robust_value() -> None:
    log, plan = small()
    report = evaluate_off_policy(log.drop("estimate"), plan.drop("estimate"))
    assert list(report.values) == ["ips", "snips"]
    with pytest.raises(DataError, match="one table only"):
        evaluate_off_policy(log, plan.drop("estimate"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("propensity", 0.0, r"row 2, propensity is 0\.0"),
        ("propensity", 1.5, "row 2, propensity"),
        ("propensity", math.nan, "row 2, column 'propensity' is NaN"),
        ("propensity", None, "row 2, column 'propensity' is empty"),
        ("reward", math.inf, "row 2, column 'reward' is NaN or infinite"),
        ("item_id", "x", "more than once"),
        ("user_id", "v", "of several people"),
        ("context", "d", "contexts of the log are missing"),
    ],
)
def test_a_log_that_cannot_be_is_refused(column: str, value: object, message: str) -> None:
    log, plan = small()
    values = log[column].to_list()
    values[1] = value
    with pytest.raises(DataError, match=message):
        evaluate_off_policy(log.with_columns(pl.Series(column, values, strict=False)), plan)


def test_other_mistakes_are_named() -> None:
    log, plan = small()
    with pytest.raises(DataError, match="no overlap"):
        evaluate_off_policy(log, plan.with_columns(item_id=pl.col("item_id") + "!"))
    with pytest.raises(DataError, match="no overlap"):
        evaluate_off_policy(log, plan.with_columns(probability=pl.lit(0.0)))
    with pytest.raises(DataError, match="two people"):
        evaluate_off_policy(log.filter(pl.col("user_id") == "u"), plan)
    with pytest.raises(DataError, match="'reward'"):
        evaluate_off_policy(log.drop("reward"), plan)
    with pytest.raises(DataError, match="no rows"):
        evaluate_off_policy(log.clear(), plan)
    with pytest.raises(DataError, match="expected numbers"):
        evaluate_off_policy(log.with_columns(pl.col("reward").cast(pl.String)), plan)
    with pytest.raises(DataError, match="target: row 3, probability"):
        evaluate_off_policy(log, plan.with_columns(probability=pl.Series([1.0, 1.0, -0.5, 1.0, 0.2, 1.0])))
    with pytest.raises(ConfigError, match="clip"):
        OffPolicyConfig(clip=0.0)
    with pytest.raises(ConfigError, match="level"):
        OffPolicyConfig(level=1.0)
    with pytest.raises(ConfigError, match="num_resamples"):
        OffPolicyConfig(num_resamples=0)

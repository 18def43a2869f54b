"""One person's regression against the textbook's formula in the primal form, written out with an inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from palate.errors import NumericalError
from palate.meta.learner import make_events as make_events_of
from palate.meta.model import linear_model
from palate.meta.online import Posterior, Prior
from palate.meta.ridge import RidgeConfig, quick
from palate.meta.table import build


def reference(
    prior: Prior, features: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance, Bishop eq. 3.50–3.51."""
    precision = np.diag(1 / prior.variance) + (features.T * weight) @ features / prior.noise
    covariance = np.linalg.inv(precision)
    mean = covariance @ (prior.mean / prior.variance + features.T @ (weight * target) / prior.noise)
    return mean, covariance


def assert_same(
    posterior: Posterior, expected: tuple[np.ndarray, np.ndarray], items: np.ndarray, tolerance: float = 1e-9
) -> None:
    mean, covariance = expected
    np.testing.assert_allclose(posterior.score(items), items @ mean, rtol=tolerance, atol=tolerance)
    variance = np.einsum("if,fg,ig->i", items, covariance, items)
    np.testing.assert_allclose(posterior.variance(items), variance, rtol=tolerance, atol=tolerance)


def make_prior(rng: np.random.Generator, num_features: int) -> Prior:
    return Prior(rng.normal(size=num_features), rng.uniform(0.05, 2, num_features), 0.3)


def make_events(
    rng: np.random.Generator, num_events: int, num_features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features = rng.normal(size=(num_events, num_features))
    return features, rng.normal(size=num_events), rng.uniform(0.1, 3, num_events)


@pytest.mark.parametrize(
    ("num_events", "num_features"), [(1, 1), (1, 8), (10, 64), (8, 8), (9, 8), (200, 8), (10, 600)]
)
def test_fit_is_the_textbook_posterior(num_events: int, num_features: int) -> None:
    rng = np.random.default_rng(num_events)
    prior, events = make_prior(rng, num_features), make_events(rng, num_events, num_features)
    assert_same(prior.fit(*events), reference(prior, *events), rng.normal(size=(20, num_features)))


@pytest.mark.parametrize("num_features", [1, 5, 64, 300])
@pytest.mark.parametrize("num_first", [0, 3, 40])
def test_two_hundred_updates_equal_one_fit(num_features: int, num_first: int) -> None:
    rng = np.random.default_rng(num_features)
    prior = make_prior(rng, num_features)
    features, target, weight = make_events(rng, num_first + 200, num_features)
    items = rng.normal(size=(20, num_features))
    posterior = prior.fit(features[:num_first], target[:num_first], weight[:num_first])
    for event in range(num_first, num_first + 200):
        posterior.update(features[event], float(target[event]), float(weight[event]))
        if event in (num_first, num_first + 7, num_first + 60):
            so_far = slice(event + 1)
            assert_same(posterior, reference(prior, features[so_far], target[so_far], weight[so_far]), items)
    assert_same(posterior, reference(prior, features, target, weight), items, 1e-8)
    refit = prior.fit(features, target, weight)
    np.testing.assert_allclose(posterior.score(items), refit.score(items), rtol=1e-8, atol=1e-8)


def test_single_precision_stays_within_1e_5() -> None:
    rng = np.random.default_rng(3)
    prior = make_prior(rng, 64)
    prior = Prior(prior.mean.astype(np.float32), prior.variance.astype(np.float32), prior.noise)
    features, target, weight = (part.astype(np.float32) for part in make_events(rng, 210, 64))
    items = rng.normal(size=(20, 64)).astype(np.float32)
    posterior = prior.fit(features[:10], target[:10], weight[:10])
    for event in range(10, 210):
        posterior.update(features[event], float(target[event]), float(weight[event]))
    scores = posterior.score(items)
    assert scores.dtype == np.float32
    expected, covariance = reference(prior, *(part.astype(np.float64) for part in (features, target, weight)))
    np.testing.assert_allclose(scores, items @ expected, rtol=1e-5, atol=1e-5)
    variance = np.einsum("if,fg,ig->i", items, covariance, items)
    assert (np.abs(posterior.variance(items) - variance) < 1e-5 * (items**2 @ prior.variance)).all()


def test_column_order_of_the_features_is_inert() -> None:
    rng = np.random.default_rng(2)
    prior, (features, target, weight) = make_prior(rng, 6), make_events(rng, 4, 6)
    items = rng.normal(size=(5, 6))
    posterior = prior.fit(np.asfortranarray(features), target, weight)
    assert_same(posterior, reference(prior, features, target, weight), items)
    posterior.update(np.stack([features[0]] * 2, 1)[:, 0], 0.5)  # a strided row
    more = np.vstack([features, features[:1]]), np.append(target, 0.5), np.append(weight, 1.0)
    assert_same(posterior, reference(prior, *more), items)


def test_no_events_is_the_prior() -> None:
    rng = np.random.default_rng(4)
    prior, items = make_prior(rng, 6), rng.normal(size=(5, 6))
    posterior = prior.fit(*make_events(rng, 0, 6))
    assert np.array_equal(posterior.mean, prior.mean)
    assert_same(posterior, (prior.mean, np.diag(prior.variance)), items)


@pytest.mark.parametrize("garbage", [1e9, np.nan, np.inf])
def test_weight_zero_changes_nothing(garbage: float) -> None:
    rng = np.random.default_rng(5)
    prior, items = make_prior(rng, 6), rng.normal(size=(5, 6))
    features, target, weight = make_events(rng, 4, 6)
    expected = prior.fit(features, target, weight)
    padded = prior.fit(
        np.vstack([features, np.full((2, 6), garbage)]), np.append(target, [garbage] * 2), np.append(weight, [0, 0])
    )
    padded.update(np.full(6, garbage), garbage, 0.0)
    assert np.array_equal(padded.score(items), expected.score(items))
    assert np.array_equal(padded.variance(items), expected.variance(items))
    only = prior.fit(np.full((2, 6), garbage), np.full(2, garbage), np.zeros(2))
    assert np.array_equal(only.mean, prior.mean)


def test_the_prior_is_not_changed_and_a_copy_is_independent() -> None:
    rng = np.random.default_rng(6)
    prior, (features, target, weight) = make_prior(rng, 6), make_events(rng, 5, 6)
    mean, variance, given_features = prior.mean.copy(), prior.variance.copy(), features.copy()
    posterior = prior.fit(features, target, weight)
    copy = posterior.copy()
    before = copy.mean.copy(), copy.variance(features)
    for event in range(5):
        posterior.update(features[event], float(target[event]))
    assert np.array_equal(prior.mean, mean)
    assert np.array_equal(prior.variance, variance)
    assert np.array_equal(features, given_features)
    assert np.array_equal(copy.mean, before[0])
    assert np.array_equal(copy.variance(features), before[1])
    assert not np.array_equal(posterior.mean, copy.mean)


@settings(max_examples=40)
@given(st.integers(0, 12), st.integers(1, 6), st.integers(0, 1000), st.floats(1e-3, 10))
def test_order_of_events_is_inert(num_events: int, num_features: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    prior = Prior(rng.normal(size=num_features), rng.uniform(0.05, 2, num_features), noise)
    events = make_events(rng, num_events, num_features)
    order = rng.permutation(num_events)
    items = rng.normal(size=(4, num_features))
    one, other = prior.fit(*events), prior.fit(*(part[order] for part in events))
    np.testing.assert_allclose(one.score(items), other.score(items), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(one.variance(items), other.variance(items), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("num_first", "num_updates"), [(0, 0), (1, 0), (5, 0), (30, 0), (0, 4), (3, 4), (5, 30)])
def test_draws_have_the_covariance_of_the_textbook(num_first: int, num_updates: int) -> None:
    rng = np.random.default_rng(10)
    prior, events = make_prior(rng, 7), make_events(rng, num_first + num_updates, 7)
    posterior = prior.fit(*(part[:num_first] for part in events))
    for features, target, weight in list(zip(*events, strict=True))[num_first:]:
        posterior.update(features, float(target), float(weight))
    _, expected = reference(prior, *events)
    draws = posterior.draw(60_000, np.random.default_rng(1)).astype(np.float64)
    # The standard error of a sample covariance is √((Σ_aa Σ_bb + Σ_ab²) / draws).
    error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / len(draws))
    assert (np.abs(draws.T @ draws / len(draws) - expected) / error).max() < 5
    assert np.abs(draws.mean(0) / np.sqrt(np.diag(expected) / len(draws))).max() < 5


def test_draws_of_what_is_known_exactly_do_not_move() -> None:
    rng = np.random.default_rng(11)
    prior = Prior(np.zeros(6), np.ones(6), 1e-14)
    features = rng.normal(size=(4, 6))
    draws = prior.fit(features, np.zeros(4), np.ones(4)).draw(50, rng)
    assert np.isfinite(draws).all()
    assert np.abs(draws @ features.T).max() < 1e-4
    assert draws.std() > 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 12), st.integers(1, 8), st.integers(0, 1000), st.floats(0.05, 10))
def test_batched_single_and_incremental_posteriors_agree(
    num_tasks: int, num_events: int, num_features: int, seed: int, noise: float
) -> None:
    """`ridge` over many tasks at once, its form in NumPy, a fit, and the same events one by one."""
    rng = np.random.default_rng(seed)
    prior = Prior(rng.normal(size=num_features), rng.uniform(0.05, 2, num_features), noise)
    features = rng.normal(size=(num_tasks, num_events, num_features))
    target = rng.normal(size=(num_tasks, num_events))
    weight = rng.choice([0.0, 1.0], (num_tasks, num_events)) * rng.uniform(0.1, 3, (num_tasks, num_events))
    learner = build("ridge", linear_model(num_features), penalty="learned")
    own = {"log_noise": np.log(noise), "log_precision": -np.log(prior.variance)}
    params = {"model.weight": torch.from_numpy(prior.mean), **{name: torch.tensor(v) for name, v in own.items()}}
    inputs = torch.from_numpy(np.concatenate([features, np.zeros((num_tasks, num_events, 1))], 2))
    events = make_events_of(inputs, torch.from_numpy(target), torch.from_numpy(weight))
    batched = vmap(learner.adapt, in_dims=(None, None, 0))(params, {"weight": params["model.weight"]}, events)
    items = rng.normal(size=(5, num_features))
    single = {name: np.asarray(value, np.float32) for name, value in own.items()}
    moved = quick(RidgeConfig("learned"), single)
    assert moved is not None
    for task in range(num_tasks):
        fitted = prior.fit(features[task], target[task], weight[task])
        np.testing.assert_allclose(batched["weight"][task].numpy(), fitted.mean, rtol=1e-7, atol=1e-7)
        stepped = prior.fit(features[task, :0], target[task, :0], weight[task, :0])
        for event in range(num_events):
            stepped.update(features[task, event], float(target[task, event]), float(weight[task, event]))
        np.testing.assert_allclose(stepped.mean, fitted.mean, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(stepped.variance(items), fitted.variance(items), rtol=1e-7, atol=1e-7)
        if num_events:
            rows = features[task].astype(np.float32)
            delta = moved(rows, (target[task] - features[task] @ prior.mean).astype(np.float32))
            every = prior.fit(features[task], target[task], np.ones(num_events))
            np.testing.assert_allclose(prior.mean + delta, every.mean, rtol=1e-2, atol=1e-3)


def test_each_event_leaves_less_unknown() -> None:
    rng = np.random.default_rng(8)
    prior, (features, target, weight) = make_prior(rng, 6), make_events(rng, 30, 6)
    posterior = prior.fit(features[:0], target[:0], weight[:0])
    unknown = posterior.variance(features)
    for event in range(30):
        posterior.update(features[event], float(target[event]), float(weight[event]))
        now = posterior.variance(features)
        assert (now < unknown).all()
        assert (now > 0).all()
        unknown = now


def test_bad_values_are_named() -> None:
    rng = np.random.default_rng(9)
    prior, (features, target, weight) = make_prior(rng, 3), make_events(rng, 2, 3)
    with pytest.raises(ValueError, match="variance has an entry of 0"):
        Prior(prior.mean, np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="noise is 0"):
        Prior(prior.mean, prior.variance, 0.0)
    with pytest.raises(ValueError, match="weight has an entry of -1"):
        prior.fit(features, target, -np.ones(2))
    with pytest.raises(NumericalError, match="no finite posterior"):
        prior.fit(features * np.nan, target, weight)
    with pytest.raises(NumericalError, match="predictive variance is nan"):
        prior.fit(features, target, weight).update(features[0] * np.nan, 1.0)
    with pytest.raises(NumericalError, match="no finite posterior"):
        prior.fit(features, target * np.inf, weight)
    with pytest.raises(NumericalError, match="the target is nan"):
        prior.fit(features, target, weight).update(features[0], float("nan"))
    with pytest.raises(ValueError, match="weight is -1"):
        prior.fit(features, target, weight).update(features[0], 1.0, -1.0)

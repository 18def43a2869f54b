"""The Gibbs sampler against textbook posteriors, new people against plain ridge regressions, and a planted world."""

from typing import NamedTuple

import numpy as np
import pytest

from palate.errors import ConfigError, DataError, NumericalError
from palate.ratings.bayesian_factors import (
    SampledFactors,
    SamplerConfig,
    conditional,
    fitted,
    predict,
    sample_factors,
    sample_gaussian,
    sample_prior,
    sample_wishart,
    with_one,
)

SMALL = SamplerConfig(dim=2, num_burn_in=60, num_samples=30)
NUM_COLD = 4


def random_precision(rng: np.random.Generator, dim: int) -> np.ndarray:
    root = rng.standard_normal((dim, dim + 2))
    return root @ root.T


class TestConditionals:
    def test_rows_have_the_posterior_of_bayesian_regression(self) -> None:
        rng = np.random.default_rng(0)
        residual, design, mean = rng.standard_normal((5, 7)), rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
        weight = rng.random((5, 7)) * (rng.random((5, 7)) < 0.6)
        before = random_precision(rng, 3)
        precision, shift = conditional(residual, weight, design, mean, before, 1.7)
        for row in range(5):
            expected, target = before.copy(), before @ mean[row]
            for column in range(7):
                expected += 1.7 * weight[row, column] * np.outer(design[column], design[column])
                target = target + 1.7 * weight[row, column] * residual[row, column] * design[column]
            np.testing.assert_allclose(precision[row], expected)
            np.testing.assert_allclose(shift[row], target)

    def test_gaussian_draws_have_the_stated_moments(self) -> None:
        rng = np.random.default_rng(0)
        precision, mean = random_precision(rng, 3), np.array([1.0, -2.0, 0.5])
        draws = sample_gaussian(np.tile(precision, (60_000, 1, 1)), np.tile(precision @ mean, (60_000, 1)), rng)
        covariance = np.linalg.inv(precision)
        np.testing.assert_allclose(draws.mean(0), mean, atol=0.02 * np.sqrt(covariance.max()))
        np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.03 * covariance.max())

    def test_wishart_draws_have_the_stated_mean_and_variance(self) -> None:
        rng = np.random.default_rng(0)
        scale = random_precision(rng, 3) / 10
        draws = np.stack([sample_wishart(9, scale, rng) for _ in range(20_000)])
        np.testing.assert_allclose(draws.mean(0), 9 * scale, atol=0.03 * 9 * scale.max())
        diagonal = np.diag(scale)
        np.testing.assert_allclose(draws.var(0), 9 * (scale**2 + np.outer(diagonal, diagonal)), rtol=0.08)

    def test_links_and_precisions_have_the_posterior_of_multivariate_regression(self) -> None:
        rng = np.random.default_rng(0)
        features, ridge = rng.standard_normal((30, 2)), np.array([0.5, 4.0])
        coefficients = features @ rng.standard_normal((2, 3)) + rng.standard_normal((30, 3))
        scatter = np.eye(3) * 2.0
        draws = [sample_prior(coefficients, features, ridge, scatter, rng) for _ in range(8_000)]
        # The ridge is 30 + 2 rows of which the last have the features √ridge and the coefficients 0.
        rows = np.concatenate([features, np.diag(np.sqrt(ridge))])
        targets = np.concatenate([coefficients, np.zeros((2, 3))])
        mean = np.linalg.lstsq(rows, targets, rcond=None)[0]
        left = targets - rows @ mean
        degrees = 3 + 2 + 30
        expected = degrees * np.linalg.inv(scatter + left.T @ left)
        np.testing.assert_allclose(np.mean([draw.precision for draw in draws], 0), expected, atol=0.02 * expected.max())
        np.testing.assert_allclose(np.mean([draw.link for draw in draws], 0), mean, atol=0.01)
        white = np.stack([(draw.link - mean) @ np.linalg.cholesky(draw.precision) for draw in draws])
        covariance = np.linalg.inv(rows.T @ rows)
        for place in range(3):
            np.testing.assert_allclose(np.cov(white[:, :, place].T), covariance, atol=0.05 * covariance.max())


def a_model(rng: np.random.Generator, num_samples: int = 3) -> SampledFactors:
    return SampledFactors(
        3.0,
        rng.standard_normal((num_samples, 6, 3)).astype(np.float32),
        rng.standard_normal((num_samples, 3, 3)),
        np.stack([random_precision(rng, 3) for _ in range(num_samples)]),
        0.5 + np.arange(num_samples),
    )


def score_all(factors: SampledFactors, values: np.ndarray, weight: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Every item for people with this support; weight 0 is no support."""
    rows = []
    for own, told, about in zip(values, weight, features, strict=True):
        some = np.flatnonzero(told)
        rows.append(predict(factors, factors.items[:, some], own[some], told[some], about, factors.items))
    return np.stack(rows)


class TestNewPeople:
    def test_they_are_the_mean_of_ridge_regressions(self) -> None:
        """Each person and sample by itself, in the dual form: a Gaussian process with the kernel of the factors."""
        rng = np.random.default_rng(1)
        factors, features = a_model(rng), rng.standard_normal((4, 2))
        values, weight = rng.standard_normal((4, 6)) + 3, rng.random((4, 6)) * (rng.random((4, 6)) < 0.5)
        weight[2] = 0
        expected = np.zeros((4, 6))
        for items, link, precision, noise_precision in zip(*factors[1:], strict=True):
            for person in range(4):
                design = np.column_stack([np.ones(6), items[:, 1:]])
                kernel = design @ np.linalg.inv(precision) @ design.T
                before = 3 + items[:, 0] + design @ (np.array([1, *features[person]]) @ link)
                told = np.flatnonzero(weight[person])
                noise = np.diag(1 / (noise_precision * weight[person, told]))
                dual = np.linalg.solve(kernel[np.ix_(told, told)] + noise, (values[person] - before)[told])
                expected[person] += (before + kernel[:, told] @ dual) / 3
        np.testing.assert_allclose(score_all(factors, values, weight, features), expected, rtol=2e-5, atol=2e-5)

    def test_each_item_is_scored_by_itself(self) -> None:
        rng = np.random.default_rng(3)
        factors, features = a_model(rng), rng.standard_normal(2)
        said = (factors.items[:, :2], np.array([4.0, 2.0]), np.ones(2), features)
        together = predict(factors, *said, factors.items)
        np.testing.assert_allclose(predict(factors, *said, factors.items[:, [5, 2]]), together[[5, 2]], rtol=1e-6)

    def test_no_support_leaves_the_prior(self) -> None:
        rng = np.random.default_rng(4)
        factors, features = a_model(rng), rng.standard_normal((2, 2))
        found = score_all(factors, np.zeros((2, 6)), np.zeros((2, 6)), features)
        priors = [
            fitted(with_one(features) @ link, items.astype(np.float64))
            for items, link in zip(factors.items, factors.link, strict=True)
        ]
        np.testing.assert_allclose(found, 3 + np.mean(priors, 0), rtol=1e-5)


class World(NamedTuple):
    values: np.ndarray
    weight: np.ndarray
    truth: np.ndarray
    user_features: np.ndarray
    item_features: np.ndarray


@pytest.fixture(scope="module")
def world() -> World:
    """80 people, 40 items, biases of both; the factors are half in the features; nobody rates the last items."""
    rng = np.random.default_rng(5)
    user_features, item_features = rng.standard_normal((80, 2)), rng.standard_normal((40, 2))
    item_features[-1] = item_features[-2]
    users = user_features + 0.7 * rng.standard_normal((80, 2))
    items = item_features + 0.7 * rng.standard_normal((40, 2))
    items[-NUM_COLD:] = item_features[-NUM_COLD:]
    truth = 3 + 0.5 * rng.standard_normal(40) + 1.5 * rng.standard_normal((80, 1)) + users @ items.T
    weight = (rng.random((80, 40)) < 0.5).astype(float)
    weight[:, -NUM_COLD:] = 0
    return World(truth + 0.5 * rng.standard_normal((80, 40)), weight, truth, user_features, item_features)


def fit(world: World, *, seed: int = 0, with_features: bool = True) -> SampledFactors:
    columns = 2 if with_features else 0
    features = world.user_features[:, :columns], world.item_features[:, :columns]
    return sample_factors(world.values, world.weight, *features, SMALL, rng=np.random.default_rng(seed))


class TestPlantedWorld:
    def test_what_was_not_seen_is_predicted(self, world: World) -> None:
        factors = fit(world)
        error = score_all(factors, world.values, world.weight, world.user_features) - world.truth
        unseen = (world.weight == 0) & (np.arange(40) < 40 - NUM_COLD)
        assert np.sqrt((error[unseen] ** 2).mean()) < 0.33
        assert world.truth[unseen].std() > 1.5
        noise = np.mean(factors.noise_precision**-0.5)
        assert 0.47 < noise < 0.53  # 0.5 is planted

    def test_an_item_that_nobody_rated_is_its_content(self, world: World) -> None:
        scores = score_all(fit(world), world.values, world.weight, world.user_features)
        np.testing.assert_allclose(scores[:, -1], scores[:, -2], rtol=1e-5)
        blind = score_all(fit(world, with_features=False), world.values, world.weight, np.zeros((80, 0)))
        for item in range(40 - NUM_COLD, 40):
            assert np.corrcoef(scores[:, item], world.truth[:, item])[0, 1] > 0.8
        np.testing.assert_allclose(blind[:, -1], blind[:, -3], rtol=1e-5)

    def test_more_support_brings_people_nearer(self, world: World) -> None:
        factors = fit(world)
        errors = []
        for size in (0, 2, 6, 18):
            weight = world.weight * (world.weight.cumsum(1) <= size)
            scores = score_all(factors, world.values, weight, world.user_features)
            errors.append(np.square(scores - world.truth)[:, 30:36].mean())
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.5 * errors[0]

    def test_seeds_repeat(self, world: World) -> None:
        first, again, other = fit(world), fit(world), fit(world, seed=1)
        for one, two, three in zip(first[1:], again[1:], other[1:], strict=True):
            assert one.tobytes() == two.tobytes()
            assert one.tobytes() != three.tobytes()

    def test_values_without_weight_are_not_read(self, world: World) -> None:
        other = world._replace(values=np.where(world.weight > 0, world.values, np.nan))
        assert fit(world).items.tobytes() == fit(other).items.tobytes()

    def test_each_sweep_is_reported_and_those_after_the_burn_in_are_kept(self, world: World) -> None:
        told: list[tuple[int, int, float]] = []
        factors = sample_factors(
            world.values,
            world.weight,
            world.user_features,
            world.item_features,
            SamplerConfig(dim=1, num_burn_in=2, num_samples=3),
            rng=np.random.default_rng(0),
            on_step=lambda *step: told.append(step),
        )
        assert len(factors.items) == 3
        assert [step[:2] for step in told] == [(place, 5) for place in range(1, 6)]
        assert all(0 < noise < 3 for *_, noise in told)


class TestErrors:
    def test_nothing_to_learn_from(self) -> None:
        nothing, rng = np.zeros((3, 0)), np.random.default_rng(0)
        values = np.full((3, 3), 2.0)
        with pytest.raises(DataError, match=r"chain: all values are 2; expected at least two different ones"):
            sample_factors(values, np.ones((3, 3)), nothing, nothing, SMALL, rng=rng, name="chain")
        with pytest.raises(DataError, match=r"no value has a weight above 0"):
            sample_factors(values, np.zeros((3, 3)), nothing, nothing, SMALL, rng=rng)

    def test_divergence_names_the_model_and_the_sweep(self, world: World) -> None:
        broken = world._replace(item_features=np.full((40, 2), np.nan))
        with pytest.raises(NumericalError, match=r"Bayesian factors: .* at sweep 1; check the scale of the features"):
            fit(broken)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("dim", 0),
            ("num_burn_in", -1),
            ("num_samples", 0),
            ("most_people", 1),
            ("most_items", 1),
            ("item_feature_ridge", 0.0),
            ("user_feature_ridge", -1.0),
        ],
    )
    def test_a_bad_setting_is_named(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=rf"sampler\.{name} is {value}; expected"):
            SamplerConfig(**{name: value})  # type: ignore[arg-type]

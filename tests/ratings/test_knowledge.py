from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.errors import ConfigError, DataError, NumericalError
from palate.ratings.factors import FactorConfig
from palate.ratings.gaussian_process import KernelWeights, fit_weights, predict
from palate.ratings.knowledge import Knowledge, KnowledgeConfig, fit_knowledge, joined
from palate.ratings.likeness import KernelTable
from palate.ratings.tasks import Ratings

USERS, ITEMS, NEW = 120, 40, 4
CONFIG = KnowledgeConfig(FactorConfig(2, 10), num_folds=3, num_fold_sweeps=4)


class World(NamedTuple):
    ratings: Ratings
    kernels: KernelTable
    bias: np.ndarray


def make_world(seed: int = 0) -> World:
    """Items whose bias and vector follow a visible attribute; the last four are rated by nobody."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-2, 2, ITEMS)
    bias, vector = np.sin(2 * place), np.cos(place)
    values = 3 + bias + rng.normal(size=(USERS, 1)) * vector + rng.normal(0, 0.3, (USERS, ITEMS))
    rated = rng.random(values.shape) < 0.5
    rated[:, -NEW:] = False
    users, items = np.nonzero(rated)
    near = np.exp(-0.5 * ((place[:, None] - place) / 0.5) ** 2)
    kernels = torch.from_numpy(np.stack([near, np.eye(ITEMS)], -1)).float()
    return World(Ratings(users, items, values[rated].clip(0, 6)), KernelTable(kernels), bias)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def fitted(world: World) -> Knowledge:
    return fit_knowledge(world.ratings, ITEMS, world.kernels, CONFIG, seed=0)


class TestGaussianProcess:
    def test_leaving_out_is_leaving_out(self, world: World) -> None:
        rng = np.random.default_rng(0)
        rows = rng.permutation(ITEMS)[:9]
        targets, variance = rng.normal(size=(9, 2)), rng.uniform(0.1, 0.5, 9)
        weights = KernelWeights(torch.tensor([0.8, 0.1]), 0.2, 0.7)
        mean, spread = predict(world.kernels, rows, targets, variance, weights)
        covariance = (world.kernels.values.double() @ weights.kernels.double()).numpy()
        centre, scale = targets.mean(0), targets.std(0)  # of all rows: leaving one out leaves its share in these
        standard = (targets - centre) / scale
        noise = 0.2 + 0.7 * variance + 1e-3
        for item in range(ITEMS):
            kept = rows != item
            from_rows = covariance[item, rows[kept]]
            inverse = np.linalg.inv(covariance[np.ix_(rows[kept], rows[kept])] + np.diag(noise[kept]))
            np.testing.assert_allclose(mean[item], centre + scale * (from_rows @ inverse @ standard[kept]), atol=1e-5)
            left = max(covariance[item, item] - from_rows @ inverse @ from_rows, 1e-3)
            np.testing.assert_allclose(spread[item], left * scale**2, rtol=1e-4)

    def test_the_kernel_that_made_the_targets_gets_the_weight(self) -> None:
        rng = np.random.default_rng(0)
        near, far = (np.exp(-0.5 * ((places[:, None] - places) / 0.5) ** 2) for places in rng.uniform(-2, 2, (2, 150)))
        targets = rng.multivariate_normal(np.zeros(150), near + 0.05 * np.eye(150), 3).T
        kernels = torch.from_numpy(np.stack([far, near], -1)).float()
        weights = fit_weights(KernelTable(kernels), np.arange(150), targets, np.full(150, 0.1), seed=0)
        assert weights.kernels[1] > 5 * weights.kernels[0]
        assert weights.floor + 0.1 * weights.slope < 0.2

    def test_what_is_no_covariance_is_named(self) -> None:
        with pytest.raises(NumericalError, match="a solve failed at step 1"):
            fit_weights(KernelTable(-9 * torch.eye(5)[..., None]), np.arange(5), np.eye(5), np.ones(5), seed=0)


class TestJoined:
    def test_evidence_and_content_are_multiplied_as_gaussians(self) -> None:
        rating, noise, prior = 1.3, 0.4, 0.9  # one rating under a prior of mean 0
        variance = 1 / (1 / prior + 1 / noise)
        content_mean, content_variance = -0.5, 0.2
        mean, left = joined(
            np.array([[variance / noise * rating]]), np.array([[variance]]), np.array([prior]),
            np.array([[content_mean]]), np.array([[content_variance]]),
        )  # fmt: skip
        expected = 1 / (1 / content_variance + 1 / noise)
        assert left[0, 0] == pytest.approx(expected)
        assert mean[0, 0] == pytest.approx(expected * (content_mean / content_variance + rating / noise))

    def test_without_evidence_content_decides(self) -> None:
        entry = np.array([[0.9]])
        mean, left = joined(np.zeros((1, 1)), entry, entry[0], np.array([[0.7]]), np.array([[0.3]]))
        assert (mean[0, 0], left[0, 0]) == pytest.approx((0.7, 0.3))


def test_content_says_what_nobody_rated(world: World, fitted: Knowledge) -> None:
    assert fitted.rated.tolist() == [True] * (ITEMS - NEW) + [False] * NEW
    torch.testing.assert_close(fitted.warm[:, -NEW:], fitted.cold[:, -NEW:])
    torch.testing.assert_close(fitted.warm_variance[:, -NEW:], fitted.cold_variance[:, -NEW:])
    cold, warm = (part[0, :, 0].numpy() * fitted.unit for part in (fitted.cold, fitted.warm))
    assert np.corrcoef(cold[:-NEW], world.bias[:-NEW])[0, 1] > 0.8
    assert np.corrcoef(warm[:-NEW], world.bias[:-NEW])[0, 1] > 0.97
    # Of the two factors one is planted; the other is switched off and equally certain from both.
    closer = fitted.warm_variance[0, :-NEW, :2] < fitted.cold_variance[0, :-NEW, :2]
    assert closer.float().mean() > 0.9


def test_a_fold_is_not_seen_by_its_table(world: World, fitted: Knowledge) -> None:
    ratings = world.ratings
    assert sorted(set(fitted.fold.tolist())) == [1, 2, 3]
    assert np.bincount(fitted.fold)[1:].tolist() == [40, 40, 40]
    from_two = fitted.fold[ratings.users] == 2
    turned = Ratings(ratings.users, ratings.items, np.where(from_two, 6 - ratings.values, ratings.values))
    # Tables are turned to that of everyone, which does change; bias needs no turning.
    other = fit_knowledge(turned, ITEMS, world.kernels, CONFIG, seed=0)
    np.testing.assert_array_equal(other.fold, fitted.fold)
    change = (other.warm - fitted.warm)[..., 0].abs().mean(1)
    assert change[2] < 0.35 * change[[0, 1, 3]].min()


def test_tables_are_in_the_same_axes(fitted: Knowledge) -> None:
    full, parts = fitted.warm[0, :-NEW, 1:], fitted.warm[1:, :-NEW, 1:]
    assert ((parts - full).square().mean((1, 2)) < 0.2 * full.square().mean()).all()


def test_the_scale_runs_from_0_to_4(world: World, fitted: Knowledge) -> None:
    ends = fitted.scaled(np.array([world.ratings.values.min(), world.ratings.values.max()]))
    np.testing.assert_allclose(ends, [0, 4])
    wider = world.ratings._replace(values=world.ratings.values * 20 - 7)
    other = fit_knowledge(wider, ITEMS, world.kernels, CONFIG, seed=0)
    torch.testing.assert_close(other.warm, fitted.warm, atol=1e-3, rtol=1e-3)
    assert other.mean == pytest.approx(fitted.mean)


def test_a_seed_repeats(world: World, fitted: Knowledge) -> None:
    again = fit_knowledge(world.ratings, ITEMS, world.kernels, CONFIG, seed=0)
    for name in ("warm", "cold", "warm_variance", "cold_variance"):
        assert torch.equal(getattr(again, name), getattr(fitted, name))
    other = fit_knowledge(world.ratings, ITEMS, world.kernels, CONFIG, seed=1)
    assert not np.array_equal(other.fold, fitted.fold)


def test_what_cannot_be_used_is_said(world: World) -> None:
    few = world.ratings.of(np.arange(5))
    flat = world.ratings._replace(values=np.full(len(world.ratings.values), 3.0))
    cases: list[tuple[Ratings, Tensor, str]] = [
        (few, world.kernels, "5 training users are too few for 3 folds"),
        (flat, world.kernels, r"all training ratings are 3\.0"),
        (world.ratings, KernelTable(world.kernels.values[:5, :5]), "2 kernels of 5 items; expected at least 1 of 40"),
        (world.ratings, KernelTable(world.kernels.values[..., :0]), "0 kernels of 40 items; expected at least 1 of 40"),
    ]
    for ratings, kernels, match in cases:
        with pytest.raises(DataError, match=match):
            fit_knowledge(ratings, ITEMS, kernels, CONFIG)
    rare = KnowledgeConfig(CONFIG.factors, 3, 4, min_ratings=USERS)
    with pytest.raises(DataError, match="0 items have 120 ratings or more"):
        fit_knowledge(world.ratings, ITEMS, world.kernels, rare)
    with pytest.raises(ConfigError, match=r"knowledge\.num_folds is 1; expected at least 2"):
        KnowledgeConfig(num_folds=1)

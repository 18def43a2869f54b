"""Implicit profiles: principal axes and lifts by slow references, and what must not be read into an empty set."""

import numpy as np
import pytest

from palate.ratings.implicit_profile import fit_profile, lift_axes, log_lift, profile_of


@pytest.fixture(scope="module")
def seen() -> np.ndarray:
    """40 people of two groups who rate different halves of 20 items; the last item is rated by nobody."""
    rng = np.random.default_rng(0)
    own = (np.arange(40)[:, None] % 2) == (np.arange(20) >= 10)
    rated = (rng.random((40, 20)) < np.where(own, 0.7, 0.2)).astype(float)
    rated[:, -1] = 0
    return rated


CONTENT = np.random.default_rng(1).standard_normal((20, 3))


def test_axes_are_the_principal_components_of_the_sets(seen: np.ndarray) -> None:
    profile = fit_profile(seen, CONTENT, 4, 2)
    unit = np.stack([row / np.sqrt(row.sum()) for row in seen])
    values, vectors = np.linalg.eigh(np.cov(unit.T, bias=True))
    scores = (unit - unit.mean(0)) @ vectors[:, ::-1][:, :4] / np.sqrt(values[::-1][:4])
    found = profile_of(profile, seen)[:, :4]
    np.testing.assert_allclose(np.abs(found), 0.5 * np.abs(scores), atol=1e-9)  # axes have no sign


def test_shares_and_sizes_are_standardised(seen: np.ndarray) -> None:
    features = profile_of(fit_profile(seen, CONTENT, 4, 2), seen)[:, 4:]
    shares = np.stack([CONTENT[row > 0].mean(0) for row in seen])
    np.testing.assert_allclose(features[:, :3], 0.3 * (shares - shares.mean(0)) / (shares.std(0) + 0.02))
    sizes = np.log([np.count_nonzero(row) for row in seen])
    np.testing.assert_allclose(features[:, 3], sizes - sizes.mean())


def test_lift_counts_pairs(seen: np.ndarray) -> None:
    found = log_lift(seen)
    for one in range(20):
        for two in range(20):
            both = sum(bool(row[one] and row[two]) for row in seen)
            chance = sum(row[one] for row in seen) * sum(row[two] for row in seen) / 40
            expected = 0.0 if one == two else np.log((both + 2) / (chance + 2))
            np.testing.assert_allclose(found[one, two], expected, atol=1e-12)


def test_lift_axes_are_eigenvectors_of_the_lift(seen: np.ndarray) -> None:
    axes = lift_axes(seen, 3)
    lift = log_lift(seen)
    values = (lift @ axes / np.where(axes == 0, 1, axes))[:-1]
    np.testing.assert_allclose(values, np.tile(values[0], (19, 1)), atol=1e-6)
    largest = np.sort(np.abs(np.linalg.eigvalsh(lift)))[::-1][:3]
    np.testing.assert_allclose(np.abs(values[0]), largest, rtol=1e-6)
    np.testing.assert_allclose(axes[:-1].std(0), 0.7, rtol=1e-6)


def test_an_item_that_nobody_rated_has_no_loading(seen: np.ndarray) -> None:
    loadings = fit_profile(seen, CONTENT, 4, 3).item_loadings
    assert loadings.shape == (20, 6)
    assert not loadings[-1].any()
    assert loadings[:-1].any(1).all()


def test_an_item_is_the_shrunk_mean_of_its_raters(seen: np.ndarray) -> None:
    profile = fit_profile(seen, CONTENT, 3, 3)
    places = profile_of(profile, seen)[:, :3] / 0.5  # of unit variance: √40 times the left singular vectors
    for item in range(20):
        raters = places[seen[:, item] > 0]
        expected = raters.sum(0) / (len(raters) + 5) / 2
        np.testing.assert_allclose(profile.item_loadings[item, :3], expected, atol=1e-9)


def test_the_empty_set_is_the_average_person(seen: np.ndarray) -> None:
    profile = fit_profile(seen, CONTENT, 4, 2)
    assert not profile_of(profile, np.zeros((2, 20))).any()
    np.testing.assert_allclose(profile_of(profile, seen)[:, :4].mean(0), 0, atol=1e-9)


def test_groups_come_apart(seen: np.ndarray) -> None:
    first = profile_of(fit_profile(seen, CONTENT, 1, 1), seen)[:, 0]
    assert abs(first[::2].mean() - first[1::2].mean()) > 0.6


def test_more_axes_than_people_stay_finite_and_small() -> None:
    """The axes beyond the rank are rounding; a new person would be far out on them."""
    rng = np.random.default_rng(2)
    seen = (rng.random((6, 20)) < 0.4).astype(float)
    profile = fit_profile(seen, np.zeros((20, 0)), 24, 24)
    new = profile_of(profile, (rng.random((50, 20)) < 0.4).astype(float))
    assert np.abs(new).max() < 10
    assert np.isfinite(profile.item_loadings).all()
    same = fit_profile(np.ones((3, 4)), np.zeros((4, 0)), 2, 2)
    np.testing.assert_array_equal(profile_of(same, np.ones((1, 4))), [[0.0]])
    assert same.item_loadings.shape == (4, 0)

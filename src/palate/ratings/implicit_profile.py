"""What a person has rated, apart from how: features of people and of items from the set of pairs alone.

Which items people rate says much of what they like (Koren, Factorization Meets the Neighborhood: a Multifaceted
Collaborative Filtering Model, 2008, doi 10.1145/1401890.1401944). A person is the projection of their set of items on
the training people's principal axes, its mean content and its size; an item is the mean of its raters on these axes,
and its place among the items in a factorisation of the smoothed log-lift, as in Levy and Goldberg, Neural Word
Embedding as Implicit Matrix Factorization, 2014.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from jaxtyping import Float

_AXIS_SCALE, _SHARE_SCALE, _LIFT_SCALE = 0.5, 0.3, 0.7
"""Standard deviations that the features are brought to, so that one ridge suits all."""
_SHARE_FLOOR = 0.02
"""Added to the deviation of a content feature, which is next to nothing where hardly an item has it."""
_RATER_SHRINK, _LIFT_SMOOTHING = 5.0, 2.0
_RANK_TOLERANCE = 1e-10
"""Axes with less than this part of the largest eigenvalue are rounding, and would be blown up to unit scale."""


class ImplicitProfile(NamedTuple):
    """Axes fitted on the training people."""

    content: Float[np.ndarray, "item feature"]
    centre: Float[np.ndarray, "item"]
    axes: Float[np.ndarray, "item axis"]
    axis_scale: Float[np.ndarray, "axis"]
    share_mean: Float[np.ndarray, "feature"]
    share_scale: Float[np.ndarray, "feature"]
    log_size: float
    item_loadings: Float[np.ndarray, "item loading"]
    """Features of the items; 0 for an item that nobody rated."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {name: np.asarray(value) for name, value in self._asdict().items()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "ImplicitProfile":
        """The profile that `to_arrays` took apart."""
        return ImplicitProfile(
            log_size=float(arrays["log_size"]), **{k: v for k, v in arrays.items() if k != "log_size"}
        )


def fit_profile(
    seen: Float[np.ndarray, "user item"],
    content: Float[np.ndarray, "item feature"],
    dim: int,
    item_dim: int,
) -> ImplicitProfile:
    """Fit on the 0/1 matrix of rated pairs, in which everyone has rated something.

    Args:
        seen: 1 where a person rated an item.
        content: features of the items.
        dim: axes of the people, at most.
        item_dim: axes of the items by their raters, and again by their lift, at most.
    """
    unit = _unit(seen)
    centre = unit.mean(0)
    centred = unit - centre
    # The principal axes by the items' covariance: a full decomposition of the matrix would cost many times as much.
    energy, axes = _largest(centred.T @ centred, max(dim, item_dim))
    axes = axes[:, energy > _RANK_TOLERANCE * max(energy.max(initial=0), 1.0)]
    projection = axes[:, :dim]
    people = centred @ axes[:, :item_dim]
    people = people / np.linalg.norm(people, axis=0)
    share = _share(seen, content)
    raters = seen.T @ people / (seen.sum(0)[:, None] + _RATER_SHRINK)
    return ImplicitProfile(
        content,
        centre,
        projection,
        (centred @ projection).std(0),
        share.mean(0),
        share.std(0) + _SHARE_FLOOR,
        float(np.log(seen.sum(1)).mean()),
        np.c_[raters * np.sqrt(len(seen)) / 2, lift_axes(seen, item_dim)],
    )


def profile_of(
    profile: ImplicitProfile, seen: Float[np.ndarray, "user item"]
) -> Float[np.ndarray, "user user_feature"]:
    """Features of people by their sets of items; zeros, the average person, for the empty set."""
    size = seen.sum(1, keepdims=True)
    features = np.c_[
        (_unit(seen) - profile.centre) @ profile.axes / profile.axis_scale * _AXIS_SCALE,
        (_share(seen, profile.content) - profile.share_mean) / profile.share_scale * _SHARE_SCALE,
        np.log(np.maximum(size, 1)) - profile.log_size,
    ]
    return np.where(size > 0, features, 0.0)


def log_lift(seen: Float[np.ndarray, "user item"]) -> Float[np.ndarray, "item item"]:
    """Log of how much oftener a person rates both items than chance would have it, smoothed; 0 on the diagonal."""
    count = seen.sum(0)
    lift: Float[np.ndarray, "item item"] = np.log(
        (seen.T @ seen + _LIFT_SMOOTHING) / (np.outer(count, count) / len(seen) + _LIFT_SMOOTHING)
    )
    np.fill_diagonal(lift, 0)
    return lift


def lift_axes(seen: Float[np.ndarray, "user item"], dim: int) -> Float[np.ndarray, "item axis"]:
    """Leading eigenvectors of the log-lift by magnitude, at most `dim`; items that nobody rated have zeros."""
    rated = np.flatnonzero(seen.sum(0))
    lift = log_lift(seen[:, rated])
    (most, up), (least, down) = _largest(lift, dim), _largest(-lift, dim)
    # In a small matrix an axis can be among both, once with each sign.
    values, axes = np.r_[most[most > 0], -least[least > 0]], np.c_[up[:, most > 0], down[:, least > 0]]
    order = np.argsort(-np.abs(values), kind="stable")[:dim]
    order = order[np.abs(values[order]) > _RANK_TOLERANCE]
    found = axes[:, order] * np.sqrt(np.abs(values[order]))
    loadings = np.zeros((seen.shape[1], len(order)))
    loadings[rated] = _LIFT_SCALE * found / (found.std(0) + 1e-9)
    return loadings


def _largest(
    matrix: Float[np.ndarray, "row row"], number: int
) -> tuple[Float[np.ndarray, "axis"], Float[np.ndarray, "row axis"]]:
    """The greatest eigenvalues of a symmetric matrix in falling order, at most so many, and their vectors."""
    number, size = min(number, len(matrix)), len(matrix)
    if not number:
        return np.zeros(0), np.zeros((size, 0))
    values, axes = scipy.linalg.eigh(matrix, subset_by_index=[size - number, size - 1])
    return values[::-1], axes[:, ::-1]


def _unit(seen: Float[np.ndarray, "user item"]) -> Float[np.ndarray, "user item"]:
    unit: Float[np.ndarray, "user item"] = seen / np.sqrt(np.maximum(seen.sum(1, keepdims=True), 1))
    return unit


def _share(
    seen: Float[np.ndarray, "user item"], content: Float[np.ndarray, "item feature"]
) -> Float[np.ndarray, "user feature"]:
    mean: Float[np.ndarray, "user feature"] = seen @ content / np.maximum(seen.sum(1, keepdims=True), 1)
    return mean

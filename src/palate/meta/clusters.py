"""Task classes: people are put into classes, and each class has its own prior; after it, closed-form ridge.

Classes come from the profile: by k-means, by a Gaussian mixture with diagonal covariance (soft: the prior is the mean
over classes), or by a linear support vector machine trained on given classes. All three are quadratic functions of the
standardised profile, kept as fixed parameters, so that assigning is a pure function and is saved with the rest. One
prior for a class of tasks is Yao et al., Hierarchically Structured Meta-learning, 2019, arXiv:1905.05301.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from sklearn.svm import LinearSVC
from torch import Tensor

from palate.errors import ConfigError, DataError
from palate.meta import ridge
from palate.meta.learner import Fast, Learner, LearnerEntry, Params, make_learner
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.ridge import RidgeConfig, start_of


@dataclass(frozen=True)
class ClusterConfig(RidgeConfig):
    """How people are put into classes."""

    method: Literal["kmeans", "gmm", "svm"] = "kmeans"
    """kmeans or gmm find classes in the profiles; svm learns the classes given with the training tasks."""
    num_classes: int = 4
    """Number of classes; for svm, of the given ones."""
    seed: int = 0
    """Of k-means and the mixture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 2:
            raise ConfigError(f"learner.num_classes is {self.num_classes}; it must be at least 2")


class Assignment(NamedTuple):
    """Class scores of a standardised profile z: constant + linear · z + quadratic · z²."""

    constant: NDArray[np.float64]
    linear: NDArray[np.float64]
    quadratic: NDArray[np.float64]


def build(model: Model, objective: Objective, config: ClusterConfig, num_profile: int) -> Learner:
    """Ridge whose prior is the head's start plus that of the person's class."""
    base = ridge.build(model, objective, config, num_profile)

    def prior(params: Params, profile: Tensor) -> Fast:
        share = classes_of(params, profile, soft=config.method == "gmm")
        start = start_of(model, params)
        return {name: start[name] + torch.tensordot(share, params[f"class.{name}"], dims=1) for name in model.head}

    def prepare(params: Params, profiles: Tensor, classes: Tensor | None) -> Params:
        return {**params, **fit_classes(config, profiles, classes)}

    own = {
        **{name: value for name, value in base.params.items() if not name.startswith("model.")},
        **{f"class.{name}": torch.zeros(config.num_classes, *model.weights[name].shape) for name in model.head},
        "fixed.class.constant": torch.zeros(config.num_classes),
        "fixed.class.linear": torch.zeros(config.num_classes, num_profile),
        "fixed.class.quadratic": torch.zeros(config.num_classes, num_profile),
        "fixed.class.mean": torch.zeros(num_profile),
        "fixed.class.spread": torch.ones(num_profile),
    }
    return make_learner(model, objective, own, prior, base.adapt, check=base.check, prepare=prepare)


def classes_of(params: Params, profile: Tensor, *, soft: bool) -> Tensor:
    """Share of each class in one person; all in one class unless `soft`."""
    z = (profile - params["fixed.class.mean"]) / params["fixed.class.spread"]
    scores = (
        params["fixed.class.constant"] + params["fixed.class.linear"] @ z + params["fixed.class.quadratic"] @ z.square()
    )
    if soft:
        return torch.softmax(scores, 0)
    return torch.nn.functional.one_hot(scores.argmax(), len(scores)).to(scores)


def fit_classes(config: ClusterConfig, profiles: Tensor, classes: Tensor | None) -> Params:
    """Learn the assignment from the profiles of the training tasks.

    Raises:
        DataError: fewer different profiles than classes, or, for svm, no given classes or other numbers than 0 … C − 1.
    """
    rows = profiles.double().numpy()
    if len(np.unique(rows, axis=0)) < config.num_classes:
        raise DataError(
            f"clusters: the training tasks have {len(np.unique(rows, axis=0))} different profiles, fewer than "
            f"learner.num_classes = {config.num_classes}; lower it or give profiles"
        )
    mean, spread = rows.mean(0), rows.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    found = _METHODS[config.method](config, (rows - mean) / spread, classes)
    names = ("constant", "linear", "quadratic", "mean", "spread")
    values = (*found, mean, spread)
    return {
        f"fixed.class.{name}": torch.from_numpy(np.asarray(value)).to(profiles.dtype)
        for name, value in zip(names, values, strict=True)
    }


def _kmeans(config: ClusterConfig, rows: NDArray[np.float64], classes: Tensor | None) -> Assignment:
    centres = KMeans(config.num_classes, n_init=10, random_state=config.seed).fit(rows).cluster_centers_
    return Assignment(-np.square(centres).sum(1), 2 * centres, -np.ones_like(centres))


def _mixture(config: ClusterConfig, rows: NDArray[np.float64], classes: Tensor | None) -> Assignment:
    fitted = GaussianMixture(
        config.num_classes, covariance_type="diag", reg_covar=1e-2, n_init=5, random_state=config.seed
    ).fit(rows)
    precision = 1 / fitted.covariances_
    constant = np.log(fitted.weights_) + 0.5 * (np.log(precision) - precision * fitted.means_**2).sum(1)
    return Assignment(constant, precision * fitted.means_, -0.5 * precision)


def _machine(config: ClusterConfig, rows: NDArray[np.float64], classes: Tensor | None) -> Assignment:
    if classes is None:
        raise DataError("clusters: method svm learns given classes; give the class of every training task")
    given = classes.numpy()
    if sorted(np.unique(given)) != list(range(config.num_classes)):
        raise DataError(
            f"clusters: the given classes are {np.unique(given).tolist()}; expected every number from 0 to "
            f"{config.num_classes - 1} (learner.num_classes)"
        )
    fitted = LinearSVC(random_state=config.seed).fit(rows, given)
    coefficients, constant = fitted.coef_, fitted.intercept_
    if config.num_classes == 2:
        # scikit-learn keeps one row for two classes: the score of the second.
        coefficients, constant = np.vstack([-coefficients, coefficients]), np.concatenate([-constant, constant])
    return Assignment(constant, coefficients, np.zeros_like(coefficients))


_METHODS: Mapping[str, Callable[[ClusterConfig, NDArray[np.float64], Tensor | None], Assignment]] = {
    "kmeans": _kmeans,
    "gmm": _mixture,
    "svm": _machine,
}

CLUSTERS = LearnerEntry(ClusterConfig, build, by_feature=True)

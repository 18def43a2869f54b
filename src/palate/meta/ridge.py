"""The default learner: Bayesian ridge regression in closed form.

Model: target = ⟨w, feature⟩ + noise, w ~ N(w₀, diag(precision)⁻¹), noise ~ N(0, σ²). The posterior mean is taken in its
dual form, an n × n system for n events however many features there are:

    Δ = w − w₀ = Λ⁻¹ Φᵀ (Φ Λ⁻¹ Φᵀ + σ² I)⁻¹ (y − Φ w₀)

The precision depends on the support size through the spectrum of the evidence, precision · spectrum^t(n) with a learned
t(n) = a + b·log(1 + n): after few events the broad common directions are the best guess, after many they are known and
the fine ones tell people apart. Precision (one per feature), t and noise are learned through the solve, as in
Bertinetto et al., Meta-learning with differentiable closed-form solvers (R2-D2), 2019, arXiv:1805.08136; the posterior
is Bishop, Pattern Recognition and Machine Learning, 2006, eq. 3.50–3.53 and 6.66–6.67.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from palate.meta.learner import Layout, LearnerEntry, Params, Support

_START_NOISE = 2.0
_START_TEMPERING = (-0.3, 0.2)


def init(layout: Layout) -> Params:
    """Precision from the layout, one noise variance."""
    return {
        "ridge.log_precision": layout.precision.clone(),
        "ridge.log_noise": torch.tensor(math.log(_START_NOISE)),
        "ridge.tempering": torch.tensor(_START_TEMPERING),
    }


def metric(params: Params) -> Float[Tensor, "feature"]:
    """Prior standard deviation of each weight, untempered."""
    return torch.exp(-0.5 * params["ridge.log_precision"])


def prior_deviation(params: Params, count: Float[Tensor, ""]) -> Float[Tensor, "feature"]:
    """Prior standard deviation of each weight before `count` events are explained."""
    constant, slope = params["ridge.tempering"]
    return metric(params) * torch.exp(-0.5 * (constant + slope * count.log1p()) * params["fixed.spectrum"])


def inner(params: Params, mean: Float[Tensor, "feature"], support: Support) -> Float[Tensor, "feature"]:
    """Posterior mean minus prior mean; padded rows are zero rows of the system and change nothing."""
    scale = prior_deviation(params, support.mask.sum())
    rows = support.features * support.mask[:, None] * scale
    residual = (support.target - support.features @ mean) * support.mask
    weights: Tensor = torch.linalg.solve(_system(params, rows), residual)
    return scale * (rows.T @ weights)


def posterior_variance(
    params: Params, support: Support, features: Float[Tensor, "item feature"]
) -> Float[Tensor, "item"]:
    """Variance of ⟨w, feature⟩ for each item after the support: how much is still unknown."""
    scale = prior_deviation(params, support.mask.sum())
    rows = support.features * support.mask[:, None] * scale
    items = features * scale
    cross = rows @ items.T
    explained: Tensor = (cross * torch.linalg.solve(_system(params, rows), cross)).sum(0)
    return items.square().sum(1) - explained


def _system(params: Params, rows: Float[Tensor, "event feature"]) -> Float[Tensor, "event event"]:
    return rows @ rows.T + torch.exp(params["ridge.log_noise"]) * torch.eye(len(rows), dtype=rows.dtype)


RIDGE = LearnerEntry(init, inner, metric)

"""Bayesian ridge regression in closed form on what the head reads.

Model: target = prediction of the start + ⟨Δ, feature⟩ + noise, Δ ~ N(0, diag(precision)⁻¹), noise ~ N(0, σ² / weight).
The posterior mean is taken in its dual form, an n × n system for n events however many features there are:

    Δ = Λ⁻¹ Φᵀ (Φ Λ⁻¹ Φᵀ + σ² W⁻¹)⁻¹ (y − start)

and is differentiable, so that precision, noise and the body below are meta-learned through the solve, as in Bertinetto
et al., Meta-learning with differentiable closed-form solvers (R2-D2), 2019, arXiv:1805.08136. The posterior is Bishop,
Pattern Recognition and Machine Learning, 2006, eq. 3.50–3.53 and 6.66–6.67. The l1 penalty is the posterior mode under
a Laplace prior, by iterated reweighting of the ridge (Figueiredo, Adaptive Sparseness for Supervised Learning, 2003,
doi 10.1109/TPAMI.2003.1227989).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from scipy.linalg.lapack import sposv  # type: ignore[import-untyped]
from torch import Tensor
from torch.func import vmap

from palate.errors import ConfigError
from palate.meta.fused import ACTIVATIONS
from palate.meta.learner import (
    Events,
    Fast,
    Learner,
    LearnerEntry,
    Params,
    Quick,
    SupportRows,
    Tasks,
    Working,
    cleared,
    make_learner,
    weights_of,
)
from palate.meta.model import Layers, Model
from palate.meta.objectives import Objective

_REWEIGHTINGS = 8
_SPARSE_FLOOR = 1e-4


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of the closed-form learners."""

    penalty: Literal["l2", "l1", "learned"] = "l2"
    """l2: every feature has precision 1 and the learned noise is all the regularisation; learned: one meta-learned
    precision a feature; l1: a Laplace prior, sparse departures."""
    noise: float = 2.0
    """Where the noise variance σ² starts; it is meta-learned."""

    def __post_init__(self) -> None:
        if self.noise <= 0:
            raise ConfigError(f"learner.noise is {self.noise}; it must be above 0")


def init(model: Model, config: RidgeConfig) -> Params:
    """Noise, and one precision a feature where they are learned."""
    params = {"log_noise": torch.tensor(math.log(config.noise))}
    if config.penalty == "learned":
        params["log_precision"] = torch.zeros(num_features(model))
    return params


def num_features(model: Model) -> int:
    """Features that the head reads, the column of ones for its bias included."""
    return sum(model.weights[name].numel() for name in model.head)


def start_of(model: Model, params: Params) -> Fast:
    """The head's shared weights."""
    shared = weights_of(params)
    return {name: shared[name] for name in model.head}


def moved_by(model: Model, fast: Fast, delta: Float[Tensor, "feature"]) -> Fast:
    """Add a departure to the head's weight and bias, which the features hold one after the other."""
    parts = torch.split(delta, [fast[name].numel() for name in model.head])
    return {name: fast[name] + part.view_as(fast[name]) for name, part in zip(model.head, parts, strict=True)}


def linear_check(model: Model) -> Callable[[Params, Events], None]:
    """Refuse a model whose prediction is not the head's own output: there the closed form solves another problem."""

    def check(params: Params, events: Events) -> None:
        shared, nothing = weights_of(params), weights_of(params)
        nothing = {**nothing, **{name: torch.zeros_like(nothing[name]) for name in model.head}}
        events = cleared(events, shared[model.head[0]].dtype)
        head = torch.cat([shared[name].flatten() for name in model.head])
        moved = model.predict(shared, events.inputs) - model.predict(nothing, events.inputs)
        if not torch.allclose(model.features(shared, events.inputs) @ head, moved, rtol=1e-3, atol=1e-4):
            raise ConfigError(
                "the network changes its head's output before it returns it; closed-form learners need that output to "
                "be the prediction: leave the last step out, or use maml"
            )

    return check


def deviation(params: Params, features: Tensor) -> Float[Tensor, "feature"]:
    """Prior standard deviation of each weight."""
    precision = params.get("log_precision")
    return features.new_ones(features.shape[-1]) if precision is None else torch.exp(-0.5 * precision)


def solve(
    rows: Float[Tensor, "event feature"],
    residual: Float[Tensor, "event"],
    weight: Float[Tensor, "event"],
    noise: Float[Tensor, ""],
) -> Float[Tensor, "feature"]:
    """Posterior mean of the departure in coordinates of unit prior variance; events of weight 0 change nothing."""
    root = _root(weight)
    weighted = rows * root[:, None]
    dual: Tensor = torch.linalg.solve(_system(weighted, noise), residual * root)
    return weighted.T @ dual


def build(model: Model, objective: Objective, config: RidgeConfig, num_profile: int) -> Learner:
    """The posterior mean of the head; squared error inside, whatever the objective is outside."""

    def prior(params: Params, profile: Tensor) -> Fast:
        return start_of(model, params)

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        shared = {**weights_of(params), **fast}
        features = model.features(shared, support.inputs)
        features = torch.where(support.weight[:, None] > 0, features, 0.0)
        residual = support.target - model.predict(shared, support.inputs)
        noise = params["log_noise"].exp()
        scale = deviation(params, features)
        delta = scale * solve(features * scale, residual, support.weight, noise)
        if config.penalty == "l1":
            for _ in range(_REWEIGHTINGS):
                scale = (delta.abs() + _SPARSE_FLOOR).sqrt()
                delta = scale * solve(features * scale, residual, support.weight, noise)
        return moved_by(model, fast, delta)

    layers = None if config.penalty == "l1" else model.layers
    losses = None if layers is None else _batched(model, objective, layers)
    return make_learner(model, objective, init(model, config), prior, adapt, losses=losses, check=linear_check(model))


def _batched(model: Model, objective: Objective, layers: Layers) -> Callable[[Params, Tasks], Tensor]:
    """All tasks in one pass over a plain stack: one matrix product for the body, one batched solve for the heads."""
    activation = ACTIVATIONS[layers.activation].value

    def losses(params: Params, tasks: Tasks) -> Tensor:
        shared, (support, query) = weights_of(params), tasks[1:]
        size = support.weight.shape[1]
        hidden = torch.cat([support.inputs, query.inputs], 1)
        for weight, bias in layers.names[:-1]:
            hidden = activation(F.linear(hidden, shared[weight], shared[bias]))
        head, offset = (shared[name] for name in layers.names[-1])
        start = F.linear(hidden, head, offset)[..., 0]
        rows, bias_variance = hidden, torch.ones(())
        if "log_precision" in params:
            scale = deviation(params, hidden)
            rows, bias_variance = hidden * scale[:-1], scale[-1].square()
        root = _root(support.weight)
        # The bias is the weight of a feature that is 1: its share of every product is its prior variance.
        products = (torch.bmm(rows, rows[:, :size].mT) + bias_variance) * root[:, None]
        noise = params["log_noise"].exp() * torch.eye(size, dtype=hidden.dtype, device=hidden.device)
        factor = torch.linalg.cholesky(products[:, :size] * root[..., None] + noise)
        dual = torch.cholesky_solve(((support.target - start[:, :size]) * root)[..., None], factor)
        predictions = start[:, size:] + torch.bmm(products[:, size:], dual)[..., 0]
        if not objective.mean_outer:
            return vmap(objective.outer)(predictions, query.target, query.weight)
        counts = (query.weight > 0).sum(1).clamp_min(1)
        return (objective.loss(predictions, query.target) * query.weight).sum(1) / counts

    return losses


def _root(weight: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0, not infinite."""
    return torch.where(weight > 0, torch.where(weight > 0, weight, 1.0).sqrt(), 0.0)


def _system(weighted: Float[Tensor, "event feature"], noise: Float[Tensor, ""]) -> Float[Tensor, "event event"]:
    return weighted @ weighted.T + noise * torch.eye(len(weighted), dtype=weighted.dtype, device=weighted.device)


def quick(config: RidgeConfig, params: Mapping[str, np.ndarray]) -> Quick | None:
    """The posterior mean of one task, by a Cholesky factor of the n × n system."""
    if config.penalty == "l1":
        return None
    noise = np.exp(params["log_noise"])
    learned = params.get("log_precision")
    scale = None if learned is None else np.exp(-0.5 * learned)

    def moved(rows: Float32[np.ndarray, "event feature"], residual: Float32[np.ndarray, "event"]) -> np.ndarray:
        rows = rows if scale is None else rows * scale
        system = rows @ rows.T
        system.flat[:: len(rows) + 1] += noise
        _, dual, failed = sposv(system, residual)
        if failed:  # for noise far below the rounding of the products
            dual = np.linalg.lstsq(system, residual)[0]
        delta: np.ndarray = dual @ rows
        return delta if scale is None else delta * scale

    return moved


def posterior(
    config: RidgeConfig,
    params: Params,
    objective: Objective,
    rows: SupportRows,
) -> Working:
    """The regression itself; ConfigError for the l1 penalty, whose posterior is not Gaussian."""
    if config.penalty == "l1":
        raise ConfigError("learner.penalty is 'l1', whose posterior has no closed form; explore with l2 or learned")
    return Working(deviation(params, rows.features), rows.weight, params["log_noise"].exp())


RIDGE = LearnerEntry(RidgeConfig, build, quick=quick, posterior=posterior)

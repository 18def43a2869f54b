"""Laplace's approximation for clicks: the mode of logistic regression on the head, by Newton's method.

Each step is the ridge posterior of a weighted working response (iteratively reweighted least squares; Bishop, Pattern
Recognition and Machine Learning, 2006, eq. 4.99–4.100 and §4.5; in the dual form, Rasmussen & Williams, Gaussian
Processes for Machine Learning, 2006, algorithm 3.1). Meta-learned through the steps, as R2-D2's logistic variant
(arXiv:1805.08136, §3.2). With squared error one step is exact and equals `ridge`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from palate.errors import ConfigError
from palate.meta.learner import (
    Events,
    Fast,
    Learner,
    LearnerEntry,
    Params,
    SupportRows,
    Working,
    make_learner,
    weights_of,
)
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.ridge import RidgeConfig, deviation, init, linear_check, moved_by, solve, start_of

_CURVATURE_FLOOR = 1e-6
_LENGTHS = (1.0, 0.5, 0.25, 0.125, 1 / 32, 0.0)


@dataclass(frozen=True)
class LaplaceConfig(RidgeConfig):
    """Settings of the Laplace learner."""

    noise: float = 0.5
    """Where σ² starts; ½ is the logistic likelihood itself, more trusts events less."""
    num_steps: int = 6
    """Newton steps, each of the best length among a few; from a start that is not far off four would do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1:
            raise ConfigError(f"learner.num_steps is {self.num_steps}; it must be at least 1")
        if self.penalty == "l1":
            raise ConfigError("learner.penalty is 'l1'; laplace has l2 and learned: use ridge for a sparse closed form")


def build(model: Model, objective: Objective, config: LaplaceConfig, num_profile: int) -> Learner:
    """The posterior mode of the head under the objective's own loss."""

    def prior(params: Params, profile: Tensor) -> Fast:
        return start_of(model, params)

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        shared = {**weights_of(params), **fast}
        counts = support.weight > 0
        features = torch.where(counts[:, None], model.features(shared, support.inputs), 0.0)
        start = model.predict(shared, support.inputs)
        target = torch.where(counts, support.target, 0.0)
        delta, _ = find_mode(config, params, objective, SupportRows(features, target, support.weight, start))
        return moved_by(model, fast, delta)

    return make_learner(model, objective, init(model, config), prior, adapt, check=linear_check(model))


def find_mode(
    config: LaplaceConfig,
    params: Params,
    objective: Objective,
    rows: SupportRows,
) -> tuple[Float[Tensor, "feature"], Float[Tensor, "event"]]:
    """The most probable departure from the start, and what it adds to the prediction of each event."""
    features, target, weight, start = rows
    scale, noise = deviation(params, features), params["log_noise"].exp()
    delta, lift = torch.zeros_like(scale), torch.zeros_like(target)
    lengths = torch.tensor(_LENGTHS, dtype=scale.dtype, device=scale.device)

    def energies(deltas: Tensor, lifts: Tensor) -> Tensor:
        losses = (weight * objective.loss(start + lifts, target)).sum(-1)
        return 0.5 * losses / noise + 0.5 * (deltas / scale).square().sum(-1)

    for _ in range(config.num_steps):
        curvature = objective.curvature(start + lift, target).clamp_min(_CURVATURE_FLOOR)
        response = lift - objective.slope(start + lift, target) / curvature
        # The squared loss has curvature 2 where a Gaussian of unit noise has 1: halve, so that noise means σ².
        newton = scale * solve(features * scale, response, 0.5 * weight * curvature, noise)
        # A whole step overshoots where the loss is nearly flat; the best of a few lengths never goes up.
        deltas = delta + lengths[:, None] * (newton - delta)
        lifts = lift + lengths[:, None] * (features @ newton - lift)
        best = energies(deltas, lifts).detach().argmin()
        delta, lift = deltas[best], lifts[best]
    return delta, lift


def posterior(
    config: LaplaceConfig,
    params: Params,
    objective: Objective,
    rows: SupportRows,
) -> Working:
    """The Gaussian at the mode: each event tells as much as its loss is curved there."""
    _, lift = find_mode(config, params, objective, rows)
    curvature = objective.curvature(rows.start + lift, rows.target).clamp_min(_CURVATURE_FLOOR)
    return Working(deviation(params, rows.features), 0.5 * rows.weight * curvature, params["log_noise"].exp())


LAPLACE = LearnerEntry(LaplaceConfig, build, posterior=posterior)

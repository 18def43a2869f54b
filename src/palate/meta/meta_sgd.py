"""Meta-SGD: MAML with a learned step size, and so a direction, for every weight.

Li et al., Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, arXiv:1707.09835. As there, steps may become
negative. One step by default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from palate.meta.gradient import GradientConfig, descend, fused_losses, init_steps, step_sizes, support_loss
from palate.meta.learner import Events, Fast, Learner, LearnerEntry, Params, make_learner, weights_of
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.penalty import init_penalty


@dataclass(frozen=True)
class MetaSGDConfig(GradientConfig):
    """Where the step sizes of all weights start."""

    num_steps: int = 1
    step_size: float = 0.05


def build(model: Model, objective: Objective, config: MetaSGDConfig, num_profile: int) -> Learner:
    """Second order, on every weight; the learned numbers multiply the common step size and start at 1."""
    names = tuple(model.weights)

    def prior(params: Params, profile: Tensor) -> Fast:
        return weights_of(params)

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        return descend(
            support_loss(model, objective, config, params, support),
            fast,
            step_sizes(config, params),
            config=config,
            params=params,
            scales={name: params[f"step.{name}"] for name in names},
        )

    steps = {f"step.{name}": torch.ones_like(weight) for name, weight in model.weights.items()}
    start = {**init_steps(config), **init_penalty(config, model.weights), **steps}
    losses = fused_losses(model, objective, config, names, scaled=True)
    return make_learner(model, objective, start, prior, adapt, losses=losses)


META_SGD = LearnerEntry(MetaSGDConfig, build)

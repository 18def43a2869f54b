"""A learned updater: the learner has a partner network that puts out each update of its weights.

Andrychowicz et al., Learning to learn by gradient descent by gradient descent, 2016, arXiv:1606.04474; Ravi &
Larochelle, Optimization as a Model for Few-Shot Learning, 2017 (openreview rJY0-Kcll). One small network is shared by
all weights; for each it reads the gradient, how far the weight has moved, the step and a learned embedding of its
tensor, and puts out the update. Where the gradient of a tensor is zero, so is its update: no event, no move.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from palate.errors import ConfigError
from palate.meta.gradient import GradientConfig, init_steps, step_sizes, support_loss
from palate.meta.learner import Events, Fast, Learner, LearnerEntry, Params, make_learner, weights_of
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.penalty import init_penalty, shrink

_EMBEDDING = 4


@dataclass(frozen=True)
class UpdaterConfig(GradientConfig):
    """Settings of the updater."""

    num_steps: int = 3
    step_size: float = 0.05
    hidden: int = 16
    """Width of the updater's hidden layer."""
    seed: int = 0
    """Of the updater at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ConfigError(f"learner.hidden is {self.hidden}; it must be at least 1")


def build(model: Model, objective: Objective, config: UpdaterConfig, num_profile: int) -> Learner:
    """Update every decision weight by the partner network's word."""
    start = {name: model.weights[name] for name in model.decision}

    def prior(params: Params, profile: Tensor) -> Fast:
        shared = weights_of(params)
        return {name: shared[name] for name in model.decision}

    def update(params: Params, name: str, slope: Tensor, moved: Tensor, place: float) -> Tensor:
        size = slope.abs().mean()
        told = torch.stack([slope / (size + 1e-8), moved, torch.full_like(moved, place)], -1)
        tensor = params[f"updater.tensor.{name}"].expand(*slope.shape, _EMBEDDING)
        hidden = torch.tanh(torch.cat([told, tensor], -1) @ params["updater.in"] + params["updater.in_bias"])
        gain, push = (hidden @ params["updater.out"] + params["updater.out_bias"]).unbind(-1)
        return gain.exp() * slope + push * size

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        inner_loss = support_loss(model, objective, config, params, support)
        first = fast
        for place, step in enumerate(step_sizes(config, params)):
            slopes = grad(inner_loss)(fast)
            fast = {
                name: weight - step * update(params, name, slopes[name], weight - first[name], place / config.num_steps)
                for name, weight in fast.items()
            }
            fast = shrink(config, params, first, fast, step)
        return fast

    own = {**_init(model, config), **init_steps(config), **init_penalty(config, start)}
    return make_learner(model, objective, own, prior, adapt)


def _init(model: Model, config: UpdaterConfig) -> Params:
    generator = torch.Generator().manual_seed(config.seed)
    width = 3 + _EMBEDDING
    return {
        "updater.in": width**-0.5 * torch.randn(width, config.hidden, generator=generator),
        "updater.in_bias": torch.zeros(config.hidden),
        "updater.out": 0.01 * torch.randn(config.hidden, 2, generator=generator),
        "updater.out_bias": torch.zeros(2),
        **{f"updater.tensor.{name}": torch.randn(_EMBEDDING, generator=generator) for name in model.decision},
    }


UPDATER = LearnerEntry(UpdaterConfig, build)

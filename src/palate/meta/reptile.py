"""Reptile: move the initialisation towards each task's solution; no query gradient, no second order.

Nichol, Achiam & Schulman, On First-Order Meta-Learning Algorithms, 2018, arXiv:1803.02999.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from palate.errors import ConfigError
from palate.meta.gradient import GradientConfig, gradient_learner
from palate.meta.learner import Events, Fast, Learner, LearnerEntry, Params, make_learner
from palate.meta.model import Model
from palate.meta.objectives import Objective


@dataclass(frozen=True)
class ReptileConfig(GradientConfig):
    """Settings of the inner loop; nothing in it can be meta-learned, for the outer step looks at the weights alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_step_size or self.penalty == "learned":
            raise ConfigError(
                "learner: reptile learns only where to start; learn_step_size and penalty = 'learned' need maml"
            )


def build(model: Model, objective: Objective, config: ReptileConfig, num_profile: int) -> Learner:
    """Adapt on support and query together; the outer loss is ½‖start − adapted‖² with `adapted` held constant.

    Its gradient is start − adapted, Reptile's outer step; its value measures how far tasks lie from the start and is
    not a prediction error.
    """
    base = gradient_learner(model, objective, config, tuple(model.weights), first_order=True)

    def loss(params: Params, profile: Tensor, support: Events, query: Events) -> Tensor:
        start = base.prior(params, profile)
        everything = Events(*(torch.cat(parts) for parts in zip(support, query, strict=True)))
        adapted = base.adapt(params, start, everything)
        return sum_of_squares(start, {name: weight.detach() for name, weight in adapted.items()})

    own = {name: value for name, value in base.params.items() if not name.startswith("model.")}
    return make_learner(model, objective, own, base.prior, base.adapt, loss=loss)


def sum_of_squares(start: Fast, adapted: Fast) -> Tensor:
    """½ Σ (start − adapted)²."""
    return 0.5 * torch.stack([(weight - adapted[name]).square().sum() for name, weight in start.items()]).sum()


REPTILE = LearnerEntry(ReptileConfig, build)

"""MAMO: a memory, addressed by the profile, says where each person's weights start.

Dong et al., MAMO: Memory-Augmented Meta-Optimization for Cold-start Recommendation, 2020, arXiv:2007.03183. The start
is the shared one plus τ times an attention-weighted sum of memory rows (its eq. 3–5), for the decision layers; the
inner loop is gradient descent. The paper writes its memories by moving averages between tasks; here keys and rows are
parameters that the outer loop trains through the inner one, so that a task stays a pure function.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from palate.errors import ConfigError
from palate.meta.gradient import GradientConfig, descend, init_steps, step_sizes, support_loss
from palate.meta.learner import Events, Fast, Learner, LearnerEntry, Params, make_learner, weights_of
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.penalty import init_penalty

_SHARPNESS = 5.0


@dataclass(frozen=True)
class MamoConfig(GradientConfig):
    """Settings of the memory and the inner loop."""

    num_slots: int = 8
    """Rows of the memory."""
    rate: float = 0.05
    """Factor τ on what is read from the memory."""
    seed: int = 0
    """Of the keys at the start; the rows start at zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_slots < 1:
            raise ConfigError(f"learner.num_slots is {self.num_slots}; it must be at least 1")
        if self.rate <= 0:
            raise ConfigError(f"learner.rate is {self.rate}; it must be above 0")


def build(model: Model, objective: Objective, config: MamoConfig, num_profile: int) -> Learner:
    """Read the memory for the prior, then descend on the decision layers."""
    start = {name: model.weights[name] for name in model.decision}

    def prior(params: Params, profile: Tensor) -> Fast:
        likeness = F.normalize(params["memory.keys"], dim=1) @ F.normalize(profile, dim=0)
        attention = torch.softmax(_SHARPNESS * likeness, 0)
        shared = weights_of(params)
        return {
            name: shared[name] + config.rate * torch.tensordot(attention, params[f"memory.{name}"], dims=1)
            for name in model.decision
        }

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        inner_loss = support_loss(model, objective, config, params, support)
        return descend(inner_loss, fast, step_sizes(config, params), config=config, params=params)

    memory = {f"memory.{name}": weight.new_zeros(config.num_slots, *weight.shape) for name, weight in start.items()}
    keys = torch.randn(config.num_slots, num_profile, generator=torch.Generator().manual_seed(config.seed))
    own = {"memory.keys": keys, **memory, **init_steps(config), **init_penalty(config, start)}
    return make_learner(model, objective, own, prior, adapt)


MAMO = LearnerEntry(MamoConfig, build, by_feature=True)

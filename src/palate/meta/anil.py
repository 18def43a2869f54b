"""ANIL: gradient steps on the head alone, the shared body stays as it is.

Raghu et al., Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML, 2020, arXiv:1909.09157.
The inner loss is logistic (chosen or refused) with a quadratic pull to the start; its step sizes and the scale of each
feature are learned. `palate.meta` differentiates through the steps, so this is the second-order version.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from palate.meta.learner import Layout, LearnerEntry, Params, Support

NUM_STEPS = 3


def init(layout: Layout) -> Params:
    """One step size a step, one scale a feature, one pull to the start."""
    return {
        "anil.log_step": torch.zeros(NUM_STEPS),
        "anil.log_scale": -0.5 * layout.precision,
        "anil.log_pull": torch.tensor(-1.0),
    }


def metric(params: Params) -> Float[Tensor, "feature"]:
    """Learned scale of each feature."""
    return torch.exp(params["anil.log_scale"])


def inner(params: Params, mean: Float[Tensor, "feature"], support: Support) -> Float[Tensor, "feature"]:
    """Move from the prior mean by NUM_STEPS gradient steps in the scaled space, and return the way."""
    scale = metric(params)
    rows = support.features * support.mask[:, None] * scale
    start = support.features @ mean
    pull = torch.exp(params["anil.log_pull"])

    def inner_loss(moved: Tensor) -> Tensor:
        margin = support.target * (start + rows @ moved)
        return (F.softplus(-margin) * support.mask).sum() + 0.5 * pull * moved.square().sum()

    moved = torch.zeros_like(mean)
    for log_step in params["anil.log_step"]:
        moved = moved - torch.exp(log_step) * grad(inner_loss)(moved)
    return scale * moved


ANIL = LearnerEntry(init, inner, metric)

"""Posterior of a person's taste in closed form: a Gaussian process over items, learned through its solution.

The covariance of two items is that of a linear model in their vectors plus a learned mixture of content kernels:
alike items are rated alike beyond what the vectors say. How uncertain a vector is enters as noise. The solve is
differentiable, so that variances, noise and prior mean are meta-learned: Bertinetto et al., Meta-learning with
differentiable closed-form solvers, 2019, arXiv:1805.08136; Gaussian processes with learned kernels for few-shot
regression: Patacchiola et al., Bayesian meta-learning for the few-shot setting via deep kernels, 2020,
arXiv:1910.05199. Uncertain inputs as noise: McHutchon & Rasmussen, Gaussian process training with input noise, 2011.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST_VARIANCE = 1e-4
_FIRST_LOG_KERNEL = -4.0


class ItemReading(NamedTuple):
    """What is known of some items of each task."""

    entries: Float[Tensor, "task event entry"]
    """Bias, then vector."""
    variance: Float[Tensor, "task event entry"]
    """Of each entry."""
    warm: Float[Tensor, "task event"]
    """1 where ratings of the item were read, 0 where content alone was."""


class TastePosterior(NamedTuple):
    """What the support says of the queries."""

    mean: Float[Tensor, "task query"]
    """Expected departure from the item's mean."""
    variance: Float[Tensor, "task query"]
    """Of the departure, the item's own uncertainty included."""
    residual: Float[Tensor, "task event"]
    """What the posterior leaves of each support rating; 0 where padded."""


def solve(
    covariance: Float[Tensor, "task event event"],
    cross: Float[Tensor, "task query event"],
    prior_variance: Float[Tensor, "task query"],
    target: Float[Tensor, "task event"],
    noise: Float[Tensor, "task event"],
    mask: Float[Tensor, "task event"],
) -> TastePosterior:
    """Condition on the events where `mask` is 1; the others change nothing (Rasmussen & Williams, 2006, 2.23–2.24)."""
    both = mask[:, :, None] * mask[:, None, :]
    system = covariance * both + torch.diag_embed(noise * mask + (1 - mask))
    root = torch.linalg.cholesky(system)
    dual = torch.cholesky_solve((target * mask)[..., None], root)
    cross = cross * mask[:, None]
    half = torch.linalg.solve_triangular(root, cross.transpose(1, 2), upper=False)
    variance = (prior_variance - half.square().sum(1)).clamp_min(_LEAST_VARIANCE)
    return TastePosterior((cross @ dual)[..., 0], variance, dual[..., 0] * noise * mask)


class KernelSolve(nn.Module):
    """Learned covariance, noise and prior mean of the solve."""

    def __init__(
        self, num_factors: int, num_kernels: int, num_profile: int, user_bias_variance: float, noise: float
    ) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor([math.log(user_bias_variance)] + [0.0] * num_factors))
        # The first column for any two items, the second on top for two items that are read from content.
        self.log_kernel = nn.Parameter(torch.full((num_kernels, 2), _FIRST_LOG_KERNEL))
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))
        self.log_spread = nn.Parameter(torch.zeros(num_factors + 1))
        self.prior = nn.Linear(max(num_profile, 1), num_factors + 1)  # of people without a profile: one of 0
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)

    def forward(
        self,
        profile: Float[Tensor, "task profile"],
        support: ItemReading,
        query: ItemReading,
        alike: Float[Tensor, "task event event kernel"],
        alike_cross: Float[Tensor, "task query event kernel"],
        alike_self: Float[Tensor, "task query kernel"],
        target: Float[Tensor, "task event"],
        mask: Float[Tensor, "task event"],
    ) -> TastePosterior:
        """Posterior at the queries, given what the support departs from its items' means."""
        left, right = _features(support), _features(query)
        general, cold = self.log_kernel.exp().unbind(1)
        variance = self.log_variance.exp()
        support_cold, query_cold = 1 - support.warm, 1 - query.warm

        covariance = (left * variance) @ left.transpose(1, 2) + alike @ general
        covariance = covariance + (alike @ cold) * (support_cold[:, :, None] * support_cold[:, None, :])
        cross = (right * variance) @ left.transpose(1, 2) + alike_cross @ general
        cross = cross + (alike_cross @ cold) * (query_cold[:, :, None] * support_cold[:, None, :])
        before = (right.square() * variance).sum(-1) + alike_self @ general + (alike_self @ cold) * query_cold

        # An uncertain bias adds its variance to a rating; an uncertain factor adds its own times the user's in it.
        weight = torch.cat([torch.ones_like(variance[:1]), variance[1:]]) * self.log_spread.exp()
        noise = self.log_noise.exp() + (support.variance * weight).sum(-1)
        before = before + (query.variance * weight).sum(-1)

        known = profile if profile.shape[1] else profile.new_zeros(len(profile), 1)
        prior = self.prior(known)[..., None]
        found = solve(covariance, cross, before, target - (left @ prior)[..., 0], noise, mask)
        return found._replace(mean=found.mean + (right @ prior)[..., 0])


def _features(items: ItemReading) -> Float[Tensor, "task event entry"]:
    """(1, vector): what the linear model reads."""
    return torch.cat([torch.ones_like(items.entries[..., :1]), items.entries[..., 1:]], -1)

"""Gaussian process regression over items with a weighted sum of given kernels, and its leave-one-out predictions.

Weights and noise are those of the largest marginal likelihood; leaving a row out has a closed form. Rasmussen &
Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25–2.26, 2.30 and 5.10–5.12.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.ratings.likeness import Likeness
from palate.steps import take_step

_STEPS, _STEP_SIZE, _MAX_ROWS = 30, 0.3, 1200  # of Adam, on as many rows: the gradient costs the cube of them
_LEAST_VARIANCE = 1e-3
_LEAST_SCALE = 1e-6
_TOGETHER = 512


class KernelWeights(NamedTuple):
    """A fitted covariance, in units of the variance of the targets."""

    kernels: Float[Tensor, "kernel"]
    floor: float
    """Noise variance of every row: what an item has of its own."""
    slope: float
    """Factor of the variances that the targets come with."""


def fit_weights(
    likeness: Likeness,
    rows: Int64[np.ndarray, "row"],
    targets: Float[np.ndarray, "row target"],
    variance: Float[np.ndarray, "row"],
    *,
    seed: int,
) -> KernelWeights:
    """Weights of the largest marginal likelihood, the same for every target.

    Args:
        likeness: of the items.
        rows: the items of the targets.
        targets: any scale; each is standardised.
        variance: how uncertain each row is, in units of the variance of the targets.
        seed: of the rows drawn where there are many.

    Raises:
        NumericalError: the covariance has no Cholesky factor.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(rows), generator=generator)[:_MAX_ROWS]
    picked = torch.from_numpy(rows)[drawn]
    between = likeness.between(picked, picked).permute(2, 0, 1).float().contiguous()
    wanted = torch.from_numpy(_standardised(targets[drawn.numpy()])[0]).float()
    uncertain = torch.from_numpy(variance)[drawn].float()
    log_weights = torch.full((likeness.num_kernels + 2,), -2.0, requires_grad=True)
    optimiser = torch.optim.Adam([log_weights], lr=_STEP_SIZE)

    def loss() -> Tensor:
        weights = log_weights.exp()
        covariance = (weights[:-2, None, None] * between).sum(0)
        covariance = covariance + torch.diag(weights[-2] + weights[-1] * uncertain + _LEAST_VARIANCE)
        root = torch.linalg.cholesky(covariance)
        fit = 0.5 * (wanted * torch.cholesky_solve(wanted, root)).sum() / wanted.shape[1]
        value: Tensor = (fit + root.diagonal().log().sum()) / len(drawn)
        return value

    for step in range(1, _STEPS + 1):
        take_step(optimiser, loss, name="Gaussian process of the items", step=step, advice="look for extreme ratings")
    weights = log_weights.detach().exp()
    return KernelWeights(weights[:-2], float(weights[-2]), float(weights[-1]))


def predict(
    likeness: Likeness,
    rows: Int64[np.ndarray, "row"],
    targets: Float[np.ndarray, "row target"],
    variance: Float[np.ndarray, "row"],
    weights: KernelWeights,
) -> tuple[Float[np.ndarray, "item target"], Float[np.ndarray, "item target"]]:
    """Mean and variance of each item's targets: for the given rows from all rows but their own."""
    standard, centre, scale = _standardised(targets)
    wanted = torch.from_numpy(standard)
    known = torch.from_numpy(rows)
    others = torch.from_numpy(np.setdiff1d(np.arange(likeness.num_items), rows))
    noise = weights.floor + weights.slope * torch.from_numpy(variance) + _LEAST_VARIANCE
    inverse = torch.linalg.inv(_covariance(likeness, known, known, weights) + torch.diag(noise))
    dual = inverse @ wanted
    mean = torch.zeros(likeness.num_items, wanted.shape[1], dtype=torch.float64)
    spread = torch.zeros(likeness.num_items, dtype=torch.float64)
    mean[known] = wanted - dual / inverse.diagonal()[:, None]
    spread[known] = 1 / inverse.diagonal() - noise
    for some in torch.split(others, _TOGETHER):
        cross = _covariance(likeness, some, known, weights)
        before = (likeness.own(some) @ weights.kernels).double()
        mean[some] = cross @ dual
        spread[some] = before - ((cross @ inverse) * cross).sum(1)
    spread = spread.clamp_min(_LEAST_VARIANCE)
    return mean.numpy() * scale + centre, spread.numpy()[:, None] * scale**2


def _covariance(
    likeness: Likeness, rows: Int64[Tensor, "row"], columns: Int64[Tensor, "column"], weights: KernelWeights
) -> Float[Tensor, "row column"]:
    """The weighted sum of the kernels, a few rows at a time: the kernels themselves are several times as large."""
    parts = [likeness.between(some, columns) @ weights.kernels for some in torch.split(rows, _TOGETHER)]
    return torch.cat([torch.zeros(0, len(columns)), *parts]).double()


def _standardised(
    targets: Float[np.ndarray, "row target"],
) -> tuple[Float[np.ndarray, "row target"], Float[np.ndarray, "target"], Float[np.ndarray, "target"]]:
    centre, scale = targets.mean(0), np.maximum(targets.std(0), _LEAST_SCALE)
    return (targets - centre) / scale, centre, scale

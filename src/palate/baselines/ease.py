"""EASE: a linear item-item model with a zero diagonal, in closed form.

Harald Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019, arXiv:1905.03375.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from palate.baselines.base import CoPurchases, Scorer, count_co_purchases, linear_scorer
from palate.errors import ConfigError


@dataclass(frozen=True)
class EASEConfig:
    """Settings of EASE."""

    regularisation: float = 200.0
    """λ, the ridge penalty on the item-item weights, in purchases."""

    def __post_init__(self) -> None:
        if self.regularisation <= 0:
            raise ConfigError(f"ease.regularisation: got {self.regularisation}; expected above 0; try 200")


def fit_ease(matrix: Float32[np.ndarray, "user item"], config: EASEConfig | None = None) -> Scorer:
    """Fit on a 0/1 purchase matrix; DataError if it is not one. 1 to 2 s for 3,300 items on one core."""
    return ease_scorer(count_co_purchases(matrix), config or EASEConfig())


def ease_scorer(purchases: CoPurchases, config: EASEConfig) -> Scorer:
    """Solve min ‖X − XB‖² + λ‖B‖² with diag(B) = 0: B = I − P diag(P)⁻¹ where P = (XᵀX + λI)⁻¹ (eq. 8)."""
    # NOTE: float64 is needed. In float32 weights were off by up to 0.03 (of 0.31) on long-tailed data.
    regularised = torch.from_numpy(purchases.counts).double()
    regularised.diagonal().add_(config.regularisation)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(regularised))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0)
    # The inverse comes column by column; scoring adds up rows, and is many times as fast on contiguous ones.
    return linear_scorer(weights.float().contiguous().numpy(), purchases.popularity)

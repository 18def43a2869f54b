"""EASE: a linear item-item model with a zero diagonal, in closed form.

Harald Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019, arXiv:1905.03375.
"""

from dataclasses import dataclass
from typing import Literal

from palate.baselines.base import ListModel, count_popularity
from palate.baselines.linear import linear_model
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.scorers.item_weights import ease_weights


@dataclass(frozen=True)
class EASEConfig:
    """Settings of EASE."""

    regularisation: float = 200.0
    """λ, the ridge penalty on the item-item weights, in people."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the inversion. float32 takes half the time and memory (1.35 GB for 18,357 items); with λ ≥ 50 its weights
    agree with those of float64 to about 1e-4."""

    def __post_init__(self) -> None:
        if self.regularisation <= 0:
            raise ConfigError(f"ease.regularisation: got {self.regularisation}; expected above 0; try 200")


def fit_ease(training: EventLog, num_items: int, config: EASEConfig) -> ListModel:
    """Solve min ‖X − XB‖² + λ‖B‖² with diag(B) = 0 in closed form (eq. 8); 2 s for 3,300 items on one core.

    Raises:
        NumericalError: the matrix cannot be factored, which a larger λ cures.
    """
    weights = ease_weights(training, num_items, config.regularisation, precision=config.precision)
    return linear_model(weights, count_popularity(training, num_items))

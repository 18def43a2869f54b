"""Regularisation of fast weights: how far they may go from their start.

Each penalty is a proximal operator on the departure Δ = fast − start, argmin_x ½‖x − Δ‖² + step · penalty(x): gradient
learners apply it after every step (proximal gradient descent), amortised ones to what they put out (Parikh & Boyd,
Proximal Algorithms, 2014, doi 10.1561/2400000003, §6.1.1 and §6.5.2). Closed-form learners solve with it exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palate.errors import ConfigError


@dataclass(frozen=True)
class PenaltyConfig:
    """Settings that every learner with a penalty shares."""

    penalty: Literal["none", "l2", "l1", "learned"] = "none"
    """Pull of the fast weights to their start: none, l2 (½·weight·‖Δ‖²), l1 (weight·‖Δ‖₁, sparse departures), or
    learned (l2 with one meta-learned weight for each fast weight)."""
    penalty_weight: float = 0.01
    """Weight of the penalty; with "learned", where it starts."""

    def __post_init__(self) -> None:
        if self.penalty_weight <= 0:
            raise ConfigError(f"learner.penalty_weight is {self.penalty_weight}; it must be above 0")


def init_penalty(config: PenaltyConfig, fast: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The penalty's own parameters: one log weight for each fast weight where they are learned."""
    if config.penalty != "learned":
        return {}
    start = math.log(config.penalty_weight)
    return {f"penalty.{name}": torch.full_like(weight, start) for name, weight in fast.items()}


def shrink(
    config: PenaltyConfig,
    params: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    fast: Mapping[str, Tensor],
    step: Tensor | float,
) -> dict[str, Tensor]:
    """Apply the proximal operator to each departure; `step` scales the penalty."""
    if config.penalty == "none":
        return dict(fast)
    return {
        name: start[name] + _PROXIMAL[config.penalty](weight - start[name], step, _weight(config, params, name))
        for name, weight in fast.items()
    }


def _weight(config: PenaltyConfig, params: Mapping[str, Tensor], name: str) -> Tensor | float:
    learned = params.get(f"penalty.{name}")
    return config.penalty_weight if learned is None else learned.exp()


def _pull(moved: Tensor, step: Tensor | float, weight: Tensor | float) -> Tensor:
    return moved / (1 + step * weight)


def _threshold(moved: Tensor, step: Tensor | float, weight: Tensor | float) -> Tensor:
    return moved.sign() * (moved.abs() - step * weight).clamp_min(0)


_PROXIMAL = {"l2": _pull, "learned": _pull, "l1": _threshold}

"""What is fitted: the loss of one event inside a task, and the loss of a task's query set outside."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from palate.errors import ConfigError

DISCOUNTED_PLACES = 10


class Objective(NamedTuple):
    """Loss of one event with its derivatives by the prediction, and the outer loss of a query set."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """(prediction, target) → loss, elementwise."""
    slope: Callable[[Tensor, Tensor], Tensor]
    """First derivative by the prediction."""
    curvature: Callable[[Tensor, Tensor], Tensor]
    """Second derivative by the prediction."""
    outer: Callable[[Float[Tensor, "event"], Float[Tensor, "event"], Float[Tensor, "event"]], Float[Tensor, ""]]
    """(predictions, targets, weights) → loss of a query set."""
    is_choice: bool = False
    """Whether targets are +1 and −1 and nothing else."""
    mean_outer: bool = True
    """Whether the outer loss is the mean of the event losses, as the hand-batched path takes it to be."""


def mean_over_events(values: Float[Tensor, "event"], weight: Float[Tensor, "event"]) -> Float[Tensor, ""]:
    """Σ weight · value over the number of events that count: less weight is a smaller step, not the same one."""
    return (values * weight).sum() / (weight > 0).sum().clamp_min(1)


def ranking_loss(
    scores: Float[Tensor, "item"], relevant: Float[Tensor, "item"], allowed: Float[Tensor, "item"]
) -> Float[Tensor, ""]:
    """LambdaLoss for NDCG@10 on the 100 best-scored items, with the two-sided pair weights of NDCG.

    Each pair of a relevant and an irrelevant item costs softplus(−(s_r − s_i)) times the NDCG that swapping their
    places would change (Burges, From RankNet to LambdaRank to LambdaMART, 2010, MSR-TR-2010-82; Wang et al., The
    LambdaLoss Framework, 2018, doi 10.1145/3269206.3271784).
    """
    depth = min(100, len(scores))
    best, places = scores.masked_fill(allowed == 0, -1e9).topk(depth)
    gains, may_be_listed = relevant[places], (allowed[places] > 0).to(scores)
    rank = torch.arange(depth, device=scores.device)
    discount = torch.where(rank < DISCOUNTED_PLACES, 1 / torch.log2(rank + 2.0), 0.0)
    # Of as many places as there are items that may be listed, so that padding changes nothing; 1 is that of one place.
    ideal = (discount[:DISCOUNTED_PLACES] * (rank[:DISCOUNTED_PLACES] < (allowed > 0).sum())).sum().clamp_min(1.0)
    swap = (discount[:, None] - discount[None, :]).abs() / ideal
    pairs = (gains * may_be_listed)[:, None] * ((1 - gains) * may_be_listed)[None, :] * swap
    return (pairs * F.softplus(best[None, :] - best[:, None])).sum()


def smooth_ndcg_loss(
    scores: Float[Tensor, "item"], relevant: Float[Tensor, "item"], allowed: Float[Tensor, "item"]
) -> Float[Tensor, ""]:
    """1 − NDCG@10 with smooth ranks on the 100 best-scored items: 0 at best, whoever has many later items or few.

    The rank of an item is 1 + Σ sigmoid((s_other − s) / τ), with τ a tenth of the spread of the best scores, so that
    the unit of the scores has no part (Qin, Liu & Li, A General Approximation Framework for Direct Optimization of
    Information Retrieval Measures, 2010, doi 10.1007/s10791-009-9124-x). A place after the tenth fades within a place.
    """
    depth = min(100, len(scores))
    best, places = scores.masked_fill(allowed == 0, -1e9).topk(depth)
    listed = (allowed[places] > 0).to(scores)
    count = listed.sum().clamp_min(1)
    mean = (best * listed).sum() / count
    spread = (((best - mean).square() * listed).sum() / count + 1e-12).sqrt()
    ahead = torch.sigmoid((best[None, :] - best[:, None]) / (0.1 * spread)) * listed[None, :]
    rank = 1 + ahead.sum(1) - 0.5 * listed
    gains = relevant[places] * listed * torch.sigmoid(2 * (DISCOUNTED_PLACES + 0.5 - rank)) / torch.log2(1 + rank)
    place = torch.arange(DISCOUNTED_PLACES, device=scores.device)
    ideal = ((place < (relevant * (allowed > 0)).sum()) / torch.log2(place + 2.0)).sum().clamp_min(1.0)
    return 1 - gains.sum() / ideal


def _squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _logistic(prediction: Tensor, target: Tensor) -> Tensor:
    return -F.logsigmoid(target * prediction)  # softplus is linear past 20, off by 2e-9


def _logistic_slope(prediction: Tensor, target: Tensor) -> Tensor:
    return -target * torch.sigmoid(-target * prediction)


def _logistic_curvature(prediction: Tensor, target: Tensor) -> Tensor:
    chosen = torch.sigmoid(prediction)
    return target.square() * chosen * (1 - chosen)


OBJECTIVES: Mapping[str, Objective] = {
    "ratings": Objective(
        _squared,
        lambda prediction, target: 2 * (prediction - target),
        lambda prediction, target: torch.full_like(prediction, 2.0),
        lambda predictions, target, weight: mean_over_events(_squared(predictions, target), weight),
    ),
    "clicks": Objective(
        _logistic,
        _logistic_slope,
        _logistic_curvature,
        lambda predictions, target, weight: mean_over_events(_logistic(predictions, target), weight),
        is_choice=True,
    ),
    "ranking": Objective(
        _logistic,
        _logistic_slope,
        _logistic_curvature,
        lambda predictions, target, weight: ranking_loss(predictions, (target > 0).to(predictions), weight),
        is_choice=True,
        mean_outer=False,
    ),
}
"""ratings: squared error. clicks: logistic loss of ±1. ranking: logistic inside, LambdaLoss for NDCG outside."""


def find_objective(name: str) -> Objective:
    """Look an objective up in the table; ConfigError where it is not there."""
    if name not in OBJECTIVES:
        raise ConfigError(f"objective is {name!r}; choose one of: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]

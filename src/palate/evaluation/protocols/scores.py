"""The metrics of the public few-shot protocols, one task at a time, as their authors' code computes them."""

import numpy as np
import torch
from jaxtyping import Float

from palate.evaluation.protocols.base import Metric, Predictions
from palate.metrics import graded_ndcg_at_k, mae, matched_average_precision_at_k, matched_precision_at_k


def absolute_error(predictions: Predictions, values: Float[np.ndarray, "query"]) -> float:
    """Mean absolute error of the ratings."""
    return mae(predictions.rating, values)


def ndcg(k: int, gain: str) -> Metric:
    """nDCG at `k` of the scores, with gain 2^r − 1 ("exponential") or r ("linear")."""

    def metric(predictions: Predictions, values: Float[np.ndarray, "query"]) -> float:
        gains = 2.0**values - 1 if gain == "exponential" else values
        return graded_ndcg_at_k(predictions.score, gains, k)

    return metric


def matched_precision(k: int) -> Metric:
    """TaNP's precision: how many of the `k` best-scored have a value that is still free among the `k` highest."""
    return lambda predictions, values: matched_precision_at_k(predictions.score, values, k)


def matched_map(k: int) -> Metric:
    """TaNP's average precision, matched in the same way and divided by `k`."""
    return lambda predictions, values: matched_average_precision_at_k(predictions.score, values, k)


def first_found_ndcg(k: int) -> Metric:
    """RecBole-MetaRec's NDCG: exactly `k` positives, those that `torch.topk` picks, ties as it breaks them."""

    def metric(predictions: Predictions, values: Float[np.ndarray, "query"]) -> float:
        positive = np.zeros(len(values))
        positive[torch.topk(torch.from_numpy(values).float(), k).indices.numpy()] = 1.0
        return graded_ndcg_at_k(predictions.score, positive, k)

    return metric

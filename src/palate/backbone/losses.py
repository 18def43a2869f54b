"""Training losses: cross-entropy against a window of the items to come, over all items or a sample of them.

A shop's basket has no strict order, so the target is not the next line alone: the j-th item to come weighs decay^j.
decay → 0 is the usual next-item loss, decay → 1 the whole set of later items.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def future_weights(
    places: Int64[Tensor, "row"], lengths: Int64[Tensor, "row"], width: int, decay: float
) -> Float[Tensor, "row event"]:
    """Weights of the events of each row's sequence as targets at position `places`; each row sums to 1.

    Event j (0-based) is in the future of position n if j ≥ n; padding (j ≥ length) weighs nothing.
    """
    event = torch.arange(width)
    ahead = event[None, :] - places[:, None]
    weights = decay ** ahead.clamp_min(0).float()
    weights = weights.masked_fill((ahead < 0) | (event[None, :] >= lengths[:, None]), 0.0)
    return weights / weights.sum(1, keepdim=True)


def full_softmax_loss(
    states: Float[Tensor, "row dim"],
    vectors: Float[Tensor, "item dim"],
    bias: Float[Tensor, "item"],
    targets: Int64[Tensor, "row event"],
    weights: Float[Tensor, "row event"],
    seen: Bool[Tensor, "row item"],
) -> Float[Tensor, ""]:
    """Mean over rows of −Σ weight · log softmax(target) over all items but the seen ones, in nats."""
    logits = (states @ vectors.T + bias).masked_fill(seen, -torch.inf)
    target_logits = logits.gather(1, targets).masked_fill(weights == 0, 0.0)
    return (logits.logsumexp(1) - (weights * target_logits).sum(1)).mean()


def sampled_softmax_loss(
    states: Float[Tensor, "row dim"],
    vectors: Float[Tensor, "item dim"],
    bias: Float[Tensor, "item"],
    targets: Int64[Tensor, "row event"],
    weights: Float[Tensor, "row event"],
    seen: Bool[Tensor, "row item"],
    negatives: Int64[Tensor, "negative"],
    log_rate: Float[Tensor, "item"],
) -> Float[Tensor, ""]:
    """Cross-entropy of each target against `negatives`, shared by the batch, with the logQ correction.

    `log_rate` is the log of the expected number of times that an item is among the negatives (Bengio & Senécal,
    Adaptive Importance Sampling, 2008, doi 10.1109/TNN.2007.912312; Yi et al., 2019, doi 10.1145/3298689.3346996).
    A negative that is seen, or is one of the row's own targets, does not count against the row.
    """
    target_logits = (states[:, None] * vectors[targets]).sum(-1) + bias[targets]
    logits = states @ vectors[negatives].T + bias[negatives] - log_rate[negatives]
    # Padding repeats item 0, so targets are scattered by maximum, which no later 0 can undo.
    is_target = torch.zeros(seen.shape).scatter_reduce_(1, targets, (weights > 0).float(), "amax").bool()
    logits = logits.masked_fill((seen | is_target)[:, negatives], -torch.inf)
    against = torch.logaddexp(target_logits, logits.logsumexp(1, keepdim=True))
    terms = (against - target_logits).masked_fill(weights == 0, 0.0)
    return (weights * terms).sum(1).mean()

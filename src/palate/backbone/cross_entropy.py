"""Softmax cross-entropy over the whole catalogue without ever holding the scores of more than a few rows.

Forward forms the gradients at once, a chunk of rows at a time, while the chunk's scores are in the cache: three matrix
products and one exponential a score, and nothing of the size rows × items is kept. Backward only scales. With
E = exp(S) and row sums z, the gradient of −log softmax by the states is (E / z) W − W[target]; dividing after the
product instead of before saves a pass over the scores.

Gradients in the forward pass: Hsu et al., Liger Kernel, 2024, arXiv:2410.10989; scores that are never stored: Wijmans
et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK_BYTES = 2**21
"""Scores held at a time: they should stay in a core's cache (2 MiB measured best among 1, 2, 4 and 8)."""


def fused_cross_entropy(
    states: Float[Tensor, "row dim"],
    vectors: Float[Tensor, "item dim"],
    bias: Float[Tensor, "item"] | None,
    targets: Int64[Tensor, "row target"],
    weights: Float[Tensor, "row target"],
    seen: Int64[Tensor, "2 pair"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over rows and targets of −weight · log softmax(target), in nats; a row of weights 0 does not count.

    `seen` names (row, item) pairs, ordered by row, that are left out of the softmax; none may be a target that weighs
    something. Products run in the type of `states` (bfloat16 under autocast, where a row's logarithm is good to about
    0.002); sums, logarithms and targets in float32. The result can be derived once, not twice.
    """
    with torch.autocast(states.device.type, enabled=False):
        loss: Tensor = _FusedCrossEntropy.apply(states, vectors, bias, targets, weights, seen)  # type: ignore[no-untyped-call]
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        seen: Tensor | None,
    ) -> Tensor:
        dtype = states.dtype
        items = vectors.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        mass = weights.sum(1)
        by_states = torch.empty_like(states, dtype=torch.float32)
        by_vectors = torch.zeros_like(vectors, dtype=torch.float32)
        by_bias = torch.zeros(len(vectors), device=vectors.device)
        log_totals = torch.zeros(len(states), device=states.device)
        chunk = max(64, CHUNK_BYTES // (dtype.itemsize * len(items)) // 64 * 64)
        buffer = torch.empty(min(chunk, len(states)), len(items), dtype=dtype, device=states.device)
        for start in range(0, len(states), chunk):
            rows, share = states[start : start + chunk], mass[start : start + chunk]
            pairs = None if seen is None else _between(seen, start, start + chunk)
            exponentials, totals, highest = _exponentials(rows, items, shift, pairs, buffer[: len(rows)])
            log_totals[start : start + chunk] = totals.log() + highest
            scale = share / totals
            by_states[start : start + chunk] = (exponentials @ items).float() * scale[:, None]
            by_vectors += exponentials.T @ (rows.float() * scale[:, None]).to(dtype)
            if bias is not None:
                by_bias += exponentials.T @ scale.to(dtype)

        wide, loss = states.float(), (mass * log_totals).sum()
        for target, weight in zip(targets.T, weights.T, strict=True):
            chosen = vectors[target].float()
            scores = (wide * chosen).sum(1) + (0 if bias is None else bias[target])
            loss -= (weight * scores).sum()
            by_states -= weight[:, None] * chosen
            by_vectors.index_add_(0, target, wide * weight[:, None], alpha=-1)
            by_bias.index_add_(0, target, weight, alpha=-1)
        ctx.gradients = by_states, by_vectors, None if bias is None else by_bias
        ctx.dtypes = states.dtype, vectors.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        by_states, by_vectors, by_bias = ctx.gradients
        return (
            (by_states * scale).to(ctx.dtypes[0]),
            (by_vectors * scale).to(ctx.dtypes[1]),
            None if by_bias is None else by_bias * scale,
            None,
            None,
            None,
        )


def _between(seen: Tensor, start: int, stop: int) -> Tensor:
    """The pairs of the rows from `start` to `stop`, counted from `start`."""
    first, last = torch.searchsorted(seen[0].contiguous(), torch.tensor([start, stop], device=seen.device)).tolist()
    return torch.stack([seen[0, first:last] - start, seen[1, first:last]])


def _exponentials(
    rows: Tensor, items: Tensor, bias: Tensor | None, seen: Tensor | None, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(scores − highest) in `out`, its row sums, and `highest`.

    Both types reach e^88, which no healthy score does: the search for each row's highest score, as dear as the
    exponential itself, is left out until a sum overflows or vanishes.
    """
    highest = torch.zeros(len(rows), device=rows.device)
    for safe in (rows.device.type != "cpu", True):
        if bias is None:
            torch.mm(rows, items.T, out=out)
        else:
            torch.addmm(bias, rows, items.T, out=out)
        if seen is not None:
            out[seen[0], seen[1]] = -torch.inf
        if safe:
            highest = out.amax(1)
            out -= highest[:, None]
        out.exp_()
        totals = out.sum(1, dtype=torch.float32)
        if safe or bool(((totals < 1e30) & (totals > 1e-30)).all()):  # room for the product with the items
            break
    return out, totals, highest.float()

import pytest
import torch
from torch import Tensor

from palate.backbone import cross_entropy
from palate.backbone.cross_entropy import fused_cross_entropy

ROWS, ITEMS, DIM = 300, 50, 8


def problem(targets: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, DIM, generator=generator, requires_grad=True)
    vectors = torch.randn(ITEMS, DIM, generator=generator, requires_grad=True)
    bias = torch.randn(ITEMS, generator=generator, requires_grad=True)
    chosen = torch.rand(ROWS, ITEMS, generator=generator).topk(targets).indices
    weights = torch.rand(ROWS, targets, generator=generator)
    weights[::7] = 0
    return states, vectors, bias, chosen, weights


def reference(
    states: Tensor, vectors: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, seen: Tensor | None
) -> Tensor:
    scores = states @ vectors.T + (0 if bias is None else bias)
    if seen is not None:
        scores = scores.index_put((seen[0], seen[1]), torch.tensor(-torch.inf))
    terms = scores.log_softmax(1).gather(1, targets).masked_fill(weights == 0, 0)
    return -(weights * terms).sum()


def some_seen(targets: Tensor) -> Tensor:
    """Pairs ordered by row, none of them a target; some rows have none."""
    mask = torch.rand(ROWS, ITEMS, generator=torch.Generator().manual_seed(5)) < 0.3
    mask.scatter_(1, targets, False)
    mask[10:90] = False
    return mask.nonzero().T


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_seen", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**21])
def test_loss_and_gradients_equal_the_plain_ones(
    targets: int, with_bias: bool, with_seen: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk)  # 1: the smallest chunk, 64 rows
    states, vectors, bias, chosen, weights = problem(targets)
    given = bias if with_bias else None
    seen = some_seen(chosen) if with_seen else None
    leaves = [states, vectors, bias] if with_bias else [states, vectors]
    ours = fused_cross_entropy(states, vectors, given, chosen, weights, seen)
    plain = reference(states, vectors, given, chosen, weights, seen)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    for got, wanted in zip(torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * plain, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [100.0, -100.0])
def test_scores_beyond_the_range_of_exp_are_shifted(scale: float) -> None:
    states, vectors, bias, chosen, weights = problem(1)
    shifted = (bias + scale).detach().requires_grad_()
    ours = fused_cross_entropy(states, vectors, shifted, chosen, weights)
    plain = reference(states, vectors, bias, chosen, weights, None)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-2)
    got = torch.autograd.grad(ours, [states, vectors])
    for one, other in zip(got, torch.autograd.grad(plain, [states, vectors]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_near() -> None:
    states, vectors, bias, chosen, weights = problem(1)
    half = fused_cross_entropy(states.bfloat16(), vectors, bias, chosen, weights)
    exact = fused_cross_entropy(states, vectors, bias, chosen, weights)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=3e-3, atol=0)
    got = torch.autograd.grad(half, [states, vectors, bias])
    for one, other in zip(got, torch.autograd.grad(exact, [states, vectors, bias]), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_what_is_weightless_or_seen_has_no_part() -> None:
    states, vectors, bias, chosen, weights = problem(1)
    weights.zero_()
    loss = fused_cross_entropy(states, vectors, bias, chosen, weights)
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(loss, [states, vectors, bias]))
    one = torch.ones(1, 1)
    everything_else = torch.stack([torch.zeros(ITEMS - 1, dtype=torch.int64), torch.arange(1, ITEMS)])
    loss = fused_cross_entropy(states[:1], vectors, bias, torch.zeros(1, 1, dtype=torch.int64), one, everything_else)
    assert abs(loss.item()) < 1e-4


def test_there_is_no_second_derivative() -> None:
    states, vectors, bias, chosen, weights = problem(1)
    loss = fused_cross_entropy(states, vectors, bias, chosen, weights)
    (slope,) = torch.autograd.grad(loss, states, create_graph=True)
    assert not slope.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()

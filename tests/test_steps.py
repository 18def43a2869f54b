"""One step of a small training loop: what is taken, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from palate.errors import NumericalError
from palate.steps import take_step


def made(value: float = 3.0) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([value]))
    return weight, torch.optim.SGD([weight], lr=0.5)


def test_a_step_goes_down_the_gradient_and_says_the_loss_before_it() -> None:
    weight, optimiser = made()
    loss = take_step(optimiser, lambda: weight.square().sum(), name="it", step=1, advice="rest")
    assert loss == 9.0
    assert weight.item() == pytest.approx(0.0)  # 3 − 0.5 · 6
    again = take_step(optimiser, lambda: (weight - 1).square().sum(), name="it", step=2, advice="rest")
    assert again == pytest.approx(1.0)
    assert weight.item() == pytest.approx(1.0), "the gradient of the step before is gone"


def test_a_long_gradient_is_clipped_over_all_parameters() -> None:
    one, other = (torch.nn.Parameter(torch.tensor([value])) for value in (3.0, 4.0))
    optimiser = torch.optim.SGD([{"params": [one]}, {"params": [other]}], lr=1.0)
    take_step(optimiser, lambda: (one.square() + other.square()).sum() / 2, name="it", step=1, advice="rest", clip=1.0)
    assert (one.item(), other.item()) == (pytest.approx(3 - 0.6, abs=1e-4), pytest.approx(4 - 0.8, abs=1e-4))


def test_a_penalty_moves_and_is_not_in_what_is_returned() -> None:
    weight, optimiser = made(1.0)
    loss = take_step(
        optimiser, lambda: 0 * weight.sum(), name="it", step=1, advice="rest", penalty=lambda: weight.square().sum()
    )
    assert loss == 0.0
    assert weight.item() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda weight: weight.sum() * math.nan, r"it: the loss became nan at step 7; rest\Z"),
        (lambda weight: (weight - 3).abs().sqrt().sum(), r"it: the gradient became (nan|inf) at step 7; rest\Z"),
        (lambda weight: torch.linalg.cholesky(-(weight[:, None] ** 2)).sum(), r"it: a solve failed at step 7; rest\Z"),
    ],
    ids=["loss", "gradient", "solve"],
)
def test_what_is_not_finite_moves_nothing_and_names_the_step(loss: object, message: str) -> None:
    weight, optimiser = made()

    def value() -> Tensor:
        return loss(weight)  # type: ignore[operator, no-any-return]

    with pytest.raises(NumericalError, match=message):
        take_step(optimiser, value, name="it", step=7, advice="rest", clip=1.0)
    assert weight.item() == 3.0

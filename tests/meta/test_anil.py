"""ANIL's inner loop against plain gradient steps, one at a time, with autograd on one person."""

import torch
from torch import Tensor

from palate.meta.anil import NUM_STEPS, init, inner, metric
from palate.meta.learner import Layout, Params, Support

NUM_FEATURES = 6


def make() -> tuple[Params, Tensor, Support]:
    torch.manual_seed(0)
    layout = Layout(torch.randn(NUM_FEATURES), torch.ones(NUM_FEATURES), torch.zeros(NUM_FEATURES), 2)
    params = {name: value.double() for name, value in init(layout).items()}
    params["anil.log_step"] = torch.tensor([-1.0, -0.5, 0.2], dtype=torch.float64)
    mask = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    target = torch.tensor([1.0, -1, 1, 1], dtype=torch.float64)
    support = Support(torch.randn(4, NUM_FEATURES).double(), target, mask, torch.zeros(3).double())
    return params, torch.randn(NUM_FEATURES).double() * 0.3, support


def test_inner_equals_gradient_steps_on_the_logistic_loss() -> None:
    params, mean, support = make()
    moved = torch.zeros(NUM_FEATURES, dtype=torch.float64, requires_grad=True)
    for log_step in params["anil.log_step"].tolist():
        loss = 0.5 * params["anil.log_pull"].exp() * (moved**2).sum()
        for event in range(3):  # the fourth is padding
            weights = mean + params["anil.log_scale"].exp() * moved
            margin = support.target[event] * (support.features[event] @ weights)
            loss = loss - torch.nn.functional.logsigmoid(margin)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = (moved - torch.tensor(log_step).exp() * gradient).detach().requires_grad_()
    expected = params["anil.log_scale"].exp() * moved.detach()
    torch.testing.assert_close(inner(params, mean, support), expected, rtol=1e-6, atol=1e-9)


def test_the_scale_starts_at_the_prior_deviation() -> None:
    precision = torch.tensor([0.0, 2.0, -1.0])
    params = init(Layout(precision, torch.ones(3), torch.zeros(3), 1))
    torch.testing.assert_close(metric(params), (1 / precision.exp()).sqrt())
    assert len(params["anil.log_step"]) == NUM_STEPS


def test_gradients_flow_through_the_steps() -> None:
    # First-order MAML would treat each inner gradient as a constant, and give another derivative.
    params, mean, support = make()

    def total(scale: Tensor, *, first_order: bool) -> Tensor:
        moved = torch.zeros(NUM_FEATURES, dtype=torch.float64)
        for log_step in params["anil.log_step"]:
            rows = support.features[:3] * scale.exp()
            slack = torch.sigmoid(-support.target[:3] * (support.features[:3] @ mean + rows @ moved))
            gradient = params["anil.log_pull"].exp() * moved - (support.target[:3] * slack) @ rows
            moved = moved - log_step.exp() * (gradient.detach() if first_order else gradient)
        return (scale.exp() * moved).sum()

    scale = params["anil.log_scale"]
    derivative = torch.func.grad(lambda value: inner({**params, "anil.log_scale": value}, mean, support).sum())(scale)
    torch.testing.assert_close(derivative, torch.func.grad(lambda s: total(s, first_order=False))(scale))
    assert not torch.allclose(derivative, torch.func.grad(lambda s: total(s, first_order=True))(scale), rtol=1e-2)

"""The fused MAML against the obvious one: one task at a time, autograd through every inner step."""

import itertools

import pytest
import torch
from torch import Tensor

from palate.meta.fused import RELU, TANH, Activation, Events, maml_adapt, maml_losses
from palate.meta.objectives import OBJECTIVES as TABLE
from palate.meta.objectives import Objective

ACTIVATIONS = {"relu": RELU, "tanh": TANH}
SQUARED, LOGISTIC = TABLE["ratings"], TABLE["clicks"]
OBJECTIVES = {"squared": SQUARED, "logistic": LOGISTIC}
NUM_TASKS, NUM_EVENTS, WIDTHS = 3, 5, {1: (4, 1), 2: (4, 6, 1), 3: (4, 6, 5, 1)}
Layers = list[tuple[Tensor, Tensor]]


def reference(
    layers: Layers,
    activation: str,
    objective: str,
    support: Events,
    query: Events,
    step_sizes: Tensor,
    *,
    first_order: bool = False,
    step_scales: Layers | None = None,
    adapted: int = 0,
    l2: Tensor | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Losses and adapted parameters of each task, written as the textbook does."""
    start = [tensor for pair in layers[adapted:] for tensor in pair]
    scales = [tensor for pair in step_scales or () for tensor in pair] or [torch.ones_like(part) for part in start]

    def loss(fast: list[Tensor], inputs: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        every = [tensor for pair in layers[:adapted] for tensor in pair] + fast
        for place in range(0, len(every), 2):
            inputs = inputs @ every[place].T + every[place + 1]
            if place < len(every) - 2:
                inputs = torch.relu(inputs) if activation == "relu" else torch.tanh(inputs)
        prediction = inputs[:, 0]
        if objective == "squared":
            each = (prediction - target) ** 2
        else:
            each = torch.log1p(torch.exp(-target * prediction))
        return (weight * each).sum() / max(1, int((weight > 0).sum()))

    losses, adapted_parameters = [], []
    for task in range(len(support.target)):
        fast = start
        for size in step_sizes:
            inner = loss(fast, support.inputs[task], support.target[task], support.weight[task])
            if l2 is not None:
                inner = inner + 0.5 * l2 * sum(((a - b) ** 2).sum() for a, b in zip(fast, start, strict=True))
            # NOTE: retain_graph because a first-order step shares the body's graph with the query.
            gradient = torch.autograd.grad(inner, fast, create_graph=not first_order, retain_graph=True)
            fast = [part - size * scale * g for part, scale, g in zip(fast, scales, gradient, strict=True)]
        losses.append(loss(fast, query.inputs[task], query.target[task], query.weight[task]))
        adapted_parameters.append(fast)
    return torch.stack(losses), adapted_parameters


def make_layers(generator: torch.Generator, widths: tuple[int, ...]) -> Layers:
    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.6).requires_grad_()

    return [(draw(high, low), draw(high)) for low, high in itertools.pairwise(widths)]


def make_events(generator: torch.Generator, width: int, num_events: int = NUM_EVENTS) -> Events:
    inputs = torch.randn(NUM_TASKS, num_events, width, generator=generator, dtype=torch.float64)
    target = torch.randn(NUM_TASKS, num_events, generator=generator, dtype=torch.float64).sign()
    weight = torch.rand(NUM_TASKS, num_events, generator=generator, dtype=torch.float64) + 0.2
    weight[1, num_events // 2 :] = 0
    return Events(inputs.requires_grad_(), target, weight)


def assert_equal(
    layers: Layers,
    activation: str,
    objective: str,
    support: Events,
    query: Events,
    step_sizes: Tensor,
    first_order: bool = False,
    step_scales: Layers | None = None,
    adapted: int = 0,
    l2: Tensor | None = None,
) -> None:
    """Same losses, and the same gradient by everything that is learned."""
    learned = [tensor for pair in [*layers, *(step_scales or ())] for tensor in pair]
    others = (step_sizes, query.inputs, support.inputs, *([l2] if l2 is not None else []))
    learned += [tensor for tensor in others if tensor.requires_grad]
    expected, _ = reference(
        layers, activation, objective, support, query, step_sizes,
        first_order=first_order, step_scales=step_scales, adapted=adapted, l2=l2,
    )  # fmt: skip
    actual = maml_losses(
        layers, ACTIVATIONS[activation], OBJECTIVES[objective], support, query, step_sizes,
        first_order=first_order, step_scales=step_scales, adapted=adapted, l2=l2,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
    share = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    gradients = [
        torch.autograd.grad((losses * share).sum(), learned, allow_unused=True, materialize_grads=True)
        for losses in (actual, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("extras", ["none", "scales", "l2", "scales and l2"])
def test_equals_autograd(first_order: bool, activation: str, objective: str, depth: int, extras: str) -> None:
    generator = torch.Generator().manual_seed(depth)
    layers = make_layers(generator, WIDTHS[depth])
    support, query = make_events(generator, 4), make_events(generator, 4, 7)
    sizes = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    scales = make_layers(generator, WIDTHS[depth]) if "scales" in extras else None
    l2 = torch.tensor(0.4, dtype=torch.float64, requires_grad=True) if "l2" in extras else None
    assert_equal(layers, activation, objective, support, query, sizes, first_order, scales, 0, l2)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("width", [2 * NUM_EVENTS, 2 * NUM_EVENTS + 1, 24])
def test_wide_constant_inputs_equal_autograd(
    first_order: bool, activation: str, objective: str, depth: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(depth)
    layers = make_layers(generator, (width, *WIDTHS[depth][1:]))
    support, query = detached(make_events(generator, width)), detached(make_events(generator, width, 7))
    sizes = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64, requires_grad=not first_order)
    assert_equal(layers, activation, objective, support, query, sizes, first_order)


@pytest.mark.parametrize("adapted", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_shared_body_equals_autograd(first_order: bool, activation: str, adapted: int, scaled: bool) -> None:
    generator = torch.Generator().manual_seed(adapted)
    layers = make_layers(generator, WIDTHS[3])
    support, query = make_events(generator, 4), make_events(generator, 4)
    sizes = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    scales = make_layers(generator, WIDTHS[3])[adapted:] if scaled else None
    if first_order:
        # The reference detaches the inner gradient, body included; so does the fused path.
        support = support._replace(inputs=support.inputs.detach().requires_grad_())
    assert_equal(layers, activation, "squared", support, query, sizes, first_order, scales, adapted)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_derivatives_of_the_tables(activation: Activation, objective: Objective) -> None:
    z = torch.linspace(-3, 3, 12, dtype=torch.float64, requires_grad=True)
    h = activation.value(z)
    (slope,) = torch.autograd.grad(h.sum(), z, create_graph=True)
    torch.testing.assert_close(activation.slope(h), slope, rtol=1e-12, atol=1e-12)
    if activation.curvature is not None:
        (curvature,) = torch.autograd.grad(slope.sum(), z)
        torch.testing.assert_close(activation.curvature(h), curvature, rtol=1e-10, atol=1e-12)
    # Choices are +1 or -1, and the curvature may count on it.
    values = [-1.0, 1.0, 1.0 if objective.is_choice else 0.5]
    target = torch.tensor(values, dtype=torch.float64).repeat(4)
    (slope,) = torch.autograd.grad(objective.loss(z, target).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(objective.slope(z, target), slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(objective.curvature(z, target), curvature, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=[4, 24], ids=["thin", "wide"])
def setting(request: pytest.FixtureRequest) -> tuple[Layers, Events, Events, Tensor]:
    """Constant inputs, fewer and many more than the events: the wide ones take the dual first layer."""
    generator = torch.Generator().manual_seed(0)
    layers = make_layers(generator, (request.param, *WIDTHS[3][1:]))
    sizes = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)
    support, query = (make_events(generator, request.param) for _ in range(2))
    return layers, detached(support), detached(query), sizes


def detached(events: Events) -> Events:
    return events._replace(inputs=events.inputs.detach())


def gradients(layers: Layers, support: Events, query: Events, sizes: Tensor) -> list[Tensor]:
    losses = maml_losses(layers, TANH, SQUARED, support, query, sizes)
    learned = [tensor for pair in layers for tensor in pair] + [sizes]
    return [losses, *torch.autograd.grad(losses.sum(), learned)]


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_padding_is_inert(setting: tuple[Layers, Events, Events, Tensor], garbage: float) -> None:
    layers, support, query, sizes = setting
    expected = gradients(layers, support, query, sizes)

    def pad(events: Events) -> Events:
        extra = torch.full_like(events.inputs[:, :2], garbage)
        inputs = torch.cat([events.inputs, extra], 1)
        target = torch.cat([events.target, torch.full((NUM_TASKS, 2), garbage, dtype=torch.float64)], 1)
        return Events(inputs, target, torch.cat([events.weight, torch.zeros(NUM_TASKS, 2, dtype=torch.float64)], 1))

    for ours, theirs in zip(gradients(layers, pad(support), pad(query), sizes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_order_of_events_is_inert(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    order = torch.randperm(NUM_EVENTS, generator=torch.Generator().manual_seed(1))
    shuffled = Events(*(part[:, order] for part in support))
    for ours, theirs in zip(
        gradients(layers, shuffled, query, sizes), gradients(layers, support, query, sizes), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_empty_support_keeps_the_start(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    l2 = torch.tensor(0.5, dtype=torch.float64)
    empty = support._replace(weight=torch.zeros_like(support.weight))
    for pair, started in zip(maml_adapt(layers, TANH, SQUARED, empty, sizes, l2=l2), layers, strict=True):
        for ours, start in zip(pair, started, strict=True):
            assert torch.equal(ours, start.detach().expand_as(ours))
    losses, *rest = gradients(layers, empty, query, sizes)
    expected, _ = reference(layers, "tanh", "squared", empty, query, sizes[:0])
    torch.testing.assert_close(losses, expected)
    assert all(part.isfinite().all() for part in rest)


def test_empty_query_costs_nothing(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    losses, *rest = gradients(layers, support, query._replace(weight=torch.zeros_like(query.weight)), sizes)
    assert torch.equal(losses, torch.zeros_like(losses))
    assert all(torch.equal(part, torch.zeros_like(part)) for part in rest)


@pytest.mark.parametrize("adapted", [0, 2])
def test_adapted_layers_equal_the_reference(setting: tuple[Layers, Events, Events, Tensor], adapted: int) -> None:
    layers, support, query, sizes = setting
    _, expected = reference(layers, "tanh", "logistic", support, query, sizes, adapted=adapted)
    actual = maml_adapt(layers, TANH, LOGISTIC, support, sizes, adapted=adapted)
    flat = [tensor for pair in actual for tensor in pair]
    assert not any(tensor.requires_grad for tensor in flat)
    for place, ours in enumerate(flat):
        torch.testing.assert_close(ours, torch.stack([task[place] for task in expected]).detach(), rtol=1e-8, atol=0)


def test_no_steps_is_the_start(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    assert_equal(layers, "relu", "squared", support, query, sizes[:0].detach().requires_grad_())


@pytest.mark.parametrize("first_order", [False, True])
def test_losses_without_gradients_are_the_same(
    setting: tuple[Layers, Events, Events, Tensor], first_order: bool
) -> None:
    layers, support, query, sizes = setting
    with torch.no_grad():
        losses = maml_losses(layers, TANH, SQUARED, support, query, sizes, first_order=first_order)
    torch.testing.assert_close(losses, gradients(layers, support, query, sizes)[0].detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("alone", ["step sizes", "l2", "inputs"])
def test_one_thing_alone_can_be_learned(setting: tuple[Layers, Events, Events, Tensor], alone: str) -> None:
    layers, support, query, sizes = setting
    layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
    l2 = torch.tensor(0.4, dtype=torch.float64, requires_grad=alone == "l2")
    sizes = sizes.detach().requires_grad_(alone == "step sizes")
    support = support._replace(inputs=support.inputs.clone().requires_grad_(alone == "inputs"))
    learned = {"step sizes": sizes, "l2": l2, "inputs": support.inputs}[alone]
    ours = torch.autograd.grad(maml_losses(layers, TANH, SQUARED, support, query, sizes, l2=l2).sum(), learned)[0]
    layers = [(weight.requires_grad_(), bias.requires_grad_()) for weight, bias in layers]
    losses, _ = reference(layers, "tanh", "squared", support, query, sizes, l2=l2)
    torch.testing.assert_close(ours, torch.autograd.grad(losses.sum(), learned)[0], rtol=1e-8, atol=1e-10)


def test_backward_twice_over_one_graph(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    losses = maml_losses(layers, RELU, SQUARED, support, query, sizes)
    first = torch.autograd.grad(losses.sum(), layers[0][0], retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(losses.sum(), layers[0][0])[0])


def test_second_derivative_is_refused(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    losses = maml_losses(layers, RELU, SQUARED, support, query, sizes)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(losses.sum(), layers[0][0], create_graph=True)


def test_wrong_shapes_are_named(setting: tuple[Layers, Events, Events, Tensor]) -> None:
    layers, support, query, sizes = setting
    with pytest.raises(ValueError, match="adapted is 3"):
        maml_losses(layers, RELU, SQUARED, support, query, sizes, adapted=3)
    with pytest.raises(ValueError, match="5 outputs, expected 1"):
        maml_losses(layers[:2], RELU, SQUARED, support, query, sizes)
    with pytest.raises(ValueError, match="step_scales has 3 entries, expected 1"):
        maml_losses(layers, RELU, SQUARED, support, query, sizes, adapted=2, step_scales=layers)

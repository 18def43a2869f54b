"""MAML for fully connected networks: all tasks at once, the meta-gradient without an autograd graph.

Finn et al., Model-agnostic meta-learning for fast adaptation of deep networks, 2017, arXiv:1703.03400; per-weight step
scales are Meta-SGD (Li et al., 2017, arXiv:1707.09835), a shared body is ANIL (Raghu et al., 2020, arXiv:1909.09157).

The inner steps w ← w − a c ∘ (∇L(w) + λ (w − w₀)) are batched products. The meta-gradient is the exact recursion back
through them, v ← v − a (H + λ) (c ∘ v), H·u by the R-operator (Pearlmutter, Fast exact multiplication by the
Hessian, 1994, doi:10.1162/neco.1994.6.1.147): six products a layer and step, and no time goes into a graph.
`benchmarks/meta_throughput.py` compares it with autograd, `torch.func` and other libraries.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from palate.meta.objectives import Objective

# NOTE: an axis name that starts with an underscore binds nothing: every layer has widths of its own.
Layers = Sequence[tuple[Float[Tensor, "_out _in"], Float[Tensor, "_out"]]]
TaskLayers = list[tuple[Float[Tensor, "task _out _in"], Float[Tensor, "task _out"]]]


class Activation(NamedTuple):
    """An elementwise non-linearity; slope and curvature are functions of its value."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor] | None
    """None where it is zero everywhere: its products are skipped."""


class Events(NamedTuple):
    """Padded events of many tasks; weight 0 marks padding, whatever its input and target hold."""

    inputs: Float[Tensor, "task event in"]
    target: Float[Tensor, "task event"]
    weight: Float[Tensor, "task event"]


RELU = Activation(torch.relu, torch.sign, None)
TANH = Activation(torch.tanh, lambda h: 1 - h.square(), lambda h: -2 * h * (1 - h.square()))
ACTIVATIONS: Mapping[str, Activation] = {"relu": RELU, "tanh": TANH}


def maml_losses(
    layers: Layers,
    activation: Activation,
    objective: Objective,
    support: Events,
    query: Events,
    step_sizes: Float[Tensor, "step"],
    *,
    first_order: bool = False,
    step_scales: Layers | None = None,
    adapted: int = 0,
    l2: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "task"]:
    """Query loss of each task after its inner steps on the support.

    A loss is Σ weight · objective / max(1, number of events of positive weight); the inner loss adds ½·l2·‖w − w₀‖².
    Layers before `adapted` stay shared; `step_scales` has one entry for each layer from there on. The last layer has
    one output. Gradients reach layers, step sizes, step scales, l2 and inputs; targets and weights are constants. With
    `first_order` the inner gradient (the pull included) is a constant, so l2 and the support inputs get none. There is
    no second derivative of these losses: asking for one raises.
    """
    support, query = _prepare(support), _prepare(query)
    support_inputs, query_inputs = (_body(layers[:adapted], activation, events.inputs) for events in (support, query))
    fast, scales = _flat(layers, adapted, step_scales)
    plain = not (scales or l2 is not None or support_inputs.requires_grad or query_inputs.requires_grad)
    # Measured: 5% slower at 10 events of width 16, 1.1 to 1.5 times faster at width 64, 2 to 2.7 times at 384.
    wide = support_inputs.shape[2] > 2 * support_inputs.shape[1]
    dual = plain and wide and not (first_order and step_sizes.requires_grad)
    # A first-order gradient needs no way back, unless something of the steps themselves is learned.
    keep = torch.is_grad_enabled() and (not first_order or bool(scales) or step_sizes.requires_grad)
    losses: Tensor = _MAML.apply(  # type: ignore[no-untyped-call]
        activation, objective, first_order, dual, keep, support, query, support_inputs, query_inputs, step_sizes, l2,
        len(fast), *fast, *scales,
    )  # fmt: skip
    return losses


@torch.no_grad()
def maml_adapt(
    layers: Layers,
    activation: Activation,
    objective: Objective,
    support: Events,
    step_sizes: Float[Tensor, "step"],
    *,
    step_scales: Layers | None = None,
    adapted: int = 0,
    l2: Float[Tensor, ""] | None = None,
) -> TaskLayers:
    """The adapted layers of each task, from `adapted` on, as constants (both orders have the same values)."""
    support = _prepare(support)
    support = support._replace(inputs=_body(layers[:adapted], activation, support.inputs))
    start, scales = _flat(layers, adapted, step_scales)
    fast, _ = _adapt(activation, objective, support, step_sizes, l2, start, scales, keep=False)
    return [(weight.clone(), bias[:, 0].clone()) for weight, bias in zip(fast[::2], fast[1::2], strict=True)]


def _prepare(events: Events) -> Events:
    """Padding cleared; weights divided by the number of events."""
    real = events.weight > 0
    share = events.weight.where(real, 0) / real.sum(1, keepdim=True).clamp(min=1)
    return Events(events.inputs.where(real[..., None], 0), events.target.where(real, 0).detach(), share.detach())


def _body(layers: Layers, activation: Activation, inputs: Tensor) -> Tensor:
    for weight, bias in layers:
        inputs = activation.value(functional.linear(inputs, weight, bias))
    return inputs


def _flat(layers: Layers, adapted: int, step_scales: Layers | None) -> tuple[list[Tensor], list[Tensor]]:
    """The fast layers as weight, bias, weight, bias ..., and their scales."""
    if not 0 <= adapted < len(layers):
        raise ValueError(f"adapted is {adapted}, expected 0 to {len(layers) - 1}: the last layer always adapts")
    if len(layers[-1][0]) != 1:
        raise ValueError(f"the last layer has {len(layers[-1][0])} outputs, expected 1")
    if step_scales is not None and len(step_scales) != len(layers) - adapted:
        raise ValueError(
            f"step_scales has {len(step_scales)} entries, expected {len(layers) - adapted}: one a fast layer"
        )
    fast = [tensor for layer in layers[adapted:] for tensor in layer]
    return fast, [tensor for layer in step_scales or () for tensor in layer]


class _Step(NamedTuple):
    """What one inner step leaves for the way back."""

    fast: list[Tensor]  # task out in, task 1 out, ...: weight and bias of each layer
    hidden: list[Tensor]  # task event in: what goes into each layer
    slopes: list[Tensor]  # task event in: of the activation that made hidden[layer + 1]
    errors: list[Tensor]  # task event out: derivative of the inner loss by what comes out of each layer
    pulled: list[Tensor]  # task event in: derivative by hidden[layer + 1]
    prediction: Tensor  # task event 1


def _forward(activation: Activation, inputs: Tensor, fast: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What goes into each layer, and the prediction."""
    hidden = [inputs]
    for weight, bias in zip(fast[:-2:2], fast[1:-2:2], strict=True):
        hidden.append(activation.value(torch.baddbmm(bias, hidden[-1], weight.mT)))
    return hidden, torch.baddbmm(fast[-1], hidden[-1], fast[-2].mT)


def _backward(
    activation: Activation, hidden: list[Tensor], fast: list[Tensor], error: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Slopes, errors and pulled-back errors as in `_Step`."""
    slopes, errors, pulled = [], [error], []
    for layer in range(len(hidden) - 1, 0, -1):
        pulled.append(_pull(errors[-1], fast[2 * layer]))
        slopes.append(activation.slope(hidden[layer]))
        errors.append(pulled[-1] * slopes[-1])
    return slopes[::-1], errors[::-1], pulled[::-1]


def _pull(error: Tensor, weight: Tensor) -> Tensor:
    # One output: a broadcast product costs a fraction of a matrix product over one column.
    return error * weight if weight.shape[1] == 1 else torch.bmm(error, weight)


def _gradient(hidden: list[Tensor], errors: list[Tensor]) -> list[Tensor]:
    """By weight, bias, weight, bias ... of each task."""
    return [part for h, e in zip(hidden, errors, strict=True) for part in (torch.bmm(e.mT, h), e.sum(1, keepdim=True))]


def _inner_gradient(step: _Step, start: list[Tensor], l2: Tensor | None) -> list[Tensor]:
    gradient = _gradient(step.hidden, step.errors)
    if l2 is None:
        return gradient
    return [part + l2 * (now - then) for part, now, then in zip(gradient, step.fast, start, strict=True)]


def _adapt(
    activation: Activation,
    objective: Objective,
    support: Events,
    step_sizes: Tensor,
    l2: Tensor | None,
    start: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    dual: bool = False,
    keep: bool = True,
) -> tuple[list[Tensor], list[_Step]]:
    """The fast layers after the last step, and the steps, if kept; `dual` says that `_dual` made the first layer."""
    target, share = support.target[..., None], support.weight[..., None]
    begin = fast = [(part if part.ndim > 1 else part[None]).expand(len(target), -1, -1) for part in start]
    steps = []
    for index, size in enumerate(step_sizes.tolist()):
        hidden, prediction = _forward(activation, support.inputs, fast)
        error = objective.slope(prediction, target) * share
        step = _Step(fast, hidden, *_backward(activation, hidden, fast, error), prediction)
        change = _inner_gradient(step, begin, l2) if scales or l2 is not None else []
        if scales:
            change = [part * scale for part, scale in zip(change, scales, strict=True)]
        if keep:
            steps.append(step)
        if keep or index == 0:
            fast = [part.clone() for part in fast]
        for part, difference in zip(fast, change, strict=bool(change)):
            part.sub_(difference, alpha=size)
        if change:
            continue
        for weight, bias, h, e in zip(fast[::2], fast[1::2], hidden, step.errors, strict=True):
            if dual and h is hidden[0]:
                weight.sub_(e.mT, alpha=size)
            else:
                weight.baddbmm_(e.mT, h, alpha=-size)
                bias.sub_(e.sum(1, keepdim=True), alpha=size)
    return fast, steps


def _dual(inputs: Tensor, support_inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first layer with one weight for each support event: products as inputs, the weights, the outputs to add to.

    Gradient steps move a weight matrix by combinations of the inputs they saw, W = W₀ + C X, b = b₀ + C 1; so an output
    is W₀ x + b₀ + C (X x + 1), C moves by the errors alone, and wide inputs are multiplied once, by the shared W₀.
    """
    products = torch.baddbmm(inputs.new_ones(1, 1, 1), inputs, support_inputs.mT)
    weights = inputs.new_zeros(*support_inputs.shape[:2], len(weight)).mT  # task out support-event
    return products, weights, functional.linear(inputs, weight, bias)


def _subtract_curved(
    values: list[Tensor],
    along: list[Tensor],
    size: float,
    step: _Step,
    activation: Activation,
    curvature: Tensor,
    dual: bool,
    wants_inputs: bool,
) -> tuple[Tensor, Tensor | None]:
    """values ← values − size · H·along, in place (`along` may be `values`).

    Returns the inner loss's derivative along `along` (summed over tasks), and the derivative of that by the inputs.
    """
    fast, hidden, slopes, errors, pulled, _ = step
    inner: list[Tensor] = []  # the R-operator of hidden[layer + 1]
    outer: list[Tensor] = []  # and of what comes out of each layer
    for layer, h in enumerate(hidden):
        outer.append(torch.baddbmm(along[2 * layer + 1], h, along[2 * layer].mT))
        if layer > 0:
            outer[-1].baddbmm_(inner[-1], fast[2 * layer].mT)
        if layer < len(hidden) - 1:
            inner.append(outer[-1] * slopes[layer])
    slope = torch.vdot(errors[-1].flatten(), outer[-1].flatten())
    error = curvature * outer[-1]
    back = None
    for layer in range(len(hidden) - 1, -1, -1):
        if layer > 0 or wants_inputs:
            back = _pull(error, fast[2 * layer]).add_(_pull(errors[layer], along[2 * layer]))
        if dual and layer == 0:
            values[0].sub_(error.mT, alpha=size)
            break
        values[2 * layer].baddbmm_(error.mT, hidden[layer], alpha=-size)
        values[2 * layer + 1].sub_(error.sum(1, keepdim=True), alpha=size)
        if layer > 0 and back is not None:
            values[2 * layer].baddbmm_(errors[layer].mT, inner[layer - 1], alpha=-size)
            error = back * slopes[layer - 1]
            if activation.curvature is not None:
                error.add_(pulled[layer - 1] * activation.curvature(hidden[layer]) * outer[layer - 1])
    return slope, back if wants_inputs else None


class _MAML(torch.autograd.Function):
    """`maml_losses` after the body."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        objective: Objective,
        first_order: bool,
        dual: bool,
        keep: bool,
        support: Events,
        query: Events,
        support_inputs: Tensor,
        query_inputs: Tensor,
        step_sizes: Tensor,
        l2: Tensor | None,
        num_fast: int,
        *parameters: Tensor,
    ) -> Tensor:
        start, scales = list(parameters[:num_fast]), parameters[num_fast:]
        first_inputs, last_inputs = support_inputs, query_inputs
        if dual:
            last_inputs, _, query_offset = _dual(query_inputs, support_inputs, *start[:2])
            first_inputs, *start[:2] = _dual(support_inputs, support_inputs, *start[:2])
        support = support._replace(inputs=first_inputs)
        fast, steps = _adapt(activation, objective, support, step_sizes, l2, start, scales, dual=dual, keep=keep)
        if dual:
            fast[1] = query_offset
        hidden, prediction = _forward(activation, last_inputs, fast)
        target, share = query.target[..., None], query.weight[..., None]
        ctx.save_for_backward(support_inputs, query_inputs, step_sizes, l2, *parameters)
        ctx.settings = activation, objective, first_order, dual, num_fast
        ctx.support = support.target[..., None], support.weight[..., None]
        ctx.trace = steps, fast, hidden, objective.slope(prediction, target) * share
        return (objective.loss(prediction, target) * share).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, by_losses: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "maml_losses has no second derivative: differentiate it without create_graph=True"
            )
        activation, objective, first_order, dual, num_fast = ctx.settings
        target, share = ctx.support
        steps, fast, hidden, error = ctx.trace
        support_inputs, query_inputs, step_sizes, l2, *parameters = ctx.saved_tensors
        scales = parameters[num_fast:]
        wants_inputs, wants_query, wants_sizes = ctx.needs_input_grad[7:10]
        wants_inputs = wants_inputs and not first_order

        _, errors, _ = _backward(activation, hidden, fast, error * by_losses[:, None, None])
        by_query = _pull(errors[0], fast[0]) if wants_query else None
        by_inputs = None
        by_sizes, by_l2 = torch.zeros_like(step_sizes), None if l2 is None or first_order else torch.zeros_like(l2)
        by_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        # NOTE: `values`, the gradient by the fast layers after a step, turns in place into that before the step.
        values = _gradient(hidden, errors)
        if dual:
            values[:2] = torch.zeros_like(values[0].mT).mT, values[0].mT
        for index, (step, size) in reversed(list(enumerate(zip(steps, step_sizes.tolist(), strict=bool(steps))))):
            along = [value * scale for value, scale in zip(values, scales, strict=True)] if scales else values
            written_out = scales or l2 is not None or (first_order and wants_sizes)
            if written_out:
                gradient = _inner_gradient(step, steps[0].fast, l2)
                by_sizes[index] = -sum((one * other).sum() for one, other in zip(along, gradient, strict=True))
                for total, value, part in zip(by_parameters[num_fast:], values, gradient, strict=bool(scales)):
                    total.sub_((value * part).sum(0).view_as(total), alpha=size)
            if first_order:
                continue
            drag = None
            if l2 is not None and by_l2 is not None:
                drag = [size * l2 * direction for direction in along]
                for total, direction, part, now, then in zip(
                    by_parameters[:num_fast], along, drag, step.fast, steps[0].fast, strict=True
                ):
                    by_l2.sub_((direction * (now - then)).sum(), alpha=size)
                    total.add_(part.sum(0).view_as(total))
            curvature = objective.curvature(step.prediction, target) * share
            slope, back = _subtract_curved(values, along, size, step, activation, curvature, dual, wants_inputs)
            if not written_out:
                by_sizes[index] = -slope
            if drag is not None:
                for value, part in zip(values, drag, strict=True):
                    value.sub_(part)
            if back is not None:
                by_inputs = back.mul_(-size) if by_inputs is None else by_inputs.sub_(back, alpha=size)
        if dual:
            by_events = torch.cat([values[0].mT, errors[0]], 1)
            every_input = torch.cat([support_inputs, query_inputs], 1)
            values[:2] = (by_events.flatten(0, 1).T @ every_input.flatten(0, 1))[None], by_events.sum(1)
        for total, value in zip(by_parameters[:num_fast], values, strict=True):
            total.add_(value.sum(0).view_as(total))
        return (None,) * 7 + (by_inputs, by_query, by_sizes, by_l2, None, *by_parameters)

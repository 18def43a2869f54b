"""Gradient descent on the support, the inner loop that MAML and its relatives share."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from palate.errors import ConfigError
from palate.meta import fused
from palate.meta.learner import Events, Fast, Learner, Params, Tasks, make_learner, weights_of
from palate.meta.model import Model
from palate.meta.objectives import Objective, mean_over_events
from palate.meta.penalty import PenaltyConfig, init_penalty, shrink


@dataclass(frozen=True)
class GradientConfig(PenaltyConfig):
    """Settings of the inner loop."""

    num_steps: int = 5
    """Gradient steps on the support."""
    step_size: float = 0.01
    """Step size, or where it starts if it is learned."""
    learn_step_size: bool = False
    """Meta-learn one step size a step (Antoniou et al., How to train your MAML, 2019, arXiv:1810.09502)."""

    pseudo_events: float = 0.0
    """Events by which the mean over the support is shrunk: with n events a step is n / (n + pseudo_events) as long, so
    that two events do not move the weights as far as twenty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pseudo_events < 0:
            raise ConfigError(f"learner.pseudo_events is {self.pseudo_events}; it must be 0 or more")
        if self.num_steps < 1:
            raise ConfigError(f"learner.num_steps is {self.num_steps}; it must be at least 1")
        if self.step_size <= 0:
            raise ConfigError(f"learner.step_size is {self.step_size}; it must be above 0")


def init_steps(config: GradientConfig) -> dict[str, Tensor]:
    """Log step sizes, one a step; fixed unless they are learned."""
    name = "log_step" if config.learn_step_size else "fixed.log_step"
    return {name: torch.full((config.num_steps,), math.log(config.step_size))}


def step_sizes(config: GradientConfig, params: Params) -> Tensor:
    """One step size a step."""
    return params["log_step" if config.learn_step_size else "fixed.log_step"].exp()


def shrunk(config: GradientConfig, support: Events) -> Events:
    """Weights as `pseudo_events` wants them; of one task or of many."""
    if config.pseudo_events == 0:
        return support
    size = (support.weight > 0).sum(-1, keepdim=True)
    return support._replace(weight=support.weight * size / (size + config.pseudo_events))


def support_loss(
    model: Model, objective: Objective, config: GradientConfig, params: Params, support: Events
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Mean loss of the support as a function of the fast weights."""
    shared, support = weights_of(params), shrunk(config, support)

    def inner_loss(fast: Mapping[str, Tensor]) -> Tensor:
        predictions = model.predict({**shared, **fast}, support.inputs)
        return mean_over_events(objective.loss(predictions, support.target), support.weight)

    return inner_loss


def descend(
    inner_loss: Callable[[Fast], Tensor],
    start: Fast,
    steps: Iterable[Tensor],
    *,
    config: PenaltyConfig,
    params: Params,
    first_order: bool = False,
    scales: Mapping[str, Tensor] | None = None,
) -> Fast:
    """Proximal gradient steps from `start`; `scales` multiplies each weight's step.

    With `first_order` the gradients are constants to whoever differentiates the result.
    """
    fast = start
    for step in steps:
        slope = grad(inner_loss)(fast)
        if first_order:
            slope = {name: value.detach() for name, value in slope.items()}
        if scales is not None:
            slope = {name: value * scales[name] for name, value in slope.items()}
        moved = {name: weight - step * slope[name] for name, weight in fast.items()}
        fast = shrink(config, params, start, moved, step)
    return fast


def gradient_learner(
    model: Model, objective: Objective, config: GradientConfig, fast_names: Sequence[str], *, first_order: bool = False
) -> Learner:
    """Descend on the named weights from the shared ones; differentiable through every step unless `first_order`."""

    def prior(params: Params, profile: Tensor) -> Fast:
        shared = weights_of(params)
        return {name: shared[name] for name in fast_names}

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        return descend(
            support_loss(model, objective, config, params, support),
            fast,
            step_sizes(config, params),
            config=config,
            params=params,
            first_order=first_order,
        )

    start = {name: model.weights[name] for name in fast_names}
    return make_learner(
        model,
        objective,
        {**init_steps(config), **init_penalty(config, start)},
        prior,
        adapt,
        losses=fused_losses(model, objective, config, fast_names, first_order=first_order),
    )


def fused_losses(
    model: Model,
    objective: Objective,
    config: GradientConfig,
    fast_names: Sequence[str],
    *,
    first_order: bool = False,
    scaled: bool = False,
) -> Callable[[Params, Tasks], Tensor] | None:
    """The hand-batched losses of `palate.meta.fused`, where they apply: else None, and the caller vectorises.

    They apply to a plain stack of layers of which the last ones move, without penalty, under a mean outer loss.
    `scaled` takes a step scale for each weight from the parameters under "step.".
    """
    layers = model.layers
    if layers is None or config.penalty != "none" or not objective.mean_outer:
        return None
    moving = [weight in fast_names and bias in fast_names for weight, bias in layers.names]
    adapted = moving.index(True)
    if not all(moving[adapted:]) or len(fast_names) != 2 * (len(moving) - adapted):
        return None
    activation = fused.ACTIVATIONS[layers.activation]

    def losses(params: Params, tasks: Tasks) -> Tensor:
        parts = (shrunk(config, tasks.support), tasks.query)
        support, query = (fused.Events(part.inputs, part.target, part.weight) for part in parts)
        scales = (
            [(params[f"step.{weight}"], params[f"step.{bias}"]) for weight, bias in layers.names] if scaled else None
        )
        return fused.maml_losses(
            [(params[f"model.{weight}"], params[f"model.{bias}"]) for weight, bias in layers.names],
            activation,
            objective,
            support,
            query,
            step_sizes(config, params),
            first_order=first_order,
            step_scales=scales,
            adapted=adapted,
        )

    return losses

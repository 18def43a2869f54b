"""The contract of every meta-learner.

A learner is a named tuple of pure functions over trees of tensors, written for ONE task and vectorised by the caller
with `torch.func.vmap`; where a hand-batched form is measured to be faster, it brings that in `losses`. It adapts any
`Model`: the weights it moves, the fast weights, are a subset of the model's own, so one person's fast weights over the
shared ones are an ordinary forward pass.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor
from torch.func import vmap

from palate.errors import ConfigError, DataError
from palate.meta.model import Model
from palate.meta.objectives import Objective

Params = dict[str, Tensor]
"""Shared weights by name: the model's under "model.", the learner's own beside; those under "fixed." stay untrained."""
Fast = dict[str, Tensor]
"""One task's weights: those of the model that the learner moves, by the model's names, and what else it remembers."""


class Events(NamedTuple):
    """Labelled events of one task, padded to any width: a support or a query set."""

    inputs: Shaped[Tensor, "event *input"]
    """What the model reads of each event."""
    target: Float[Tensor, "event"]
    """Ratings on any scale; of choices +1 chosen, −1 refused."""
    weight: Float[Tensor, "event"]
    """How much an event counts; 0 for padding, which is never read."""
    kind: Int64[Tensor, "event"]
    """Number of the event's type, whose weight is learned where there are several; 0 where there is one."""


class Tasks(NamedTuple):
    """Many tasks: every tensor has the task as its first axis."""

    profile: Float[Tensor, "task profile"]
    support: Events
    query: Events


class Learner(NamedTuple):
    """Pure functions of one task; an empty support returns the prior."""

    params: Params
    """Where meta-training starts."""
    prior: Callable[[Params, Float[Tensor, "profile"]], Fast]
    """Fast weights before any event; `profile` may be of length 0."""
    adapt: Callable[[Params, Fast, Events], Fast]
    """Fast weights after a support set, from the prior."""
    predict: Callable[[Params, Fast, Shaped[Tensor, "event *input"]], Float[Tensor, "event"]]
    loss: Callable[[Params, Float[Tensor, "profile"], Events, Events], Float[Tensor, ""]]
    """The outer objective of one task, whose gradient is the learner's meta-gradient."""
    losses: Callable[[Params, Tasks], Float[Tensor, "task"]]
    """The same for many tasks at once."""
    objective: Objective
    num_profile: int
    """Length of a profile."""
    num_kinds: int
    """Number of event types."""
    check: Callable[[Params, Events], None]
    """Refuse a model that the learner cannot adapt, on some events; called once before the outer loop."""
    prepare: Callable[[Params, Float[Tensor, "task profile"], Int64[Tensor, "task"] | None], Params]
    """What the learner fits on the training tasks' profiles, and on their classes where given, before the outer
    loop."""


Quick = Callable[[Float32[np.ndarray, "event feature"], Float32[np.ndarray, "event"]], Float32[np.ndarray, "feature"]]
"""Features and what is left to explain of each target, to the fast weights."""


class Working(NamedTuple):
    """The linear regression that a learner ends with: its Gaussian posterior is what is known of the fast weights."""

    deviation: Float[Tensor, "feature"]
    """Prior standard deviation of each weight, the learner's own."""
    weight: Float[Tensor, "event"]
    """How much each event tells."""
    noise: Float[Tensor, ""]
    """Noise variance of an event of weight 1."""


class SupportRows(NamedTuple):
    """The support of one task as a linear head reads it."""

    features: Float[Tensor, "event feature"]
    target: Float[Tensor, "event"]
    weight: Float[Tensor, "event"]
    start: Float[Tensor, "event"]
    """What the weights before adapting predict."""


Regression = Callable[[Any, Params, Objective, SupportRows], Working]
"""(config, own parameters, objective, support), of `linear_model`; ConfigError where the settings leave no Gaussian."""


class LearnerEntry(NamedTuple):
    """One line of the table: the settings and the way to build the learner from a model."""

    config: type[Any]
    """A frozen dataclass, all of whose settings have defaults."""
    build: Callable[[Model, Objective, Any, int], Learner]
    """(model, objective, config, length of a profile)."""
    by_feature: bool = False
    """Whether it learns something of its own about single features, beyond their scale and where the weights start."""
    quick: Callable[[Any, Mapping[str, np.ndarray]], "Quick | None"] | None = None
    """(config, own parameters): `adapt` of `linear_model` for one task of which every event counts 1, in numpy, if the
    config allows it. See `palate.meta.adapter`."""
    posterior: Regression | None = None
    """The Gaussian around the fast weights, where they have one; exploration draws from it."""


def make_events(
    inputs: Shaped[Tensor, "*task event _"],
    target: Shaped[Tensor, "*task event"],
    weight: Float[Tensor, "*task event"] | None = None,
    kind: Int64[Tensor, "*task event"] | None = None,
) -> Events:
    """A support or query set, of one task or of many; by default every event counts 1 and is of one type."""
    target = target if target.is_floating_point() else target.float()
    return Events(
        inputs,
        target,
        torch.ones_like(target) if weight is None else weight,
        torch.zeros(target.shape, dtype=torch.int64) if kind is None else kind,
    )


def make_tasks(
    inputs: Shaped[Tensor, "task event _"],
    target: Shaped[Tensor, "task event"],
    num_support: int,
    profile: Float[Tensor, "task profile"] | None = None,
) -> Tasks:
    """Tasks of equal length: the first `num_support` events are support, the rest query.

    Raises:
        DataError: no event is left for the query.
    """
    if not 0 <= num_support < target.shape[1]:
        raise DataError(
            f"num_support is {num_support} of {target.shape[1]} events; expected 0 to {target.shape[1] - 1}"
        )
    profile = torch.zeros(len(target), 0) if profile is None else profile
    halves = (slice(0, num_support), slice(num_support, None))
    return Tasks(profile, *(make_events(inputs[:, half], target[:, half]) for half in halves))


def adapt(learner: Learner, params: Params, support: Events, profile: Float[Tensor, "profile"] | None = None) -> Fast:
    """One task's fast weights: its prior, then its events.

    Raises:
        ConfigError: the learner reads profiles, and there is none.
    """
    if profile is None and learner.num_profile > 0:
        raise ConfigError(f"the learner reads profiles of length {learner.num_profile}; pass this task's")
    profile = support.target.new_zeros(0) if profile is None else profile
    return learner.adapt(params, learner.prior(params, profile), support)


def make_learner(
    model: Model,
    objective: Objective,
    params: Mapping[str, Tensor],
    prior: Callable[[Params, Tensor], Fast],
    adapt: Callable[[Params, Fast, Events], Fast],
    *,
    loss: Callable[[Params, Tensor, Events, Events], Tensor] | None = None,
    losses: Callable[[Params, Tasks], Tensor] | None = None,
    check: Callable[[Params, Events], None] | None = None,
    prepare: Callable[[Params, Tensor, Tensor | None], Params] | None = None,
) -> Learner:
    """Complete a learner: prediction with the fast weights in place, and the query loss after adapting.

    Padding is cleared and everything has the precision of the model before the given functions see it.
    """
    some_weight = f"model.{next(iter(model.weights))}"

    def clear(params: Params, events: Events) -> Events:
        return cleared(events, params[some_weight].dtype)

    def prior_of(params: Params, profile: Tensor) -> Fast:
        return prior(params, profile.to(params[some_weight].dtype))

    def adapt_to(params: Params, fast: Fast, support: Events) -> Fast:
        return adapt(params, fast, clear(params, support))

    def predict(params: Params, fast: Fast, inputs: Tensor) -> Tensor:
        weights = weights_of(params)
        return model.predict({**weights, **{name: fast[name] for name in fast if name in weights}}, inputs)

    def query_loss(params: Params, profile: Tensor, support: Events, query: Events) -> Tensor:
        fast = adapt(params, prior(params, profile), support)
        return objective.outer(predict(params, fast, query.inputs), query.target, query.weight)

    def one(params: Params, profile: Tensor, support: Events, query: Events) -> Tensor:
        profile = profile.to(params[some_weight].dtype)
        return (loss or query_loss)(params, profile, clear(params, support), clear(params, query))

    def by_hand(params: Params, tasks: Tasks) -> Tensor:
        assert losses is not None
        return losses(params, Tasks(tasks.profile, clear(params, tasks.support), clear(params, tasks.query)))

    dtype = next(iter(model.weights.values())).dtype
    own = {name: value.to(dtype) for name, value in params.items()}
    return Learner(
        {**{f"model.{name}": weight for name, weight in model.weights.items()}, **own},
        prior_of,
        adapt_to,
        predict,
        one,
        _by_hand(None if losses is None else by_hand, one),
        objective,
        0,
        1,
        check or (lambda params, events: None),
        prepare or (lambda params, profiles, classes: params),
    )


def _by_hand(
    losses: Callable[[Params, Tasks], Tensor] | None, one: Callable[[Params, Tensor, Events, Events], Tensor]
) -> Callable[[Params, Tasks], Tensor]:
    """The hand-batched losses where they are given and can be used."""

    def batched(params: Params, tasks: Tasks) -> Tensor:
        # NOTE: a hand-written backward pass cannot be transformed by torch.func; inside a transform vmap takes over.
        if losses is not None and torch._C._functorch.peek_interpreter_stack() is None:
            return losses(params, tasks)
        return vmap(one, in_dims=(None, 0, 0, 0))(params, *tasks)

    return batched


def cleared(events: Events, dtype: torch.dtype) -> Events:
    """Nothing of padding is left, so that what it holds, a NaN too, is never read; floats have one precision."""
    real = events.weight > 0
    wide = real.reshape(*real.shape, *[1] * (events.inputs.ndim - real.ndim))
    inputs = torch.where(wide, events.inputs, torch.zeros_like(events.inputs))
    return Events(
        inputs.to(dtype) if inputs.is_floating_point() else inputs,
        torch.where(real, events.target, torch.zeros_like(events.target)).to(dtype),
        torch.where(real, events.weight, torch.zeros_like(events.weight)).to(dtype),
        events.kind,
    )


def weights_of(params: Params) -> dict[str, Tensor]:
    """The model's weights by their own names."""
    return {name[len("model.") :]: weight for name, weight in params.items() if name.startswith("model.")}


def with_event_kinds(learner: Learner, num_kinds: int) -> Learner:
    """Learn how much each type of event counts: its weight is multiplied by exp of one trained number a type."""
    if num_kinds == 1:
        return learner

    def weigh(params: Params, support: Events) -> Events:
        return support._replace(weight=support.weight * params["events.log_weight"].exp()[support.kind])

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        return learner.adapt(params, fast, weigh(params, support))

    def loss(params: Params, profile: Tensor, support: Events, query: Events) -> Tensor:
        return learner.loss(params, profile, weigh(params, support), query)

    def losses(params: Params, tasks: Tasks) -> Tensor:
        # NOTE: the hand-batched path takes weights as constants; these have a gradient.
        return vmap(loss, in_dims=(None, 0, 0, 0))(params, *tasks)

    return learner._replace(
        params={**learner.params, "events.log_weight": torch.zeros(num_kinds)},
        adapt=adapt,
        loss=loss,
        losses=losses,
        num_kinds=num_kinds,
    )

"""The outer loop: meta-train any learner on tasks, keep what validates best, and fail where it diverges."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor
from torch._C import _LinAlgError as LinAlgError  # type: ignore[attr-defined]
from torch.func import vmap

from palate.errors import ConfigError, DataError, NumericalError
from palate.meta.learner import Events, Learner, Params, Tasks
from palate.meta.quality import MIN_USERS
from palate.significance import paired_difference
from palate.steps import take_step


@dataclass(frozen=True)
class FitConfig:
    """Settings of the outer loop (Adam)."""

    num_steps: int = 1000
    """Outer steps."""
    batch_size: int = 32
    """Tasks a step."""
    learning_rate: float = 0.001
    """At the start; falls linearly to a fiftieth."""
    weight_decay: float = 0.0
    """Decoupled decay of every trained parameter (AdamW)."""
    validate_every: int = 50
    """Steps between looks at the validation tasks; the best look is kept."""
    clip: float = 10.0
    """Largest norm of the meta-gradient; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"fit.{name} is {getattr(self, name)}; it must be above 0")
        if not self.weight_decay >= 0:
            raise ConfigError(f"fit.weight_decay is {self.weight_decay}; it must be 0 or more")


class FitResult(NamedTuple):
    """The kept parameters and the curves that led to them."""

    params: Params
    step: int
    """The step that they are from."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean outer loss since the last look)."""
    validation: tuple[tuple[int, float], ...]
    """(step, quality on the validation tasks): of `fit` the mean query loss."""
    last: Params
    """The parameters after the last step, whether they are kept or not."""


def fit(
    learner: Learner,
    train: Tasks,
    validation: Tasks,
    config: FitConfig | None = None,
    *,
    seed: int = 0,
    name: str = "learner",
    classes: Int64[Tensor, "task"] | None = None,
    redraw: Callable[[Tasks, np.random.Generator], Tasks] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> FitResult:
    """Meta-train on `train`, choose the step on `validation`.

    Args:
        learner: what is trained; parameters under "fixed." stay as they are.
        train: tasks as tensors with the task as first axis.
        validation: other tasks.
        config: settings of the loop.
        seed: of the batches; the same seed gives the same parameters.
        name: how errors call the learner.
        classes: given class of each training task, for learners that use it.
        redraw: changes each batch, such as what of it is support; gets the loop's random generator.
        on_step: called as (step, of, validation loss) at each look.

    Raises:
        DataError: there are no tasks, or they hold what the learner cannot read.
        ConfigError: the model is none that the learner can adapt.
        NumericalError: a loss or gradient is not finite (names learner and step), or the kept parameters are shown to
            predict the validation queries worse than the best constant: the 95 % interval of the difference over
            tasks excludes zero.
    """
    config = config or FitConfig()
    for what, tasks in (("training", train), ("validation", validation)):
        _check_tasks(learner, tasks, f"{name}: {what} tasks")
    rng = np.random.default_rng(seed)
    start = learner.prepare(learner.params, train.profile, classes)
    learner.check(start, Events(*(value[0] for value in train.support)))

    def batch_loss(params: Params) -> Tensor:
        batch = take(train, torch.from_numpy(_draw(rng, len(train.profile), config.batch_size)))
        return learner.losses(params, batch if redraw is None else redraw(batch, rng)).mean()

    result = run_outer_loop(
        start, batch_loss, lambda params: query_loss(learner, params, validation), config, name=name, on_step=on_step
    )
    best, floor = query_losses(learner, result.params, validation), constant_losses(learner, train, validation)
    if len(best) >= MIN_USERS and (found := paired_difference(best.numpy(), floor.numpy())).low > 0:
        raise NumericalError(
            f"{name}: the best validation loss, {best.mean():.4f} at step {result.step}, is worse than that of a "
            f"constant predictor, {floor.mean():.4f} (95 % interval of the difference over {len(best):,} tasks "
            f"{found.low:+.4f} to {found.high:+.4f}); it has not learned: lower the step sizes, "
            "train longer or check the targets"
        )
    return result


def vary_support(tasks: Tasks, rng: np.random.Generator) -> Tasks:
    """Keep a random number of each task's first support events, from none to all: a `redraw` for `fit`.

    A learner that has met one support size goes wrong at others: gradient steps tuned to eight events overfit two.
    """
    weight = tasks.support.weight
    real = weight > 0
    size = (torch.from_numpy(rng.random(len(weight))) * (real.sum(1) + 1)).long()
    kept = real.cumsum(1) <= size[:, None]
    return tasks._replace(support=tasks.support._replace(weight=weight * kept))


def run_outer_loop(
    start: Params,
    batch_loss: Callable[[Params], Tensor],
    look: Callable[[Params], float],
    config: FitConfig,
    *,
    name: str,
    maximise: bool = False,
    penalty: Callable[[Params], Tensor] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> FitResult:
    """Adam on every parameter that is not "fixed."; keep the parameters at the best look, the start included.

    Args:
        start: parameters to begin with; never changed.
        batch_loss: draws a batch and returns its mean loss.
        look: quality on the validation tasks.
        config: settings; `batch_size` is `batch_loss`'s own affair.
        name: how errors call what is trained.
        maximise: whether more of `look` is better.
        penalty: added to the loss that is differentiated, not to the curve.
        on_step: called as (step, of, look) at each look.

    Raises:
        NumericalError: a loss, gradient or look is not finite, or a solve has no solution; names the step.
    """
    fixed = {key: value for key, value in start.items() if key.startswith("fixed.")}
    trained = {key: value.clone().requires_grad_() for key, value in start.items() if key not in fixed}
    optimiser = torch.optim.AdamW(list(trained.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_step, best_value = start, 0, _look(look, start, name, 0)
    looks, curve, since = [(0, best_value)], [], []
    for step in range(1, config.num_steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * max(0.02, 1 - (step - 1) / config.num_steps)
        loss = take_step(
            optimiser,
            lambda: batch_loss({**fixed, **trained}),
            name=name,
            step=step,
            advice="lower the learning rate",
            clip=config.clip,
            penalty=None if penalty is None else lambda: penalty(trained),
        )
        since.append(loss)
        if step % config.validate_every == 0 or step == config.num_steps:
            current = {**fixed, **{key: value.detach().clone() for key, value in trained.items()}}
            value = _look(look, current, name, step)
            looks.append((step, value))
            curve.append((step, float(np.mean(since))))
            since = []
            if (value > best_value) if maximise else (value < best_value):
                best, best_step, best_value = current, step, value
            if on_step is not None:
                on_step(step, config.num_steps, value)
    return FitResult(best, best_step, tuple(curve), tuple(looks), current)


def _look(look: Callable[[Params], float], params: Params, name: str, step: int) -> float:
    try:
        value = look(params)
    except (NumericalError, LinAlgError) as error:
        raise NumericalError(f"{name}: validation at step {step}: {error}") from None
    if not np.isfinite(value):
        raise NumericalError(f"{name}: validation at step {step} gave {value}; lower the learning rate")
    return value


@torch.no_grad()
def predict_tasks(
    learner: Learner,
    params: Params,
    profile: Float[Tensor, "task profile"],
    support: Events,
    inputs: Shaped[Tensor, "task event *input"],
    *,
    chunk: int = 256,
) -> Float[Tensor, "task event"]:
    """Adapt to each support and predict its inputs, `chunk` tasks at a time."""

    def one(profile: Tensor, support: Events, inputs: Tensor) -> Tensor:
        fast = learner.adapt(params, learner.prior(params, profile), support)
        return learner.predict(params, fast, inputs)

    parts = [
        vmap(one)(profile[first : first + chunk], _rows(support, first, chunk), inputs[first : first + chunk])
        for first in range(0, len(profile), chunk)
    ]
    return torch.cat(parts)


def query_loss(learner: Learner, params: Params, tasks: Tasks) -> float:
    """Mean of `query_losses`."""
    return float(query_losses(learner, params, tasks).mean())


def query_losses(learner: Learner, params: Params, tasks: Tasks) -> Float64[Tensor, "task_with_query"]:
    """The objective on the query after adapting to the support, of each task whose query is not empty."""
    predictions = predict_tasks(learner, params, tasks.profile, tasks.support, tasks.query.inputs)
    asked = (tasks.query.weight > 0).any(1)
    losses = vmap(learner.objective.outer)(predictions, tasks.query.target.to(predictions), tasks.query.weight)
    return losses[asked].double()


def constant_losses(learner: Learner, train: Tasks, validation: Tasks) -> Float64[Tensor, "task_with_query"]:
    """Query losses of the constant that is best on the training queries, found by Newton's method on the event loss."""
    target, weight = train.query.target.flatten(), train.query.weight.flatten()
    constant = torch.zeros_like(target)
    for _ in range(20):
        slope = (learner.objective.slope(constant, target) * weight).sum()
        curvature = (learner.objective.curvature(constant, target) * weight).sum()
        constant = constant - slope / curvature.clamp_min(1e-9)
    predictions = constant[0].expand(validation.query.target.shape)
    losses = vmap(learner.objective.outer)(predictions, validation.query.target, validation.query.weight)
    return losses[(validation.query.weight > 0).any(1)].double()


def _check_tasks(learner: Learner, tasks: Tasks, where: str) -> None:
    """Refuse tasks whose failure further in would say nothing of the cause."""
    if len(tasks.profile) == 0 or not (tasks.query.weight > 0).any():
        raise DataError(f"{where}: there are none with a query; give at least one task with events to predict")
    if tasks.profile.shape[1] != learner.num_profile:
        raise DataError(
            f"{where}: profiles have {tasks.profile.shape[1]} columns, the learner was built for "
            f"{learner.num_profile}; pass num_profile to build"
        )
    for part, events in (("support", tasks.support), ("query", tasks.query)):
        real = events.weight > 0
        target, kind = events.target[real], events.kind[real]
        if events.inputs.is_floating_point() and not torch.isfinite(events.inputs[real]).all():
            raise DataError(f"{where}: a {part} input is NaN or infinite; leave it out or give weight 0")
        if not torch.isfinite(target).all():
            raise DataError(f"{where}: a {part} target is NaN or infinite; leave it out or give weight 0")
        if learner.objective.is_choice and not (target.abs() == 1).all():
            raise DataError(f"{where}: a {part} target is {target[target.abs() != 1][0]:g}; choices are +1 and −1")
        if len(kind) and not 0 <= int(kind.min()) <= int(kind.max()) < learner.num_kinds:
            raise DataError(
                f"{where}: event types reach from {int(kind.min())} to {int(kind.max())}; expected 0 to "
                f"{learner.num_kinds - 1}: pass num_kinds to build"
            )


def take(tasks: Tasks, rows: Int64[Tensor, "row"]) -> Tasks:
    """Select tasks."""
    support, query = (Events(*(value[rows] for value in events)) for events in (tasks.support, tasks.query))
    return Tasks(tasks.profile[rows], support, query)


def _rows(events: Events, first: int, chunk: int) -> Events:
    return Events(*(value[first : first + chunk] for value in events))


def _draw(rng: np.random.Generator, num_tasks: int, batch_size: int) -> Any:
    return rng.choice(num_tasks, min(batch_size, num_tasks), replace=False)

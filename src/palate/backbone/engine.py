"""Pre-training of a large model: one loop for a plain process and for many workers, which can be killed at any moment.

AdamW (Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101) with a warm-up and a straight line down over a
budget of epochs, steps or seconds. Weights may be averaged along the way (Mean teachers are better role models, 2017,
arXiv:1703.01780). A run that was killed and is started again ends with the same weights, bit for bit, unless its
budget is in seconds.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from palate.backbone.parallel import Workers, clip_gradients, gathered, pieces_of, workers_here
from palate.backbone.run_state import EpochRecord, RunState
from palate.backbone.schedule import learning_rate_at
from palate.backbone.training_config import TrainingConfig
from palate.backbone.training_run import Run, copy_into, start_run
from palate.errors import ConfigError, DataError, NumericalError


@runtime_checkable
class Batch(Protocol):
    """A NamedTuple whose columns are tensors with rows along their first axis, or None."""

    def rows(self, start: int, stop: int) -> Any:
        """Return a batch of some of the rows."""

    def num_targets(self) -> int:
        """How many of its tokens bear loss."""


@runtime_checkable
class BatchSource(Protocol):
    """Where batches come from; the data may be mapped from the disk."""

    def plan(self, seed: int, epoch: int) -> Sequence[Any]:
        """Return the batches of an epoch in their order, cheaply: a function of the seed and the epoch alone."""

    def load(self, plan: Any) -> Any:
        """Make one Batch of the plan."""


@runtime_checkable
class StepLoss(Protocol):
    """What a model's forward returns in training."""

    @property
    def total(self) -> Tensor:
        """Sum of the loss over the target tokens, differentiable."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """Detached sums of its parts, for the record; the same names at every step."""


class TrainingResult(NamedTuple):
    """What a run leaves behind beside the trained weights."""

    history: tuple[EpochRecord, ...]
    """One record an epoch."""
    ended_by: str
    """The setting that ended the run: num_epochs, max_steps, max_seconds or patience."""
    best: float | None
    """The validation of the weights returned; None without `validate`."""


def train(
    model: nn.Module,
    source: BatchSource,
    config: TrainingConfig,
    *,
    seed: int,
    folder: Path | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    device: str | torch.device = "cpu",
    clocks: tuple[Callable[[], float], Callable[[], float]] = (time.monotonic, time.process_time),
) -> TrainingResult:
    """Train `model` in place on the batches of `source`; model(batch) must return a StepLoss.

    With `folder`, the run leaves checkpoints there, and a run that finds one goes on from it. `validate` judges the
    model, in evaluation mode and on every worker alike; more is better, and the best weights are those returned.
    `on_epoch` hears of each epoch, on worker 0. `clocks` read wall and CPU seconds. Where a process group is running,
    its workers share every batch, and `folder` must be one that they all see.

    Raises:
        ConfigError: a frozen name is unknown; the model cannot do what a setting asks; memory does not suffice.
        ModelError: the folder holds a run of another model or with other settings, or cannot be written.
        NumericalError: a loss, a gradient or a validation is not finite. The last checkpoint is whole in every case.
    """
    workers = workers_here(device)
    with _memory_named(config), _frozen(model, config.freeze):
        run = start_run(model.to(workers.device), config, seed, workers, folder)
        reason = _go_on(run, source, config, seed, folder, validate, on_epoch, _Spending(run.state, workers, clocks))
        return TrainingResult(tuple(run.state.history), reason, run.state.best)


class _Spending:
    """Adds up the seconds of a run: worker 0's on the wall, everyone's of CPU time; all workers see the same sums."""

    def __init__(self, state: RunState, workers: Workers, clocks: tuple[Callable[[], float], Callable[[], float]]):
        self.state, self.workers, self.clocks = state, workers, clocks
        self.read = [clock() for clock in clocks]

    def __call__(self, values: Sequence[float] = ()) -> list[float]:
        """Book what was spent since the last call, and sum `values` over the workers on the way."""
        before, self.read = self.read, [clock() for clock in self.clocks]
        wall = self.read[0] - before[0] if self.workers.rank == 0 else 0.0
        *sums, wall, cpu = self.workers.total([*values, wall, self.read[1] - before[1]])
        self.state.seconds += wall
        self.state.cpu_seconds += cpu
        return sums


def _go_on(
    run: Run,
    source: BatchSource,
    config: TrainingConfig,
    seed: int,
    folder: Path | None,
    validate: Callable[[nn.Module], float] | None,
    on_epoch: Callable[[EpochRecord], None] | None,
    spend: _Spending,
) -> str:
    """Train from where the run is to the end of its budget, and return what ended it."""
    model, state, workers, budget = run.model, run.state, run.workers, config.budget()
    saved_at = state.seconds
    plans = source.plan(seed, state.epoch)

    def used() -> float:
        return {"wall": state.seconds, "cpu": state.cpu_seconds}[config.clock]

    def ended_by() -> str | None:
        if 0 < config.patience <= state.stale:
            return "patience"
        return budget.reached(state.epoch, state.step, used())

    model.train()
    while (reason := ended_by()) is None:
        if state.batch >= len(plans):
            raise DataError(
                f"training: epoch {state.epoch + 1} has {len(plans)} batches where batch {state.batch + 1} is due; "
                "give data with batches, and to a resumed run the data it had"
            )
        rate = learning_rate_at(
            state.step,
            budget.progress(state.epoch + state.batch / len(plans), state.step, used()),
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            final_rate=config.final_rate,
        )
        batch = source.load(plans[state.batch])
        num_targets = batch.num_targets()
        sums = _gradients(run, batch, num_targets, config)
        sums = dict(zip(sums, spend(list(sums.values())), strict=True))
        _check_finite(sums["loss"], "loss", state)
        norm = clip_gradients(run.weights, run.layouts, workers, config.clip_norm)
        _check_finite(norm, "norm of the gradient", state)
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        run.optimiser.step()
        state.step += 1
        state.batch += 1
        state.targets += num_targets
        for name, value in sums.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        # Early on the average forgets faster, or it would remember the starting weights.
        decay = min(config.ema, (1 + state.step) / (10 + state.step))
        for name, tensor in run.average.items():
            tensor.lerp_(run.weights[name].detach(), 1 - decay)

        over = state.batch == len(plans) or ended_by() is not None
        if over:
            num_steps, state.batch = state.batch, 0
            state.epoch += 1
            validation = None
            if validate is not None and (state.epoch % config.validate_every == 0 or ended_by() is not None):
                validation = _validation(run, validate)
            spend()
            means = {name: value / max(1, state.targets) for name, value in state.sums.items()}
            seconds, cpu_seconds = state.seconds - state.epoch_start[0], state.cpu_seconds - state.epoch_start[1]
            state.history.append(
                EpochRecord(state.epoch, num_steps, means.pop("loss"), means, rate, seconds, cpu_seconds, validation)
            )
            state.epoch_start, state.targets, state.sums = [state.seconds, state.cpu_seconds], 0, {}
            plans = source.plan(seed, state.epoch)
        due = config.checkpoint_steps > 0 and state.step % config.checkpoint_steps == 0
        due = due or 0 < config.checkpoint_seconds <= state.seconds - saved_at
        if folder is not None and (over or due):
            run.save(folder)
            saved_at = state.seconds
        if over and on_epoch is not None and workers.rank == 0:
            on_epoch(state.history[-1])
    copy_into(run.best or run.average, model)
    model.eval()
    return reason


def _gradients(run: Run, batch: Batch, num_targets: int, config: TrainingConfig) -> dict[str, float]:
    """Leave the gradient of the mean loss over the whole batch; return this worker's sums of the loss and its parts."""
    run.optimiser.zero_grad()
    device = run.workers.device
    sums: dict[str, float] = {}
    pieces = pieces_of(batch, run.workers, config.accumulate)
    for place, (piece, weight) in enumerate(pieces):
        run.replica.last_piece(place == len(pieces) - 1)
        piece = type(piece)(*(None if column is None else column.to(device) for column in piece))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss: StepLoss = run.replica.forward(piece)
        (loss.total * (weight / max(1, num_targets))).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * weight
    return sums


def _validation(run: Run, validate: Callable[[nn.Module], float]) -> float:
    """Judge the (averaged) weights, and keep them if they are the best so far. Every worker computes, the first counts:
    sharded weights need them all."""
    model, state, workers = run.model, run.state, run.workers
    raw = {name: run.weights[name].detach().clone() for name in run.average}
    copy_into(run.average, model)
    model.eval()
    with gathered(model), torch.random.fork_rng([workers.device] if workers.device.type == "cuda" else []):
        value = validate(model)
    [value] = workers.total([value if workers.rank == 0 else 0.0])
    _check_finite(value, "validation", state)
    state.stale += 1
    if state.best is None or value > state.best:
        state.best, state.stale = value, 0
        run.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    copy_into(raw, model)
    model.train()
    return value


def _check_finite(value: float, what: str, state: RunState) -> None:
    if not math.isfinite(value):
        raise NumericalError(
            f"training: the {what} became {value} at epoch {state.epoch + 1}, step {state.step + 1}; "
            "lower training.learning_rate or look for extreme values in the data"
        )


@contextlib.contextmanager
def _frozen(model: nn.Module, prefixes: Sequence[str]) -> Iterator[None]:
    """Within it, the parameters under these names get no gradient."""
    frozen = set()
    for prefix in prefixes:
        below = {name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")}
        if not below:
            known = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise ConfigError(f"training.freeze: no parameter is under {prefix!r}; known: {', '.join(known)}")
        frozen |= {name for name in below if model.get_parameter(name).requires_grad}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in frozen:
            model.get_parameter(name).requires_grad_(True)


@contextlib.contextmanager
def _memory_named(config: TrainingConfig) -> Iterator[None]:
    """Say in one line what to lower when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise ConfigError(
            f"training: out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}); raise "
            f"training.accumulate (now {config.accumulate}), set training.checkpoint_blocks, or lower the batch size; "
            "a run with a folder goes on from its last checkpoint"
        ) from error

"""The engine takes AdamW's steps, ends where its budget says, and fails in one line with its checkpoint whole."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from palate.backbone.batches import BatchConfig
from palate.backbone.batches import BatchSource as EventSource
from palate.backbone.engine import train
from palate.backbone.run_state import load_run, trained_weights
from palate.backbone.schedule import Budget, learning_rate_at
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences
from palate.errors import ConfigError, DataError, ModelError, NumericalError


class Points(NamedTuple):
    x: Tensor
    y: Tensor
    counted: Tensor

    def rows(self, start: int, stop: int) -> "Points":
        return Points(*(column[start:stop] for column in self))

    def num_targets(self) -> int:
        return int(self.counted.sum())


class PointSource:
    """96 points of a plane with noise, 8 a batch; a fifth bear no loss."""

    def __init__(self, num_points: int = 96) -> None:
        rng = np.random.default_rng(3)
        x = rng.normal(size=(num_points, 5)).astype(np.float32)
        y = x @ rng.normal(size=5) + rng.normal(size=num_points) * 0.1
        self.data = Points(*map(torch.from_numpy, (x, y.astype(np.float32), rng.random(num_points) < 0.8)))

    def plan(self, seed: int, epoch: int) -> list[Any]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.data.x))
        return list(order.reshape(-1, 8))

    def load(self, plan: Any) -> Points:
        return Points(*(column[torch.from_numpy(plan)] for column in self.data))


class Loss(NamedTuple):
    total: Tensor
    parts: dict[str, Tensor]


class Plane(nn.Module):
    """A small network with dropout; its loss is the sum of squares."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hidden, self.dropout, self.out = nn.Linear(5, 8), nn.Dropout(dropout), nn.Linear(8, 1)

    def predict(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(torch.tanh(self.hidden(x))))[:, 0]

    def forward(self, batch: Points) -> Loss:
        squares = (self.predict(batch.x) - batch.y)[batch.counted].float() ** 2
        return Loss(squares.sum(), {"squares": squares.sum().detach()})


def error(model: nn.Module) -> float:
    """Minus the mean square over all points."""
    data = PointSource().data
    return -float(((model.predict(data.x) - data.y) ** 2).mean().detach())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


CONFIG = TrainingConfig(num_epochs=3, learning_rate=0.02, warmup_steps=4)


def test_steps_are_those_of_a_loop_written_out() -> None:
    source, model, reference = PointSource(), Plane(), Plane()
    result = train(model, source, CONFIG, seed=5)

    groups = [
        {"params": [reference.hidden.weight, reference.out.weight], "weight_decay": CONFIG.weight_decay},
        {"params": [reference.hidden.bias, reference.out.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=CONFIG.betas)
    losses = []
    for step in range(36):
        if step % 12 == 0:
            total = targets = 0.0
        batch = source.load(source.plan(5, step // 12)[step % 12])
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * min(1, (step + 1) / 4) * (1 - 0.98 * step / 36)
        optimiser.zero_grad()
        loss = reference(batch).total
        (loss / batch.num_targets()).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimiser.step()
        total, targets = total + loss.item(), targets + batch.num_targets()
        if step % 12 == 11:
            losses.append(total / targets)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert [record.loss for record in result.history] == pytest.approx(losses, rel=1e-5)
    assert [record.parts["squares"] for record in result.history] == pytest.approx(losses, rel=1e-5)
    assert [record.steps for record in result.history] == [12, 12, 12]
    assert result.ended_by == "num_epochs"
    assert result.best is None
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("pieces", [2, 3, 100])
def test_accumulation_takes_the_same_steps(pieces: int) -> None:
    whole, cut = Plane(), Plane()
    train(whole, PointSource(), CONFIG, seed=5)
    train(cut, PointSource(), replace(CONFIG, accumulate=pieces), seed=5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_compiled_model_takes_the_same_steps() -> None:
    plain, compiled = Plane(), Plane()
    train(plain, PointSource(), replace(CONFIG, num_epochs=1), seed=5)
    train(compiled, PointSource(), replace(CONFIG, num_epochs=1, compile=True), seed=5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    models = [Plane(dropout=0.3) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(int(torch.randint(1000, ())))  # what was drawn before has no part
        train(model, PointSource(), CONFIG, seed=seed)
    assert_same(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].out.weight, models[2].out.weight)


def test_the_average_follows_its_formula_and_is_what_remains() -> None:
    source, raw, averaged = PointSource(), Plane(), Plane()
    seen = [weights(raw)]
    for steps in range(1, 6):  # the weights after each step, from runs that end there on the same schedule
        raw = Plane()
        rates = replace(CONFIG, num_epochs=0, max_steps=steps, final_rate=1.0)
        train(raw, source, rates, seed=5)
        seen.append(weights(raw))
    expected = seen[0]
    for step, now in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * now[name] for name, value in expected.items()}
    heard: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> float:
        assert not model.training
        heard.append(weights(model))
        return 1.0

    config = replace(CONFIG, num_epochs=0, max_steps=5, final_rate=1.0, ema=0.5)
    train(averaged, source, config, seed=5, validate=validate)
    for name, value in expected.items():
        torch.testing.assert_close(averaged.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert_same(heard[0], weights(averaged))


def test_patience_ends_the_run_and_the_best_weights_remain() -> None:
    said = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    seen: list[dict[str, Tensor]] = []
    model = Plane()

    def validate(model: nn.Module) -> float:
        seen.append(weights(model))
        torch.rand(3)  # what validation draws is nothing to training
        return next(said)

    config = replace(CONFIG, num_epochs=50, patience=2)
    result = train(model, PointSource(), config, seed=5, validate=validate)
    assert result.ended_by == "patience"
    assert result.best == 3.0
    assert [record.validation for record in result.history] == [1.0, 3.0, 2.0, 2.5]
    assert_same(seen[1], weights(model))
    other = Plane()
    again = iter([1.0, 3.0, 2.0, 2.5])
    train(other, PointSource(), config, seed=5, validate=lambda model: next(again))
    assert_same(weights(other), weights(model))


def test_validation_comes_every_few_epochs_and_at_the_end() -> None:
    result = train(Plane(), PointSource(), replace(CONFIG, num_epochs=5, validate_every=2), seed=5, validate=error)
    assert [record.validation is not None for record in result.history] == [False, True, False, True, True]


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_time_budget_is_annealed_to_its_end_over_resumes(tmp_path: Path, clock: Any) -> None:
    ticks = iter(range(10_000))

    def second() -> float:
        return float(next(ticks))

    clocks = (second, lambda: 0.0) if clock == "wall" else (lambda: 0.0, second)
    config = replace(CONFIG, num_epochs=0, max_seconds=40.0, clock=clock, warmup_steps=0, checkpoint_steps=1)

    def die(model: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Plane(), PointSource(), config, seed=5, folder=tmp_path, clocks=clocks, validate=die)
    result = train(Plane(), PointSource(), config, seed=5, folder=tmp_path, clocks=clocks)
    assert result.ended_by == "max_seconds"
    spent = sum(record.seconds if clock == "wall" else record.cpu_seconds for record in result.history)
    assert 40 <= spent <= 42
    assert 36 <= sum(record.steps for record in result.history) <= 40
    assert result.history[-1].learning_rate < 0.1 * CONFIG.learning_rate


def test_a_step_budget_may_end_within_an_epoch() -> None:
    result = train(Plane(), PointSource(), replace(CONFIG, max_steps=17), seed=5, validate=error)
    assert [record.steps for record in result.history] == [12, 5]
    assert result.ended_by == "max_steps"
    assert result.history[-1].validation is not None


def test_frozen_weights_stay_and_are_free_afterwards() -> None:
    model = Plane()
    before = weights(model)
    train(model, PointSource(), replace(CONFIG, freeze=("hidden", "out.bias")), seed=5)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"out.weight"}
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ConfigError, match=r"no parameter is under 'hid'; known: hidden.bias, hidden.weight, out\.bias"):
        train(model, PointSource(), replace(CONFIG, freeze=("hid",)), seed=5)
    with pytest.raises(ConfigError, match="no weight is left"):
        train(model, PointSource(), replace(CONFIG, freeze=("hidden", "out")), seed=5)


def sequence_model(dropout: float = 0.1) -> SequenceModel:
    torch.manual_seed(0)
    config = SequenceModelConfig(dim=8, num_layers=2, num_heads=2, max_events=10, dropout=dropout)
    return SequenceModel(config, Catalogue(torch.ones(20, dtype=torch.int64)))


def event_source() -> EventSource:
    """Everyone goes round twenty items."""
    sequences = [[(user + place) % 20 for place in range(4 + user % 7)] for user in range(60)]
    return EventSource(from_sequences(sequences), BatchConfig(tokens=100), 10)


def test_the_sequence_model_learns_what_follows() -> None:
    config = TrainingConfig(num_epochs=12, learning_rate=0.02, warmup_steps=5, ema=0.9, precision="bfloat16")
    result = train(sequence_model(), event_source(), config, seed=1)
    assert result.history[0].loss > 2.5
    assert result.history[-1].loss < 1.2  # the first item of a person cannot be known: ln 20 / 8 remains at least
    assert result.history[-1].parts["next_item"] == result.history[-1].loss


def test_checkpointed_blocks_take_the_same_steps() -> None:
    models = [sequence_model(dropout=0.0) for _ in range(2)]
    for model, on in zip(models, (False, True), strict=True):
        train(model, event_source(), TrainingConfig(num_epochs=1, checkpoint_blocks=on), seed=1)
    assert models[1].checkpointing
    assert_same(weights(models[0]), weights(models[1]))
    with pytest.raises(ConfigError, match="no blocks to checkpoint"):
        train(Plane(), PointSource(), replace(CONFIG, checkpoint_blocks=True), seed=1)


class Broken(Plane):
    """Fails as it is told to at its 20th batch."""

    def __init__(self, fail: Callable[[Loss], Loss]) -> None:
        super().__init__()
        self.fail, self.calls = fail, 0

    def forward(self, batch: Points) -> Loss:
        self.calls += 1
        return self.fail(super().forward(batch)) if self.calls == 20 else super().forward(batch)


def raise_(error: Exception) -> Callable[[Loss], Loss]:
    def fail(loss: Loss) -> Loss:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        (
            lambda loss: loss._replace(total=loss.total * math.nan),
            NumericalError,
            "loss became nan at epoch 2, step 20",
        ),
        (
            lambda loss: loss._replace(total=(loss.total - loss.total).sqrt() + 1),
            NumericalError,
            "norm of the gradient became nan at epoch 2, step 20",
        ),
        (raise_(MemoryError()), ConfigError, "out of memory .MemoryError.; raise training.accumulate .now 1."),
        (
            raise_(RuntimeError("can't allocate memory: tried\nmuch")),
            ConfigError,
            "can't allocate memory: tried.; raise",
        ),
        (raise_(torch.OutOfMemoryError("CUDA out of memory.")), ConfigError, "lower the batch size"),
    ],
)
def test_a_failure_is_one_line_and_the_last_checkpoint_goes_on(
    fail: Callable[[Loss], Loss], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, checkpoint_steps=5, ema=0.9)
    with pytest.raises(kind, match=message) as caught:
        train(Broken(fail), PointSource(), config, seed=5, folder=tmp_path)
    assert "\n" not in str(caught.value)
    found = load_run(tmp_path)
    assert found is not None
    assert found[1].step == 15
    undisturbed, resumed = Plane(), Plane(seed=9)
    first = train(undisturbed, PointSource(), config, seed=5)
    second = train(resumed, PointSource(), config, seed=5, folder=tmp_path)
    assert_same(weights(undisturbed), weights(resumed))
    assert [record.loss for record in first.history] == [record.loss for record in second.history]


def test_other_runtime_errors_are_not_called_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(Broken(raise_(RuntimeError("shapes"))), PointSource(), CONFIG, seed=5)


def test_a_validation_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NumericalError, match="validation became nan"):
        train(Plane(), PointSource(), CONFIG, seed=5, validate=lambda model: math.nan)


def test_a_finished_run_returns_at_once_and_can_be_given_more(tmp_path: Path) -> None:
    first, again, longer = Plane(), Plane(seed=4), Plane(seed=4)
    result = train(first, PointSource(), CONFIG, seed=5, folder=tmp_path, validate=error)
    heard: list[object] = []
    repeated = train(again, PointSource(), CONFIG, seed=5, folder=tmp_path, validate=error, on_epoch=heard.append)
    assert repeated == result
    assert heard == []
    assert_same(weights(first), weights(again))
    assert_same(weights(first), trained_weights(tmp_path))
    config = replace(CONFIG, num_epochs=5, accumulate=2)
    more = train(longer, PointSource(), config, seed=5, folder=tmp_path, validate=error, on_epoch=heard.append)
    assert more.history[:3] == result.history
    assert len(heard) == 2


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(Plane(), PointSource(), CONFIG, seed=5, folder=tmp_path)
    with pytest.raises(ModelError, match="a run with seed = 5, not 6; set it back, or choose another folder"):
        train(Plane(), PointSource(), CONFIG, seed=6, folder=tmp_path)
    with pytest.raises(ModelError, match=r"a run with learning_rate = 0\.02, not 0\.1"):
        train(Plane(), PointSource(), replace(CONFIG, learning_rate=0.1), seed=5, folder=tmp_path)
    other = Plane()
    other.out = nn.Linear(8, 2)
    with pytest.raises(ModelError, match=r"another model: out.bias is \(1,\) there and \(2,\) here"):
        train(other, PointSource(), CONFIG, seed=5, folder=tmp_path)
    other.out = nn.Linear(8, 1, bias=False)
    with pytest.raises(ModelError, match=r"out.bias is \(1,\) there and no such weight here"):
        train(other, PointSource(), CONFIG, seed=5, folder=tmp_path)


def test_a_source_without_batches_is_refused() -> None:
    with pytest.raises(DataError, match="epoch 1 has 0 batches where batch 1 is due"):
        train(Plane(), PointSource(0), CONFIG, seed=5)


def test_checkpoints_come_by_the_clock_too(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    config = replace(CONFIG, num_epochs=1, checkpoint_seconds=5.0)
    saved = []

    class Watching(PointSource):
        def load(self, plan: Any) -> Points:
            saved.append(max((path.name for path in tmp_path.glob("step-*")), default=""))
            return super().load(plan)

    train(Plane(), Watching(), config, seed=5, folder=tmp_path, clocks=(lambda: float(next(ticks)), lambda: 0.0))
    assert saved == [""] * 5 + ["step-000000000005.safetensors"] * 5 + ["step-000000000010.safetensors"] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_epochs": 0}, "one at least must be above 0"),
        ({"max_steps": -1}, "none may be negative"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"clip_norm": math.nan}, "clip_norm is nan"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"ema": 1.0}, r"ema is 1.0; it must be in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"final_rate": -0.1}, "final_rate is -0.1"),
        ({"strategy": "magic"}, "choose one of: ddp, fsdp"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**wrong)


def test_the_rate_climbs_and_falls_to_its_end() -> None:
    budget = Budget(num_epochs=2, max_steps=100, max_seconds=0.0)
    assert budget.progress(1.0, 10, 1e9) == 0.5
    assert budget.progress(1.0, 75, 0.0) == 0.75
    assert budget.progress(3.0, 75, 0.0) == 1.0
    assert budget.reached(1, 99, 1e9) is None
    assert budget.reached(1, 100, 0.0) == "max_steps"
    rates = [learning_rate_at(step, step / 10, peak=1.0, warmup_steps=2, final_rate=0.1) for step in range(11)]
    assert rates[:2] == [0.5, pytest.approx(0.91)]
    assert rates[10] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))

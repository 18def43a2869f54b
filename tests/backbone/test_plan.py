"""Plans: parameters, operations and memory against real steps, strategies against arithmetic by hand."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from palate.backbone.devices import DEVICES, Device, find_device
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.next_item import LOSSES, LossConfig
from palate.backbone.plan import Plan, PlanConfig, make_plan
from palate.backbone.plan_memory import STRATEGIES, count_parameters, strategies_for
from palate.backbone.rehearsal import StepShape, build, full_batch, rehearse
from palate.backbone.sequence_model import BLOCKS, SequenceModelConfig
from palate.backbone.sizes import SIZES
from palate.errors import ConfigError

SMALL = SequenceModelConfig(dim=32, num_layers=2, num_heads=2, max_events=20)
STEP = StepShape(num_items=3000, num_rows=8, num_events=20)
BOARD = Device("board", 1e12, 1e9, 1e11, "float32", False)

VARIANTS = {
    "attention": (SMALL, STEP),
    "hstu": (replace(SMALL, block="hstu"), STEP),
    "sampled": (replace(SMALL, loss=LossConfig("sampled")), STEP),
    "timed": (replace(SMALL, timed=True, calendar=True, relative=True), STEP),
    "heads": (replace(SMALL, num_kinds=3, rated=True, heads={"kind": 1.0, "value": 1.0, "dwell": 1.0}), STEP),
    "content": (replace(SMALL, id_dropout=0.1), replace(STEP, num_content=12)),
    "quotient": (replace(SMALL, item_table=ItemTableConfig("quotient", compression=8)), STEP),
    "hashed": (replace(SMALL, item_table=ItemTableConfig("hashed", compression=4)), STEP),
    "semantic": (replace(SMALL, item_table=ItemTableConfig("semantic", compression=2)), STEP),
    "checkpointing": (SMALL, replace(STEP, checkpointing=True)),
    "average": (SMALL, replace(STEP, ema=True)),
    "bfloat16": (SMALL, replace(STEP, precision="bfloat16")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_real_model(variant: str) -> None:
    model, step = VARIANTS[variant]
    real = build(model, step)
    assert count_parameters(model, step.num_items, step.num_content).total == sum(w.numel() for w in real.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_that_pytorch_counts_on_a_real_step(variant: str) -> None:
    model, step = VARIANTS[variant]
    planned = rehearse(model, step)
    real = build(model, step)
    real.set_activation_checkpointing(step.checkpointing)
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bfloat16"):
            loss = real(full_batch(model, step))
        loss.total.backward()
    assert planned.sequence_flops + planned.output_flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def allocated_peak(model: SequenceModelConfig, step: StepShape) -> int:
    """The most that PyTorch's allocator gave out in two steps with data: another witness than the rehearsal."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        rehearse(model, step, real=True)
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


# On a CPU the kernels of bfloat16 products take workspaces of their own, which no dispatcher sees.
@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"bfloat16"}))
def test_memory_is_what_the_allocator_gives_out_on_a_real_step(variant: str) -> None:
    model, step = VARIANTS[variant]
    assert rehearse(model, step).peak == pytest.approx(allocated_peak(model, step), rel=0.1)


def test_a_rehearsal_in_bfloat16_holds_what_a_real_step_holds() -> None:
    model, step = VARIANTS["bfloat16"]
    assert rehearse(model, step).peak == pytest.approx(rehearse(model, step, real=True).peak, rel=0.1)


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_memory_of_tiny_at_several_batch_sizes(rows: int) -> None:
    step = StepShape(num_items=2000, num_rows=rows, num_events=50)
    assert rehearse(SIZES["tiny"], step).peak == pytest.approx(allocated_peak(SIZES["tiny"], step), rel=0.1)


@pytest.mark.parametrize("block", BLOCKS)
def test_checkpointing_takes_operations_and_gives_memory(block: str) -> None:
    model = replace(SMALL, block=block, num_layers=6)
    kept, again = (rehearse(model, replace(STEP, checkpointing=on)) for on in (False, True))
    assert again.activations < kept.activations / 3
    assert kept.sequence_flops < again.sequence_flops < 1.5 * kept.sequence_flops
    assert again.output_flops == kept.output_flops


def test_operations_of_a_step_by_hand() -> None:
    """Linear maps cost 6 FLOPs a weight and token, attention 12 · width · dim, the full softmax 6 · items · dim."""
    planned = rehearse(SMALL, STEP)
    weights = sum(w.numel() for w in build(SMALL, STEP).blocks.parameters() if w.ndim == 2)
    attention = 12 * 21 * SMALL.dim * SMALL.num_layers
    assert planned.sequence_flops == STEP.num_tokens * (6 * weights + attention)
    assert planned.output_flops == pytest.approx(STEP.num_tokens * 6 * STEP.num_items * SMALL.dim, rel=0.01)


def test_an_accelerator_keeps_no_attention_weights() -> None:
    wide = replace(SMALL, max_events=200)
    step = replace(STEP, num_events=200)
    assert rehearse(wide, step, accelerator=True).activations < rehearse(wide, step).activations / 1.5


def test_a_real_step_has_no_accelerator() -> None:
    with pytest.raises(ConfigError, match="leave one of the two out"):
        rehearse(SMALL, STEP, accelerator=True, real=True)


def test_what_depends_on_the_data_is_not_rehearsed() -> None:
    with pytest.raises(ConfigError, match="distinct"):
        rehearse(replace(SMALL, loss=LossConfig(distinct=True)), STEP)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_can_be_planned(loss: str) -> None:
    plan = make_plan(replace(SMALL, loss=LossConfig(loss)), PlanConfig(500, num_devices=4, tokens_per_device=84), BOARD)
    sharded = [line.strategy for line in plan.memory if STRATEGIES[line.strategy].sharded]
    assert bool(sharded) == (loss != "full")
    assert plan.chosen.fits


def lines(plan: Plan) -> dict[str, int]:
    return {line.strategy: line.weights for line in plan.memory if not line.checkpointing}


def test_strategies_divide_weights_as_they_say() -> None:
    model = replace(SMALL, loss=LossConfig("sampled"))
    plan = make_plan(model, PlanConfig(1000, num_devices=8, tokens_per_device=84), BOARD)
    table, total = plan.parameters.item_table * 4, plan.parameters.total * 4
    assert lines(plan) == {
        "ddp": total,
        "fsdp": -(-total // 8),
        "ddp, sharded table": table // 8 + total - table,
        "fsdp, sharded table": -(-total // 8),
    }


def test_one_device_needs_what_its_step_needs() -> None:
    plan = make_plan(SMALL, PlanConfig(3000, tokens_per_device=8 * 21), BOARD)
    assert strategies_for(SMALL, 1) == ["ddp"]
    assert [line.peak for line in plan.memory] == [
        rehearse(SMALL, STEP).peak,
        rehearse(SMALL, replace(STEP, checkpointing=True)).peak,
    ]


def test_time_is_operations_over_speed_and_the_optimisers_passes() -> None:
    config = PlanConfig(3000, tokens_per_device=168, total_tokens=1680, utilisation=0.5)
    plan = make_plan(SMALL, config, BOARD)
    step = rehearse(SMALL, STEP)
    expected = (step.sequence_flops + step.output_flops) / 5e11 + 12 * plan.parameters.total * 4 / 1e11
    assert plan.step_seconds == pytest.approx(expected)
    assert plan.num_steps == 10
    assert make_plan(SMALL, replace(config, total_tokens=0), BOARD).total_tokens == 20 * plan.parameters.sequence


@pytest.mark.parametrize("devices", [1, 4])
def test_advice_is_good(devices: int) -> None:
    """The number of items that is said to fit does, and twice as many do not."""
    model = replace(SMALL, loss=LossConfig("sampled", num_negatives=64))
    config = PlanConfig(200_000, num_devices=devices, tokens_per_device=168)
    cramped = BOARD._replace(memory=12e6)
    plan = make_plan(model, config, cramped)
    assert not plan.chosen.fits
    number = int(plan.advice[1].split()[1].replace(",", ""))
    assert make_plan(model, replace(config, num_items=int(number * 0.95)), cramped).chosen.fits
    assert not make_plan(model, replace(config, num_items=2 * number), cramped).chosen.fits


def test_a_model_too_large_without_items_is_told_so() -> None:
    plan = make_plan(SMALL, PlanConfig(10, tokens_per_device=168), BOARD._replace(memory=1e6))
    assert "do not depend on the number of items" in plan.advice[1]


def test_the_cpu_is_measured_and_others_are_known() -> None:
    measured = find_device("cpu")
    assert 1e9 < measured.flops < 1e13
    assert 1e8 < measured.bandwidth < 1e12
    assert {find_device(name).name for name in DEVICES} == set(DEVICES)
    with pytest.raises(ConfigError, match="'abacus'"):
        find_device("abacus")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_items": 0}, "plan.num_items is 0"),
        ({"num_items": 5, "num_devices": 0}, "plan.num_devices is 0"),
        ({"num_items": 5, "utilisation": 1.5}, "plan.utilisation is 1.5"),
        ({"num_items": 5, "tokens_per_device": 1}, "plan.tokens_per_device is 1"),
    ],
)
def test_bad_plans_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PlanConfig(**settings)

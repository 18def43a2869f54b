"""What training a model would take, before it is trained: parameters, operations, memory of each device, time.

Parameters are counted on the real model built without memory; operations and activations on its step, rehearsed on
tensors without data (rehearsal.py); how devices share them is arithmetic (plan_memory.py).
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from palate.backbone.devices import Device
from palate.backbone.item_tables import find_item_table
from palate.backbone.plan_memory import (
    STRATEGIES,
    USABLE,
    MemoryPlan,
    Parameters,
    count_parameters,
    memory_plan,
    strategies_for,
)
from palate.backbone.rehearsal import Rehearsal, StepShape, rehearse
from palate.backbone.sequence_model import SequenceModelConfig
from palate.errors import ConfigError

PASSES = 12
"""Times that the optimiser reads or writes a number as wide as the weights: AdamW 7, clipping 3, clearing 2."""


@dataclass(frozen=True)
class PlanConfig:
    """What is to be trained, and on how much."""

    num_items: int
    """Items of the catalogue."""
    num_devices: int = 1
    """Devices that share the work."""
    tokens_per_device: int = 16_384
    """Events and first tokens that a device reads in one step."""
    total_tokens: int = 0
    """Of the whole training; 0: 20 for each parameter of the sequence side (Hoffmann et al., Training Compute-Optimal
    Large Language Models, 2022, arXiv:2203.15556)."""
    num_content: int = 0
    """Content features of an item; 0 for none."""
    ema: bool = False
    """Whether averaged weights are kept beside the weights."""
    utilisation: float = 0.35
    """Share of a device's peak that matrix products reach, all waiting for others and for memory included (MFU)."""

    def __post_init__(self) -> None:
        lowest = {"num_items": 1, "num_devices": 1, "tokens_per_device": 2, "total_tokens": 0, "num_content": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ConfigError(f"plan.{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"plan.utilisation is {self.utilisation}; it must be above 0 and at most 1")


class Plan(NamedTuple):
    """The whole plan."""

    config: PlanConfig
    device: Device
    parameters: Parameters
    step: StepShape
    """Of one device."""
    sequence_flops: float
    """Of one device's step, forward and backward: item vectors, blocks, heads."""
    output_flops: float
    """Of one device's step, forward and backward: scores of items."""
    memory: list[MemoryPlan]
    chosen: MemoryPlan
    """The simplest that fits, or else the one that needs least; what the time is of."""
    total_tokens: int
    num_steps: int
    step_seconds: float
    """Matrix products at the assumed utilisation, and the optimiser's passes through the memory."""
    advice: list[str]
    """If nothing fits, what would make it fit."""

    @property
    def flops_per_token(self) -> float:
        """Of training, forward and backward; a third of it is the forward pass."""
        return (self.sequence_flops + self.output_flops) / self.step.num_tokens

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.num_steps * self.step_seconds


def make_plan(model: SequenceModelConfig, config: PlanConfig, device: Device) -> Plan:
    """Plan a training run.

    Raises:
        ConfigError: settings that do not fit each other.
    """
    if (kind := find_item_table(model.item_table.kind).planned_as) is not None:
        model = replace(model, item_table=replace(model.item_table, kind=kind))
    steps = _Steps(model, config, device)
    parameters = count_parameters(model, config.num_items, config.num_content)
    memory = steps.memory()
    chosen = min(memory, key=lambda plan: (not plan.fits, 0 if plan.fits else plan.peak))
    shape = steps.shape(False)
    plain, taken = steps.rehearsed(shape), steps.rehearsed(steps.shape(chosen.checkpointing))
    total = config.total_tokens or 20 * parameters.sequence
    num_steps = -(-total // (shape.num_tokens * config.num_devices))
    compute = (taken.sequence_flops + taken.output_flops) / (device.flops * config.utilisation)
    passes = (PASSES + (3 if config.ema else 0)) * chosen.weights / device.bandwidth
    return Plan(
        config,
        device,
        parameters,
        shape,
        plain.sequence_flops,
        plain.output_flops,
        memory,
        chosen,
        total,
        num_steps,
        compute + passes,
        [] if chosen.fits else _advice(steps, chosen),
    )


class _Steps:
    """Rehearsed steps of one model, each gone through once."""

    def __init__(self, model: SequenceModelConfig, config: PlanConfig, device: Device) -> None:
        self.model, self.config, self.device = model, config, device
        self.rehearsed = cache(self._rehearse)

    def _rehearse(self, shape: StepShape) -> Rehearsal:
        return rehearse(self.model, shape, accelerator=self.device.accelerator)

    def shape(self, checkpointing: bool) -> StepShape:
        """One device's step."""
        config, events = self.config, min(self.model.max_events, self.config.tokens_per_device - 1)
        rows = config.tokens_per_device // (events + 1)
        return StepShape(
            config.num_items, rows, events, config.num_content, self.device.precision, checkpointing, config.ema
        )

    def memory(self) -> list[MemoryPlan]:
        """Every strategy, without checkpointing and with it."""
        names = strategies_for(self.model, self.config.num_devices)
        return [self.one(strategy, again) for again in (False, True) for strategy in names]

    def one(self, strategy: str, checkpointing: bool) -> MemoryPlan:
        """One strategy."""
        shape = self.shape(checkpointing)
        return memory_plan(self.model, shape, self.config.num_devices, self.device, strategy, self.rehearsed)


def _advice(steps: "_Steps", least: MemoryPlan) -> list[str]:
    """What would make it fit, by a straight line through this catalogue and half of it."""
    config, device = steps.config, steps.device
    half = _Steps(steps.model, replace(config, num_items=max(1, config.num_items // 2)), device)
    by_items = 2 * (least.peak - half.one(least.strategy, least.checkpointing).peak)
    spare = USABLE * device.memory - (least.peak - by_items)
    found = [
        f"Nothing fits {device.name}: the least is {least.peak / 1e9:,.0f} GB ({least.strategy}"
        f"{', checkpointing' if least.checkpointing else ''}), and {USABLE * device.memory / 1e9:,.0f} GB can be used."
    ]
    if spare <= 0:
        fixed = (least.peak - by_items) / 1e9
        return [
            *found,
            f"{fixed:,.0f} GB do not depend on the number of items: take more devices, fewer tokens a device (now "
            f"{config.tokens_per_device:,}) or a smaller size.",
        ]
    excess = by_items / spare
    found.append(f"About {int(config.num_items / excess):,} items would fit.")
    if STRATEGIES[least.strategy].sharded:
        found.append(f"About {math.ceil(config.num_devices * excess):,} devices would hold the table in shards.")
    elif config.num_devices > 1 and steps.model.item_table.compression == 1:
        found.append("With a sampled loss the rows of the item table can be sharded.")
    if steps.model.item_table.compression == 1:
        whole = excess * (config.num_devices if STRATEGIES[least.strategy].sharded else 1)
        found.append(
            f"So would an item table of kind quotient, hashed or semantic, whole on every device, with compression "
            f"{math.ceil(whole):,} or so."
        )
    return found

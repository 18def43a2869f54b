"""Bytes on each device when several share the training of one model.

How the strategies of parallel.py and sharded_table.py divide weights is arithmetic, on top of one device's rehearsed
step: replicas (PyTorch Distributed, 2020, arXiv:2006.15704), slices (PyTorch FSDP, 2023, arXiv:2304.11277), rows of the
item table on different devices (DLRM, 2019, arXiv:1906.00091).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from palate.backbone.devices import Device
from palate.backbone.next_item import LOSSES
from palate.backbone.rehearsal import Rehearsal, StepShape, build
from palate.backbone.sequence_model import SequenceModelConfig

USABLE = 0.9
"""Share of a device's memory that a plan may fill: the driver and fragments need the rest."""
_BYTES = 4
"""Of a weight. Its gradient, each of AdamW's two moments and its average take as many."""


class Parameters(NamedTuple):
    """Parameters by part."""

    item_table: int
    item_bias: int
    projection: int
    """Of the content."""
    sequence: int
    """Blocks, places, first tokens, features of events: what a size's name stands for."""
    heads: int
    layers: int
    """Those of the sequence side that are in blocks; not one part more."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.item_table + self.item_bias + self.projection + self.sequence + self.heads


class MemoryPlan(NamedTuple):
    """Bytes on each device under one strategy."""

    strategy: str
    """A line of `STRATEGIES`."""
    checkpointing: bool
    """Whether blocks are computed again in the backward pass instead of kept."""
    weights: int
    gradients: int
    optimiser: int
    ema: int
    buffers: int
    """Counts, content and codes of the whole catalogue; the batch."""
    activations: int
    """Held for the backward pass when the states are known."""
    output: int
    """What scoring the items holds beyond that: chunks of scores, the gradients that they give."""
    exchange: int
    """What is gathered from other devices, or made ready for them."""
    peak: int
    """The most at once. It may be less than the sum, since gradients come while activations go, or more, where
    gradients of the item table are being summed."""
    fits: bool
    """Within `USABLE` of the device's memory."""


class _Parts(NamedTuple):
    """Bytes of weights, by how they are divided; and of what a step fetches from a table elsewhere."""

    table: int
    layers: int
    layer: int
    rest: int
    fetched: int


class _Share(NamedTuple):
    held: int
    """Bytes of weights on a device; each has a gradient, moments and perhaps an average."""
    exchange: int


class StrategyEntry(NamedTuple):
    """One line of the table."""

    share: Callable[[_Parts, int], _Share]
    """(bytes of weights, number of devices)."""
    sharded: bool
    """Whether rows of the item table live on different devices."""
    sliced: bool
    """Whether all else lives in slices."""


def _replicas(parts: _Parts, devices: int) -> _Share:
    """DDP copies gradients into buckets before it sums them."""
    held = parts.table + parts.layers + parts.rest
    return _Share(held, held if devices > 1 else 0)


def _slices(parts: _Parts, devices: int) -> _Share:
    """What is no layer is gathered from start to end; of the layers, one, the next, and one's gradient."""
    held = parts.table + parts.layers + parts.rest
    return _Share(-(-held // devices), parts.table + parts.rest + 3 * parts.layer)


def _rows_and_replicas(parts: _Parts, devices: int) -> _Share:
    """A fetched row is held three times: as sent, as received, in its place."""
    dense = parts.layers + parts.rest
    return _Share(-(-parts.table // devices) + dense, dense + 3 * parts.fetched)


def _rows_and_slices(parts: _Parts, devices: int) -> _Share:
    held = parts.table + parts.layers + parts.rest
    return _Share(-(-held // devices), parts.rest + 3 * parts.layer + 3 * parts.fetched)


STRATEGIES: Mapping[str, StrategyEntry] = {
    "ddp": StrategyEntry(_replicas, False, False),
    "fsdp": StrategyEntry(_slices, False, True),
    "ddp, sharded table": StrategyEntry(_rows_and_replicas, True, False),
    "fsdp, sharded table": StrategyEntry(_rows_and_slices, True, True),
}
"""How devices share the weights, the simplest first."""


def strategies_for(model: SequenceModelConfig, num_devices: int) -> list[str]:
    """Those that make sense: one device shares nothing, and rows can be apart where the table has one row an item and
    the loss never needs them all."""
    if num_devices == 1:
        return [next(iter(STRATEGIES))]
    shardable = can_shard(model)
    return [name for name, entry in STRATEGIES.items() if shardable or not entry.sharded]


def can_shard(model: SequenceModelConfig) -> bool:
    """Whether rows of the item table can live on different devices."""
    plain = not model.item_table.compression > 1
    return plain and "num_negatives" in LOSSES[model.loss.kind].reads


def count_parameters(model: SequenceModelConfig, num_items: int, num_content: int = 0) -> Parameters:
    """Count on the real model, built without memory."""
    with torch.device("meta"):
        built = build(model, StepShape(num_items, 1, 1, num_content))
    sizes = {name: weight.numel() for name, weight in built.named_parameters()}

    def of(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    items, heads = of("items."), of("heads.")
    return Parameters(
        of("items.table."),
        of("items.bias"),
        of("items.project."),
        sum(sizes.values()) - items - heads,
        heads,
        of("blocks."),
    )


def memory_plan(
    model: SequenceModelConfig,
    shape: StepShape,
    num_devices: int,
    device: Device,
    strategy: str,
    step_of: Callable[[StepShape], Rehearsal],
) -> MemoryPlan:
    """Memory of each device, which does a step of `shape`; `step_of` rehearses one."""
    entry = STRATEGIES[strategy]
    here = replace(shape, num_items=-(-shape.num_items // num_devices)) if entry.sharded else shape
    step = step_of(here)
    parameters = count_parameters(model, shape.num_items, shape.num_content)
    layers = parameters.layers * _BYTES
    fetched = (2 * shape.num_tokens + model.loss.num_negatives) * model.dim * _BYTES
    table = parameters.item_table * _BYTES
    parts = _Parts(
        table, layers, layers // max(1, model.num_layers), parameters.total * _BYTES - table - layers, fetched
    )
    share = entry.share(parts, num_devices)
    copies = 5 if shape.ema else 4
    # Counts, and content where there is some, are of the whole catalogue on every device; the rehearsal had a part.
    buffers = step.buffers + _catalogue_bytes(model, shape) - _catalogue_bytes(model, here)
    if entry.sliced:
        peak = copies * share.held + buffers + step.working + share.exchange
    else:
        peak = step.peak + copies * (share.held - step.weights) + buffers - step.buffers + share.exchange
    return MemoryPlan(
        strategy,
        shape.checkpointing,
        share.held,
        share.held,
        2 * share.held,
        share.held if shape.ema else 0,
        buffers,
        step.activations,
        step.output,
        share.exchange,
        peak,
        peak <= USABLE * device.memory,
    )


def _catalogue_bytes(model: SequenceModelConfig, shape: StepShape) -> int:
    with torch.device("meta"):
        return sum(buffer.nbytes for buffer in build(model, shape).buffers())

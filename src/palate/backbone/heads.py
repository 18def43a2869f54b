"""What else the states can foretell of the next event: its kind, its rating, how long until it comes.

Each head is a small map of the state after an event to one property of the next, trained beside the next item
(multi-task learning, Caruana, 1997, doi 10.1023/A:1007379606734). What a head predicts is never an input.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from palate.backbone.batches import Batch
from palate.errors import DataError


class HeadEntry(NamedTuple):
    """One line of the table."""

    build: Callable[[int, int], nn.Module]
    """(dim, kinds of events) to the module."""
    column: str
    """The batch's column that the head foretells."""
    loss: Callable[[Tensor, Batch, Bool[Tensor, "row position"]], Float[Tensor, ""]]
    """Predictions of all counted positions, the batch, which positions count: to the summed loss."""


def _kind_loss(predicted: Tensor, batch: Batch, counted: Tensor) -> Tensor:
    """Cross-entropy over the kinds of events, in nats."""
    assert batch.next_kinds is not None
    return F.cross_entropy(predicted.float(), batch.next_kinds[counted], reduction="sum")


def _value_loss(predicted: Tensor, batch: Batch, counted: Tensor) -> Tensor:
    """Squared error of the rating or weight; events without one (NaN) do not count."""
    assert batch.next_values is not None
    wanted = batch.next_values[counted]
    error = predicted.float().squeeze(-1) - wanted.nan_to_num()
    return torch.where(wanted.isnan(), 0.0, error.square()).sum()


def _dwell_loss(predicted: Tensor, batch: Batch, counted: Tensor) -> Tensor:
    """Squared error of log(1 + seconds) from the last event read to the next; before the first event nothing counts."""
    assert batch.next_seconds is not None
    assert batch.seconds is not None
    before = torch.cat([batch.next_seconds[:, :1], batch.seconds], 1)
    dwell = torch.log1p((batch.next_seconds - before).clamp_min(0))[counted].float()
    after_event = (torch.arange(batch.weights.shape[1], device=dwell.device) > 0).expand(counted.shape)[counted]
    return ((predicted.float().squeeze(-1) - dwell).square() * after_event).sum()


def _linear(dim: int, width: int) -> nn.Module:
    return nn.Linear(dim, width)


HEADS: Mapping[str, HeadEntry] = {
    "kind": HeadEntry(lambda dim, num_kinds: _linear(dim, num_kinds), "next_kinds", _kind_loss),
    "value": HeadEntry(lambda dim, num_kinds: _linear(dim, 1), "next_values", _value_loss),
    "dwell": HeadEntry(lambda dim, num_kinds: _linear(dim, 1), "next_seconds", _dwell_loss),
}


def check_columns(name: str, batch: Batch) -> None:
    """Refuse a batch that lacks what a head foretells.

    Raises:
        DataError: naming the head and the column.
    """
    column = HEADS[name].column
    if getattr(batch, column) is None:
        raise DataError(f"head {name!r} foretells {column.removeprefix('next_')}, which the events lack; drop the head")

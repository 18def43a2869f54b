"""What a block of the sequence model is: one contract, and what every flavour knows of two positions.

A block maps states to states, reads each position and those before it, and has the biases that it needs of how far
two events lie apart, in places and in time (Raffel et al., T5, 2020, arXiv:1910.10683; Zhai et al., HSTU, 2024,
arXiv:2402.17152).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from palate.errors import ConfigError

NUM_TIME_CLASSES = 24
"""Classes of the time between two events: less than a second, then one for every factor of 2.3, to three years."""


@dataclass(frozen=True)
class BlockConfig:
    """One layer's size."""

    dim: int
    """Width of the states."""
    num_heads: int
    """Attention heads; a divisor of dim."""
    hidden_multiple: float
    """Width of the inner part, relative to dim; 0 is the flavour's own."""
    dropout: float
    """On attention weights and on residual branches."""
    max_positions: int
    """Positions of the longest sequence, the first token included."""
    relative: bool
    """Whether attention knows how many places apart two events are."""
    timed: bool
    """Whether attention knows how long apart two events are."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"model.dim is {self.dim}; it must be a multiple of num_heads ({self.num_heads})")


class Pairs(NamedTuple):
    """What is known of each position (second last axis) and each position that it may read (last axis)."""

    future: Bool[Tensor, "position position"]
    """True where the other position comes later: it must not be read. Padding is always later."""
    distance: Int64[Tensor, "position position"]
    """How many places back, 0 on the diagonal and in the future."""
    time_class: Int64[Tensor, "row position position"] | None
    """Class of the time from the other event to this one; None where times are unknown or unused."""


def make_pairs(
    num_positions: int, seconds: Float64[Tensor, "row position"] | None, device: torch.device | None = None
) -> Pairs:
    """Compare all positions of sequences of one width; `seconds` is the time of each position's event."""
    place = torch.arange(num_positions, device=device)
    back = place[:, None] - place
    time_class = None
    if seconds is not None:
        time_class = classify_time((seconds[:, :, None] - seconds[:, None, :]).clamp_min_(0))
    return Pairs(back < 0, back.clamp_min(0), time_class)


def classify_time(seconds: Float64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Class of a span of time ≥ 0, 0 to NUM_TIME_CLASSES − 1."""
    classes = (torch.log1p(seconds) / 0.833).long()
    return classes.clamp_(0, NUM_TIME_CLASSES - 1)


Stacked = Callable[[Float[Tensor, "member position dim"], Pairs, bool], Float[Tensor, "member position dim"]]
"""Blocks of several members over one person each: states, pairs, and whether the last position alone is asked for."""


class Block(nn.Module):
    """A flavour of the sequence side; subclasses map states and pairs to the states of the next layer."""

    @classmethod
    def stacked(cls, blocks: Sequence["Block"]) -> Stacked:
        """The same layer of several members, for one person without dropout; a flavour may do better than one by one.

        Weights may be copied: they must not change afterwards.
        """

        def layer(x: Tensor, pairs: Pairs, last: bool) -> Tensor:
            states = torch.cat([block(part[None], pairs) for block, part in zip(blocks, x, strict=True)])
            return states[:, -1:] if last else states

        return layer


def stack(weights: Iterable[Tensor]) -> Tensor:
    """Weights of several members along a first axis."""
    return torch.stack([weight.detach() for weight in weights])


class PairBias(nn.Module):
    """A number for each head and pair of positions, from their distance in places and in time."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        heads = config.num_heads
        self.places = nn.Parameter(torch.zeros(heads, config.max_positions)) if config.relative else None
        self.times = nn.Parameter(torch.zeros(heads, NUM_TIME_CLASSES)) if config.timed else None

    def forward(self, pairs: Pairs) -> Float[Tensor, "..."] | None:
        """Return biases, head × position × position, with a first axis of rows where times are known."""
        bias = None if self.places is None else self.places[:, pairs.distance]
        if self.times is None:
            return bias
        if pairs.time_class is None:
            raise ValueError("the model reads times and the batch has none; pass events with seconds")
        by_time = torch.nn.functional.embedding(pairs.time_class, self.times.T).permute(0, 3, 1, 2)
        return by_time if bias is None else bias + by_time

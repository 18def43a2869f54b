"""Losses for the next item: over the whole catalogue, or against a sample of it.

Each is a function of the states and of how to score items, and returns the sum over positions, in nats. The negatives
of a sampled loss are shared by the whole batch, so that they are one matrix product; an item that is drawn and is the
target of a position does not count against that position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from palate.backbone.cross_entropy import fused_cross_entropy
from palate.backbone.item_tower import ItemTower
from palate.errors import ConfigError


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and how its negatives are drawn. A setting that the loss does not read must stay at its default."""

    kind: str = "full"
    """A line of `LOSSES`: full, sampled, gbce or bpr."""
    num_negatives: int = 512
    """Items drawn in a step, for all but full."""
    popularity: float = 0.5
    """Negatives are drawn by popularity to this power (0: all items alike), for sampled and bpr."""
    calibration: float = 0.75
    """gBCE's t: 0 is binary cross-entropy, 1 takes back all of the overconfidence that sampling brings."""
    distinct: bool = False
    """Whether items that a tile has shown before a position are left out of its softmax, for full: for logs in which
    nobody chooses an item twice."""

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ConfigError(f"loss.kind is {self.kind!r}; choose one of: {', '.join(LOSSES)}")
        reads = LOSSES[self.kind].reads
        for name, default in (("num_negatives", 512), ("popularity", 0.5), ("calibration", 0.75), ("distinct", False)):
            if name not in reads and getattr(self, name) != default:
                raise ConfigError(
                    f"loss.{name} is {getattr(self, name)}, which {self.kind} does not read; leave it out"
                )
        if self.num_negatives < 1:
            raise ConfigError(f"loss.num_negatives is {self.num_negatives}; it must be at least 1")
        if not 0 <= self.popularity <= 1:
            raise ConfigError(f"loss.popularity is {self.popularity}; it must be in [0, 1]")
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"loss.calibration is {self.calibration}; it must be in [0, 1]")


class Positions(NamedTuple):
    """What is predicted, and from what."""

    states: Float[Tensor, "row dim"]
    targets: Int64[Tensor, "row target"]
    weights: Float[Tensor, "row target"]
    """Of each target; a row's weights sum to 1."""
    seen: Int64[Tensor, "2 pair"] | None = None
    """(row, item) pairs that are not asked for, ordered by row; no target of weight is among them."""


def shown_before(
    items: Int64[Tensor, "row event"],
    counted: Bool[Tensor, "row position"],
    targets: Int64[Tensor, "chosen target"],
    weights: Float[Tensor, "chosen target"],
) -> Int64[Tensor, "2 pair"]:
    """The items before each counted position, as `Positions.seen` has them; an item that is asked for again is not."""
    rows, places = counted.nonzero(as_tuple=True)
    before = torch.arange(items.shape[1], device=items.device) < places[:, None]
    shown = items[rows]
    for target, weight in zip(targets.T, weights.T, strict=True):
        before &= (shown != target[:, None]) | (weight[:, None] <= 0)
    place, event = before.nonzero(as_tuple=True)
    return torch.stack([place, shown[place, event]])


class Negatives(NamedTuple):
    """Items drawn for one step, with replacement."""

    items: Int64[Tensor, "negative"]
    log_rate: Float[Tensor, "item"]
    """Log of how often each item of the catalogue is expected among them."""


class Sampler(nn.Module):
    """Draws items by popularity^power; its draws depend on PyTorch's global generator alone."""

    cumulative: Tensor
    log_rate: Tensor

    def __init__(self, counts: Int64[Tensor, "item"], power: float, num_negatives: int) -> None:
        """Prepare to draw `num_negatives` of the items, given how often each occurs in training."""
        super().__init__()
        mass = counts.double().clamp_min(1).pow(power)  # an item without events can still be drawn
        self.register_buffer("cumulative", mass.cumsum(0) / mass.sum(), persistent=False)
        self.register_buffer("log_rate", (mass / mass.sum() * num_negatives).log().float(), persistent=False)
        self.num_negatives = num_negatives

    def draw(self) -> Negatives:
        """Draw once; `torch.multinomial` stops at 2^24 items, a search in the cumulative sum does not."""
        device = self.cumulative.device
        drawn = torch.rand(self.num_negatives, dtype=torch.float64, device=device)
        items = torch.searchsorted(self.cumulative, drawn, right=True).clamp_max_(len(self.cumulative) - 1)
        return Negatives(items, self.log_rate)


def full_softmax(
    positions: Positions, tower: ItemTower, dropped: Bool[Tensor, "item"] | None, sampler: None, config: LossConfig
) -> Float[Tensor, ""]:
    """Cross-entropy over the whole catalogue; see `cross_entropy.py`."""
    return fused_cross_entropy(
        positions.states, tower.all(dropped), tower.bias, positions.targets, positions.weights, positions.seen
    )


def sampled_softmax(
    positions: Positions, tower: ItemTower, dropped: Bool[Tensor, "item"] | None, sampler: Sampler, config: LossConfig
) -> Float[Tensor, ""]:
    """Cross-entropy of each target against the negatives, with the logQ correction.

    Bengio & Senécal, Adaptive Importance Sampling, 2008, doi 10.1109/TNN.2007.912312; Yi et al., 2019,
    doi 10.1145/3298689.3346996.
    """
    negatives = sampler.draw()
    target, against = _scores(positions, tower, dropped, negatives)
    against = (against - negatives.log_rate[negatives.items]).masked_fill(_hits(positions, negatives), -torch.inf)
    total = torch.logaddexp(target, against.logsumexp(1, keepdim=True))
    return (positions.weights * (total - target)).sum()


def gbce(
    positions: Positions, tower: ItemTower, dropped: Bool[Tensor, "item"] | None, sampler: Sampler, config: LossConfig
) -> Float[Tensor, ""]:
    """Generalised binary cross-entropy: the target's probability to the power β counters the sampling.

    gSASRec, Petrov & Macdonald, 2023, arXiv:2308.07192, eq. 9–11: β = α (t (1 − 1/α) + 1/α) with the sampling rate
    α = negatives / (items − 1); negatives are uniform.
    """
    rate = min(1.0, sampler.num_negatives / max(tower.num_items - 1, 1))
    beta = rate * (config.calibration * (1 - 1 / rate) + 1 / rate)
    negatives = sampler.draw()
    target, against = _scores(positions, tower, dropped, negatives)
    refused = F.softplus(against).masked_fill(_hits(positions, negatives), 0).sum(1, keepdim=True)
    return (positions.weights * (refused - beta * F.logsigmoid(target))).sum()


def bpr(
    positions: Positions, tower: ItemTower, dropped: Bool[Tensor, "item"] | None, sampler: Sampler, config: LossConfig
) -> Float[Tensor, ""]:
    """−log σ(target − negative), the mean over the negatives (Rendle et al., BPR, 2009, arXiv:1205.2618)."""
    negatives = sampler.draw()
    target, against = _scores(positions, tower, dropped, negatives)
    hits = _hits(positions, negatives)
    losses = -F.logsigmoid(target[:, :, None] - against[:, None, :]).masked_fill(hits[:, None, :], 0)
    counted = (~hits).sum(1, keepdim=True).clamp_min(1)
    return (positions.weights * losses.sum(2) / counted).sum()


def _scores(
    positions: Positions, tower: ItemTower, dropped: Tensor | None, negatives: Negatives
) -> tuple[Float[Tensor, "row target"], Float[Tensor, "row negative"]]:
    """Scores of the targets and of the negatives, in float32."""
    states = positions.states.float()
    target = torch.einsum("rd,rtd->rt", states, tower(positions.targets, dropped)) + tower.bias[positions.targets]
    against = states @ tower(negatives.items, dropped).T + tower.bias[negatives.items]
    return target, against


def _hits(positions: Positions, negatives: Negatives) -> Bool[Tensor, "row negative"]:
    """Where a negative is one of the row's own targets."""
    hits = torch.zeros(len(positions.states), len(negatives.items), dtype=torch.bool, device=positions.states.device)
    for target, weight in zip(positions.targets.T, positions.weights.T, strict=True):
        hits |= (target[:, None] == negatives.items) & (weight[:, None] > 0)
    return hits


class LossEntry(NamedTuple):
    """One line of the table."""

    loss: Callable[..., Float[Tensor, ""]]
    """(positions, item tower, items without id in this step, sampler, config)."""
    reads: frozenset[str]
    """The settings that it reads."""
    uniform: bool = False
    """Whether negatives are drawn without regard to popularity."""


LOSSES: Mapping[str, LossEntry] = {
    "full": LossEntry(full_softmax, frozenset({"distinct"})),
    "sampled": LossEntry(sampled_softmax, frozenset({"num_negatives", "popularity"})),
    "gbce": LossEntry(gbce, frozenset({"num_negatives", "calibration"}), uniform=True),
    "bpr": LossEntry(bpr, frozenset({"num_negatives", "popularity"})),
}


def make_sampler(config: LossConfig, counts: Int64[Tensor, "item"]) -> Sampler | None:
    """The sampler that a loss needs, if it needs one."""
    entry = LOSSES[config.kind]
    if "num_negatives" not in entry.reads:
        return None
    return Sampler(counts, 0.0 if entry.uniform else config.popularity, config.num_negatives)

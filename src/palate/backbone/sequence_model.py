"""The large model: an item tower, what is known of each event, blocks that read the past, and what they foretell.

Position 0 stands for the person before the first event (a token made from their profile), position n for the time
after their n-th event. The score of an item at a position is the inner product of state and item vector, plus the
item's bias, so that the same vectors are read, scored and searched (tied embeddings, Press & Wolf, 2017,
arXiv:1608.05859). Sequences of next items: SASRec, Kang & McAuley, 2018, arXiv:1808.09781.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from palate.backbone.attention import AttentionBlock
from palate.backbone.batches import Batch
from palate.backbone.blocks import NUM_TIME_CLASSES, Block, BlockConfig, Pairs, classify_time, make_pairs
from palate.backbone.dropout import Dropout
from palate.backbone.heads import HEADS, check_columns
from palate.backbone.hstu import HSTUBlock
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.item_tower import ItemTower, popularity_bias
from palate.backbone.next_item import LOSSES, LossConfig, Positions, make_sampler, shown_before
from palate.backbone.semantic_ids import Codes
from palate.errors import ConfigError, DataError

BLOCKS: Mapping[str, Callable[[BlockConfig], Block]] = {"attention": AttentionBlock, "hstu": HSTUBlock}
"""Flavours of the sequence side."""

HOUR, DAY = 3600, 86_400


@dataclass(frozen=True)
class SequenceModelConfig:
    """Everything that decides the model's shape and its loss."""

    dim: int = 64
    """Width of item vectors and states."""
    num_layers: int = 2
    """Blocks; 0 leaves the last event's own token alone."""
    num_heads: int = 2
    """Attention heads; a divisor of dim."""
    block: str = "attention"
    """A line of `BLOCKS`: attention or hstu."""
    hidden_multiple: float = 0.0
    """Width of a block's inner part relative to dim: of attention's feed-forward part (its own: 4), of the values and
    their gate of hstu (its own: 1); 0 takes the block's own."""
    max_events: int = 200
    """Events of a person that are read, the most recent ones."""
    dropout: float = 0.2
    """On tokens, attention weights and residual branches."""
    relative: bool = False
    """Whether attention knows how many places apart two events are, instead of tokens at which place they stand."""
    timed: bool = False
    """Whether attention and tokens know the time between events."""
    calendar: bool = False
    """Whether tokens know the hour and the day of the week of their events."""
    visit_gap: float = 0.0
    """Hours without an event after which the next one belongs to another visit. Tokens then know whether what comes
    after them does: who fills a basket and who comes back look for different things. 0: they are not told."""
    num_kinds: int = 0
    """Kinds of events that tokens and the head "kind" tell apart; 0 where the log has none."""
    rated: bool = False
    """Whether tokens know the rating or weight of their events, where these have one."""
    id_dropout: float = 0.0
    """Share of items whose id embedding is left out in a training step, so that content can stand in."""
    item_table: ItemTableConfig = field(default_factory=ItemTableConfig)
    """How item ids become vectors."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How the next item is learned."""
    heads: Mapping[str, float] = field(default_factory=dict)
    """What else is foretold, a line of `HEADS`, and the weight of its loss beside that of the next item."""

    def __post_init__(self) -> None:
        for name, low in (("dim", 1), ("num_layers", 0), ("num_heads", 1), ("max_events", 1), ("num_kinds", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least {low}")
        if self.block not in BLOCKS:
            raise ConfigError(f"model.block is {self.block!r}; choose one of: {', '.join(BLOCKS)}")
        if self.hidden_multiple < 0:
            raise ConfigError(f"model.hidden_multiple is {self.hidden_multiple}; it must be at least 0")
        for name in ("dropout", "id_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not self.visit_gap >= 0:
            raise ConfigError(f"model.visit_gap is {self.visit_gap}; it must be at least 0 hours")
        for name, weight in self.heads.items():
            if name not in HEADS:
                raise ConfigError(f"model.heads names {name!r}; choose among: {', '.join(HEADS)}")
            if not weight > 0:
                raise ConfigError(f"model.heads.{name} is {weight}; it must be above 0")
        if "kind" in self.heads and self.num_kinds < 2:
            raise ConfigError(f"model.heads has kind and model.num_kinds is {self.num_kinds}; it must be at least 2")

    def block_config(self) -> BlockConfig:
        """What each block is built from."""
        return BlockConfig(
            self.dim,
            self.num_heads,
            self.hidden_multiple,
            self.dropout,
            self.max_events + 1,
            self.relative,
            self.timed,
        )


class Catalogue(NamedTuple):
    """What the model is told of the items in training."""

    counts: Int64[Tensor, "item"]
    """How often each occurs in the training events."""
    content: Float[Tensor, "item content"] | None = None
    """Features of each, such as the text's vector."""
    codes: Codes | None = None
    """Semantic ids, for the item table that reads them."""


class StepLoss(NamedTuple):
    """Loss of a batch, summed over its target positions."""

    total: Float[Tensor, ""]
    """What is minimised."""
    parts: dict[str, Float[Tensor, ""]]
    """The summed loss of the next item and of each head, detached and unweighted."""


class SequenceModel(nn.Module):
    """States after 0, 1, 2, … events, and the losses of what they foretell.

    Raises:
        ConfigError: settings that do not fit each other, or the catalogue.
    """

    def __init__(self, config: SequenceModelConfig, catalogue: Catalogue, num_profile_features: int = 0) -> None:
        """Build with random weights (PyTorch's global generator)."""
        super().__init__()
        dim, blocks = config.dim, config.block_config()
        self.config = config
        self.items = ItemTower(
            len(catalogue.counts),
            dim,
            table=config.item_table,
            content=catalogue.content,
            codes=catalogue.codes,
            id_dropout=config.id_dropout,
        )
        self.sampler = make_sampler(config.loss, catalogue.counts)
        self.start, self.resume = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        # Not an nn.Linear: data without profiles has no features.
        self.profile = nn.Parameter(torch.randn(num_profile_features, dim) * 0.02)
        self.place = (
            nn.Parameter(torch.randn(config.max_events + 1, dim) * 0.006 * math.sqrt(dim))
            if not config.relative
            else None
        )
        self.kind = _small(config.num_kinds, dim) if config.num_kinds else None
        self.value = nn.Linear(1, dim) if config.rated else None
        self.gap = _small(NUM_TIME_CLASSES, dim) if config.timed else None
        self.hour = _small(24, dim) if config.calendar else None
        self.weekday = _small(7, dim) if config.calendar else None
        self.visit = nn.Parameter(torch.zeros(dim)) if config.visit_gap else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](blocks) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict({name: HEADS[name].build(dim, config.num_kinds) for name in config.heads})
        self.checkpointing = False
        if self.items.bias.device.type != "meta":
            with torch.no_grad():
                self.items.bias.copy_(popularity_bias(catalogue.counts))

    def set_activation_checkpointing(self, on: bool) -> None:
        """Whether blocks are computed a second time in the backward pass instead of kept: less memory, more time."""
        self.checkpointing = on

    def forward(self, batch: Batch) -> StepLoss:
        """The loss of a batch.

        Raises:
            DataError: the batch lacks a column that the model reads or foretells.
        """
        dropped = self.items.draw_dropped()
        states = self.states(batch, self.items(batch.items, dropped))
        counted = batch.weights.sum(-1) > 0
        chosen = states[counted]
        loss, targets, weights = self.config.loss, batch.targets[counted], batch.weights[counted]
        seen = shown_before(batch.items, counted, targets, weights) if loss.distinct else None
        positions = Positions(chosen, targets, weights, seen)
        total = LOSSES[loss.kind].loss(positions, self.items, dropped, self.sampler, loss)
        parts = {"next_item": total.detach()}
        for name, weight in self.config.heads.items():
            check_columns(name, batch)
            head_loss = HEADS[name].loss(self.heads[name](chosen), batch, counted)
            parts[name] = head_loss.detach()
            total = total + weight * head_loss
        return StepLoss(total, parts)

    def states(
        self, batch: Batch, vectors: Float[Tensor, "row event dim"] | None = None
    ) -> Float[Tensor, "row position dim"]:
        """The state at every position; `vectors` are those of the batch's items, by default computed here.

        Raises:
            DataError: the batch lacks a column that the model reads, or is wider than max_events.
        """
        config = self.config
        width = batch.items.shape[1]
        if width > config.max_events:
            raise DataError(f"sequences hold {width} events; the model reads {config.max_events}")
        vectors = self.items(batch.items) if vectors is None else vectors
        tokens = vectors * math.sqrt(config.dim) + self._event_features(batch)
        first = torch.where(batch.from_start[:, None], self.start, self.resume)
        if len(self.profile):
            first = first + _needed(batch.profiles, "profiles") @ self.profile
        x = torch.cat([first[:, None], tokens], dim=1)
        if self.place is not None:
            x = x + self.place[: width + 1]
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        x = self.dropout(x)
        pairs = self._pairs(batch)
        for block in self.blocks:
            x = checkpoint(block, x, pairs, use_reentrant=False) if self.checkpointing else block(x, pairs)
        states: Tensor = self.norm(x)
        return states

    def last_states(self, batch: Batch) -> Float[Tensor, "row dim"]:
        """The state after each row's last event, in float32."""
        lengths = batch.mask.sum(1)
        return self.states(batch)[torch.arange(len(lengths), device=lengths.device), lengths].float()

    def scores(self, batch: Batch) -> Float[Tensor, "row item"]:
        """Scores of the whole catalogue after each row's last event."""
        return self.last_states(batch) @ self.items.all().T + self.items.bias

    def _event_features(self, batch: Batch) -> Tensor | float:
        """What is known of the events beside their items."""
        # NOTE: an index has a backward pass that adds in any order on several threads; an embedding has one order.
        total: Tensor | float = 0.0
        if self.kind is not None:
            total = total + embedding(_needed(batch.kinds, "kinds"), self.kind)
        if self.value is not None:
            values = _needed(batch.values, "values")[..., None]
            total = total + torch.where(values.isnan(), 0.0, self.value(values.nan_to_num()))
        if self.visit is not None:
            seconds, following = _needed(batch.seconds, "seconds"), _needed(batch.next_seconds, "seconds")
            another = following[:, 1:] - seconds > HOUR * self.config.visit_gap
            total = total + another[..., None] * self.visit
        if self.gap is not None or self.hour is not None:
            seconds = _needed(batch.seconds, "seconds")
            if self.gap is not None:
                gaps = seconds.diff(dim=1, prepend=seconds[:, :1]).clamp_min(0)
                total = total + embedding(classify_time(gaps), self.gap)
            if self.hour is not None:
                assert self.weekday is not None
                total = total + embedding((seconds // HOUR % 24).long(), self.hour)
                total = total + embedding((seconds // DAY % 7).long(), self.weekday)
        return total

    def _pairs(self, batch: Batch) -> Pairs:
        seconds = None
        if self.config.timed:
            events = _needed(batch.seconds, "seconds")
            seconds = torch.cat([events[:, :1], events], 1)  # the first token happens with the first event
        return make_pairs(batch.items.shape[1] + 1, seconds, batch.items.device)


def _small(rows: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, dim) * 0.02)


def _needed(column: Tensor | None, name: str) -> Tensor:
    """A column that the model reads."""
    if column is None:
        raise DataError(f"the model reads {name} and the events have none; give them, or train a model without")
    return column

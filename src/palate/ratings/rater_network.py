"""The network of a few-shot rater: closed-form taste, attention from query items to the support, an ordinal head.

Attention over a support set: Kim et al., Attentive neural processes, 2019, arXiv:1901.05761; sets: Lee et al., Set
transformer, 2019, arXiv:1810.00825; ordinal cuts: McCullagh, Regression models for ordinal data, 1980, doi
10.1111/j.2517-6161.1980.tb01109.x.

Support and query are sets: no place enters, queries do not see each other, and an empty support gives the prior.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from palate.errors import ConfigError
from palate.ratings.kernel_solve import ItemReading, KernelSolve, TastePosterior
from palate.ratings.likeness import Likeness

_HIDDEN, _CORRECTION = 64, 48  # widths of the head and of the network that corrects what content says
_SHRINKAGE = 3.0  # ratings of nothing in a person's histogram


class ItemTables(NamedTuple):
    """What the network reads of items; nothing here is trained."""

    warm: Float[Tensor, "table item entry"]
    cold: Float[Tensor, "table item entry"]
    warm_variance: Float[Tensor, "table item entry"]
    cold_variance: Float[Tensor, "table item entry"]
    rated: Float[Tensor, "item"]
    """1 where the item has training ratings."""
    features: Float[Tensor, "item feature"]
    likeness: Likeness


class Batch(NamedTuple):
    """Padded tasks; a mask is 1 where an entry is real. Levels are counted from 0."""

    table: Int64[Tensor, "task"]
    """Which of the item tables to read; 0 for a new person."""
    profile: Float[Tensor, "task profile"]
    support: Int64[Tensor, "task event"]
    support_level: Int64[Tensor, "task event"]
    support_mask: Float[Tensor, "task event"]
    query: Int64[Tensor, "task query"]
    query_mask: Float[Tensor, "task query"]


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the network."""

    width: int = 64
    """Of the attention; 0 leaves it out: a learned kernel ridge with an ordinal head."""
    num_heads: int = 4
    """Of the attention; they divide the width."""
    dropout: float = 0.1
    """Share of hidden units that are left out in training."""

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ConfigError(f"rater.num_heads is {self.num_heads}; expected at least 1")
        if self.width < 0 or self.width % self.num_heads:
            raise ConfigError(f"rater.width is {self.width}; expected a multiple of num_heads = {self.num_heads}, or 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"rater.dropout is {self.dropout}; expected 0 or more and below 1")


class ItemReader(nn.Module):
    """Item rows to their entries and variances, with a learned correction from the items' features."""

    def __init__(self, num_features: int, num_entries: int, dropout: float) -> None:
        super().__init__()
        last = nn.Linear(_CORRECTION, 2 * num_entries)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.Linear(num_features, _CORRECTION), nn.GELU(), nn.Dropout(dropout), last)

    def forward(
        self,
        tables: ItemTables,
        table: Int64[Tensor, "task"],
        items: Int64[Tensor, "task event"],
        use_ratings: Float[Tensor, "task event"],
    ) -> ItemReading:
        """Read from ratings where `use_ratings` is 1 and the item has any, else from content alone."""
        warm = use_ratings * tables.rated[items]
        share, place = warm[..., None], table[:, None]
        entries = torch.lerp(tables.cold[place, items], tables.warm[place, items], share)
        variance = torch.lerp(tables.cold_variance[place, items], tables.warm_variance[place, items], share)
        distinct, where = torch.unique(items, return_inverse=True)
        cold_shift, warm_shift = self.correction(tables.features[distinct])[where].chunk(2, -1)
        return ItemReading(entries + torch.lerp(cold_shift, warm_shift, share), variance, warm)


class CrossAttention(nn.Module):
    """Attention from queries to a set, then a feed-forward layer; both residual, normalised before."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query, self.norm_support, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.to_query, self.to_key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.empty = nn.Parameter(torch.zeros(1, 1, width))
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "task query width"],
        support: Float[Tensor, "task event width"],
        mask: Float[Tensor, "task event"],
    ) -> Float[Tensor, "task query width"]:
        """One learned entry stands in every set, so that none is empty."""
        size, count, width = query.shape
        entries = torch.cat([self.empty.expand(size, 1, width), self.norm_support(support)], 1)
        seen = F.pad(mask, (1, 0), value=1.0).bool()[:, None, None]
        asked = self.to_query(self.norm_query(query)).view(size, count, self.num_heads, -1).transpose(1, 2)
        pair = self.to_key_value(entries).view(size, entries.shape[1], 2, self.num_heads, -1)
        key, value = pair.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(asked, key, value, attn_mask=seen)
        query = query + self.dropout(self.out(read.transpose(1, 2).reshape(size, count, width)))
        out: Tensor = query + self.dropout(self.feed(self.norm_feed(query)))
        return out


class RatingNetwork(nn.Module):
    """Support set and query items to log-probabilities of the levels."""

    places: Tensor

    def __init__(
        self,
        tables: ItemTables,
        places: Float[Tensor, "level"],
        num_profile: int,
        config: NetworkConfig,
        *,
        mean: float,
        user_bias_variance: float,
        noise: float,
    ) -> None:
        """`places` are the levels on the scale of the tables, in rising order."""
        super().__init__()
        entries, levels, width = tables.warm.shape[-1], len(places), config.width
        self.register_buffer("places", places)
        self.items = ItemReader(tables.features.shape[1], entries, config.dropout)
        self.solve = KernelSolve(entries - 1, tables.likeness.num_kernels, num_profile, user_bias_variance, noise)
        self.mean = nn.Parameter(torch.tensor(mean))
        self.cuts = nn.Parameter((places[1:] + places[:-1]) / 2)
        self.log_scale = nn.Parameter(torch.tensor([-0.9, 0.0]))
        self.width = width
        if width:
            self.support_in = nn.Linear(entries + levels + 3, width)
            self.query_in = nn.Linear(entries + 3, width)
            self.mix = CrossAttention(width, config.num_heads, config.dropout)
            self.read = CrossAttention(width, config.num_heads, config.dropout)
            self.norm = nn.LayerNorm(width)
        last = nn.Linear(_HIDDEN, levels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        inputs = width + entries + 3 + 2 * levels + 1 + num_profile
        self.head = nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Dropout(config.dropout), last)

    def forward(
        self,
        tables: ItemTables,
        batch: Batch,
        use_ratings: Float[Tensor, "task 2"] | None = None,
    ) -> Float[Tensor, "task query level"]:
        """`use_ratings`, of the support and of the query, is 0 where items are to be read from content alone; left out,
        none is."""
        told, asked = (torch.ones(len(batch.table), 2) if use_ratings is None else use_ratings)[..., None].unbind(1)
        support = self.items(tables, batch.table, batch.support, told.expand(batch.support.shape))
        query = self.items(tables, batch.table, batch.query, asked.expand(batch.query.shape))
        target = self.places[batch.support_level] - self.mean - support.entries[..., 0]
        alike = tables.likeness.among(batch.support, batch.support)
        alike_cross = tables.likeness.among(batch.query, batch.support)
        alike_self = tables.likeness.own(batch.query)
        found = self.solve(batch.profile, support, query, alike, alike_cross, alike_self, target, batch.support_mask)
        score = query.entries[..., 0] + found.mean
        seen = torch.stack([score, found.variance.sqrt(), query.warm], -1)
        person = torch.cat([self._habits(batch, found), batch.profile], -1)
        parts = [seen, query.entries, person[:, None].expand(-1, seen.shape[1], -1)]
        if self.width:
            stars = self._one_hot(batch.support_level) - 1 / len(self.places)
            told = torch.stack([target, found.residual, support.warm], -1)
            events = self.support_in(torch.cat([support.entries, stars, told], -1))
            events = self.mix(events, events, batch.support_mask)
            asked = self.query_in(torch.cat([query.entries, seen], -1))
            parts.insert(0, self.norm(self.read(asked, events, batch.support_mask)))
        return self._distribution(self.mean + score, found.variance, self.head(torch.cat(parts, -1)))

    def _one_hot(self, level: Int64[Tensor, "task event"]) -> Float[Tensor, "task event level"]:
        return F.one_hot(level, len(self.places)).float()

    def _habits(self, batch: Batch, found: TastePosterior) -> Float[Tensor, "task habit"]:
        """How the person uses the levels, how often, and how much of it the posterior leaves unexplained."""
        used = (self._one_hot(batch.support_level) * batch.support_mask[..., None]).sum(1)
        count = batch.support_mask.sum(1, keepdim=True) + _SHRINKAGE
        return torch.cat([used / count, torch.log1p(used) / 3, found.residual.square().sum(1, keepdim=True) / count], 1)

    def _distribution(
        self,
        score: Float[Tensor, "task query"],
        variance: Float[Tensor, "task query"],
        tilt: Float[Tensor, "task query level"],
    ) -> Float[Tensor, "task query level"]:
        """Logistic cuts around the score, wider where it is uncertain, tilted by the head."""
        scale = torch.exp(self.log_scale[0] + self.log_scale[1] * variance.sqrt())
        below = torch.sigmoid((self.cuts - score[..., None]) / scale[..., None])
        below = F.pad(F.pad(below, (1, 0)), (0, 1), value=1.0)
        return F.log_softmax(torch.log(below.diff(dim=-1).clamp_min(1e-6)) + tilt, -1)

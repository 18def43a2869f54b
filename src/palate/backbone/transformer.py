"""The backbone: an item tower and a causal transformer over a person's recent events.

One token a distinct item, after a first token that says who the person is (the profile), so that the state before
any event is already personal. Pre-norm blocks (Xiong et al., On Layer Normalization in the Transformer Architecture,
2020, arXiv:2002.04745) with plain Linear projections; next items as in SASRec (Kang & McAuley, Self-Attentive
Sequential Recommendation, 2018, arXiv:1808.09781).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from palate.data.episodes import NUM_GAPS, Sequences
from palate.errors import ConfigError


@dataclass(frozen=True)
class BackboneConfig:
    """Size and regularisation of the shared model."""

    dim: int = 64
    """Width of item vectors and of the transformer."""
    num_layers: int = 2
    """Transformer blocks; 0 leaves the last position's own token alone."""
    num_heads: int = 2
    """Attention heads; a divisor of dim."""
    num_members: int = 2
    """Backbones trained from different seeds and scored together."""
    max_events: int = 64
    """Distinct items of a person that are read, the most recent ones."""
    dropout: float = 0.3
    """On tokens, attention weights and both residual branches."""
    id_dropout: float = 0.1
    """Share of items whose id embedding is left out in a training step, so that content alone can stand in."""

    def __post_init__(self) -> None:
        for name, low in (("dim", 1), ("num_layers", 0), ("num_heads", 1), ("num_members", 1), ("max_events", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"backbone.{name} is {getattr(self, name)}; it must be at least {low}")
        if self.dim % self.num_heads:
            raise ConfigError(f"backbone.dim is {self.dim}; it must be a multiple of num_heads ({self.num_heads})")
        for name in ("dropout", "id_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"backbone.{name} is {getattr(self, name)}; it must be in [0, 1)")


class ItemTower(nn.Module):
    """Item vectors: id embedding + projected content. An item without training events has its content alone."""

    content: Tensor

    def __init__(self, content: Float[Tensor, "item content"], dim: int, id_dropout: float) -> None:
        super().__init__()
        num_items, num_features = content.shape
        self.ids = nn.Embedding(num_items, dim)
        self.project = nn.Linear(num_features, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.id_dropout = id_dropout
        self.register_buffer("content", content, persistent=False)  # shared by all members, saved once
        nn.init.normal_(self.ids.weight, std=dim**-0.5)
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self) -> Float[Tensor, "item dim"]:
        """Vectors of the items in training; in training mode some lose their id embedding."""
        ids = self.ids.weight
        if self.training and self.id_dropout > 0:
            ids = ids * (torch.rand(len(ids), 1) >= self.id_dropout)
        return ids + self.encode_new(self.content)

    def encode_new(self, content: Float[Tensor, "item content"]) -> Float[Tensor, "item dim"]:
        """Vectors of items that training has never seen, from their content."""
        vectors: Tensor = self.project(content)
        return vectors


class Attention(nn.Module):
    """Causal self-attention, written out: the fused kernels have no second derivative on CPU, this has."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.num_heads = num_heads
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "user event dim"]) -> Float[Tensor, "user event dim"]:
        """Mix each position with those before it."""
        users, events, dim = x.shape
        query, key, value = (
            project(x).view(users, events, self.num_heads, dim // self.num_heads).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        logits = query @ key.transpose(-1, -2) / math.sqrt(dim // self.num_heads)
        future = torch.ones(events, events, dtype=torch.bool).triu(1)
        weights = F.dropout(logits.masked_fill(future, -torch.inf).softmax(-1), self.dropout, self.training)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).reshape(users, events, dim))
        return mixed


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, dropout)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "user event dim"]) -> Float[Tensor, "user event dim"]:
        """One layer."""
        x = x + F.dropout(self.attention(self.norm_attention(x)), self.dropout, self.training)
        fed = self.down(F.gelu(self.up(self.norm_feed(x))))
        return x + F.dropout(fed, self.dropout, self.training)


class Backbone(nn.Module):
    """States after 0, 1, 2, … events; the score of an item is the state's inner product with its vector + bias."""

    def __init__(
        self,
        config: BackboneConfig,
        content: Float[Tensor, "item content"],
        num_profile_features: int,
    ) -> None:
        """Build with random weights (global generator): `content` are the features of the items in training."""
        super().__init__()
        dim = config.dim
        self.config = config
        self.items = ItemTower(content, dim, config.id_dropout)
        # Not an nn.Linear: data without profiles has no features, and its first token is `start` alone.
        self.profile = nn.Parameter(torch.randn(num_profile_features, dim) * 0.02)
        self.start = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(torch.randn(config.max_events + 1, dim) * 0.02)
        self.gap = nn.Parameter(torch.randn(NUM_GAPS, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.dropout) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        vectors: Float[Tensor, "item dim"],
        sequences: Sequences,
        profiles: Float[Tensor, "user profile"],
    ) -> Float[Tensor, "user position dim"]:
        """Return the state at every position: position n has read the profile and the first n events.

        `vectors` is `self.items()`, passed in so that it is computed once a step, or once a saved model.
        """
        width = sequences.items.shape[1]
        if width > self.config.max_events:
            raise ValueError(f"sequences hold {width} events; the backbone reads {self.config.max_events}")
        scale = 0.3 * math.sqrt(self.config.dim)
        tokens = vectors[sequences.items] * scale + self.gap[sequences.gaps]
        first = profiles @ self.profile + self.start
        x = torch.cat([first[:, None], tokens], dim=1) + self.position[: width + 1]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.out(self.norm(x))
        return states

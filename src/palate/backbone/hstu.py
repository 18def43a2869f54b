"""The HSTU block: pointwise SiLU attention instead of softmax, one gated layer instead of two.

Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations,
2024, arXiv:2402.17152, eq. 1–3: U, V, Q, K = split(SiLU(f1(norm(X)))); A = SiLU(QKᵀ + bias) / n over the past;
Y = X + f2(norm(A V) ⊙ U). What an event weighs does not depend on how many others there are, so that the strength of
an interest survives, where a softmax keeps its share alone.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from palate.backbone.blocks import Block, BlockConfig, PairBias, Pairs
from palate.backbone.dropout import Dropout


class HSTUBlock(Block):
    """One HSTU layer; the division by n uses the longest sequence, so that a state does not depend on its batch."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        inner = heads * max(round((config.hidden_multiple or 1.0) * dim / heads), 1)
        self.num_heads, self.inner = heads, inner
        self.max_positions = config.max_positions
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(inner)
        self.project = nn.Linear(dim, 2 * inner + 2 * dim, bias=False)
        self.out = nn.Linear(inner, dim)
        self.bias = PairBias(config)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.project.weight, std=0.02 if dim > 512 else 0.5 / math.sqrt(dim))

    def forward(self, x: Float[Tensor, "row position dim"], pairs: Pairs) -> Float[Tensor, "row position dim"]:
        """Map the states of one layer to those of the next."""
        rows, width, dim = x.shape
        heads, inner = self.num_heads, self.inner
        gate, *parts = torch.split(F.silu(self.project(self.norm_in(x))), [inner, inner, dim, dim], -1)
        value, query, key = (part.view(rows, width, heads, -1).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-1, -2)
        if (learned := self.bias(pairs)) is not None:
            scores = scores + learned.to(scores.dtype)
        weights = self.dropout((F.silu(scores) / self.max_positions).masked_fill(pairs.future, 0))
        mixed = (weights @ value).transpose(1, 2).reshape(rows, width, inner)
        added: Tensor = self.out(self.dropout(self.norm_out(mixed) * gate))
        return x + added

"""Item vectors: what was learned of the item itself, plus what its content says.

In training some items lose their id in a step, as input and as target, so that content alone must stand in for it:
items that nobody has met yet then live in the same space (DropoutNet, Volkovs et al., 2017, NeurIPS).
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from palate.backbone.item_tables import ItemTableConfig, build_item_table
from palate.backbone.semantic_ids import Codes
from palate.errors import ConfigError, DataError


class ItemTower(nn.Module):
    """Vectors and biases of the items in training.

    Raises:
        ConfigError: ids are dropped, and there is no content to stand in.
    """

    content: Tensor | None

    def __init__(
        self,
        num_items: int,
        dim: int,
        *,
        table: ItemTableConfig,
        content: Float[Tensor, "item content"] | None,
        codes: Codes | None,
        id_dropout: float,
    ) -> None:
        super().__init__()
        if id_dropout > 0 and content is None:
            raise ConfigError(f"model.id_dropout is {id_dropout} and the items have no content; set it to 0")
        self.table = build_item_table(table, num_items, dim, codes)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.id_dropout = id_dropout
        self.project = None if content is None else nn.Linear(content.shape[1], dim, bias=False)
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=0.3 / math.sqrt(dim))
        # The content is the catalogue's: it is saved with that, once, and not with the weights.
        self.register_buffer("content", content, persistent=False)

    @property
    def num_items(self) -> int:
        """Items in training."""
        return self.table.num_items

    def draw_dropped(self) -> Bool[Tensor, "item"] | None:
        """Which items have no id in this training step; None outside of training."""
        if not self.training or self.id_dropout == 0:
            return None
        return torch.rand(self.num_items, device=self.bias.device) < self.id_dropout

    def forward(
        self, items: Int64[Tensor, "*shape"], dropped: Bool[Tensor, "item"] | None = None
    ) -> Float[Tensor, "*shape dim"]:
        """Vectors of some items."""
        vectors: Tensor = self.table(items)
        if dropped is not None:
            vectors = vectors.masked_fill(dropped[items][..., None], 0)
        if self.project is not None:
            assert self.content is not None
            vectors = vectors + self.project(self.content[items])
        return vectors

    def all(self, dropped: Bool[Tensor, "item"] | None = None) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue."""
        vectors = self.table.all()
        if dropped is not None:
            vectors = vectors.masked_fill(dropped[:, None], 0)
        return vectors if self.project is None else vectors + self.encode_new(self.content)

    def encode_new(self, content: Float[Tensor, "new content"] | None) -> Float[Tensor, "new dim"]:
        """Vectors of items that training has never seen, from their content.

        Raises:
            DataError: the model was trained without content, or with another number of features.
        """
        if self.project is None or content is None:
            raise DataError(
                "items: the model was trained without content, and new items have nothing else; give it some"
            )
        if content.shape[1] != self.project.in_features:
            raise DataError(
                f"items: {content.shape[1]} content features, the model was trained with {self.project.in_features}; "
                "encode the new items as in training"
            )
        vectors: Tensor = self.project(content)
        return vectors


def popularity_bias(counts: Int64[Tensor, "item"]) -> Float[Tensor, "item"]:
    """Where item biases start: the log of each item's share of the events, one event added to each."""
    smoothed = counts.float() + 1
    return (smoothed / smoothed.sum()).log()

"""The kinds of item tables: one row an item, or far fewer rows than items, for catalogues of tens of millions.

A table gives the vectors of the items asked for, or of the whole catalogue, and grows: the items it knew keep their
vectors, and those that are new begin at the zero vector (or at what their codes say), which is to say that until they
are trained, whatever else describes them speaks alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from palate.backbone.hashing import buckets_of, hash_keys
from palate.backbone.semantic_ids import Codes
from palate.errors import ConfigError, DataError

Table = TypeVar("Table", bound="ItemTable")


class ItemTable(nn.Module, ABC):
    """What every table offers. Calling it gives the vectors of the items asked for."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.dim = dim

    @abstractmethod
    def forward(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of these items, numbers from 0 to num_items − 1."""

    @abstractmethod
    def all(self) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue, differentiable: the output matrix."""

    @abstractmethod
    def grow(self, num_items: int, codes: Codes | None = None) -> "ItemTable":
        """A table of the same kind for a larger catalogue, with weights of its own; the first rows are unchanged.

        Args:
            num_items: of the larger catalogue.
            codes: of all its items, where the kind is built from codes.

        Raises:
            ConfigError: fewer items than now; codes where none are read, or none where they are.
            DataError: the codes do not go on from those that the table has.
        """

    def keep(self, items: Int64[Tensor, "kept"]) -> "ItemTable":
        """A table of some of the items, in the order asked for, with weights of its own.

        Raises:
            ConfigError: items share rows by their numbers, so that none can leave or move.
        """
        raise ConfigError(
            "item table: its rows are shared between items by their numbers, so that none can leave; train from "
            'nothing, or set item_table.kind to "full"'
        )


@final
class FullTable(ItemTable):
    """One row of its own for every item."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__(num_items, dim)
        self.weight = nn.Parameter(torch.empty(num_items, dim).normal_(std=dim**-0.5))

    def forward(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of these items."""
        return nn.functional.embedding(items, self.weight)

    def all(self) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue."""
        return self.weight

    def grow(self, num_items: int, codes: Codes | None = None) -> "FullTable":
        """A table for a larger catalogue; new rows are zero."""
        check_growth(self.num_items, num_items, codes)
        larger = _skeleton(lambda: FullTable(num_items, self.dim))
        larger.weight = _extend(self.weight, num_items)
        return larger

    def keep(self, items: Int64[Tensor, "kept"]) -> "FullTable":
        """A table of some of the items."""
        smaller = _skeleton(lambda: FullTable(len(items), self.dim))
        smaller.weight = nn.Parameter(self.weight.detach()[items])
        return smaller


@final
class QuotientTable(ItemTable):
    """Row of the item number's remainder times row of its quotient, both by `num_remainders`.

    The complementary partitions of Shi et al., Compositional Embeddings Using Complementary Partitions for
    Memory-Efficient Recommendation Systems, 2020, arXiv:1909.02107, combined by the elementwise product: items that
    share one row never share the other, so no two items are the same. New items of a larger catalogue are new
    quotients.
    """

    def __init__(self, num_items: int, dim: int, num_remainders: int) -> None:
        super().__init__(num_items, dim)
        self.remainders = nn.Parameter(torch.empty(num_remainders, dim).normal_(std=dim**-0.5))
        self.quotients = nn.Parameter(torch.empty(-(-num_items // num_remainders), dim).normal_())

    def forward(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of these items."""
        rows = len(self.remainders)
        remainder = nn.functional.embedding(items % rows, self.remainders)
        return remainder * nn.functional.embedding(items // rows, self.quotients)

    def all(self) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue, by one outer product."""
        return (self.quotients[:, None] * self.remainders).flatten(0, 1)[: self.num_items]

    def grow(self, num_items: int, codes: Codes | None = None) -> "QuotientTable":
        """A table for a larger catalogue with the same remainder rows; the rows of new quotients are zero.

        New items that fall under the last quotient the table has begin at that row's product, not at zero.
        """
        check_growth(self.num_items, num_items, codes)
        rows = len(self.remainders)
        larger = _skeleton(lambda: QuotientTable(num_items, self.dim, rows))
        larger.remainders = _extend(self.remainders, rows)
        larger.quotients = _extend(self.quotients, -(-num_items // rows))
        return larger


@final
class HashedTable(ItemTable):
    """Sum of k shared bucket rows, chosen by k hash functions and weighed by k numbers of the item's own.

    Svenstrup et al., Hash Embeddings for Efficient Word Representations, 2017, arXiv:1709.03933, with an importance
    weight for every item: two items that meet in a bucket can still turn away from it.
    """

    def __init__(self, num_items: int, dim: int, num_buckets: int, num_hashes: int, seed: int) -> None:
        super().__init__(num_items, dim)
        self.num_buckets, self.num_hashes, self.seed = num_buckets, num_hashes, seed
        self.keys = hash_keys(num_hashes, seed)
        self.buckets = nn.Parameter(torch.empty(num_buckets, dim).normal_(std=dim**-0.5))
        self.importance = nn.Parameter(torch.empty(num_items, num_hashes).normal_(std=num_hashes**-0.5))

    def forward(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of these items."""
        importance = nn.functional.embedding(items, self.importance)
        return _weighted_sum(self.buckets, buckets_of(items, self.keys, self.num_buckets), importance)

    def all(self) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue."""
        vectors: Tensor = self(torch.arange(self.num_items, device=self.buckets.device))
        return vectors

    def grow(self, num_items: int, codes: Codes | None = None) -> "HashedTable":
        """A table for a larger catalogue with the same buckets; importance weights of new items are zero."""
        check_growth(self.num_items, num_items, codes)
        larger = _skeleton(lambda: HashedTable(num_items, self.dim, self.num_buckets, self.num_hashes, self.seed))
        larger.buckets = _extend(self.buckets, self.num_buckets)
        larger.importance = _extend(self.importance, num_items)
        return larger


@final
class SemanticTable(ItemTable):
    """Sum of one learned vector for each code of the item's semantic id, plus hashed rows of the item's own.

    The codes of Rajput et al., Recommender Systems with Generative Retrieval, 2023, arXiv:2305.05065, as item
    representation (Singh et al., Better Generalization with Semantic IDs, 2023, arXiv:2306.08121). The hashed part
    tells apart what the codes cannot; its importance weights begin at zero, so an item without events is its codes.
    """

    rows: Tensor

    def __init__(self, codes: Codes, dim: int, num_buckets: int, num_hashes: int, seed: int) -> None:
        super().__init__(len(codes.values), dim)
        self.sizes = codes.sizes
        scale = (dim * len(codes.sizes)) ** -0.5
        self.codebooks = nn.Parameter(torch.empty(sum(codes.sizes), dim).normal_(std=scale))
        self.own = HashedTable(self.num_items, dim, num_buckets, num_hashes, seed) if num_hashes else None
        if self.own is not None:
            nn.init.zeros_(self.own.importance)
        self.register_buffer("rows", _rows_of(codes))

    def forward(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of these items."""
        vectors = _weighted_sum(self.codebooks, self.rows[items].long(), None)
        return vectors if self.own is None else vectors + self.own(items)

    def all(self) -> Float[Tensor, "item dim"]:
        """Vectors of the whole catalogue."""
        vectors: Tensor = self(torch.arange(self.num_items, device=self.codebooks.device))
        return vectors

    def grow(self, num_items: int, codes: Codes | None = None) -> "SemanticTable":
        """A table for a larger catalogue; new items are what their codes say, and new codes of the last level zero."""
        check_growth(self.num_items, num_items, codes, needed=True)
        assert codes is not None
        if codes.sizes[:-1] != self.sizes[:-1] or codes.sizes[-1] < self.sizes[-1]:
            raise DataError(
                f"item table: the new codes have sizes {codes.sizes}, the table {self.sizes}; only the last may grow, "
                "so encode new items with the codebooks of the old ones"
            )
        codes = codes._replace(values=codes.values.to(self.rows.device))
        if not torch.equal(_rows_of(codes)[: self.num_items].long(), self.rows.long()):
            raise DataError("item table: the codes of items it has were changed; put new items after them")
        larger = _skeleton(lambda: SemanticTable(codes, self.dim, 1, 0, 0))
        larger.codebooks = _extend(self.codebooks, sum(codes.sizes))
        larger.own = None if self.own is None else self.own.grow(num_items)
        return larger


def check_growth(now: int, num_items: int, codes: Codes | None, *, needed: bool = False) -> None:
    """ConfigError for a catalogue that shrinks, and as `check_codes`."""
    if num_items < now:
        raise ConfigError(f"item table: it has {now} items and cannot grow to {num_items}; give at least as many")
    check_codes(num_items, codes, needed)


def check_codes(num_items: int, codes: Codes | None, needed: bool) -> None:
    """ConfigError for codes where none are read, or none where they are; DataError where they are not one an item."""
    if (codes is not None) != needed:
        raise ConfigError(f"item table: it is built {'from' if needed else 'without'} codes; see item_table.kind")
    if codes is None:
        return
    if len(codes.values) != num_items:
        raise DataError(f"item table: codes of {len(codes.values)} items for a catalogue of {num_items}; give one each")
    if codes.values.shape[1] != len(codes.sizes) or not codes.sizes:
        raise DataError(
            f"item table: items have {codes.values.shape[1]} codes, but sizes are of {len(codes.sizes)} levels; give a "
            "size for each"
        )
    if (codes.values < 0).any() or (codes.values >= codes.values.new_tensor(codes.sizes)).any():
        raise DataError(f"item table: a code is beyond its level's size {codes.sizes}; encode the items again")


def _weighted_sum(
    weight: Float[Tensor, "row dim"],
    rows: Int64[Tensor, "*shape part"],
    importance: Float[Tensor, "*shape part"] | None,
) -> Float[Tensor, "*shape dim"]:
    """Sum of some rows for each item, without a copy of them: a third of the time of a lookup and a product.

    NOTE: PyTorch has no second derivative of it; nothing takes one by item rows.
    """
    parts = rows.shape[-1]
    flat = None if importance is None else importance.reshape(-1, parts)
    vectors = nn.functional.embedding_bag(rows.reshape(-1, parts), weight, mode="sum", per_sample_weights=flat)
    return vectors.view(*rows.shape[:-1], weight.shape[1])


def _extend(weight: Tensor, rows: int) -> nn.Parameter:
    """A copy with zero rows at the end."""
    return nn.Parameter(torch.cat([weight.detach(), weight.new_zeros(rows - len(weight), weight.shape[1])]))


def _skeleton(build: Callable[[], Table]) -> Table:
    """A table without memory and without random draws, whose weights are put in after."""
    with torch.device("meta"):
        return build()


def _rows_of(codes: Codes) -> Tensor:
    """Row of each code in the codebooks laid end to end, in the smallest type: 10⁷ items of 4 codes are 80 MB."""
    starts = torch.tensor([sum(codes.sizes[:level]) for level in range(len(codes.sizes))], device=codes.values.device)
    return (codes.values + starts).to(torch.int16 if sum(codes.sizes) <= 2**15 else torch.int32)

"""An item table too large for one machine: row r lives on worker r % workers, and look-ups travel by all-to-all.

The forward pass asks each owner for its rows and the backward pass sends the gradients back the same way, where they
are summed: the model parallelism of embedding tables in Deep Learning Recommendation Model for Personalization and
Recommendation Systems, 2019, arXiv:1906.00091. With one worker it is an ordinary table.
"""

from typing import Any, NamedTuple, final

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from palate.backbone.semantic_ids import Codes
from palate.backbone.table_kinds import ItemTable, check_growth
from palate.errors import ConfigError, DataError

_BLOCK = 65_536


@final
class ShardedTable(ItemTable):
    """A table of `num_items` vectors of length `dim`, drawn from N(0, std²).

    Every worker calls forward and all, with its own items, in the same order. The starting rows do not depend on the
    number of workers: each draws the whole table by blocks of rows and keeps its own.

    Raises:
        ConfigError: no items or no dimensions.
    """

    def __init__(self, num_items: int, dim: int, std: float = 0.02) -> None:
        super().__init__(num_items, dim)
        if num_items < 1 or dim < 1:
            raise ConfigError(f"sharded table: {num_items} items of length {dim}; expected at least 1 of each")
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.rows = nn.Parameter(torch.empty(len(range(self.rank, num_items, self.size)), dim))
        filled = 0
        for start in range(0, num_items, _BLOCK):
            drawn = torch.randn(min(_BLOCK, num_items - start), dim)[(self.rank - start) % self.size :: self.size]
            self.rows.detach()[filled : filled + len(drawn)] = drawn * std
            filled += len(drawn)

    def forward(self, items: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Vectors of the items, wherever their rows live.

        Raises:
            DataError: an item is not in the table.
        """
        flat = items.flatten().long()
        if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= self.num_items):
            raise DataError(
                f"sharded table: items {int(flat.min())} to {int(flat.max())} of {self.num_items} asked for"
            )
        unique, place = torch.unique(flat, return_inverse=True)  # a row travels once, however often it is asked for
        route = self._route(unique)
        vectors: Tensor = _Exchange.apply(self.rows[route.asked], route)  # type: ignore[no-untyped-call]
        back = torch.empty_like(route.order)
        back[route.order] = torch.arange(len(back), device=back.device)
        return vectors[back][place].view(*items.shape, self.dim)

    def all(self) -> Float[Tensor, "item dim"]:
        """The whole table on every worker, in item order; gradients go back to the owners."""
        vectors: Tensor = self(torch.arange(self.num_items, device=self.rows.device))
        return vectors

    def grow(self, num_items: int, codes: Codes | None = None) -> "ShardedTable":
        """A table for a larger catalogue; new rows are zero, and every worker has its share of them."""
        check_growth(self.num_items, num_items, codes)
        rows = self.whole(self.rows.detach())
        with torch.random.fork_rng(devices=[]):
            larger = ShardedTable(num_items, self.dim)
        padded = torch.cat([rows, rows.new_zeros(num_items - len(rows), self.dim)])
        larger.rows = nn.Parameter(larger.part(padded))
        return larger

    def whole(self, rows: Float[Tensor, "own dim"]) -> Float[Tensor, "item dim"]:
        """Put the workers' rows together (the weights, or an optimiser's state of them), on every worker."""
        if self.size == 1:
            return rows
        longest = len(range(0, self.num_items, self.size))
        padded = rows.new_zeros(longest, self.dim)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[: self.num_items].contiguous()

    def part(self, whole: Float[Tensor, "item dim"]) -> Float[Tensor, "own dim"]:
        """This worker's rows of a whole table."""
        return whole[self.rank :: self.size].contiguous()

    def _route(self, items: Int[Tensor, "unique"]) -> "_Route":
        """Tell the owners which rows this worker wants, and learn which of its own the others want."""
        owners = items % self.size
        order = owners.argsort(stable=True)
        wanted = (items // self.size)[order]
        counts = torch.bincount(owners, minlength=self.size)
        if self.size == 1:
            return _Route(order, wanted, counts.tolist(), counts.tolist())
        asked_counts = torch.empty_like(counts)
        dist.all_to_all_single(asked_counts, counts)
        received, sent = counts.tolist(), asked_counts.tolist()
        asked = wanted.new_empty(sum(sent))
        dist.all_to_all_single(asked, wanted, sent, received)
        return _Route(order, asked, sent, received)


class _Route(NamedTuple):
    """Which rows go where in one look-up."""

    order: Tensor
    """Places of the wanted items, sorted by owner."""
    asked: Tensor
    """Own rows that the workers want, worker after worker."""
    sent: list[int]
    """How many of these each worker gets."""
    received: list[int]
    """How many rows each worker gives to this one."""


class _Exchange(torch.autograd.Function):
    """Send rows to those who asked; backward, their gradients take the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, route: _Route) -> Tensor:
        ctx.route = route
        return _send(rows, route.sent, route.received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _send(gradients[0], ctx.route.received, ctx.route.sent), None


def _send(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    if len(sent) == 1:
        return rows.clone()
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
    return arrived

"""The table of item tables: which kinds of id embedding there are, and how one is built within a memory budget.

A full table is one row an item. The others share rows between items, by arithmetic on the item's number (quotient),
by hashing it (hashed), or by what its content says (semantic), so that 10⁷ items fit where 10⁶ did.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from palate.backbone.semantic_ids import Codes
from palate.backbone.sharded_table import ShardedTable
from palate.backbone.table_kinds import (
    FullTable,
    HashedTable,
    ItemTable,
    QuotientTable,
    SemanticTable,
    check_codes,
)
from palate.errors import ConfigError


@dataclass(frozen=True)
class ItemTableConfig:
    """How item ids become vectors. A setting that the kind does not read must stay at its default."""

    kind: str = "full"
    """A line of `ITEM_TABLES`: full, sharded (full, its rows spread over workers), quotient, hashed or semantic."""
    compression: int = 1
    """Parameters of a full table over those of this one, at the least; 1 for full and sharded, 2 or more for the
    others."""
    num_hashes: int = 2
    """Bucket rows that are mixed into an item's vector, for hashed and semantic; 0 leaves a semantic table its codes
    alone."""
    seed: int = 0
    """Which hash functions, for hashed and semantic. Starting weights come from PyTorch's own generator."""

    def __post_init__(self) -> None:
        entry = find_item_table(self.kind)
        for field in fields(self):
            given = getattr(self, field.name)
            if field.name != "kind" and field.name not in entry.reads and given != field.default:
                raise ConfigError(
                    f"item_table.{field.name} is {given}, which kind {self.kind} does not read; leave it out"
                )
        for name, low in (("compression", 2), ("num_hashes", entry.fewest_hashes), ("seed", 0)):
            if name in entry.reads and getattr(self, name) < low:
                raise ConfigError(
                    f"item_table.{name} is {getattr(self, name)}; for kind {self.kind} it must be at least {low}"
                )
        if self.num_hashes == 0 and self.seed != 0:
            raise ConfigError(f"item_table.seed is {self.seed}, and without hashes nothing is drawn; leave it out")


def build_item_table(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None = None) -> ItemTable:
    """Build a table with random weights (PyTorch's generator) for num_items items of length dim.

    Under `torch.device("meta")` nothing is allocated but the codes, which a saved table brings along: to load one,
    zeros of the right shape and sizes will do.

    Raises:
        ConfigError: no items or dimensions; a compression that this catalogue or this length cannot have; codes where
            the kind reads none, or none where it does.
        DataError: the codes are of another number of items.
    """
    if num_items < 1 or dim < 1:
        raise ConfigError(f"item table: {num_items} items of length {dim}; expected at least 1 of both")
    entry = find_item_table(config.kind)
    check_codes(num_items, codes, entry.reads_codes)
    return entry.build(config, num_items, dim, codes)


def find_item_table(kind: str) -> "ItemTableEntry":
    """Look a kind up in the table; ConfigError where it is not there."""
    if kind not in ITEM_TABLES:
        raise ConfigError(f"item_table.kind is {kind!r}; choose one of: {', '.join(ITEM_TABLES)}")
    return ITEM_TABLES[kind]


class ItemTableEntry(NamedTuple):
    """One line of the table."""

    build: Callable[[ItemTableConfig, int, int, Codes | None], ItemTable]
    """(config, number of items, length of a vector, codes)."""
    reads: frozenset[str]
    """The settings that the kind reads."""
    reads_codes: bool = False
    """Whether it is built from semantic ids."""
    fewest_hashes: int = 1
    """The smallest num_hashes."""
    planned_as: str | None = None
    """The kind that a plan counts instead: spreading rows over devices is one of its strategies."""


def _build_full(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None) -> FullTable:
    return FullTable(num_items, dim)


def _build_quotient(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None) -> QuotientTable:
    """The most remainder rows for which they and their quotient rows are within the budget."""
    rows = num_items // config.compression
    if rows * rows < 4 * num_items:
        raise _too_much(config, num_items, f"quotients of {num_items} items need {math.ceil(2 * num_items**0.5)} rows")
    remainders = (rows + math.isqrt(rows * rows - 4 * num_items)) // 2
    while remainders + -(-num_items // remainders) > rows:
        remainders -= 1
    return QuotientTable(num_items, dim, remainders)


def _build_hashed(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None) -> HashedTable:
    """As many buckets as the budget leaves beside the importance weights."""
    num_buckets = _buckets_within(config, num_items, dim, used_rows=0)
    return HashedTable(num_items, dim, num_buckets, config.num_hashes, config.seed)


def _build_semantic(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None) -> SemanticTable:
    """The codes' rows, and hashed rows with what the budget leaves."""
    assert codes is not None
    num_buckets = _buckets_within(config, num_items, dim, used_rows=sum(codes.sizes))
    return SemanticTable(codes, dim, num_buckets, config.num_hashes, config.seed)


def _build_sharded(config: ItemTableConfig, num_items: int, dim: int, codes: Codes | None) -> ShardedTable:
    return ShardedTable(num_items, dim, dim**-0.5)


ITEM_TABLES: Mapping[str, ItemTableEntry] = {
    "full": ItemTableEntry(_build_full, frozenset()),
    "sharded": ItemTableEntry(_build_sharded, frozenset(), planned_as="full"),
    "quotient": ItemTableEntry(_build_quotient, frozenset({"compression"})),
    "hashed": ItemTableEntry(_build_hashed, frozenset({"compression", "num_hashes", "seed"})),
    "semantic": ItemTableEntry(_build_semantic, frozenset({"compression", "num_hashes", "seed"}), True, 0),
}


def _buckets_within(config: ItemTableConfig, num_items: int, dim: int, used_rows: int) -> int:
    """Bucket rows that the budget leaves after `used_rows` and num_hashes numbers an item; ConfigError if none."""
    numbers = num_items * dim // config.compression - num_items * config.num_hashes - used_rows * dim
    if numbers < (dim if config.num_hashes else 0):
        spent = f"{config.num_hashes} numbers an item and {used_rows} rows for codes"
        raise _too_much(config, num_items, f"vectors of length {dim} leave no row after {spent}")
    return numbers // dim


def _too_much(config: ItemTableConfig, num_items: int, reason: str) -> ConfigError:
    return ConfigError(
        f"item_table.compression is {config.compression}, too much for kind {config.kind} with {num_items} items: "
        f"{reason}; lower it"
    )

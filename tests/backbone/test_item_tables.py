"""What every item table promises, over the whole table; then each kind against its formula, written as a loop."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from palate.backbone.hashing import buckets_of, hash_keys
from palate.backbone.item_tables import ITEM_TABLES, ItemTableConfig, build_item_table
from palate.backbone.semantic_ids import Codes, deduplicate
from palate.backbone.table_kinds import HashedTable, ItemTable, QuotientTable, SemanticTable
from palate.errors import ConfigError, DataError

NUM_ITEMS, DIM, LARGER = 500, 16, 700
CONFIGS = {
    "full": ItemTableConfig(),
    "sharded": ItemTableConfig("sharded"),
    "quotient": ItemTableConfig("quotient", compression=4),
    "hashed": ItemTableConfig("hashed", compression=4),
    "semantic": ItemTableConfig("semantic", compression=4, num_hashes=1),
    "semantic alone": ItemTableConfig("semantic", compression=4, num_hashes=0),
}
every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def codes_for(config: ItemTableConfig, num_items: int) -> Codes | None:
    """Two levels of eight codes drawn at random, and the level that tells apart."""
    if not ITEM_TABLES[config.kind].reads_codes:
        return None
    codes = torch.randint(8, (LARGER, 2), generator=torch.Generator().manual_seed(5))
    return deduplicate(codes[:num_items], 8)


def make(config: ItemTableConfig, num_items: int = NUM_ITEMS, seed: int = 0) -> ItemTable:
    torch.manual_seed(seed)
    return build_item_table(config, num_items, DIM, codes_for(config, num_items))


def trained(config: ItemTableConfig) -> ItemTable:
    """A table none of whose weights is where it started."""
    table = make(config)
    with torch.no_grad():
        for weight in table.parameters():
            weight.add_(torch.randn(weight.shape))
    return table


def test_every_kind_is_tried() -> None:
    assert {config.kind for config in CONFIGS.values()} == set(ITEM_TABLES)


def slow_bucket(item: int, key: int, num_buckets: int) -> int:
    """SplitMix64's mixing step in whole numbers of any size."""
    mixed = (item + key) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63 % num_buckets


class TestContract:
    @every_kind
    def test_shapes(self, config: ItemTableConfig) -> None:
        table = make(config)
        assert (table.num_items, table.dim) == (NUM_ITEMS, DIM)
        assert table(torch.tensor(3)).shape == (DIM,)
        assert table(torch.zeros(2, 0, 3, dtype=torch.int64)).shape == (2, 0, 3, DIM)
        assert table(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, DIM)

    @every_kind
    def test_all_is_every_item(self, config: ItemTableConfig) -> None:
        table = trained(config)
        torch.testing.assert_close(table.all(), table(torch.arange(NUM_ITEMS)))
        one_by_one = torch.stack([table(torch.tensor(item)) for item in range(NUM_ITEMS)])
        torch.testing.assert_close(table.all(), one_by_one)

    @every_kind
    def test_gradients_reach_every_weight_and_are_the_same_both_ways(self, config: ItemTableConfig) -> None:
        table = trained(config)
        target = torch.randn(NUM_ITEMS, DIM)
        found = []
        for vectors in (table.all(), table(torch.arange(NUM_ITEMS))):
            table.zero_grad()
            (vectors * target).sum().backward()
            found.append([weight.grad for weight in table.parameters()])
        for one, other in zip(*found, strict=True):
            assert one is not None
            assert (one.abs().sum(1) > 0).all()
            torch.testing.assert_close(one, other)

    @every_kind
    def test_a_new_table_learns_given_vectors_better_than_none(self, config: ItemTableConfig) -> None:
        """From its own starting weights: a start at which gradients vanish would fail."""
        table = make(config)
        target = torch.randn(NUM_ITEMS, DIM)
        optimiser = torch.optim.Adam(table.parameters(), lr=0.05)
        for _ in range(100):
            loss = (table.all() - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss < 0.97 * target.square().mean()

    @every_kind
    def test_distinct_items_have_distinct_vectors(self, config: ItemTableConfig) -> None:
        distances = torch.cdist(
            trained(config).all(), trained(config).all(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert distances.fill_diagonal_(1).min() > 1e-3

    @every_kind
    def test_vectors_begin_at_a_length_near_1(self, config: ItemTableConfig) -> None:
        assert make(config).all().square().sum(1).mean().sqrt().item() == pytest.approx(1, abs=0.35)

    @every_kind
    def test_growing_keeps_what_was_and_changes_nothing_before(self, config: ItemTableConfig) -> None:
        table = trained(config)
        before = table.all().detach().clone()
        larger = table.grow(LARGER, codes_for(config, LARGER))
        assert type(larger) is type(table)
        assert larger.num_items == LARGER
        assert torch.equal(larger.all()[:NUM_ITEMS], before)
        with torch.no_grad():
            for weight in larger.parameters():
                weight.add_(1.0)
        assert torch.equal(table.all(), before), "the two share memory"
        again = larger.grow(LARGER, codes_for(config, LARGER))
        assert torch.equal(again.all(), larger.all())

    @every_kind
    def test_new_items_can_be_trained(self, config: ItemTableConfig) -> None:
        larger = trained(config).grow(LARGER, codes_for(config, LARGER))
        (larger(torch.arange(NUM_ITEMS, LARGER)) * torch.randn(DIM)).sum().backward()
        assert sum(float(weight.grad.abs().sum()) for weight in larger.parameters() if weight.grad is not None) > 0

    @every_kind
    def test_a_seed_gives_the_same_bytes(self, config: ItemTableConfig) -> None:
        assert torch.equal(make(config).all(), make(config).all())
        assert not torch.equal(make(config).all(), make(config, seed=1).all())

    @every_kind
    def test_on_the_meta_device_it_has_the_same_shapes_and_takes_the_weights(self, config: ItemTableConfig) -> None:
        real, codes = trained(config), codes_for(config, NUM_ITEMS)
        with torch.device("meta"):
            empty = build_item_table(config, NUM_ITEMS, DIM, codes)
        assert all(weight.is_meta for weight in empty.parameters())
        empty.load_state_dict(real.state_dict(), assign=True)
        assert torch.equal(empty.all(), real.all())

    @every_kind
    def test_it_is_a_function_of_its_parameters(self, config: ItemTableConfig) -> None:
        table = trained(config)
        items = torch.tensor([0, 7, 7, 499])
        doubled = {name: weight.detach() * 2 for name, weight in table.named_parameters()}
        changed = functional_call(table, doubled, (items,))
        assert not torch.allclose(changed, table(items))

    @pytest.mark.parametrize("compression", [2, 4, 9])
    @every_kind
    def test_it_stays_within_its_budget_and_uses_it(self, config: ItemTableConfig, compression: int) -> None:
        num_items, dim = 20_000, 64
        codes = Codes(torch.zeros(num_items, 2, dtype=torch.int64), (8, 8)) if codes_for(config, 2) else None
        reads = "compression" in ITEM_TABLES[config.kind].reads
        changed = ItemTableConfig(config.kind, compression if reads else 1, config.num_hashes)
        with torch.device("meta"):
            table = build_item_table(changed, num_items, dim, codes)
        count = sum(weight.numel() for weight in table.parameters())
        assert count * changed.compression <= num_items * dim
        if config is not CONFIGS["semantic alone"]:  # codes need what they need
            assert count * changed.compression > 0.98 * num_items * dim

    @every_kind
    def test_bad_growth_is_refused(self, config: ItemTableConfig) -> None:
        table = make(config)
        with pytest.raises(ConfigError, match="500 items and cannot grow to 499"):
            table.grow(NUM_ITEMS - 1, codes_for(config, NUM_ITEMS - 1))
        wrong = None if codes_for(config, LARGER) else Codes(torch.zeros(LARGER, 1, dtype=torch.int64), (1,))
        with pytest.raises(ConfigError, match="codes"):
            table.grow(LARGER, wrong)
        with pytest.raises(ConfigError, match="codes"):
            build_item_table(config, LARGER, DIM, wrong)


class TestKinds:
    @settings(max_examples=60)
    @given(st.integers(100, 3000), st.integers(2, 12))
    def test_quotients_take_the_most_remainders_that_fit(self, num_items: int, compression: int) -> None:
        budget = num_items // compression
        fitting = [m for m in range(1, budget + 1) if m + -(-num_items // m) <= budget]
        config = ItemTableConfig("quotient", compression)
        if budget**2 < 4 * num_items:
            with pytest.raises(ConfigError, match=r"compression is .* too much .* lower it"):
                build_item_table(config, num_items, 1)
            return
        table = build_item_table(config, num_items, 1)
        assert isinstance(table, QuotientTable)
        assert len(table.remainders) == max(fitting)

    def test_a_quotient_vector_by_hand(self) -> None:
        table = trained(CONFIGS["quotient"])
        assert isinstance(table, QuotientTable)
        rows = len(table.remainders)
        for item in (0, rows - 1, rows, 2 * rows + 3, NUM_ITEMS - 1):
            expected = table.remainders[item % rows] * table.quotients[item // rows]
            torch.testing.assert_close(table(torch.tensor(item)), expected)

    def test_a_hashed_vector_by_hand(self) -> None:
        table = trained(CONFIGS["hashed"])
        assert isinstance(table, HashedTable)
        for item in (0, 17, NUM_ITEMS - 1):
            expected = torch.zeros(DIM)
            for place, key in enumerate(table.keys):
                bucket = slow_bucket(item, key, len(table.buckets))
                expected = expected + table.importance[item, place] * table.buckets[bucket]
            torch.testing.assert_close(table(torch.tensor(item)), expected)

    def test_a_semantic_vector_by_hand(self) -> None:
        codes = codes_for(CONFIGS["semantic"], NUM_ITEMS)
        table = trained(CONFIGS["semantic"])
        assert isinstance(table, SemanticTable)
        assert codes is not None
        assert table.own is not None
        for item in (0, 17, NUM_ITEMS - 1):
            first, second, rank = codes.values[item].tolist()
            expected = table.codebooks[first] + table.codebooks[8 + second] + table.codebooks[16 + rank]
            torch.testing.assert_close(table(torch.tensor(item)), expected + table.own(torch.tensor(item)))

    def test_a_new_item_is_what_its_codes_say(self) -> None:
        table = trained(CONFIGS["semantic"])
        larger = table.grow(LARGER, codes_for(CONFIGS["semantic"], LARGER))
        assert isinstance(larger, SemanticTable)
        new = torch.arange(NUM_ITEMS, LARGER)
        torch.testing.assert_close(larger(new), larger.codebooks[larger.rows[new].long()].sum(1))

    @pytest.mark.parametrize("kind", ["full", "hashed"])
    def test_a_new_item_without_codes_is_zero(self, kind: str) -> None:
        assert (trained(CONFIGS[kind]).grow(LARGER).all()[NUM_ITEMS:] == 0).all()

    def test_new_quotients_are_zero(self) -> None:
        table = trained(CONFIGS["quotient"])
        assert isinstance(table, QuotientTable)
        first_new = len(table.quotients) * len(table.remainders)
        assert (table.grow(LARGER).all()[first_new:] == 0).all()

    def test_wide_codebooks_keep_their_rows(self) -> None:
        """Beyond 2^15 rows the codes need a wider type."""
        codes = Codes(torch.tensor([[0, 0], [40_000, 3], [65_535, 7]]), (65_536, 8))
        table = SemanticTable(codes, 4, 1, 0, 0)
        expected = table.codebooks[40_000] + table.codebooks[65_536 + 3]
        torch.testing.assert_close(table(torch.tensor(1)), expected)

    def test_codes_that_do_not_go_on_from_the_old_are_refused(self) -> None:
        table = make(CONFIGS["semantic"])
        codes = codes_for(CONFIGS["semantic"], LARGER)
        assert codes is not None
        with pytest.raises(DataError, match="were changed"):
            table.grow(LARGER, Codes(codes.values.roll(1, 0), codes.sizes))
        with pytest.raises(DataError, match="only the last may grow"):
            table.grow(LARGER, Codes(codes.values, (9, *codes.sizes[1:])))
        with pytest.raises(DataError, match="codes of 700 items for a catalogue of 600"):
            table.grow(600, codes)

    def test_codes_beyond_their_level_are_refused(self) -> None:
        for value, sizes in ((-1, (8,)), (8, (8,)), (0, (8, 8))):
            codes = Codes(torch.full((NUM_ITEMS, 1), value), sizes)
            with pytest.raises(DataError, match=r"beyond its level|a size for each"):
                build_item_table(CONFIGS["semantic"], NUM_ITEMS, DIM, codes)


class TestHashing:
    @given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.integers(1, 10**7))
    def test_buckets_as_arithmetic_of_any_size_has_them(self, item: int, seed: int, num_buckets: int) -> None:
        keys = hash_keys(3, seed)
        found = buckets_of(torch.tensor(item), keys, num_buckets)
        assert found.tolist() == [slow_bucket(item, key, num_buckets) for key in keys]

    def test_functions_are_fixed_for_good(self) -> None:
        """A saved table is worthless with other functions: these numbers may never change."""
        assert buckets_of(torch.tensor([0, 1, 10**7]), hash_keys(2, seed=0), 1000).tolist() == [
            [836, 331],
            [371, 670],
            [82, 221],
        ]
        assert hash_keys(1, seed=0) == hash_keys(2, seed=0)[:1]
        assert hash_keys(2, seed=0) != hash_keys(2, seed=1)

    def test_buckets_are_used_evenly_and_collide_as_often_as_stated(self) -> None:
        num_buckets = 97
        found = buckets_of(torch.arange(20_000), hash_keys(2, seed=0), num_buckets)
        for place in range(2):
            counts = found[:, place].bincount(minlength=num_buckets).float()
            assert counts.min() > 0.5 * 20_000 / num_buckets
        few = found[:1000]
        one = (few[:, None, 0] == few[None, :, 0]).float().mean()
        both = (few[:, None] == few[None]).all(-1).float().mean()
        assert one.item() == pytest.approx(1 / num_buckets + 1 / 1000, rel=0.2)
        assert both.item() == pytest.approx(1 / num_buckets**2 + 1 / 1000, rel=0.1)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kind": "other"}, "choose one of: full, sharded, quotient, hashed, semantic"),
            ({"compression": 4}, "compression is 4, which kind full does not read"),
            ({"kind": "quotient"}, "compression is 1; for kind quotient it must be at least 2"),
            ({"kind": "quotient", "compression": 4, "num_hashes": 3}, "num_hashes is 3, which kind quotient"),
            ({"kind": "hashed", "compression": 4, "num_hashes": 0}, "num_hashes is 0; for kind hashed"),
            ({"kind": "semantic", "compression": 4, "num_hashes": -1}, "num_hashes is -1; for kind semantic"),
            ({"kind": "hashed", "compression": 4, "seed": -1}, "seed is -1"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ItemTableConfig(**settings)

    def test_a_compression_that_a_catalogue_cannot_have_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="compression is 8, too much for kind hashed with 500 items"):
            build_item_table(ItemTableConfig("hashed", 8), NUM_ITEMS, DIM)
        codes = Codes(torch.zeros(NUM_ITEMS, 1, dtype=torch.int64), (256,))
        with pytest.raises(ConfigError, match="256 rows for codes"):
            build_item_table(ItemTableConfig("semantic", 4, num_hashes=0), NUM_ITEMS, DIM, codes)

    @pytest.mark.parametrize(("num_items", "dim"), [(0, 4), (5, 0)])
    def test_an_empty_table_is_refused(self, num_items: int, dim: int) -> None:
        with pytest.raises(ConfigError, match="expected at least 1"):
            build_item_table(ItemTableConfig(), num_items, dim)


def test_ten_million_items_are_a_sixteenth_on_paper() -> None:
    """Construction on the meta device is free, so that sizes can be tried first."""
    with torch.device("meta"):
        table = build_item_table(ItemTableConfig("quotient", 16), 10**7, 64)
    count: int = sum(weight.numel() for weight in table.parameters())
    assert count <= 10**7 * 64 // 16
    vectors: Tensor = table(torch.zeros(3, dtype=torch.int64, device="meta"))
    assert vectors.shape == (3, 64)

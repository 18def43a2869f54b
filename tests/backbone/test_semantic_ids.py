"""Codes against loops, planted groups found again, cold items encoded, files that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from palate.backbone.semantic_ids import (
    SemanticIdConfig,
    code_usage,
    deduplicate,
    encode,
    fit_semantic_ids,
    load_semantic_ids,
    reconstruct,
    save_semantic_ids,
)
from palate.errors import ConfigError, DataError, ModelError

NUM_GROUPS = 4
CONFIG = SemanticIdConfig(num_levels=3, codebook_size=NUM_GROUPS)


def grouped(num_items: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Content in four far groups, each of four near ones, and the far group of each item."""
    generator = torch.Generator().manual_seed(seed)
    far, near = (torch.randint(NUM_GROUPS, (num_items,), generator=generator) for _ in range(2))
    content = 0.05 * torch.randn(num_items, 8, generator=generator)
    content[torch.arange(num_items), far] += 10
    content[torch.arange(num_items), 4 + near] += 1
    return content, far


def slow_encode(codebooks: Tensor, content: Tensor) -> Tensor:
    rows = []
    for vector in content:
        residual, row = vector.clone(), []
        for codebook in codebooks:
            distances = [float((residual - code).square().sum()) for code in codebook]
            row.append(int(np.argmin(distances)))
            residual = residual - codebook[row[-1]]
        rows.append(row)
    return torch.tensor(rows)


class TestFit:
    def test_codes_are_the_nearest_at_every_level(self) -> None:
        content = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
        ids = fit_semantic_ids(content, SemanticIdConfig(num_levels=3, codebook_size=8))
        assert ids.codebooks.shape == (3, 8, 6)
        assert torch.equal(ids.codes, slow_encode(ids.codebooks, content))

    def test_the_error_falls_level_by_level_and_is_that_of_the_reconstruction(self) -> None:
        content = torch.randn(500, 6, generator=torch.Generator().manual_seed(2))
        ids = fit_semantic_ids(content, SemanticIdConfig(num_levels=4, codebook_size=16))
        assert ids.errors[0] < 1
        assert (ids.errors.diff() < 0).all()
        variance = (content - content.mean(0)).square().sum(1).mean()
        for level in range(4):
            left = content - reconstruct(ids.codebooks[: level + 1], ids.codes[:, : level + 1])
            torch.testing.assert_close(left.square().sum(1).mean() / variance, ids.errors[level])

    def test_planted_groups_are_the_first_code_and_neighbours_share_prefixes(self) -> None:
        content, far = grouped(400)
        ids = fit_semantic_ids(content, CONFIG)
        for group in range(NUM_GROUPS):
            assert len(ids.codes[far == group, 0].unique()) == 1
        torch.testing.assert_close(code_usage(ids.codes)[0], code_usage(far[:, None])[0])
        distances = torch.cdist(content, content).fill_diagonal_(torch.inf)
        shared = (ids.codes == ids.codes[distances.argmin(1)]).cumprod(1).sum(1).float().mean()
        by_chance = (ids.codes == ids.codes.roll(1, 0)).cumprod(1).sum(1).float().mean()
        assert shared > 1.9  # far and near group
        assert by_chance < 0.5
        assert ids.errors[1] < 0.01

    def test_one_seed_gives_the_same_bytes_and_another_seed_others(self) -> None:
        content = torch.randn(200, 5, generator=torch.Generator().manual_seed(3))
        first, again = (fit_semantic_ids(content, CONFIG) for _ in range(2))
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
        changed = fit_semantic_ids(content, SemanticIdConfig(num_levels=3, codebook_size=4, seed=1))
        assert not torch.equal(first.codebooks, changed.codebooks)

    def test_as_many_codes_as_distinct_vectors_leave_nothing(self) -> None:
        content = torch.eye(4).repeat(5, 1)
        ids = fit_semantic_ids(content, CONFIG)
        assert ids.errors[-1] < 1e-9
        assert len(ids.codes.unique(dim=0)) == 4

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_content_that_is_not_finite_is_refused(self, bad: float) -> None:
        content = torch.randn(10, 3)
        content[4, 1] = bad
        with pytest.raises(DataError, match="finite"):
            fit_semantic_ids(content, CONFIG)

    def test_more_codes_than_distinct_vectors_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="codebook_size is 4, but there are 2 distinct"):
            fit_semantic_ids(torch.eye(2).repeat(10, 1), CONFIG)


class TestEncode:
    def test_new_items_of_a_known_group_have_its_first_codes(self) -> None:
        content, far = grouped(400)
        ids = fit_semantic_ids(content, CONFIG)
        new, new_far = grouped(50, seed=9)
        codes = encode(ids.codebooks, new)
        for group in range(NUM_GROUPS):
            assert set(codes[new_far == group, 0].tolist()) == set(ids.codes[far == group, 0].tolist())

    def test_more_items_than_a_chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content, _ = grouped(100)
        ids = fit_semantic_ids(content, CONFIG)
        monkeypatch.setattr("palate.backbone.semantic_ids.CHUNK", 7)
        assert torch.equal(encode(ids.codebooks, content), ids.codes)

    def test_other_content_is_refused(self) -> None:
        with pytest.raises(DataError, match="content has 3 features, the codebooks 8"):
            encode(torch.zeros(2, 4, 8), torch.zeros(5, 3))


class TestDeduplicate:
    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=20), st.integers(1, 20))
    def test_counts_as_a_loop_does_and_later_items_change_nothing(
        self, rows: list[tuple[int, int]], known: int
    ) -> None:
        codes = torch.tensor(rows)
        whole = deduplicate(codes, 3)
        seen: dict[tuple[int, int], int] = {}
        for row, values in zip(rows, whole.values.tolist(), strict=True):
            assert values == [*row, seen.get(row, 0)]
            seen[row] = seen.get(row, 0) + 1
        assert whole.sizes == (3, 3, max(seen.values()))
        assert len(whole.values.unique(dim=0)) == len(rows)
        assert torch.equal(deduplicate(codes[:known], 3).values, whole.values[:known])


def test_usage_by_hand() -> None:
    codes = torch.tensor([[0, 0, 5], [1, 0, 5], [2, 0, 5], [3, 1, 5]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    torch.testing.assert_close(code_usage(codes), torch.tensor([4.0, float(np.exp(entropy)), 1.0]))


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        ids = fit_semantic_ids(grouped(60)[0], CONFIG)
        save_semantic_ids(str(tmp_path / "ids.safetensors"), ids)
        loaded = load_semantic_ids(str(tmp_path / "ids.safetensors"))
        for one, other in zip(ids, loaded, strict=True):
            assert torch.equal(one, other)

    def test_missing_damaged_and_foreign_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "ids.safetensors"
        with pytest.raises(ModelError, match="no semantic ids"):
            load_semantic_ids(path)
        path.write_bytes(b"not safetensors")
        with pytest.raises(ModelError, match="no semantic ids"):
            load_semantic_ids(path)
        path.write_bytes(save({"weights": torch.zeros(3)}))
        with pytest.raises(ModelError, match="no semantic ids"):
            load_semantic_ids(path)

    @pytest.mark.parametrize("change", ["beyond", "levels", "type"])
    def test_codes_that_the_codebooks_do_not_have_are_refused(self, tmp_path: Path, change: str) -> None:
        ids = fit_semantic_ids(grouped(60)[0], CONFIG)
        broken = {
            "beyond": ids.codes + NUM_GROUPS,
            "levels": ids.codes[:, :2].contiguous(),
            "type": ids.codes.float(),
        }[change]
        path = tmp_path / "ids.safetensors"
        path.write_bytes(save({**ids._asdict(), "codes": broken}))
        with pytest.raises(ModelError, match=r"semantic ids|do not fit"):
            load_semantic_ids(path)


@pytest.mark.parametrize(
    "settings",
    [{"num_levels": 0}, {"codebook_size": 1}, {"batch_size": 0}, {"max_epochs": 0}, {"seed": -1}, {"seed": 2**32}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"semantic_ids.{next(iter(settings))}"):
        SemanticIdConfig(**settings)

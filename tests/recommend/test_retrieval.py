"""Every kind of index against the obvious scan: exactness, filters, additions, removals, files, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from palate.errors import ConfigError, DataError, ModelError
from palate.metrics import NO_ITEM, top_k
from palate.recommend.retrieval import INDEXES, RetrievalConfig, build_index, load_index, save_index, table

pytest.importorskip("faiss", reason="the approximate kinds need faiss-cpu")
KINDS = sorted(INDEXES)
NUM_ITEMS, WIDTH = 3000, 12


def world(num_items: int = NUM_ITEMS, width: int = WIDTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clustered vectors of unequal norms, biases, and queries."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, width)) * rng.lognormal(0, 0.5, (30, 1))
    vectors = centres[rng.integers(0, 30, num_items)] + 0.3 * rng.normal(size=(num_items, width))
    queries = rng.normal(size=(60, width))
    biases = 0.5 * rng.normal(size=num_items)
    return vectors.astype(np.float32), biases.astype(np.float32), queries.astype(np.float32)


def scan(
    vectors: np.ndarray, biases: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The answer as anyone would write it: all scores, and `top_k` of the allowed ones."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64) + biases).astype(np.float32)
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    ranked = top_k(scores[None], k)[0]
    return ranked, np.where(ranked == NO_ITEM, np.float32(-np.inf), scores[ranked])


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([np.isin(some, others).mean() for some, others in zip(true, found, strict=True)]))


# ------------------------------------------------------------------------------------------- every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_biases", [True, False])
def test_finds_the_best_and_scores_them_exactly(kind: str, with_biases: bool) -> None:
    vectors, biases, queries = world()
    biases = biases if with_biases else np.zeros_like(biases)
    index = build_index(
        vectors, RetrievalConfig(kind=kind), biases=biases if with_biases else None, queries=queries[30:]
    )
    assert index.built.kind == kind
    found = index.search(queries[:30], 10)
    true = np.array([scan(vectors, biases, query, 10)[0] for query in queries[:30]])
    assert recall(found.items, true) >= 0.98
    for query, items, scores in zip(queries, found.items, found.scores, strict=False):
        every = (vectors.astype(np.float64) @ query.astype(np.float64) + biases).astype(np.float32)
        np.testing.assert_array_equal(scores, every[items])
        assert list(scores) == sorted(scores, reverse=True)
        assert len(set(items)) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_long_lists_are_found_as_well_as_short_ones(kind: str) -> None:
    """An effort is chosen for the first ten; what more is asked for must not come from the same few rows."""
    vectors, biases, queries = world()
    index = build_index(vectors, RetrievalConfig(kind=kind), biases=biases, queries=queries[30:])
    found = index.search(queries[:30], 200)
    true = np.array([scan(vectors, biases, query, 200)[0] for query in queries[:30]])
    assert recall(found.items, true) >= 0.97


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_filters_leave_k_items_where_k_are_left(kind: str, share: float) -> None:
    vectors, biases, queries = world()
    index = build_index(vectors, RetrievalConfig(kind=kind), biases=biases, queries=queries[30:])
    rng = np.random.default_rng(1)
    allowed = rng.random(NUM_ITEMS) < share
    excluded = [rng.choice(NUM_ITEMS, count) for count in (0, 1, 40, 100, 2000) * 6]
    found = index.search(queries[:30], 10, allowed=allowed, excluded=excluded)
    true = []
    for query, items, out in zip(queries, found.items, excluded, strict=False):
        mask = allowed.copy()
        mask[out] = False
        best, _ = scan(vectors, biases, query, 10, mask)
        true.append(best)
        assert np.isin(items[items != NO_ITEM], np.flatnonzero(mask)).all()
        assert (items != NO_ITEM).sum() == min(10, mask.sum())
    assert recall(found.items, np.array(true)) >= (0.97 if share > 0.1 else 1.0)  # few left: scanned exactly


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_of_one_query_does_not_depend_on_the_others(kind: str) -> None:
    vectors, biases, queries = world()
    index = build_index(vectors, RetrievalConfig(kind=kind), biases=biases)
    together = index.search(queries, 5, excluded=[np.arange(place) for place in range(60)])
    for place, query in enumerate(queries):
        alone = index.search(query[None], 5, excluded=[np.arange(place)])
        np.testing.assert_array_equal(alone.items[0], together.items[place])
        np.testing.assert_array_equal(alone.scores[0], together.scores[place])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rebuild_share", [1.0, 0.05])
def test_an_index_with_more_items_leaves_the_first_as_it_was(kind: str, rebuild_share: float) -> None:
    vectors, biases, queries = world()
    config = RetrievalConfig(kind=kind, rebuild_share=rebuild_share, target_recall=0.9)
    index = build_index(vectors[:2500], config, biases=biases[:2500], queries=queries[30:])
    before = index.search(queries, 10)
    more = index.with_added(vectors[2500:], biases[2500:])
    after = index.search(queries, 10)
    np.testing.assert_array_equal(before.items, after.items)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert (index.num_items, more.num_items) == (2500, NUM_ITEMS)
    true = np.array([scan(vectors, biases, query, 10)[0] for query in queries])
    assert recall(more.search(queries, 10).items, true) >= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_follows_vectors_that_move_and_leaves_the_first_as_it_was(kind: str) -> None:
    vectors, biases, queries = world()
    config = RetrievalConfig(kind=kind, rebuild_share=1.0, target_recall=0.9)
    index = build_index(vectors[:2500], config, biases=biases[:2500], queries=queries[30:])
    index.add(vectors[2500:], biases[2500:])
    index.remove(np.array([7]))
    before = index.search(queries, 10)
    rng = np.random.default_rng(1)
    there = vectors + (0.05 * rng.normal(size=vectors.shape)).astype(np.float32)
    weights = biases + (0.05 * rng.normal(size=NUM_ITEMS)).astype(np.float32)
    moved = index.with_vectors(there, weights)
    after = index.search(queries, 10)
    np.testing.assert_array_equal(before.items, after.items)
    np.testing.assert_array_equal(before.scores, after.scores)
    kept = np.arange(NUM_ITEMS) != 7
    true = [scan(there, np.where(kept, weights, -1e6), query, 10) for query in queries]
    found = moved.search(queries, 10)
    for query, items, scores in zip(queries, found.items, found.scores, strict=True):
        np.testing.assert_array_equal(
            scores, scan(there, weights, query, NUM_ITEMS, np.isin(np.arange(NUM_ITEMS), items))[1][:10]
        )
    assert recall(found.items, np.array([items for items, _ in true])) >= 0.9
    assert moved.built.effort == index.built.effort
    with pytest.raises(DataError, match="give one an item"):
        index.with_vectors(vectors[:50])


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_beyond_all_others_is_found_and_scored_exactly(kind: str) -> None:
    """Too large for half precision in the units of those before it."""
    vectors, _, queries = world()
    index = build_index(vectors, RetrievalConfig(kind=kind, rebuild_share=1.0), queries=queries[30:])
    giant = (1e6 * queries[0])[None]
    index.add(giant)
    found = index.search(queries[:1], 1)
    assert found.items[0, 0] == NUM_ITEMS
    assert found.scores[0, 0] == np.float32(giant[0].astype(np.float64) @ queries[0].astype(np.float64))
    others = index.search(queries[:30], 5)
    assert np.isfinite(others.scores).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rebuild_share", [1.0, 0.05])
def test_added_items_are_found_and_removed_ones_are_not(kind: str, rebuild_share: float) -> None:
    vectors, biases, queries = world()
    config = RetrievalConfig(kind=kind, rebuild_share=rebuild_share)
    index = build_index(vectors[:2500], config, biases=biases[:2500], queries=queries[30:])
    alive = np.ones(NUM_ITEMS, bool)
    gone = np.unique(index.search(queries, 3).items)
    index.remove(gone)
    index.remove(gone[:5])
    alive[gone] = False
    index.add(vectors[2500:], biases[2500:])
    assert index.num_items == NUM_ITEMS
    late = np.arange(2600, 2700)
    index.remove(late)
    alive[late] = False
    assert (index.changes > 0) == (rebuild_share == 1.0) or index.changes <= 0.05 * NUM_ITEMS
    allowed = np.arange(NUM_ITEMS) % 2 == 0
    for mask in (None, allowed):
        found = index.search(queries[:30], 10, allowed=mask, excluded=[gone[:3]] * 30)
        left = alive if mask is None else alive & mask
        true = np.array([scan(vectors, biases, query, 10, left)[0] for query in queries[:30]])
        assert recall(found.items, true) >= 0.97
        assert left[found.items].all()
        assert (found.items >= 2500).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_without_items_left_lists_none_and_can_grow_again(kind: str) -> None:
    vectors, _, queries = world(40)
    index = build_index(vectors, RetrievalConfig(kind=kind, target_recall=0.9))
    index.remove(np.arange(40))
    found = index.search(queries[:2], 3)
    assert (found.items == NO_ITEM).all()
    assert (found.scores == -np.inf).all()
    index.add(vectors[:4])
    assert sorted(index.search(queries[:1], 6).items[0]) == [NO_ITEM, NO_ITEM, 40, 41, 42, 43]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_index_and_a_file_gives_it_back(kind: str, tmp_path: Path) -> None:
    vectors, biases, queries = world()
    config = RetrievalConfig(kind=kind, rebuild_share=0.2)
    first = build_index(vectors[:2900], config, biases=biases[:2900], queries=queries[30:])
    second = build_index(vectors[:2900], config, biases=biases[:2900], queries=queries[30:])
    for index in (first, second):
        index.add(vectors[2900:], biases[2900:])
        index.remove(np.arange(0, 200))
    save_index(tmp_path / "first", first)
    save_index(tmp_path / "second", second)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    loaded = load_index(tmp_path / "first")
    for index in (loaded, second):
        index.remove(np.arange(300, 310))
        index.add(vectors[:1])
    expected, found = second.search(queries, 20), loaded.search(queries, 20)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (loaded.built.effort, loaded.changes) == (second.built.effort, second.changes)
    save_index(tmp_path / "again", loaded)
    save_index(tmp_path / "expected", second)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_items", [1, 2, 17])
def test_few_items_are_no_special_case(kind: str, num_items: int) -> None:
    vectors, biases, queries = world(num_items, 3)
    index = build_index(vectors, RetrievalConfig(kind=kind), biases=biases)
    for query in queries[:10]:
        items, scores = index.search(query[None], 5)
        best, values = scan(vectors, biases, query, 5)
        np.testing.assert_array_equal(items[0], best)
        np.testing.assert_array_equal(scores[0], values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_query_and_equal_vectors_list_by_bias_then_lower_item(kind: str) -> None:
    index = build_index(np.ones((50, 4), np.float32), RetrievalConfig(kind=kind, target_recall=0.01))
    index.add(np.ones((5, 4), np.float32), np.full(5, 2, np.float32))
    allowed = np.arange(55) % 5 < 4
    allowed[:48] = False
    assert index.search(np.zeros((1, 4), np.float32), 4, allowed=allowed).items[0].tolist() == [50, 51, 52, 53]
    assert index.search(np.ones((1, 4), np.float32), 6, allowed=allowed).items[0].tolist() == [50, 51, 52, 53, 48, -1]


# ------------------------------------------------------------------------------------------- auto and tuning


def test_auto_is_exact_while_there_is_little_to_read_and_quick_above() -> None:
    vectors, _, queries = world()
    assert build_index(vectors, RetrievalConfig(exact_until=vectors.size)).built.kind == "exact"
    assert build_index(vectors, RetrievalConfig(exact_until=0, target_recall=0.9)).built.kind in {"ivf", "pq"}
    index = build_index(
        vectors[:2900], RetrievalConfig(exact_until=2950 * vectors.shape[1], rebuild_share=0.01), queries=queries
    )
    assert index.built.kind == "exact"
    index.add(vectors[2900:])
    assert index.built.kind != "exact"


def test_auto_takes_the_first_kind_that_reaches_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors without clusters: few lists hold little, codes hold most; without codes only the exact scan is left."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20_000, 32)).astype(np.float32)
    config = RetrievalConfig(exact_until=0, num_samples=30)
    assert build_index(vectors, replace(config, target_recall=0.15)).built.kind == "ivf"
    assert build_index(vectors, replace(config, target_recall=0.95)).built.kind == "pq"
    # Of many that hardly differ among others, the codes cannot tell one from another.
    twins = np.concatenate([vectors[:1000], np.repeat(vectors[:10], 2000, 0) + np.float32(1e-4) * vectors])
    with pytest.raises(ConfigError, match=r'finds 0\.\d+ of the first 10 .*use "auto"'):
        build_index(twins, replace(config, kind="pq"))
    monkeypatch.setattr(table, "INDEXES", {**INDEXES, "pq": INDEXES["ivf"]})
    assert build_index(vectors, replace(config, target_recall=0.95)).built.kind == "exact"


def test_a_higher_target_takes_more_effort() -> None:
    vectors, _, queries = world()
    efforts = [build_index(vectors, RetrievalConfig("ivf", target_recall=t), queries=queries) for t in (0.3, 0.999)]
    assert efforts[0].built.effort < efforts[1].built.effort
    assert efforts[0].built.recall >= 0.3
    assert efforts[1].built.recall >= 0.999


def test_a_failed_rebuild_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20_000, 32)).astype(np.float32)
    index = build_index(vectors[:1000], RetrievalConfig("pq", num_samples=30, target_recall=0.9))
    before = index.search(vectors[:5], 10)
    with pytest.raises(ConfigError, match="target_recall"):
        index.add(np.repeat(vectors[:1], 20_000, 0) + 1e-4 * vectors)
    assert index.num_items == 1000
    np.testing.assert_array_equal(index.search(vectors[:5], 10).items, before.items)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "annoy"}, "retrieval.kind is 'annoy'"),
        ({"exact_until": -1}, "retrieval.exact_until"),
        ({"target_recall": 0.0}, "retrieval.target_recall"),
        ({"target_recall": 1.1}, "retrieval.target_recall"),
        ({"num_samples": 0}, "retrieval.num_samples"),
        ({"num_lists": 0}, "retrieval.num_lists"),
        ({"exact_share": 0.0}, "retrieval.exact_share"),
        ({"rebuild_share": 0.0}, "retrieval.rebuild_share"),
        ({"seed": -1}, "retrieval.seed"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_index(np.ones((3, 2), np.float32), RetrievalConfig(**settings))  # type: ignore[arg-type]


def test_unusable_input_is_refused() -> None:
    vectors, biases, queries = world(50)
    index = build_index(vectors, biases=biases)
    bad = vectors.copy()
    bad[7, 3] = np.nan
    with pytest.raises(DataError, match="vectors: row 7"):
        build_index(bad)
    with pytest.raises(DataError, match="biases: row 4"):
        build_index(vectors, biases=np.where(np.arange(50) == 4, np.inf, 0).astype(np.float32))
    with pytest.raises(DataError, match="needs some"):
        build_index(vectors[:0])
    with pytest.raises(DataError, match="biases: 49"):
        build_index(vectors, biases=biases[:49])
    with pytest.raises(DataError, match="queries: 11 dim"):
        build_index(vectors, queries=queries[:, :11])
    with pytest.raises(DataError, match="queries: none"):
        build_index(vectors, queries=queries[:0])
    with pytest.raises(DataError, match="queries: 11 dim"):
        index.search(queries[:, :11], 3)
    with pytest.raises(DataError, match="queries: row 0"):
        index.search(np.full((1, WIDTH), np.inf, np.float32), 3)
    with pytest.raises(DataError, match="allowed: 49"):
        index.search(queries, 3, allowed=np.ones(49, bool))
    with pytest.raises(DataError, match="excluded: 1 lists"):
        index.search(queries, 3, excluded=[np.arange(3)])
    with pytest.raises(DataError, match="excluded: item 50"):
        index.search(queries[:1], 3, excluded=[np.array([50])])
    with pytest.raises(DataError, match="items: item -1"):
        index.remove(np.array([-1]))
    with pytest.raises(DataError, match="vectors: 3 dim"):
        index.add(np.ones((2, 3), np.float32))
    with pytest.raises(ConfigError, match="k: got 0"):
        index.search(queries, 0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    monkeypatch.setattr(table, "INDEXES", {**INDEXES, "ivf": absent})
    with pytest.raises(ConfigError, match="needs faiss"):
        build_index(np.ones((3, 2), np.float32), RetrievalConfig("ivf"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    vectors, _, queries = world(500)
    path = tmp_path / "index"
    save_index(path, build_index(vectors, RetrievalConfig(kind, target_recall=0.5), queries=queries))
    whole = path.read_bytes()
    with pytest.raises(ModelError, match="not readable"):
        load_index(tmp_path / "absent")
    path.write_bytes(whole[:-10])
    with pytest.raises(ModelError, match="not readable"):
        load_index(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="no index of format"):
        load_index(path)
    path.write_bytes(whole.replace(b"vectors", b"vektors"))
    with pytest.raises(ModelError, match="not usable"):
        load_index(path)
    path.write_bytes(
        whole.replace(f'\\"kind\\": \\"{kind}\\"'.encode(), f'\\"kind\\": \\"{"x" * len(kind)}\\"'.encode())
    )
    with pytest.raises(ModelError, match="not usable"):
        load_index(path)
    with pytest.raises(ModelError, match="cannot be written"):
        save_index(tmp_path, load_index_of(whole, tmp_path))


def load_index_of(content: bytes, folder: Path):  # type: ignore[no-untyped-def]
    (folder / "whole").write_bytes(content)
    return load_index(folder / "whole")

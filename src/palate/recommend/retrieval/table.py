"""The table of indexes, and how one is built: a kind is one file and one line here."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32, Int64

from palate.errors import ConfigError, DataError
from palate.recommend.retrieval.engine import TUNED_AT, Engine, EngineEntry
from palate.recommend.retrieval.exact import EXACT, ExactScan
from palate.recommend.retrieval.index import Built, Index
from palate.recommend.retrieval.rows import Rows, check_vectors
from palate.recommend.retrieval.settings import RetrievalConfig

AUTO = "auto"


def _exact() -> EngineEntry:
    return EXACT


def _ivf() -> EngineEntry:
    from palate.recommend.retrieval.partitions import IVF

    return IVF


def _pq() -> EngineEntry:
    from palate.recommend.retrieval.compressed import PQ

    return PQ


INDEXES: Mapping[str, Callable[[], EngineEntry]] = {"exact": _exact, "ivf": _ivf, "pq": _pq}
"""Kinds by name; each is imported when it is first used, since faiss takes a moment and memory to load."""

_LARGE = ("ivf", "pq", "exact")
"""What "auto" tries above `exact_until`; the last always reaches its target."""


def build_index(
    vectors: Float32[np.ndarray, "item dim"],
    config: RetrievalConfig | None = None,
    *,
    biases: Float32[np.ndarray, "bias"] | None = None,
    queries: Float32[np.ndarray, "query other"] | None = None,
) -> Index:
    """Build an index of items whose score is query · vector + bias (no biases: 0).

    `queries` are some like those to come, by which the effort of an approximate index is chosen; without them the
    vectors themselves serve, which is right only where queries are spread as items are. The index keeps the arrays and
    does not change them; neither may the caller.

    Raises:
        DataError: no vectors or no dimension, numbers that are not finite or not below 1e15, lengths that differ.
        ConfigError: the kind is unknown, needs a package that is not installed, or misses the target recall.
    """
    config = config or RetrievalConfig()
    if not vectors.size:
        raise DataError(f"vectors: got {vectors.shape[0]} of {vectors.shape[1]} dimensions; an index needs some")
    biases = np.zeros(len(vectors), np.float32) if biases is None else biases
    check_vectors(vectors, biases, vectors.shape[1])
    if queries is not None:
        check_vectors(queries, None, vectors.shape[1], "queries")
        if not len(queries):
            raise DataError("queries: none given; give some like those to come, or leave the argument out")
    if config.kind != AUTO:
        find_entry(config.kind)
    rows = Rows.fresh(np.ascontiguousarray(vectors), biases)
    scan = ExactScan(rows.vectors, rows.biases)
    return Index(config, queries, build, rows, scan, build(config, queries, rows, scan))


def find_entry(kind: str) -> EngineEntry:
    """Look a kind up in the table; ConfigError where it is not there or cannot be imported."""
    if kind not in INDEXES:
        raise ConfigError(f"retrieval.kind is {kind!r}; choose one of: {', '.join((AUTO, *INDEXES))}")
    try:
        return INDEXES[kind]()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'retrieval.kind {kind!r} needs {error.name}, which is not installed; pip install faiss-cpu, or use "exact"'
        ) from None


def build(
    config: RetrievalConfig, queries: Float32[np.ndarray, "query dim"] | None, rows: Rows, scan: ExactScan
) -> Built:
    """Make the engine for rows and choose its effort; the exact scan of the rows gives the truth to tune by.

    Raises:
        ConfigError: the kind is unknown, needs a package that is not installed, or misses the target recall.
    """
    kinds: tuple[str, ...] = (config.kind,)
    if config.kind == AUTO:
        kinds = ("exact",) if rows.vectors.size <= config.exact_until else _LARGE
    pool = rows.vectors if queries is None else queries
    rng = np.random.default_rng(config.seed)
    samples = pool[rng.choice(len(pool), min(config.num_samples, len(pool)), replace=False)]
    truth: list[Int64[np.ndarray, "place"]] = []
    reached = 0.0
    for kind in kinds:
        entry = find_entry(kind)
        if entry is EXACT:
            return Built(kind, entry, {}, scan, 1, 1.0)
        truth = truth or _first(scan, 1, samples, rows)
        learned = entry.learn(rows.vectors, rows.biases, config)
        engine = entry.assemble(learned, rows.vectors, rows.biases)
        for effort in engine.efforts:
            if config.kind == AUTO and effort > engine.quick:
                break
            found = _first(engine, effort, samples, rows)
            reached = float(np.mean([np.isin(true, some).mean() for true, some in zip(truth, found, strict=True)]))
            if reached >= config.target_recall:
                return Built(kind, entry, learned, engine, effort, reached)
    raise ConfigError(
        f"retrieval.kind {config.kind!r} finds {reached:.3f} of the first {TUNED_AT} at most on these vectors, below "
        f'retrieval.target_recall {config.target_recall}; use "auto" or lower the target'
    )


def _first(
    engine: Engine, effort: int, queries: Float32[np.ndarray, "query dim"], rows: Rows
) -> list[Int64[np.ndarray, "place"]]:
    """The first ten that an engine finds for each query."""
    return [rows.best(query, TUNED_AT, engine.candidates(query, TUNED_AT, effort, None))[0] for query in queries]

"""The index: largest inner products among item vectors, with filters, additions and removals.

An engine (`engine.py`) names candidates; they are scored exactly afterwards, so that a score never depends on the kind
of index: it is the product and the bias summed in float64 and rounded to float32. Equal scores are listed by lower
item, as `palate.metrics.top_k` does.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from palate.errors import ConfigError, DataError
from palate.metrics import NO_ITEM
from palate.recommend.retrieval.engine import TUNED_AT, Engine, EngineEntry, Learned
from palate.recommend.retrieval.exact import ExactScan
from palate.recommend.retrieval.rows import Rows, check_vectors
from palate.recommend.retrieval.settings import RetrievalConfig

_MANY = 256
"""Up to so many excluded items are fetched in addition and dropped; more become a filter."""

_DROPPED_SHARE = 0.25
"""Efforts grow by the root of what is asked for, a dropped item counting this much: on item features of a shop with
twenty purchases a person, .996 of the first ten that are left are found, for .995 asked."""
_PAIRS = 65_536
"""Up to so many pairs of rows are compared each with each: sorting them takes longer."""


class Found(NamedTuple):
    """The best items of each query, best first."""

    items: Int64[np.ndarray, "query place"]
    """`NO_ITEM` where no item is left."""
    scores: Float32[np.ndarray, "query place"]
    """-inf where no item is left."""


class Built(NamedTuple):
    """What a build decides."""

    kind: str
    """A line of `INDEXES`."""
    entry: EngineEntry
    learned: Learned
    engine: Engine
    effort: int
    """Lists probed by "ivf", candidates that "pq" ranks again."""
    recall: float
    """Share of the true first ten found on the sample queries; 1 for "exact"."""


class Index:
    """Vectors of items, numbered from 0 in the order in which they came; a number is never used again.

    Searches may run side by side, but not beside `add` or `remove`. A single search keeps to one thread in faiss;
    the exact scan follows `torch.set_num_threads`.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        queries: Float32[np.ndarray, "query dim"] | None,
        build: Callable[[RetrievalConfig, Float32[np.ndarray, "query dim"] | None, Rows, ExactScan], Built],
        rows: Rows,
        scan: ExactScan,
        built: Built,
        changes: int = 0,
    ) -> None:
        """Put together what `build` made of rows, so many changes ago; see `build_index`."""
        self.config = config
        self.queries = queries
        """Those to tune by; None: the vectors."""
        self.rows = rows
        self.changes = changes
        """Items added and removed since the build."""
        self._build = build
        self._scan = scan
        self.built = built

    @property
    def num_items(self) -> int:
        """Numbers given out so far, those of removed items included."""
        return self.rows.num_items

    def search(
        self,
        queries: Float32[np.ndarray, "query dim"],
        k: int,
        *,
        allowed: Bool[np.ndarray, "item"] | None = None,
        excluded: Sequence[Int64[np.ndarray, "_"]] | None = None,
    ) -> Found:
        """List each query's `k` best items by product plus bias; fewer only where fewer are left.

        `allowed` says of every item (removed ones too) whether any query may get it; `excluded` gives, for each query,
        the items that it may not.

        Raises:
            ConfigError: k is below 1.
            DataError: queries of another width, not finite or not below 1e15; a filter of the wrong length; an unknown
                item in it.
        """
        if k < 1:
            raise ConfigError(f"k: got {k}; expected 1 or more")
        check_vectors(queries, None, self.rows.vectors.shape[1], "queries")
        if excluded is not None and len(excluded) != len(queries):
            raise DataError(f"excluded: {len(excluded)} lists for {len(queries)} queries; give one a query")
        items = np.full((len(queries), k), NO_ITEM, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        among = self.rows.filter(allowed)
        for number, query in enumerate(queries):
            dropped = np.empty(0, np.int64) if excluded is None else self.rows.places(excluded[number], "excluded")
            best, values = self.rows.best(query, k, self._candidates(query, k, among, dropped))
            items[number, : len(best)], scores[number, : len(best)] = best, values
        return Found(items, scores)

    def products(
        self, query: Float32[np.ndarray, "dim"], items: Int64[np.ndarray, "named"]
    ) -> Float32[np.ndarray, "named"]:
        """Score some items, rising numbers of items that were not removed, by product plus bias.

        Raises:
            DataError: an unknown item.
        """
        rows = self.rows.places(items, "items")
        found: Float32[np.ndarray, "named"] = self.rows.vectors.take(rows, 0) @ query + self.rows.biases.take(rows)
        return found

    def add(self, vectors: Float32[np.ndarray, "new dim"], biases: Float32[np.ndarray, "bias"] | None = None) -> None:
        """Append items; they get the numbers from `num_items` on. May build anew: `rebuild_share`.

        Raises:
            DataError: vectors of another width, not finite or not below 1e15; biases of another length.
            ConfigError: a new build misses the target recall; the index is as before.
        """
        biases = np.zeros(len(vectors), np.float32) if biases is None else biases
        check_vectors(vectors, biases, self.rows.vectors.shape[1])
        if self._change(self.rows.added(vectors, biases), len(vectors)):
            return
        self._scan.extend(vectors, biases)
        if self.built.engine is not self._scan:
            self.built.engine.extend(vectors, biases)

    def with_added(
        self, vectors: Float32[np.ndarray, "new dim"], biases: Float32[np.ndarray, "bias"] | None = None
    ) -> "Index":
        """Another index with these items too, while this one goes on answering; as `add` otherwise."""
        other = self._copied()
        other.add(vectors, biases)
        return other

    def with_vectors(
        self, vectors: Float32[np.ndarray, "item dim"], biases: Float32[np.ndarray, "item"] | None = None
    ) -> "Index":
        """Another index of the same items after their vectors have moved, while this one goes on answering.

        What the engine has learned and the effort stay, so that this costs a small part of a build. How much is found
        is as it was while vectors keep to their neighbourhoods.

        Raises:
            DataError: vectors of another width or number, not finite or not below 1e15.
        """
        biases = np.zeros(len(vectors), np.float32) if biases is None else biases
        check_vectors(vectors, biases, self.rows.vectors.shape[1])
        if len(vectors) != self.num_items:
            raise DataError(f"vectors: {len(vectors):,} for {self.num_items:,} items; give one an item")
        other = copy(self)
        if len(self.rows.ids) < self.num_items:
            vectors, biases = vectors[self.rows.ids], biases[self.rows.ids]
        other.rows = replace(self.rows, vectors=vectors, biases=biases)
        other._scan = ExactScan(other.rows.vectors, other.rows.biases)
        engine: Engine = other._scan
        if self.built.engine is not self._scan:
            engine = self.built.entry.assemble(self.built.learned, other.rows.vectors, other.rows.biases)
        other.built = self.built._replace(engine=engine)
        return other

    def remove(self, items: Int64[np.ndarray, "removed"]) -> None:
        """Never list these items again; removing one twice changes nothing. May build anew: `rebuild_share`.

        Raises:
            DataError: an unknown item.
            ConfigError: a new build misses the target recall; the index is as before.
        """
        rows = self.rows.removed(items)
        self._change(rows, int(np.count_nonzero(self.rows.alive) - np.count_nonzero(rows.alive)))

    # ---------------------------------------------------------------------------------------------- inside

    def _copied(self) -> "Index":
        other = copy(self)
        other._scan = self._scan.copied()
        engine = other._scan if self.built.engine is self._scan else self.built.engine.copied()
        other.built = self.built._replace(engine=engine)
        return other

    def _candidates(
        self,
        query: Float32[np.ndarray, "dim"],
        k: int,
        among: Bool[np.ndarray, "row"] | None,
        dropped: Int64[np.ndarray, "dropped"],
    ) -> Int64[np.ndarray, "candidate"]:
        """Rows that hold the `k` best that are among some and not dropped."""
        extra = len(dropped)
        if extra > _MANY:
            among, extra = self.rows.alive.copy() if among is None else among.copy(), 0
            among[dropped] = False
        scarce = among is not None and np.count_nonzero(among) < self.config.exact_share * len(among)
        if self.built.engine is not self._scan and not scarce:
            wanted = (k + _DROPPED_SHARE * extra) / TUNED_AT
            effort = math.ceil(self.built.effort * max(1.0, wanted) ** 0.5)
            found = _without(self.built.engine.candidates(query, k + extra, effort, among), dropped)
            if len(found) >= k:  # else the lists that were read, or the codes, left too few
                return found
        return _without(self._scan.candidates(query, k + extra, 1, among), dropped)

    def _change(self, rows: Rows, changes: int) -> bool:
        """Take changed rows in; says whether enough has changed by now that all was built anew."""
        changes += self.changes
        if changes <= self.config.rebuild_share * (len(rows.ids) - changes) or not rows.alive.any():
            self.rows, self.changes = rows, changes
            return False
        rows = rows.compacted()
        scan = ExactScan(rows.vectors, rows.biases)
        self.built = self._build(self.config, self.queries, rows, scan)
        self.rows, self._scan, self.changes = rows, scan, 0
        return True


def _without(rows: Int64[np.ndarray, "candidate"], dropped: Int64[np.ndarray, "dropped"]) -> Int64[np.ndarray, "kept"]:
    if len(rows) * len(dropped) <= _PAIRS:
        kept: Int64[np.ndarray, "kept"] = rows[(rows[:, None] != dropped).all(1)]
        return kept
    return rows[~np.isin(rows, dropped)]

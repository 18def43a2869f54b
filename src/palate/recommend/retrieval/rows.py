"""The vectors of an index: a row each, which items they are, and their exact scores."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64

from palate.errors import DataError

Vectors = Float32[np.ndarray, "row dim"]
Biases = Float32[np.ndarray, "row"]

_LARGEST = 1e15
"""Entries of vectors and biases are smaller, so that float32 products cannot overflow."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in the order of their items' numbers. Never changed: methods return another one."""

    vectors: Vectors
    biases: Biases
    ids: Int64[np.ndarray, "row"]
    """Number of each row's item, increasing."""
    alive: Bool[np.ndarray, "row"]
    """False for items that were removed; their rows go at the next build."""
    num_items: int
    """Numbers given out so far, those of removed items included."""

    @staticmethod
    def fresh(vectors: Vectors, biases: Biases) -> "Rows":
        """Items numbered from 0, none of them removed."""
        return Rows(vectors, biases, np.arange(len(vectors)), np.ones(len(vectors), bool), len(vectors))

    def added(self, vectors: Float32[np.ndarray, "new dim"], biases: Float32[np.ndarray, "new"]) -> "Rows":
        """These rows and new ones, which get the numbers from `num_items` on."""
        return Rows(
            np.concatenate([self.vectors, vectors]),
            np.concatenate([self.biases, biases]),
            np.concatenate([self.ids, np.arange(self.num_items, self.num_items + len(vectors))]),
            np.concatenate([self.alive, np.ones(len(vectors), bool)]),
            self.num_items + len(vectors),
        )

    def removed(self, items: Int64[np.ndarray, "named"]) -> "Rows":
        """These rows, some of them no longer alive."""
        alive = self.alive.copy()
        alive[self.places(items, "items")] = False
        return replace(self, alive=alive)

    def compacted(self) -> "Rows":
        """The rows that are alive."""
        keep = self.alive
        return Rows(self.vectors[keep], self.biases[keep], self.ids[keep], keep[keep], self.num_items)

    def places(self, items: Int64[np.ndarray, "named"], name: str) -> Int64[np.ndarray, "row"]:
        """Rows of items, each once; items whose rows are gone are left out. DataError for an unknown one."""
        if not len(items):
            return items
        items = np.unique(items)
        if items[0] < 0 or items[-1] >= self.num_items:
            wrong = items[0] if items[0] < 0 else items[-1]
            raise DataError(f"{name}: item {wrong} is not among the {self.num_items:,} of the index; add it first")
        if len(self.ids) == self.num_items:
            return items
        rows = np.searchsorted(self.ids, items)
        rows[rows == len(self.ids)] = 0
        kept: Int64[np.ndarray, "row"] = rows[self.ids[rows] == items]
        return kept

    def filter(self, allowed: Bool[np.ndarray, "item"] | None) -> Bool[np.ndarray, "row"] | None:
        """Of each row whether it may be listed; None: every row may. DataError for a filter of another length."""
        whole = bool(self.alive.all())
        if allowed is None:
            return None if whole else self.alive
        if len(allowed) != self.num_items:
            raise DataError(f"allowed: {len(allowed):,} entries for {self.num_items:,} items; give one an item")
        of_rows = allowed if len(self.ids) == self.num_items else allowed[self.ids]
        return of_rows if whole else of_rows & self.alive

    def best(
        self, query: Float32[np.ndarray, "dim"], k: int, candidates: Int64[np.ndarray, "candidate"]
    ) -> tuple[Int64[np.ndarray, "place"], Float32[np.ndarray, "place"]]:
        """Score candidates exactly and return the items and scores of the first `k`, ties by lower item."""
        vectors = self.vectors.take(candidates, 0)
        if len(candidates) > 4 * k:  # as of a compressed scan: those that cannot be among the first k go before
            rough = vectors @ query + self.biases.take(candidates)
            size = float(np.abs(query).sum() * np.abs(vectors).max() + np.abs(rough).max())
            level = float(np.partition(rough, len(rough) - k)[len(rough) - k])
            near = np.flatnonzero(rough.astype(np.float64) >= level - size * len(query) * 2.0**-22)
            vectors, candidates = vectors[near], candidates[near]
        # NOTE: a matrix product may sum a row in another order when other rows are beside it; einsum does not.
        products = np.einsum("ij,j->i", vectors.astype(np.float64), query.astype(np.float64))
        scores = (products + self.biases.take(candidates)).astype(np.float32)
        order = np.lexsort((candidates, -scores))[:k]
        return self.ids[candidates[order]], scores[order]


def check_vectors(
    vectors: Float32[np.ndarray, "row dim"],
    biases: Float32[np.ndarray, "bias"] | None,
    width: int,
    name: str = "vectors",
) -> None:
    """DataError unless vectors have this width and a bias each, and all numbers are finite and below 1e15."""
    if vectors.shape[1] != width:
        raise DataError(f"{name}: {vectors.shape[1]} dimensions, the index has {width}; encode with the same model")
    if biases is not None and len(biases) != len(vectors):
        raise DataError(f"biases: {len(biases):,} for {len(vectors):,} vectors; give one a vector")
    for part, values in ((name, vectors), ("biases", biases)):
        if values is None:
            continue
        if not max(values.max(initial=0), -values.min(initial=0)) < _LARGEST:  # NaN is not below it either
            row = int(np.argmin((np.abs(values.reshape(len(values), -1)) < _LARGEST).all(1)))
            raise DataError(f"{part}: row {row} is not finite or not below 1e15; check the model")

"""What the kinds of index have in common: they name candidates, and the index scores those exactly."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from palate.recommend.retrieval.settings import RetrievalConfig

Learned = Mapping[str, np.ndarray]
"""What an engine draws from the vectors before it takes them in: centroids, codebooks."""
TUNED_AT = 10
"""An effort is chosen by the recall of the first so many."""


@runtime_checkable
class Engine(Protocol):
    """Rows of vectors in a form that is quick to search."""

    @property
    def efforts(self) -> Sequence[int]:
        """What `effort` may be, from the quickest to the most thorough."""
        ...

    @property
    def quick(self) -> int:
        """The largest effort at which this engine still beats a scan of everything."""
        ...

    def candidates(
        self, query: Float32[np.ndarray, "dim"], count: int, effort: int, among: Bool[np.ndarray, "row"] | None
    ) -> Int64[np.ndarray, "candidate"]:
        """Rows, in any order and each once, that should hold the `count` best of the rows in `among` (None: of all).

        A row outside `among` is never named.
        """
        ...

    def extend(self, vectors: Float32[np.ndarray, "new dim"], biases: Float32[np.ndarray, "new"]) -> None:
        """Append rows."""
        ...

    def copied(self) -> "Engine":
        """Another engine with the same rows; extending one leaves the other as it is."""
        ...


class EngineEntry(NamedTuple):
    """A line of `INDEXES`: `assemble(learn(…), …)` is a build, and a saved index is assembled from what it learned."""

    learn: Callable[[Float32[np.ndarray, "row dim"], Float32[np.ndarray, "row"], RetrievalConfig], Learned]
    assemble: Callable[[Learned, Float32[np.ndarray, "row dim"], Float32[np.ndarray, "row"]], Engine]

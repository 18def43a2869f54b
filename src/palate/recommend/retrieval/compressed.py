"""Compressed scan: every vector as 4-bit codes, all of them read, and the best candidates ranked again.

Product quantisation (Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011,
doi 10.1109/TPAMI.2010.57) with a code for every two dimensions and tables in registers (André, Kermarrec and Le
Scouarnec, "Cache Locality Is Not Enough", VLDB 2015, doi 10.14778/2856318.2856324; faiss' fast scan). It asks nothing
of the vectors' arrangement: without clusters, where lists are of no use, it finds .99 of the first ten in 0.9 ms at a
million. Where many vectors hardly differ, codes cannot tell them apart, and lists are the better choice.
"""

from collections.abc import Sequence
from copy import copy
from typing import cast

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64

from palate.errors import ModelError
from palate.recommend.retrieval.engine import EngineEntry, Learned
from palate.recommend.retrieval.partitions import ladder, sample_rows
from palate.recommend.retrieval.settings import RetrievalConfig

_BITS, _PAIR = 4, 2
_TRAINING = 50_000
_FEWEST, _MOST = 64, 4096
"""Candidates that are ranked again, at least and at most: 4,096 cost about 1 ms."""


class CompressedScan:
    """faiss' product quantiser over vectors with their bias as one more dimension, padded to pairs."""

    def __init__(self, learned: Learned) -> None:
        self._codebook = np.ascontiguousarray(learned["codebook"], np.float32)
        num_pairs = len(self._codebook)
        self._codes = _quantiser(num_pairs)
        faiss.copy_array_to_vector(self._codebook.ravel(), self._codes.pq.centroids)
        self._codes.is_trained = True
        self.efforts: Sequence[int] = ladder(_FEWEST, _MOST)
        self.quick = _MOST

    def extend(self, vectors: Float32[np.ndarray, "new dim"], biases: Float32[np.ndarray, "new"]) -> None:
        """Append rows."""
        self._codes.add(_padded(vectors, biases))

    def copied(self) -> "CompressedScan":
        """Another one with the same rows."""
        other = copy(self)
        other._codes = cast(faiss.IndexPQFastScan, faiss.clone_index(self._codes))
        return other

    def candidates(
        self, query: Float32[np.ndarray, "dim"], count: int, effort: int, among: Bool[np.ndarray, "row"] | None
    ) -> Int64[np.ndarray, "candidate"]:
        """The `effort` rows with the best codes; as many more as `among` leaves fewer."""
        wanted = effort + count
        if among is not None:  # NOTE: the fast scan takes no selector; what is not asked for is dropped afterwards
            wanted = -(-wanted * len(among) // max(1, int(np.count_nonzero(among))))
        _, found = self._codes.search(_padded(query[None], np.ones(1, np.float32)), min(wanted, self._codes.ntotal))
        rows: Int64[np.ndarray, "candidate"] = found[0][found[0] >= 0]
        return rows if among is None else rows[among[rows]]


def _padded(
    vectors: Float32[np.ndarray, "row dim"], biases: Float32[np.ndarray, "row"]
) -> Float32[np.ndarray, "row wide"]:
    num_rows, width = vectors.shape
    padded = np.zeros((num_rows, _num_pairs(width) * _PAIR), np.float32)
    padded[:, :width] = vectors
    padded[:, width] = biases
    return padded


def _num_pairs(width: int) -> int:
    return -(-(width + 1) // _PAIR)


def _quantiser(num_pairs: int) -> "faiss.IndexPQFastScan":
    return faiss.IndexPQFastScan(num_pairs * _PAIR, num_pairs, _BITS, faiss.METRIC_INNER_PRODUCT)


def _learn(
    vectors: Float32[np.ndarray, "row dim"], biases: Float32[np.ndarray, "row"], config: RetrievalConfig
) -> Learned:
    num_pairs = _num_pairs(vectors.shape[1])
    rows = sample_rows(len(vectors), min(_TRAINING, max(len(vectors), 40 * 2**_BITS)), config.seed)
    codes = _quantiser(num_pairs)
    codes.pq.cp.seed = config.seed + 1
    codes.train(_padded(vectors[rows], biases[rows]))
    codebook = faiss.vector_to_array(codes.pq.centroids).reshape(num_pairs, 2**_BITS, _PAIR)
    return {"codebook": codebook.copy()}


def _assemble(
    learned: Learned, vectors: Float32[np.ndarray, "row dim"], biases: Float32[np.ndarray, "row"]
) -> CompressedScan:
    expected = (_num_pairs(vectors.shape[1]), 2**_BITS, _PAIR)
    if learned["codebook"].shape != expected:
        raise ModelError(f"codebook of shape {learned['codebook'].shape}; expected {expected}; build again")
    engine = CompressedScan(learned)
    engine.extend(vectors, biases)
    return engine


PQ = EngineEntry(_learn, _assemble)

"""Item-item weights B (item, item): what the choice of one item says of the others, counted over everyone's events.

EASE: Harald Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019, arXiv:1905.03375. Item neighbours:
Deshpande & Karypis, "Item-Based Top-N Recommendation Algorithms", 2004, doi 10.1145/963770.963776.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32
from scipy.linalg import get_lapack_funcs  # type: ignore[import-untyped]
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from palate.data.event_log import EventLog
from palate.errors import NumericalError

Weights = Float32[np.ndarray, "item item"]


def neighbour_weights(training: EventLog, num_items: int, shrink: float) -> Weights:
    """Cosine between items, shrunk: both / (√(one · other) + shrink); all in people."""
    weights = co_occurrences(training, num_items)
    norms = np.sqrt(weights.diagonal())
    for row, norm in zip(weights, norms, strict=True):  # row by row: one matrix in memory
        row /= norm * norms + np.float32(shrink)
    np.fill_diagonal(weights, 0)
    return weights


def ease_weights(
    training: EventLog, num_items: int, regularisation: float, *, precision: Literal["float32", "float64"] = "float32"
) -> Weights:
    """EASE: B = I − P diag(P)⁻¹, P = (XᵀX + λI)⁻¹ (eq. 8), λ = `regularisation`.

    Factored and inverted in place: in float32 1.35 GB for 18,357 items. XᵀX holds whole numbers, so it is exact; with
    λ ≥ 50 the weights of float32 agree with those of float64 to about 1e-4.

    Raises:
        NumericalError: the matrix cannot be factored, which a larger λ cures.
    """
    # LAPACK counts columns first: what is a row here is a column there, of the same symmetric matrix.
    gram = co_occurrences(training, num_items).astype(precision, copy=False).T
    gram[np.diag_indices(num_items)] += regularisation
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = potrf(gram, lower=1, overwrite_a=1, clean=0)
    if failed:
        raise NumericalError(f"ease: XᵀX + λI with λ = {regularisation} is not positive definite; take a larger λ")
    inverse, _ = potri(factor, lower=1, overwrite_c=1)
    weights: Float[np.ndarray, "item item"] = inverse.T  # its upper triangle is filled in, the other copied from it
    for row in range(num_items):
        weights[row + 1 :, row] = weights[row, row + 1 :]
    weights *= -1 / weights.diagonal()
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32, copy=False)


def transition_weights(training: EventLog, num_items: int) -> Weights:
    """First-order Markov chain: how often the one item followed the other, a share of all that followed it."""
    follows = np.ones(len(training), bool)
    follows[training.offsets[:-1][training.lengths() > 0]] = False
    (places,) = np.nonzero(follows)
    pair = (training.items[places - 1], training.items[places])
    weights: Weights = csr_array((np.ones(len(places), np.float32), pair), (num_items, num_items)).toarray()
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return weights


def co_occurrences(training: EventLog, num_items: int) -> Weights:
    """XᵀX for the 0/1 matrix X of who did what: how many people had both items (exact up to 16 million)."""
    users = np.repeat(np.arange(training.num_users), training.lengths())
    did = csr_array((np.ones(len(training), np.float32), (users, training.items)), (training.num_users, num_items))
    did.data[:] = 1.0  # an item done twice was summed up
    # NOTE: without order="C" the columns lie together, and every product with a few rows copies the whole matrix.
    counts: Weights = (did.T @ did).toarray(order="C")
    return counts

"""Scores of items by what was chosen together: co-occurrence, similar people, EASE and truncated SVD.

Each is a known neighbourhood method: item and user cosine (Sarwar et al., Item-based Collaborative Filtering
Recommendation Algorithms, 2001, doi 10.1145/371920.372071), conditional probability (Deshpande and Karypis,
Item-Based Top-N Recommendation Algorithms, 2004, doi 10.1145/963770.963776), EASE (Steck, Embarrassingly Shallow
Autoencoders for Sparse Data, 2019, arXiv:1905.03375) and PureSVD (Cremonesi et al., Performance of Recommender
Algorithms on Top-N Recommendation Tasks, 2010, doi 10.1145/1864708.1864721).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

_EASE_RIDGE = 100.0
_EASE_COUNT = 2
"""EASE learns nothing of an item chosen less often, and its inverse is the dearest part."""
_SVD_DIMS = (8, 24)
_USER_POWERS = (1, 2)


class Neighbourhood(NamedTuple):
    """Statistics of the training people's choices."""

    popularity: Float[np.ndarray, "item"]
    """People who chose each item."""
    active: Int64[np.ndarray, "active"]
    """Items that somebody chose; all below is of these."""
    chosen: Float[np.ndarray, "user active"]
    rarity: Float[np.ndarray, "active"]
    """Inverse document frequency: people per choice, in logs."""
    pairs: dict[str, Float[np.ndarray, "active active"]]
    """Weight of a chosen item (row) for a candidate (column), by method."""


def fit_neighbourhood(chosen: Float[np.ndarray, "user item"]) -> Neighbourhood:
    """Count what the training people chose, a 0/1 matrix with at least one choice."""
    popularity_of_all = chosen.sum(0)
    active = np.flatnonzero(popularity_of_all)
    chosen, popularity = chosen[:, active], popularity_of_all[active]
    num_users = len(chosen)
    rarity = np.log((num_users + 1) / (popularity + 0.5))
    together = chosen.T @ chosen
    np.fill_diagonal(together, 0)
    chance = np.outer(popularity, popularity) / num_users
    root = np.sqrt(rarity)
    axes = np.linalg.svd(chosen * root, full_matrices=False)[2]
    pairs = {
        "cosine": together / np.sqrt(np.outer(popularity + 3, popularity + 3)),
        "conditional": together / (popularity[:, None] + 2),
        "shrunk conditional": together / (popularity[:, None] + 5),
        "lift": np.log((together + 1) / (chance + 1)),
        "linked": (together > 0).astype(np.float64),
        "ease": ease_weights(chosen, _EASE_RIDGE),
    }
    pairs |= {f"svd {dim}": root[:, None] * (axes[:dim].T @ axes[:dim]) for dim in _SVD_DIMS}
    return Neighbourhood(popularity_of_all, active, chosen, rarity, pairs)


def neighbourhood_scores(
    neighbourhood: Neighbourhood, chosen: Float[np.ndarray, "person item"]
) -> dict[str, Float[np.ndarray, "person active"]]:
    """Score the active items by each method for people with these choices; zeros for no choice."""
    chosen = chosen[:, neighbourhood.active]
    scores = {name: chosen @ weights for name, weights in neighbourhood.pairs.items()}
    for power in _USER_POWERS:
        similar = user_similarity(chosen, neighbourhood.chosen, neighbourhood.rarity**power)
        scores[f"similar people {power}"] = similar**power @ neighbourhood.chosen
    return scores


def user_similarity(
    chosen: Float[np.ndarray, "person active"],
    others: Float[np.ndarray, "user active"],
    rarity: Float[np.ndarray, "active"],
) -> Float[np.ndarray, "person user"]:
    """Cosine of 0/1 choices in which an item counts by its rarity."""
    norm = np.sqrt(np.outer(chosen @ rarity, others @ rarity)) + 1e-9
    similarity: Float[np.ndarray, "person user"] = (chosen * rarity) @ others.T / norm
    return similarity


def ease_weights(chosen: Float[np.ndarray, "user active"], ridge: float) -> Float[np.ndarray, "active active"]:
    """EASE in closed form (eq. 8) among the items chosen at least twice; the others have zeros."""
    often = np.flatnonzero(chosen.sum(0) >= _EASE_COUNT)
    inverse = np.linalg.inv(chosen[:, often].T @ chosen[:, often] + ridge * np.eye(len(often)))
    weights = np.zeros((chosen.shape[1], chosen.shape[1]))
    weights[np.ix_(often, often)] = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights

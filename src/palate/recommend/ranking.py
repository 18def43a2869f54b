"""The best items for one person's fast weights: of a scored catalogue, or of an index of a large one."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from palate.data.episodes import History
from palate.meta.head import ScoringRows, score_rows, search_query
from palate.meta.learner import Fast
from palate.metrics import NO_ITEM, top_k
from palate.recommend.retrieval import Index

_FIRST = 8
"""Half the queries that an index is tuned by come from people with fewer events than this."""

Ranked = tuple[Int64[np.ndarray, "place"], Float[np.ndarray, "place"]]
"""Numbers of items, the best first, and their scores."""


Evidence = tuple[Int64[np.ndarray, "named"], Float[np.ndarray, "named"]]
"""Items that a person's events say something of, and what that adds to their scores; see `palate.scorers`."""


def rank_all(
    rows: ScoringRows,
    fast: Fast,
    k: int,
    *,
    evidence: Evidence,
    allowed: Bool[np.ndarray, "item"] | None,
    excluded: Int64[np.ndarray, "excluded"],
) -> Ranked:
    """Score every item and list the best; fewer than `k` where fewer are allowed (None: all) and not excluded."""
    with torch.inference_mode():
        scores = score_rows(fast, rows).numpy()
    named, added = evidence
    scores = scores.copy() if allowed is None else np.where(allowed, scores, -np.inf)
    scores[named] += added
    scores[excluded] = -np.inf
    ranked = top_k(scores[None], k)[0]
    places = ranked[ranked >= 0]
    return places, scores[places]


def rank_by_index(
    index: Index,
    fast: Fast,
    k: int,
    *,
    evidence: Evidence,
    allowed: Bool[np.ndarray, "item"] | None,
    excluded: Int64[np.ndarray, "excluded"],
) -> Ranked:
    """`rank_all` for an index of all items.

    The index finds the best of the items that have no evidence; those that have any are few and scored one by one.
    """
    named, added = evidence
    if allowed is not None:
        named, added = named[allowed[named]], added[allowed[named]]
    free = ~np.isin(named, excluded)
    named, added = named[free], added[free]
    query = search_query(fast).float()[None].numpy()
    found = index.search(query, k, allowed=allowed, excluded=[np.union1d(excluded, named)])
    listed = found.items[0] != NO_ITEM
    places = np.concatenate([found.items[0][listed], named])
    scores = np.concatenate([found.scores[0][listed], index.products(query[0], named) + added])
    # The order of the index among equal ones: the lower number first.
    best = np.lexsort((places, -scores))[:k]
    return places[best], scores[best]


def sample_histories(histories: Sequence[History], num_samples: int) -> list[tuple[int, History]]:
    """Some of the histories, each with its place, every other one cut after few events: what people ask moves on."""
    places = range(0, len(histories), max(1, len(histories) // num_samples))
    return [
        (place, histories[place] if number % 2 else histories[place].head(number // 2 % _FIRST))
        for number, place in enumerate(places)
    ]

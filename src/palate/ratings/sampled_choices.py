"""What a person's choices say of other items: features for the pool of a rating model whose ratings are yes and no.

Popularity, scores by what was chosen together, and Bayesian factors of the 0/1 matrix. The co-occurrence scores are
cosine (Sarwar et al., Item-based Collaborative Filtering Recommendation Algorithms, 2001, doi 10.1145/371920.372071),
conditional probability (Deshpande and Karypis, Item-Based Top-N Recommendation Algorithms, 2004,
doi 10.1145/963770.963776) and log-lift.

What was shown and not chosen may be a sample: only what was chosen is read as features, and a shown item tells the
factors no more than that it was not chosen.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from palate.ratings.bayesian_factors import SampledFactors, SamplerConfig, places_among, predict, sample_factors
from palate.ratings.sampled_ratings import readable
from palate.ratings.tasks import Ratings

_YES = 0.5
_UNOBSERVED = 0.1
"""Weight of an item that a person has not been shown, as one not chosen."""
_SHARE_FLOOR, _FACTOR_SHARE_FLOOR = 0.3, 1.5
_POPULARITY_WEIGHT = 0.004
"""Share of an item's popularity added to its conditional probability, which is 0 where nothing links."""


class SampledChoices(NamedTuple):
    """A fitted model; it covers the most chosen items of the training, and those that nobody chose."""

    column: Int64[np.ndarray, "item"]
    """Place of each item of the training among those chosen; their number: nobody chose it; −1: not covered."""
    popularity: Float32[np.ndarray, "chosen"]
    """People who chose each."""
    together: Float32[np.ndarray, "chosen chosen"]
    """People who chose both; 0 on the diagonal."""
    typical: Float[np.ndarray, "2"]
    """Number of people; mean over them of the mean log count of what they chose."""
    factors: SampledFactors
    """Of the items, each divided by its spread."""

    def covers(self, items: Int64[np.ndarray, "query"]) -> Bool[np.ndarray, "query"]:
        """Which items have features."""
        return places_among(self.column, items) >= 0

    def features(
        self,
        items: Int64[np.ndarray, "event"],
        ratings: Float[np.ndarray, "event"],
        asked: Int64[np.ndarray, "query"],
        profile: Float[np.ndarray, "profile"],
    ) -> Float[np.ndarray, "query feature"]:
        """Of the items asked about, all covered; a rating above a half is a choice."""
        num_chosen, (num_people, typical) = len(self.popularity), self.typical
        columns = places_among(self.column, items)
        told = (columns >= 0) & (columns < num_chosen)
        columns, yes = columns[told], ratings[told] > _YES
        own, query = np.unique(columns[yes]), self.column[asked]
        weight, chosen = np.full((2, num_chosen), [[_UNOBSERVED], [0.0]])
        weight[columns], chosen[own] = 1.0, 1.0

        def pick(scores: Float[np.ndarray, "chosen"]) -> Float[np.ndarray, "query"]:
            """Scores of the items asked about; 0 for one that nobody chose."""
            picked: Float[np.ndarray, "query"] = np.append(scores, 0.0)[query]
            return picked

        popularity = self.popularity.astype(np.float64)
        pairs, of_own = self.together[own].astype(np.float64), popularity[own]
        cosine = (1 / np.sqrt(of_own + 3)) @ pairs / np.sqrt(popularity + 3)
        conditional, shrunk = ((1 / (of_own + pseudo)) @ pairs for pseudo in (2, 5))
        linked = (pairs > 0).sum(0).astype(np.float64)
        lift = np.log((pairs + 1) / (of_own[:, None] * popularity / num_people + 1)).sum(0)
        spread, rows = _spread(popularity, num_people), self.factors.items
        of_factors = spread * predict(self.factors, rows, chosen / spread, weight, np.zeros(0), rows)
        count = pick(popularity)
        log_count = np.log(count + 0.5)
        taste = np.log(popularity[own] + 0.5).mean() - typical if len(own) else 0.0
        return np.stack(
            [
                log_count,
                count == 0,
                count == 1,
                log_count * taste,
                *(pick(log_share(scores, _SHARE_FLOOR)) for scores in (cosine, conditional, linked)),
                np.log(pick(shrunk) + _POPULARITY_WEIGHT * (count + 0.5)) - log_count,
                pick(lift),
                pick(of_factors),
                pick(log_share(of_factors, _FACTOR_SHARE_FLOOR)),
            ],
            axis=1,
        ).astype(np.float64)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that was fitted, by name."""
        arrays = {"column": self.column, "popularity": self.popularity, "together": self.together}
        arrays |= {"typical": self.typical}
        arrays |= {f"factors.{name}": value for name, value in self.factors.to_arrays().items()}
        return {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "SampledChoices":
        """The model that `to_tensors` took apart."""
        arrays = {name: value.numpy() for name, value in tensors.items()}
        factors = {name: arrays.pop(f"factors.{name}") for name in SampledFactors._fields}
        return SampledChoices(**arrays, factors=SampledFactors.from_arrays(factors))


def fit_sampled_choices(
    ratings: Ratings,
    num_items: int,
    config: SamplerConfig,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> SampledChoices:
    """Fit on some people's choices, at least one.

    Args:
        ratings: 1 for what was chosen, 0 for what was not.
        num_items: items there are, those included that nobody has seen.
        config: settings.
        seed: of the sampler and of the people who are read.
        on_step: called after each sweep as (sweep, of, standard deviation of the noise).

    Raises:
        NumericalError: the sampler diverged; names the sweep.
    """
    chosen = ratings.values > _YES
    choices = Ratings(ratings.users[chosen], ratings.items[chosen], np.ones(int(chosen.sum())))
    column, covered, people = readable(choices, num_items, config, seed)
    everyone, rows = np.unique(choices.users, return_inverse=True)
    kept = column[choices.items] >= 0
    places = (rows[kept], column[choices.items[kept]])
    matrix = sp.csr_matrix((np.ones(len(places[0])), places), shape=(len(everyone), len(covered)))
    matrix.data[:] = 1.0  # what was chosen twice is chosen
    popularity = np.asarray(matrix.sum(0))[0]
    together = (matrix.T @ matrix).toarray()
    np.fill_diagonal(together, 0)
    num_people = float(len(np.unique(ratings.users)))
    spread = _spread(popularity, num_people)
    read = matrix[np.isin(everyone, people)].toarray()
    factors = sample_factors(
        read / spread,
        np.ones(read.shape),
        np.zeros((len(read), 0)),
        np.log(popularity)[:, None] - 1,
        config,
        rng=np.random.default_rng(seed),
        name="factors of choices",
        on_step=on_step,
    )
    size = np.asarray(matrix.sum(1))[:, 0]
    typical = float(((matrix @ np.log(popularity + 0.5)) / np.maximum(size, 1))[size > 0].mean())
    shown = np.bincount(choices.items, minlength=num_items)
    return SampledChoices(
        np.where(shown > 0, column, len(covered)),
        popularity.astype(np.float32),
        together.astype(np.float32),
        np.array([num_people, typical]),
        factors,
    )


def log_share(scores: Float[np.ndarray, "chosen"], floor: float) -> Float[np.ndarray, "chosen"]:
    """Log of 1 + score / (floor · mean score), negative scores as 0: comparable between people."""
    scores = np.maximum(scores, 0)
    share: Float[np.ndarray, "chosen"] = scores / max(float(scores.mean()), 1e-6)
    return np.log1p(share / floor)


def _spread(popularity: Float[np.ndarray, "chosen"], num_people: float) -> Float[np.ndarray, "chosen"]:
    """A plain 0/1 matrix is fitted to the popular items, one of unit variance to the rarest: half-way between."""
    spread: Float[np.ndarray, "chosen"] = (popularity / num_people) ** 0.25
    return spread

"""A few-shot model of ratings: in which order would a person like the items that they are asked about.

Bayesian factors with the profiles, the content and the implicit profiles as side information. What is predicted is
either the rating or its mid-rank among the person's own ratings, which takes out how each person uses the scale (a
ridit: Bross, How to Use Ridit Analysis, 1958, doi 10.2307/2527727). Several chains of the sampler, of either target,
are averaged. The sampler is in `bayesian_factors`, the implicit profiles in `implicit_profile`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

from palate.errors import ConfigError, DataError
from palate.ratings.bayesian_factors import SampledFactors, SamplerConfig, predict, sample_factors
from palate.ratings.implicit_profile import ImplicitProfile, fit_profile, profile_of
from palate.ratings.matrices import check_features, check_ratings, mean_matrix, support_events
from palate.ratings.tasks import Ratings, Task, check_tasks

_PEOPLE_AT_A_TIME = 256


@dataclass(frozen=True)
class RankerConfig:
    """Settings of the ranker."""

    factors: SamplerConfig = field(default_factory=SamplerConfig)
    """Of each chain."""
    targets: tuple[str, ...] = ("midrank", "midrank", "raw")
    """What each chain predicts; the scores are averaged on the scale of one standard deviation."""
    midrank_pseudo: float = 5.0
    """Ratings of the average person that a person's own are added to, before they are ranked."""
    profile_dim: int = 24
    """Axes of the sets of rated items, as features of people."""
    item_profile_dim: int = 24
    """Axes of the raters, and again of the lift, as features of items."""

    def __post_init__(self) -> None:
        if not self.targets or not set(self.targets) <= set(TARGETS):
            known = ", ".join(TARGETS)
            raise ConfigError(f"ranker.targets is {self.targets}; expected one or more of {known}, one a chain")
        for name in ("profile_dim", "item_profile_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ranker.{name} is {getattr(self, name)}; expected at least 0")
        if not self.midrank_pseudo > 0:
            raise ConfigError(f"ranker.midrank_pseudo is {self.midrank_pseudo}; expected above 0")


class Levels(NamedTuple):
    """The ratings that there are, and how often the training people gave each."""

    values: Float[np.ndarray, "level"]
    pseudo_counts: Float[np.ndarray, "level"]


class Chain(NamedTuple):
    """One run of the sampler."""

    target: str
    factors: SampledFactors
    scale: float
    """Standard deviation of the target."""


class Ranker(NamedTuple):
    """A fitted model."""

    levels: Levels
    user_mean: Float[np.ndarray, "feature"]
    profile: ImplicitProfile
    chains: tuple[Chain, ...]

    def score(
        self, tasks: Sequence[Task], user_features: Float[np.ndarray, "user feature"]
    ) -> list[Float[np.ndarray, "query"]]:
        """How much each person would like each query item, higher is better; reads no query value.

        Raises:
            DataError: there is no task, or a row is out of range or not finite.
        """
        num_items = len(self.profile.content)
        check_tasks(tasks, len(user_features), num_items)
        if user_features.shape[1] != len(self.user_mean):
            raise DataError(
                f"user features have {user_features.shape[1]} columns; expected the {len(self.user_mean)} of training"
            )
        check_features("user features", user_features)
        scores = []
        for first in range(0, len(tasks), _PEOPLE_AT_A_TIME):
            part = tasks[first : first + _PEOPLE_AT_A_TIME]
            table = self._score_all(part, user_features[[task.user for task in part]], num_items)
            scores += [row[task.query_items] for row, task in zip(table, part, strict=True)]
        return scores

    def _score_all(
        self, tasks: Sequence[Task], user_features: Float[np.ndarray, "task feature"], num_items: int
    ) -> Float[np.ndarray, "task item"]:
        places, items, values = support_events(tasks)
        shape = (len(tasks), num_items)
        _, seen = mean_matrix(places, items, values, shape)
        features = np.c_[user_features - self.user_mean, profile_of(self.profile, seen)]
        total = np.zeros(shape)
        for chain in self.chains:
            target = TARGETS[chain.target](values, places, len(tasks), self.levels)
            total += predict(chain.factors, mean_matrix(places, items, target, shape)[0], seen, features) / chain.scale
        return total / len(self.chains)


def fit_ranker(
    ratings: Ratings,
    num_items: int,
    user_features: Float[np.ndarray, "user user_feature"],
    item_features: Float[np.ndarray, "item item_feature"],
    config: RankerConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Ranker:
    """Fit on training people's ratings.

    Args:
        ratings: of people and items by row number.
        num_items: items there are, those included that nobody has rated.
        user_features: profiles by row; only the training people's are read.
        item_features: content by row.
        config: settings.
        seed: of the chains; the same seed gives the same scores.
        on_step: called after each sweep as (sweep, of all chains together, standard deviation of the noise).

    Raises:
        DataError: the ratings or features cannot be used; says which.
        NumericalError: a chain diverged; names it and the sweep.
    """
    config = config or RankerConfig()
    if len(item_features) != num_items:
        raise DataError(f"item features have {len(item_features)} rows; expected num_items = {num_items}")
    check_ratings(ratings, len(user_features), num_items)
    check_features("user features", user_features)
    check_features("item features", item_features)
    people, places = np.unique(ratings.users, return_inverse=True)
    shape = (len(people), num_items)
    _, seen = mean_matrix(places, ratings.items, ratings.values, shape)
    values, counts = np.unique(ratings.values, return_counts=True)
    levels = Levels(values, config.midrank_pseudo * counts / counts.sum())
    profile = fit_profile(seen, item_features, config.profile_dim, config.item_profile_dim)
    user_mean = user_features[people].mean(0)
    user_side = np.c_[user_features[people] - user_mean, profile_of(profile, seen)]
    log_count = np.log1p(seen.sum(0))
    item_side = np.c_[item_features - item_features.mean(0), log_count - log_count.mean(), profile.item_loadings]

    per_chain = config.factors.num_burn_in + config.factors.num_samples
    chains = []
    for place, name in enumerate(config.targets):
        target = TARGETS[name](ratings.values, places, len(people), levels)

        def report(sweep: int, of: int, noise: float, before: int = place * per_chain) -> None:
            if on_step is not None:
                on_step(before + sweep, len(config.targets) * of, noise)

        factors = sample_factors(
            mean_matrix(places, ratings.items, target, shape)[0],
            seen,
            user_side,
            item_side,
            config.factors,
            rng=np.random.default_rng([seed, place]),
            name=f"ranker, chain {place} ({name})",
            on_step=report,
        )
        chains.append(Chain(name, factors, float(target.std())))
    return Ranker(levels, user_mean, profile, tuple(chains))


def mid_ranks(
    values: Float[np.ndarray, "event"], people: Int[np.ndarray, "event"], num_people: int, levels: Levels
) -> Float[np.ndarray, "event"]:
    """Share of the person's ratings below each value, plus half of those equal, the average person's counted in."""
    num_levels = len(levels.values)
    code = np.searchsorted(levels.values, values - 1e-9).clip(max=num_levels - 1)
    own = np.bincount(people * num_levels + code, minlength=num_people * num_levels).reshape(num_people, num_levels)
    count = own + levels.pseudo_counts
    share = count / count.sum(1, keepdims=True)
    middle: Float[np.ndarray, "event"] = (share.cumsum(1) - share / 2)[people, code]
    return middle


def _as_rated(
    values: Float[np.ndarray, "event"], people: Int64[np.ndarray, "event"], num_people: int, levels: Levels
) -> Float[np.ndarray, "event"]:
    return values


TARGETS: dict[str, Callable[..., Float[np.ndarray, "event"]]] = {"midrank": mid_ranks, "raw": _as_rated}
"""What a chain can predict: (values, people, number of people, levels) to targets."""

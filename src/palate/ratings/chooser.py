"""A few-shot model of choices: which of the items that a person is shown will they choose.

Neighbourhood scores and Bayesian factors are features of a candidate item; a combiner learns to weigh them on episodes
(Vinyals et al., Matching Networks for One Shot Learning, 2016, arXiv:1606.04080). The training people are split in
folds, each fold's features come from the other folds' people (stacking: Wolpert, Stacked Generalization, 1992,
doi 10.1016/S0893-6080(05)80023-1), and each person's items are drawn anew into support and query: what the combiner
learns from is the scores of new people, as in use.

What was shown and not chosen is a sample: only what was chosen is read as features, and a shown item tells the factors
no more than that it was not chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import ConfigError, DataError
from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.candidate_features import Scorers, candidate_features, fit_scorers
from palate.ratings.combiner import Combiner, CombinerConfig, combine, fit_combiner
from palate.ratings.matrices import check_ratings, chosen_matrix, support_events
from palate.ratings.tasks import Ratings, Task, by_user, check_tasks

_PEOPLE_AT_A_TIME = 256


@dataclass(frozen=True)
class ChooserConfig:
    """Settings of the chooser."""

    factors: SamplerConfig = field(default_factory=lambda: SamplerConfig(dim=16, num_burn_in=40, num_samples=40))
    """Of the factors of the 0/1 matrix."""
    combiner: CombinerConfig = field(default_factory=CombinerConfig)
    """Of what weighs the scores."""
    unobserved_weight: float = 0.1
    """Weight of an item that a new person has not been shown, as one not chosen."""
    num_folds: int = 8
    """Parts of the training people; each part's episodes are scored by the others."""
    num_redraws: int = 5
    """Episodes of each training person."""
    support_size: int = 20
    """Events of an episode's support; the rest are its query."""

    def __post_init__(self) -> None:
        for name, least in (("num_folds", 2), ("num_redraws", 1), ("support_size", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"chooser.{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.unobserved_weight <= 1:
            raise ConfigError(f"chooser.unobserved_weight is {self.unobserved_weight}; expected 0 to 1")


class Chooser(NamedTuple):
    """A fitted model."""

    num_items: int
    config: ChooserConfig
    scorers: Scorers
    combiner: Combiner

    def score(self, tasks: Sequence[Task]) -> list[Float[np.ndarray, "query"]]:
        """Log-odds that each person chooses each query item; reads no query value, nor a profile.

        Raises:
            DataError: there is no task, an item is out of range, or a support value is neither 0 nor 1.
        """
        # The chooser has no table of profiles, so that any number of a person will do.
        check_tasks(tasks, 1 + max((task.user for task in tasks), default=0), self.num_items)
        scores = []
        for first in range(0, len(tasks), _PEOPLE_AT_A_TIME):
            part = tasks[first : first + _PEOPLE_AT_A_TIME]
            places, items, values = support_events(part)
            _check_choices("few-shot tasks, support", values)
            chosen, shown = chosen_matrix(places, items, values, (len(part), self.num_items))
            sizes = [len(task.query_items) for task in part]
            candidates = np.concatenate([task.query_items for task in part]).astype(np.int64)
            rows = np.repeat(np.arange(len(part)), sizes)
            features = candidate_features(self.scorers, chosen, shown, rows, candidates, self.config.unobserved_weight)
            scores += np.split(combine(self.combiner, features), np.cumsum(sizes)[:-1])
        return scores


def fit_chooser(ratings: Ratings, num_items: int, config: ChooserConfig | None = None, *, seed: int = 0) -> Chooser:
    """Fit on training people's choices.

    Args:
        ratings: value 1 for what was chosen, 0 for what was shown and was not.
        num_items: items there are, those included that nobody has seen.
        config: settings.
        seed: of folds, episodes, sampler and trees; the same seed gives the same scores.

    Raises:
        DataError: the choices cannot be learned from; says why.
        NumericalError: the sampler diverged; names the sweep.
    """
    config = config or ChooserConfig()
    check_ratings(ratings, num_users=int(ratings.users.max(initial=0)) + 1, num_items=num_items)
    _check_choices("training choices", ratings.values)
    people, places = np.unique(ratings.users, return_inverse=True)
    if len(people) < config.num_folds:
        raise DataError(
            f"training choices: {len(people)} people; expected at least chooser.num_folds = {config.num_folds}"
        )
    chosen, _ = chosen_matrix(places, ratings.items, ratings.values, (len(people), num_items))
    events = list(by_user(ratings).values())
    rng = np.random.default_rng(seed)
    fold_of = rng.permutation(len(people)) % config.num_folds
    features, labels = [], []
    for fold in range(config.num_folds):
        scorers = fit_scorers(chosen[fold_of != fold], config.factors, seed=seed)
        episodes = [
            redraw(*events[person], config.support_size, rng)
            for person in np.flatnonzero(fold_of == fold)
            for _ in range(config.num_redraws)
        ]
        shape = (len(episodes), num_items)
        support = chosen_matrix(*support_events(episodes), shape)
        rows = np.repeat(np.arange(len(episodes)), [len(task.query_items) for task in episodes])
        candidates = np.concatenate([task.query_items for task in episodes])
        features.append(candidate_features(scorers, *support, rows, candidates, config.unobserved_weight))
        labels.append(np.concatenate([task.query_values for task in episodes]))
    combiner = fit_combiner(
        np.concatenate(features), np.concatenate(labels), config.combiner, num_repeats=config.num_redraws, seed=seed
    )
    return Chooser(num_items, config, fit_scorers(chosen, config.factors, seed=seed), combiner)


def redraw(
    items: Int64[np.ndarray, "event"], values: Float[np.ndarray, "event"], support_size: int, rng: np.random.Generator
) -> Task:
    """Draw one person's events into a support of the given size and a query of the rest."""
    order = rng.permutation(len(items))
    known, asked = order[:support_size], order[support_size:]
    return Task(0, items[known], values[known], items[asked], values[asked])


def _check_choices(where: str, values: Float[np.ndarray, "event"]) -> None:
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        raise DataError(f"{where}: a value is {values[bad[0]]}; expected 1 for chosen and 0 for not chosen")

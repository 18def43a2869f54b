"""Who plays the newcomer, and which member of the shared model does not learn from whom."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from palate.config import Config
from palate.data.dataset import Dataset
from palate.data.episodes import History, build_histories, hold_out
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError
from palate.meta.training import find_cuts
from palate.recommend.recommender import Recommender

LEAST_NEWCOMERS = 3
"""Of a fold: two to train on and one to validate on."""


def newcomers_of(histories: Mapping[str, History], config: Config) -> tuple[dict[str, History], dict[str, History]]:
    """The other people and those who play the newcomer, the same ones at every call.

    Raises:
        DataError: fewer than three people can play the newcomer.
    """
    others, newcomers = hold_out(
        histories,
        share=config.meta.held_out,
        min_items=config.meta.min_items,
        rng=np.random.default_rng([config.seed, 1]),
    )
    if len(newcomers) < LEAST_NEWCOMERS or not others:
        raise DataError(
            f"meta-training: {len(newcomers)} people with at least {config.meta.min_items} distinct items can play "
            f"the newcomer, expected at least {LEAST_NEWCOMERS}; add data or lower meta.min_items"
        )
    return others, newcomers


def newcomers_since(served: Recommender, dataset: Dataset, config: Config) -> dict[str, History]:
    """The people who chose nothing until the served model was trained; histories are of items that it was trained on.

    How an item fares that nobody had chosen says nothing of a person. Only people with enough items count.
    """
    trained = Vocabulary(served.vocabulary.ids[: served.num_trained])
    moment = datetime(1970, 1, 1) + timedelta(seconds=served.trained_until)
    first = pl.col("timestamp").min().over("user_id")
    events = dataset.interactions.filter((first > moment) & pl.col("item_id").is_in(list(trained.ids)))
    histories = build_histories(events, trained, config.negative_events, config.rating_events)
    return {user: history for user, history in histories.items() if len(history.items) >= config.meta.min_items}


def deal(newcomers: Mapping[str, History], num_members: int) -> list[dict[str, History]]:
    """A fold for each member that it does not learn from; with few people, for some of the members."""
    num_folds = min(num_members, len(newcomers) // LEAST_NEWCOMERS)
    people = list(newcomers.items())
    return [dict(people[fold::num_folds]) for fold in range(num_folds)]


def check_newcomers(folds: Sequence[Mapping[str, History]], config: Config) -> None:
    """See that there are episodes to train the head on and to validate it on, before anything is computed.

    Raises:
        ConfigError: every support size is above what the backbone reads.
        DataError: nobody has enough items for an episode.
    """
    for fold in folds:
        for people in split_newcomers(fold):
            find_cuts(list(people.values()), config.model, config.meta.support_sizes, config.meta.min_query)


def split_newcomers(
    newcomers: Mapping[str, History],
) -> tuple[dict[str, History], dict[str, History]]:
    """Two thirds to train on, one third (every third id) to validate on."""
    places: Sequence[tuple[str, History]] = list(newcomers.items())
    return (
        {user: history for place, (user, history) in enumerate(places) if place % 3 != 2},
        {user: history for place, (user, history) in enumerate(places) if place % 3 == 2},
    )


def without(people: Mapping[str, History], *folds: Mapping[str, History]) -> dict[str, History]:
    """The people who are in none of the folds."""
    left_out = set().union(*folds)
    return {user: history for user, history in people.items() if user not in left_out}

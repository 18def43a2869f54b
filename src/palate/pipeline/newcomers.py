"""Who plays the newcomer, and which member of the shared model does not learn from whom."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from palate.config import Config
from palate.data.choices import Choices, hold_out, read_choices
from palate.data.dataset import Dataset
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError
from palate.meta.training import find_cuts
from palate.recommend.recommender import Recommender

LEAST_NEWCOMERS = 3
"""Of a fold: two to train on and one to validate on."""


def newcomers_of(people: Choices, config: Config) -> tuple[Choices, Choices]:
    """The other people and those who play the newcomer, the same ones at every call.

    Raises:
        DataError: fewer than three people can play the newcomer.
    """
    others, newcomers = hold_out(
        people,
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


def newcomers_since(served: Recommender, dataset: Dataset, config: Config) -> Choices:
    """The people who chose nothing until the served model was trained, with the items that it was trained on.

    How an item fares that nobody had chosen says nothing of a person. Only people with enough items count.
    """
    trained = Vocabulary(served.vocabulary.ids[: served.num_trained])
    moment = datetime(1970, 1, 1) + timedelta(seconds=served.trained_until)
    first = pl.col("timestamp").min().over("user_id")
    events = dataset.interactions.filter((first > moment) & pl.col("item_id").is_in(list(trained.ids)))
    people = read_choices(events, trained, config.meaning)
    return people.take(np.flatnonzero(people.chosen.lengths() >= config.meta.min_items))


def deal(newcomers: Choices, num_members: int) -> list[Choices]:
    """A fold for each member that it does not learn from; with few people, for some of the members."""
    num_folds = min(num_members, len(newcomers) // LEAST_NEWCOMERS)
    return [newcomers.take(np.arange(fold, len(newcomers), num_folds)) for fold in range(num_folds)]


def check_newcomers(folds: Sequence[Choices], config: Config) -> None:
    """See that there are episodes to train the head on and to validate it on, before anything is computed.

    Raises:
        ConfigError: every support size is above what the backbone reads.
        DataError: nobody has enough items for an episode.
    """
    for fold in folds:
        for people in split_newcomers(fold):
            find_cuts(people.chosen, config.model, config.meta.support_sizes, config.meta.min_query)


def split_newcomers(newcomers: Choices) -> tuple[Choices, Choices]:
    """Two thirds to train on, one third (every third id) to validate on."""
    rows = np.arange(len(newcomers))
    return newcomers.take(rows[rows % 3 != 2]), newcomers.take(rows[rows % 3 == 2])

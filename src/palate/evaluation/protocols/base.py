"""What a public few-shot protocol is: draws of tasks, metrics, the figures that are known, and the methods to judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int64

from palate.evaluation.protocols.content import ContentSpec
from palate.ratings.tasks import Ratings, Task


class Predictions(NamedTuple):
    """What a method says of one task's query."""

    rating: Float[np.ndarray, "query"]
    """In the unit of the data; what absolute errors are taken of."""
    score: Float[np.ndarray, "query"]
    """For ranking: higher is better; about in the unit of the data, so that given ratings can stand beside it."""


class Setting(NamedTuple):
    """The tables of a data set: row numbers in ratings and tasks refer to them."""

    profiles: Float[np.ndarray, "user profile"]
    items: pl.DataFrame
    """Content, one row an item; no columns but the id where there is none."""
    content: ContentSpec | None
    """What the columns of `items` are; None where nothing is known of items."""


class Draw(NamedTuple):
    """One seed: what is learned from, and the tasks that are judged, by the part of the protocol they belong to."""

    seed: int
    ratings: Ratings
    """Of the training people."""
    validation: Ratings | None
    """Of the protocol's validation people, where it has any; methods choose on people held out of training."""
    parts: Mapping[str, tuple[Task, ...]]


Metric = Callable[[Predictions, Float[np.ndarray, "query"]], float]
"""Judge the predictions of one task's query against what the person said."""


class Reach(NamedTuple):
    """Figures to compare with, for one metric of one part."""

    best_known: float
    """Best figure published or measured elsewhere."""
    reach: float
    """What is aimed at."""


Predict = Callable[[str, Sequence[Task]], list[Predictions]]
"""(part, tasks) → predictions, from a fitted method."""
Method = Callable[["Bench"], Predict]
"""Learn from a draw's training people alone."""


@dataclass(frozen=True, eq=False)
class Bench:
    """One draw on the bench: its data, and what several methods share."""

    setting: Setting
    draw: Draw
    make_features: Callable[[Setting, Draw], "Features"]
    say: Callable[[str], None]
    """Takes a line about the progress."""

    @cached_property
    def features(self) -> "Features":
        """What the learners read of the items; fitted once for all of them."""
        self.say("item features")
        return self.make_features(self.setting, self.draw)


class Features(NamedTuple):
    """Item features for the learners, cross-fitted: what a training person reads was fitted without that person."""

    vectors: Float[np.ndarray, "table item feature"]
    """Table 0 from everyone in training, table f without fold f; the same axes in all."""
    offset: Float[np.ndarray, "table item"]
    """What is predicted of an item for someone of whom nothing is known."""
    fold: Int64[np.ndarray, "user"]
    """The table that each training person reads; 0 for all others."""


class ProtocolEntry(NamedTuple):
    """One line of the table of protocols."""

    title: str
    about: str
    """The protocol written out: people, support, query, metrics, and where it comes from."""
    open: Callable[[Path, int], tuple[Setting, list[Draw]]]
    """(folder of data sets, number of draws) → tables and draws."""
    metrics: Mapping[str, Metric]
    lower_is_better: frozenset[str]
    main: str
    """The metric of the learning curves."""
    known: Mapping[str, Mapping[str, Reach]]
    """part → metric → figures."""
    features: Callable[[Setting, Draw], Features]
    palate: Method
    """The recommender."""
    objective: str
    """What the learners fit: a name in `palate.meta.OBJECTIVES`."""
    draws: int
    """Draws of a full run."""
    given_is_known: bool = False
    """Whether items of the support are asked for again, where the rating that was given is the answer."""
    curve_sizes: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Support sizes of the learning curves."""

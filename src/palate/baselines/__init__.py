"""The baselines of every table of results, each with the tasks that it fits and the settings to select from there.

A baseline is one file and one line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from palate.baselines.base import ListBaseline, NoSettings, Scorer, Selection, Trial, select
from palate.baselines.ease import EASEConfig, fit_ease
from palate.baselines.explicit_als import ExplicitALSConfig, rate_by_explicit_als
from palate.baselines.implicit_als import ImplicitALSConfig, fit_implicit_als
from palate.baselines.item_knn import ItemKNNConfig, fit_item_knn
from palate.baselines.item_mean import rate_by_item_mean
from palate.baselines.popularity import fit_popularity, rate_by_popularity
from palate.baselines.rating import RatingBaseline, RatingData
from palate.baselines.transitions import fit_transitions
from palate.baselines.trivial import RandomConfig, fit_constant, fit_random, rate_at_random, rate_constantly

_NOTHING = (NoSettings(),)
_DECAYS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_COLD_DECAYS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Baseline:
    """One line of the table: the baseline in each task, None where it does not fit."""

    newcomers: ListBaseline[Any] | None = None
    """Lists for newcomers with few events: `palate.evaluation.few_shot`."""
    sequences: ListBaseline[Any] | None = None
    """The next item of sequences that go on: `palate.evaluation.sequential`."""
    cold_sequences: ListBaseline[Any] | None = None
    """The next item of people who were not trained on: `palate.evaluation.sequential.cold_run`."""
    ratings: RatingBaseline[Any] | None = None
    """The ratings of few-shot tasks: `palate.evaluation.protocols`."""


def _float32_ease(*penalties: float) -> tuple[EASEConfig, ...]:
    """For catalogues of tens of thousands of items."""
    return tuple(EASEConfig(penalty, "float32") for penalty in penalties)


BASELINES: Mapping[str, Baseline] = {
    "constant": Baseline(
        newcomers=ListBaseline("constant", fit_constant, _NOTHING),
        ratings=RatingBaseline("constant", rate_constantly, NoSettings()),
    ),
    "random": Baseline(
        newcomers=ListBaseline("random", fit_random, (RandomConfig(),)),
        ratings=RatingBaseline("random", rate_at_random, NoSettings()),
    ),
    "popularity": Baseline(
        newcomers=ListBaseline("popularity", fit_popularity, _NOTHING),
        sequences=ListBaseline("popularity", fit_popularity, _NOTHING),
        cold_sequences=ListBaseline("popularity", fit_popularity, _NOTHING),
        ratings=RatingBaseline("popularity", rate_by_popularity, NoSettings()),
    ),
    "item_mean": Baseline(
        ratings=RatingBaseline("item mean + user bias", rate_by_item_mean, NoSettings(), rounded=True)
    ),
    "transitions": Baseline(sequences=ListBaseline("Markov chain", fit_transitions, _NOTHING, (0.0,))),
    "item_knn": Baseline(
        newcomers=ListBaseline(
            "item_knn",
            fit_item_knn,
            tuple(ItemKNNConfig(shrink, top_k) for shrink in (30.0, 10.0, 100.0) for top_k in (None, 50, 200)),
        ),
        sequences=ListBaseline(
            "item-kNN, recency", fit_item_knn, tuple(map(ItemKNNConfig, (1.0, 10.0, 100.0, 1000.0))), _DECAYS
        ),
        cold_sequences=ListBaseline("item-kNN, recency", fit_item_knn, (ItemKNNConfig(10.0),), _COLD_DECAYS),
    ),
    "ease": Baseline(
        newcomers=ListBaseline("ease", fit_ease, tuple(map(EASEConfig, (200.0, 100.0, 400.0, 1000.0)))),
        sequences=ListBaseline("EASE, recency", fit_ease, _float32_ease(50.0, 200.0, 1000.0, 3000.0), _DECAYS),
        cold_sequences=ListBaseline("EASE, recency", fit_ease, _float32_ease(300.0), _COLD_DECAYS),
    ),
    "als": Baseline(
        newcomers=ListBaseline(
            "als",
            fit_implicit_als,
            tuple(
                ImplicitALSConfig(num_factors, penalty, alpha)
                for num_factors in (64, 32, 128)
                for penalty in (30.0, 1.0, 10.0, 100.0)
                for alpha in (1.0, 10.0)
            ),
        ),
        ratings=RatingBaseline("ALS + per-user ridge", rate_by_explicit_als, ExplicitALSConfig(), rounded=True),
    ),
}


_Kind = TypeVar("_Kind", ListBaseline[Any], RatingBaseline[Any])


def _in(task: Callable[[Baseline], _Kind | None]) -> Mapping[str, _Kind]:
    found = [task(line) for line in BASELINES.values()]
    return {baseline.label: baseline for baseline in found if baseline is not None}


NEWCOMER_BASELINES = _in(lambda line: line.newcomers)
SEQUENCE_BASELINES = _in(lambda line: line.sequences)
COLD_SEQUENCE_BASELINES = _in(lambda line: line.cold_sequences)
RATING_BASELINES = _in(lambda line: line.ratings)
"""The lines of the table that fit a task, by their names there."""

__all__ = [
    "BASELINES",
    "COLD_SEQUENCE_BASELINES",
    "NEWCOMER_BASELINES",
    "RATING_BASELINES",
    "SEQUENCE_BASELINES",
    "Baseline",
    "EASEConfig",
    "ExplicitALSConfig",
    "ImplicitALSConfig",
    "ItemKNNConfig",
    "ListBaseline",
    "NoSettings",
    "RandomConfig",
    "RatingBaseline",
    "RatingData",
    "Scorer",
    "Selection",
    "Trial",
    "select",
]

"""The strong floor of every table of results: each baseline with the settings that validation selects from.

A baseline is one file and one line here.
"""

from collections.abc import Mapping
from typing import Any

from palate.baselines.als import ALSConfig, als_scorer, fit_als, list_purchases
from palate.baselines.base import (
    BaselineEntry,
    Scorer,
    Selection,
    Trial,
    count_co_purchases,
    item_popularity,
    select,
)
from palate.baselines.ease import EASEConfig, ease_scorer, fit_ease
from palate.baselines.item_knn import ItemKNNConfig, fit_item_knn, item_knn_scorer
from palate.baselines.popularity import PopularityConfig, fit_popularity, popularity_scorer
from palate.baselines.trivial import (
    ConstantConfig,
    RandomConfig,
    constant_scorer,
    count_items,
    random_scorer,
)

ITEM_KNN_GRID = tuple(
    ItemKNNConfig(shrink=shrink, top_k=top_k) for shrink in (30.0, 10.0, 100.0) for top_k in (None, 50, 200)
)
EASE_GRID = tuple(EASEConfig(regularisation=penalty) for penalty in (200.0, 100.0, 400.0, 1000.0))
ALS_GRID = tuple(
    ALSConfig(num_factors=num_factors, regularisation=penalty, alpha=alpha)
    for num_factors in (64, 32, 128)
    for penalty in (30.0, 1.0, 10.0, 100.0)
    for alpha in (1.0, 10.0)
)

BASELINES: Mapping[str, BaselineEntry[Any, Any]] = {
    "constant": BaselineEntry(count_items, constant_scorer, (ConstantConfig(),), learns=False),
    "random": BaselineEntry(count_items, random_scorer, (RandomConfig(),), learns=False),
    "popularity": BaselineEntry(item_popularity, popularity_scorer, (PopularityConfig(),)),
    "item_knn": BaselineEntry(count_co_purchases, item_knn_scorer, ITEM_KNN_GRID),
    "ease": BaselineEntry(count_co_purchases, ease_scorer, EASE_GRID),
    "als": BaselineEntry(list_purchases, als_scorer, ALS_GRID),
}

__all__ = [
    "BASELINES",
    "ALSConfig",
    "BaselineEntry",
    "ConstantConfig",
    "EASEConfig",
    "ItemKNNConfig",
    "PopularityConfig",
    "RandomConfig",
    "Scorer",
    "Selection",
    "Trial",
    "fit_als",
    "fit_ease",
    "fit_item_knn",
    "fit_popularity",
    "select",
]

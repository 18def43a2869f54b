"""Palate: a recommender that knows a person's taste after a handful of events.

import palate
data = palate.load("online-retail")            # or palate.read_csv / palate.read_parquet
model = palate.train(data)                     # -> Recommender
model.recommend(["85123A", "71053"], k=10)     # item ids, a table of events, a known user id, or a State
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from palate.client import Client
    from palate.config import Config, read_config
    from palate.data.catalog import Catalog, Profiles
    from palate.data.dataset import Dataset
    from palate.data.sources import load, read_csv, read_events, read_parquet
    from palate.data.splitting import Split, default_cut, temporal_split
    from palate.errors import ConfigError, DataError, ModelError, NumericalError, PalateError, StoreError
    from palate.evaluation.run import evaluate
    from palate.pipeline import train
    from palate.recommend import RatingPrediction, Recommendation, Recommender, State

__version__ = "0.1.0"

__all__ = [
    "Catalog",
    "Client",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "ModelError",
    "NumericalError",
    "PalateError",
    "Profiles",
    "RatingPrediction",
    "Recommendation",
    "Recommender",
    "Split",
    "State",
    "StoreError",
    "default_cut",
    "evaluate",
    "load",
    "read_config",
    "read_csv",
    "read_events",
    "read_parquet",
    "temporal_split",
    "train",
]

_HOMES: Final = {
    "Catalog": "palate.data.catalog",
    "Client": "palate.client",
    "Config": "palate.config",
    "ConfigError": "palate.errors",
    "DataError": "palate.errors",
    "Dataset": "palate.data.dataset",
    "ModelError": "palate.errors",
    "NumericalError": "palate.errors",
    "PalateError": "palate.errors",
    "Profiles": "palate.data.catalog",
    "RatingPrediction": "palate.recommend",
    "Recommendation": "palate.recommend",
    "Recommender": "palate.recommend",
    "Split": "palate.data.splitting",
    "State": "palate.recommend",
    "StoreError": "palate.errors",
    "default_cut": "palate.data.splitting",
    "evaluate": "palate.evaluation.run",
    "load": "palate.data.sources",
    "read_config": "palate.config",
    "read_csv": "palate.data.sources",
    "read_events": "palate.data.sources",
    "read_parquet": "palate.data.sources",
    "temporal_split": "palate.data.splitting",
    "train": "palate.pipeline",
}
"""Where each name lives: it is imported when it is first asked for. A client need not wait for what trains."""


def __getattr__(name: str) -> Any:
    """Import a name of the package, or one of its modules, at the first use (PEP 562).

    Raises:
        AttributeError: there is none.
    """
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})

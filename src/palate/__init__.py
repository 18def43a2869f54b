"""Palate: a recommender that knows a person's taste after a handful of events.

import palate
data = palate.load("online-retail")            # or palate.read_csv / palate.read_parquet
model = palate.train(data)                     # -> Recommender
model.recommend(["85123A", "71053"], k=10)     # item ids, a table of events, a known user id, or a State
"""

from palate.client import Client
from palate.config import Config, read_config
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.sources import load, read_csv, read_events, read_parquet
from palate.data.splitting import Split, default_cut, temporal_split
from palate.errors import ConfigError, DataError, ModelError, NumericalError, PalateError, StoreError
from palate.evaluation.run import evaluate
from palate.pipeline import train
from palate.recommend import Recommendation, Recommender, State

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

"""A shop of 50,000 items to load a service with: planted tastes, titles, prices; a model trained on it in minutes.

    python benchmarks/service_world.py FOLDER [--items 50000] [--people 20000]

Writes FOLDER/events.parquet, items.parquet, users.parquet and FOLDER/model. Quality means nothing here: it is the sizes
that count.
"""

import argparse
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

import palate
from palate.backbone.batches import BatchConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config, DataConfig
from palate.meta.training import MetaConfig
from palate.progress import Reporter

TASTES, START = 200, datetime(2025, 1, 1)
WORDS = ("red", "blue", "green", "small", "large", "old", "new", "wooden")
WORDS += ("steel", "paper", "glass", "cotton", "round", "square", "warm", "cold")
THINGS = ("cup", "lamp", "chair", "book", "puzzle", "spade", "kettle", "candle")
THINGS += ("basket", "clock", "mirror", "blanket", "pen", "bag", "toy", "frame")


def make(folder: Path, num_items: int, num_people: int, seed: int = 0) -> None:
    """Write the log, the catalogue and the profiles."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, TASTES, num_items)
    popularity = rng.pareto(1.2, num_items) + 0.05
    by_taste = [np.flatnonzero(taste == one) for one in range(TASTES)]
    people, items, times = [], [], []
    for person in range(num_people):
        own = rng.choice(TASTES, 3, replace=False)
        pool = np.concatenate([by_taste[one] for one in own])
        share = popularity[pool] / popularity[pool].sum()
        chosen = rng.choice(pool, min(len(pool), 8 + int(rng.poisson(12))), replace=False, p=share)
        people.append(np.full(len(chosen), person))
        items.append(chosen)
        times.append(np.sort(rng.uniform(0, 200 * 86_400, len(chosen))))
    seconds = np.concatenate(times).astype(np.int64)
    log = pl.DataFrame(
        {
            "user_id": [f"user-{person}" for person in np.concatenate(people)],
            "item_id": [f"item-{item}" for item in np.concatenate(items)],
            "timestamp": [START + timedelta(seconds=int(second)) for second in seconds],
            "event_type": ["purchase"] * len(seconds),
        }
    )
    titles = [
        f"{WORDS[rng.integers(16)]} {THINGS[one % 16]} {WORDS[one // 16]} {THINGS[rng.integers(16)]} {number}"
        for number, one in enumerate(taste)
    ]
    catalog = pl.DataFrame(
        {
            "item_id": [f"item-{item}" for item in range(num_items)],
            "title": titles,
            "price": rng.lognormal(2, 0.7, num_items).round(2),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log.sort("timestamp").write_parquet(folder / "events.parquet")
    catalog.write_parquet(folder / "items.parquet")
    users = pl.DataFrame({"user_id": [f"user-{person}" for person in range(num_people)]})
    users.with_columns(country=pl.lit("France")).write_parquet(folder / "users.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--people", type=int, default=20_000)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    make(folder, arguments.items, arguments.people)
    data = DataConfig(
        interactions=str(folder / "events.parquet"),
        items=str(folder / "items.parquet"),
        users=str(folder / "users.parquet"),
    )
    config = Config(
        data=data,
        num_members=2,
        batches=BatchConfig(tokens=2048, window=12, decay=0.6, even_start=True, first_tile=True),
        training=TrainingConfig(num_epochs=1, precision="bfloat16"),
        meta=MetaConfig(num_steps=10, held_out=0.02, validate_every=10),
    )
    palate.train(data.open(), config, reporter=Reporter()).save(folder / "model")


if __name__ == "__main__":
    main()

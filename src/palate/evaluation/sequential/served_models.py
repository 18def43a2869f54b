"""Palate on the sequential benchmark: `palate.train`, saved and loaded; one recipe a data set.

What is judged is the `Recommender` that a user has: events become a data set, the model is trained, written to a
folder, read from it, and asked for every person as the service asks. All choices inside are made on people who are held
out in training; the validation items of the protocol are not looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer

from palate.backbone.batches import BatchConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines import Scorer
from palate.config import Config
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.data.event_log import EventLog
from palate.data.log import validate_interactions
from palate.encoders.attributes import AttributeConfig
from palate.encoders.text import TextConfig
from palate.evaluation.sequential.data import SequenceData
from palate.meta.training import MetaConfig
from palate.pipeline import train
from palate.progress import Reporter
from palate.recommend.recommender import Recommender
from palate.scorers.item_item import ItemItemConfig

_BEGIN = datetime(2000, 1, 1)
"""The sources know the order of events alone: each person's n-th happens n seconds after this."""

_SHORT = Config(
    model=SequenceModelConfig(dim=128, num_layers=1, num_heads=2, max_events=50, dropout=0.5),
    batches=BatchConfig(tokens=2048),
    training=TrainingConfig(num_epochs=40, learning_rate=1e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
    attributes=AttributeConfig(numeric="standard"),
    item_item=ItemItemConfig(ease_penalty=(100.0,), decays=(0.5, 0.6, 0.7, 0.8)),
    meta=MetaConfig(support_sizes=(1, 2, 3, 4, 5, 7, 10, 20), min_items=4, min_query=1, window=1, held_out=0.15),
)
RECIPES: Mapping[str, Config] = {
    "ml-1m": Config(
        model=SequenceModelConfig(
            dim=128,
            num_layers=3,
            num_heads=4,
            max_events=200,
            dropout=0.3,
            loss=LossConfig(distinct=True),  # nobody rates a film twice; where people did little, it takes too much
        ),
        batches=BatchConfig(tokens=4096),
        training=TrainingConfig(num_epochs=24, learning_rate=1.5e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
        attributes=AttributeConfig(numeric="standard"),
        item_item=ItemItemConfig(ease_penalty=(300.0, 1000.0, 3000.0)),
        meta=MetaConfig(support_sizes=(0, 1, 2, 3, 5, 10, 20, 50, 100, 199), min_query=1, window=1),
    ),
    "beauty": _SHORT,
    "sports": _SHORT,
    "toys": _SHORT,
}
"""How Palate is trained on each data set."""


def fit_recommender(
    data: SequenceData, *, informed: bool, seed: int, folder: Path, say: Callable[[str], None], workers: int = 1
) -> Recommender:
    """Train on the events of `data`, save the model in `folder` and load it.

    Args:
        data: the training events, and what is known of items and people.
        informed: whether the model is shown content and profiles, or ids and order alone.
        seed: of the training.
        folder: takes checkpoints, so that a run that was killed goes on from them, and the model.
        say: takes a line for each stage.
        workers: processes that train side by side.
    """
    config = replace(RECIPES[data.name], seed=seed)
    if informed:
        # An eighth of the items lose their id in a step, so that content is learned from.
        model = replace(config.model, id_dropout=0.125, rated=data.log.values is not None)
        config = replace(config, model=model, text=TextConfig(max_length=128))
    return fit_served(data, config, informed=informed, folder=folder, say=say, workers=workers)


def fit_served(
    data: SequenceData,
    config: Config,
    *,
    informed: bool = False,
    folder: Path,
    say: Callable[[str], None],
    workers: int = 1,
) -> Recommender:
    """`fit_recommender` with settings of one's own."""
    reporter = Reporter()
    trained = train(
        to_dataset(data, informed=informed),
        config,
        reporter=reporter,
        checkpoints=folder / "checkpoints",
        workers=workers,
    )
    for stage in reporter.stages:
        say(f"{stage.name}: {stage.detail}, {stage.seconds:.0f} s")
    trained.save(folder / "model")
    return Recommender.load(folder / "model")


def to_dataset(data: SequenceData, *, informed: bool) -> Dataset:
    """The events as a log; with content, ratings and profiles if `informed`."""
    log = data.log
    users = np.array([f"{user:06}" for user in range(log.num_users)])
    places = np.arange(len(log)) - np.repeat(log.offsets[:-1], log.lengths())
    events = pl.DataFrame(
        {
            "user_id": users[np.repeat(np.arange(log.num_users), log.lengths())],
            "item_id": np.array(data.item_ids)[log.items],
            "place": places,
        }
    ).select("user_id", "item_id", timestamp=pl.lit(_BEGIN) + pl.duration(seconds="place"))
    if informed and log.values is not None:
        events = events.with_columns(rating=log.values)
    catalog, profiles = Catalog.from_ids(data.item_ids), Profiles.from_ids(users.tolist())
    if informed:
        catalog = _catalog(data)
        if log.profiles is not None:
            columns = _columns(log.profiles)
            profiles = Profiles(pl.DataFrame({"user_id": users} | columns), tuple(columns), ())
    return Dataset(data.name, validate_interactions(events, source=data.name), catalog, profiles)


def scorer_of(model: Recommender, data: SequenceData, *, backbone_alone: bool = False) -> Scorer:
    """Ask a model for the scores of all items of `data` in their order; items that it does not know come last."""
    number = {name: place for place, name in enumerate(model.vocabulary.ids)}
    known = np.array([number.get(name, -1) for name in data.item_ids])
    ask = model.backbone_scores if backbone_alone else model.score_many
    encoder = model.profile_encoder

    def score(inputs: EventLog) -> Float32[np.ndarray, "user item"]:
        rated = inputs.values if model.config.model.rated else None
        histories = [
            _history(known[inputs.items[slice(*ends)]], None if rated is None else rated[slice(*ends)])
            for ends in np.stack([inputs.offsets[:-1], inputs.offsets[1:]], 1)
        ]
        profiles = torch.zeros(len(histories), encoder.dim)
        if encoder.dim and inputs.profiles is not None:
            profiles = torch.from_numpy(encoder.transform(pl.DataFrame(_columns(inputs.profiles))))
        scores = ask(histories, profiles)
        return np.where(known >= 0, scores[:, known], scores.min() - 1).astype(np.float32)

    return score


def _history(items: np.ndarray, ratings: np.ndarray | None) -> History:
    """Distinct items in the order of the first choice, at the seconds at which the log has them."""
    _, first = np.unique(items, return_index=True)
    first = np.sort(first[items[first] >= 0])
    seconds = (_BEGIN - datetime(1970, 1, 1)).total_seconds()
    given = None if ratings is None else ratings[first].astype(np.float64)
    times = seconds + first.astype(np.float64)
    return History(items[first].astype(np.int64), times, np.zeros(0, np.int64), ratings=given)


def _columns(values: Float32[np.ndarray, "row feature"]) -> dict[str, np.ndarray]:
    return {f"feature {place:03}": column for place, column in enumerate(values.T)}


def _catalog(data: SequenceData, seed: int = 0) -> Catalog:
    """Texts, and at most 128 directions of the attributes, which are too many for a column each."""
    columns: dict[str, np.ndarray] = {}
    if data.item_attributes is not None:
        weighed = TfidfTransformer().fit_transform(data.item_attributes)
        rank = min(128, weighed.shape[1] - 1)
        if rank > 0:
            found = TruncatedSVD(rank, random_state=seed).fit_transform(weighed)
            columns = _columns(np.asarray(found, np.float32))
    texts = {} if data.item_texts is None else {"text": list(data.item_texts)}
    frame = pl.DataFrame({"item_id": list(data.item_ids)} | texts | columns)
    return Catalog(frame, "text" if texts else None, tuple(columns), ())

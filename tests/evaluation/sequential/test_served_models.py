"""The recommender on the sequential benchmark: trained, written, read, and asked for what the service would list."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config
from palate.data.event_log import EventLog, from_sequences
from palate.evaluation.sequential import served_models
from palate.evaluation.sequential.data import SequenceData
from palate.evaluation.sequential.served_models import fit_recommender, scorer_of, to_dataset
from palate.meta.evidence import EvidenceConfig
from palate.meta.training import MetaConfig
from palate.recommend import Recommender
from palate.scorers.item_item import ItemItemConfig

NUM_ITEMS = 24
RECIPE = Config(
    model=SequenceModelConfig(dim=8, num_layers=1, max_events=10, dropout=0.1),
    batches=BatchConfig(tokens=200),
    training=TrainingConfig(num_epochs=3, learning_rate=1e-2, warmup_steps=5),
    num_members=1,
    evidence=EvidenceConfig(rank=8, content_dim=4),
    item_item=ItemItemConfig(ease_penalty=(50.0,), decays=(0.2, 0.8)),
    meta=MetaConfig(support_sizes=(1, 2, 4), min_items=4, min_query=1, window=1, num_steps=40, learning_rate=0.05),
)


def ring(seed: int, people: int = 150) -> EventLog:
    """Walks along a ring, one item after the other; the last item of the catalogue is chosen by nobody."""
    starts = np.random.default_rng(seed).integers(0, NUM_ITEMS - 1, people)
    return from_sequences([(start + np.arange(6)) % (NUM_ITEMS - 1) for start in starts])


@pytest.fixture(scope="module")
def data() -> SequenceData:
    # Ids whose order as text is not that of the numbers.
    ids = tuple(f"{(7 * place) % 100:02}" for place in range(NUM_ITEMS))
    attributes = np.eye(3, dtype=np.float32)[np.arange(NUM_ITEMS) % 3]
    log = ring(0)
    profiles = np.random.default_rng(0).random((log.num_users, 2)).astype(np.float32)
    told = EventLog(log.items, log.offsets, profiles=profiles)
    return SequenceData("toys", told, ids, tuple(f"thing {place}" for place in range(NUM_ITEMS)), attributes)


def fitted(data: SequenceData, folder: Path, *, informed: bool) -> Recommender:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_models, "RECIPES", {"toys": RECIPE})
        return fit_recommender(data, informed=informed, seed=3, folder=folder, say=lambda line: None)


@pytest.fixture(scope="module")
def model(data: SequenceData, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return fitted(data, tmp_path_factory.mktemp("ids"), informed=False)


def test_what_follows_is_found(data: SequenceData, model: Recommender) -> None:
    log = ring(1)
    scores = scorer_of(model, data)(log.cut(1))
    assert scores.shape == (log.num_users, NUM_ITEMS)
    assert (scores.argmax(1) == log.items[log.offsets[1:] - 1]).mean() > 0.9


def test_scores_are_what_the_model_lists(data: SequenceData, model: Recommender) -> None:
    log = ring(2, 5).cut(2)
    scores = scorer_of(model, data)(log)
    for user in range(log.num_users):
        chosen = [data.item_ids[item] for item in log.items[log.offsets[user] : log.offsets[user + 1]]]
        listed = model.recommend(chosen, NUM_ITEMS, returning=False, include_seen=True)
        assert [line.item_id for line in listed] == [data.item_ids[item] for item in np.argsort(-scores[user])]
        np.testing.assert_allclose([line.score for line in listed], np.sort(scores[user])[::-1], atol=1e-4)


def test_the_model_on_disk_is_the_one_that_is_judged(data: SequenceData, tmp_path: Path) -> None:
    first = fitted(data, tmp_path, informed=False)
    assert Recommender.load(tmp_path / "model").model_id == first.model_id
    again = fitted(data, tmp_path, informed=False)  # from the checkpoints of the first
    assert again.model_id == first.model_id
    assert first.config.seed == 3


def test_ratings_are_shown_to_the_informed_alone(data: SequenceData, tmp_path: Path) -> None:
    log = data.log
    stars = (1 + log.items % 5).astype(np.float32)
    rated = replace(data, log=EventLog(log.items, log.offsets, values=stars, profiles=log.profiles))
    plain, told = to_dataset(rated, informed=False), to_dataset(rated, informed=True)
    assert plain.interactions["event_type"].unique().to_list() == ["interaction"]
    assert told.interactions["event_type"].unique().to_list() == ["rating"]
    # The log is sorted by time; each person's events stay in their order.
    assert told.interactions.sort("user_id", maintain_order=True)["weight"].to_list() == stars.tolist()
    model = fitted(rated, tmp_path, informed=True)
    assert model.config.model.rated
    few = ring(1, 4).cut(1)
    scores = [
        scorer_of(model, rated)(EventLog(few.items, few.offsets, values=values, profiles=np.zeros((4, 2), np.float32)))
        for values in (np.full(len(few), 1.0, np.float32), np.full(len(few), 5.0, np.float32))
    ]
    assert not np.allclose(*scores)


def test_content_and_profiles_are_shown_to_the_informed_alone(data: SequenceData, tmp_path: Path) -> None:
    plain, told = to_dataset(data, informed=False), to_dataset(data, informed=True)
    assert plain.items.frame.columns == ["item_id"]
    assert plain.users.frame.columns == ["user_id"]
    assert told.items.text == "text"
    assert len(told.items.numeric) == 2
    assert len(told.users.numeric) == 2
    assert plain.interactions.equals(told.interactions)
    assert plain.interactions.height == len(data.log)
    model = fitted(data, tmp_path, informed=True)
    log = ring(1, 4).cut(1)
    profiles = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], np.float32)
    scores = [
        scorer_of(model, data)(EventLog(log.items, log.offsets, profiles=one)) for one in (profiles, 1 - profiles)
    ]
    assert np.isfinite(scores[0]).all()
    assert model.profile_encoder.dim > 0
    assert not np.allclose(*scores)
    assert torch.isfinite(model.items.features).all()

"""The whole way from training to figures, on people who walk along a ring."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config
from palate.data.event_log import from_sequences
from palate.errors import ConfigError
from palate.evaluation.sequential.cold_run import ALONE, OURS, ColdConfig, run_cold
from palate.evaluation.sequential.cold_users import SIZES
from palate.evaluation.sequential.data import SequenceData
from palate.meta.evidence import EvidenceConfig
from palate.meta.training import MetaConfig
from palate.recommend import Recommender
from palate.scorers.item_item import ItemItemConfig

NUM_ITEMS = 200
CONFIG = ColdConfig(
    num_test=12,
    num_validation=8,
    recipe=Config(
        model=SequenceModelConfig(dim=16, num_layers=1, max_events=200),
        batches=BatchConfig(tokens=512),
        training=TrainingConfig(num_epochs=2, learning_rate=5e-3, warmup_steps=2),
        evidence=EvidenceConfig(rank=8, content_dim=4),
        num_members=1,
        item_item=ItemItemConfig(ease_penalty=(50.0,), decays=(0.2,)),
        meta=MetaConfig(support_sizes=SIZES[:6], min_query=1, window=1, num_steps=40, learning_rate=0.05),
    ),
)


def ring(people: int = 70, length: int = 110) -> SequenceData:
    rng = np.random.default_rng(0)
    log = from_sequences([(rng.integers(0, NUM_ITEMS) + np.arange(length)) % NUM_ITEMS for _ in range(people)])
    return SequenceData("ring", log, tuple(f"{item:03}" for item in range(NUM_ITEMS)))


def test_the_recommender_adds_what_a_barely_trained_backbone_does_not_know(tmp_path: Path) -> None:
    lines: list[str] = []
    found = run_cold(ring(), CONFIG, seed=3, folder=tmp_path, say=lines.append)
    assert set(found["models"]) == {OURS, ALONE, "popularity", "item-kNN, recency", "EASE, recency"}
    assert [row["n"] for row in found["next"]["sizes"]] == list(SIZES)
    assert found["next"]["gain"]["low"] > 0
    assert found["models"][OURS]["next"][4] > 0.8
    assert any(line.startswith("meta-train") for line in lines)
    saved = Recommender.load(tmp_path / "model")
    assert saved.model_id == found["model"]
    assert len(saved.users) == 70 - CONFIG.num_test, "a cold person was in training"
    assert run_cold(ring(), CONFIG, seed=3, folder=tmp_path)["models"] == found["models"]


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave a group empty"):
        run_cold(ring(), replace(CONFIG, num_test=70), folder=tmp_path)
    short = replace(CONFIG.recipe, model=replace(CONFIG.recipe.model, max_events=50))
    with pytest.raises(ConfigError, match="max_events is 50"):
        run_cold(ring(), replace(CONFIG, recipe=short), folder=tmp_path)

"""The whole way from training to figures, on people who walk along a ring."""

from dataclasses import replace

import numpy as np
import pytest

from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError
from palate.evaluation.sequential.cold_run import ColdConfig, run_cold
from palate.evaluation.sequential.cold_users import SIZES
from palate.evaluation.sequential.data import SequenceData
from palate.meta.sequence_training import SequenceTrainingConfig

NUM_ITEMS = 200
CONFIG = ColdConfig(
    num_test=12,
    num_training=10,
    num_validation=8,
    model=SequenceModelConfig(dim=16, num_layers=1, max_events=200),
    training=TrainingConfig(num_epochs=8, learning_rate=2e-2, warmup_steps=2),
    head=SequenceTrainingConfig(num_epochs=2, batch_size=4, num_counts=3),
)


def ring(people: int = 60, length: int = 110) -> SequenceData:
    rng = np.random.default_rng(0)
    log = from_sequences([(rng.integers(0, NUM_ITEMS) + np.arange(length)) % NUM_ITEMS for _ in range(people)])
    stars = rng.integers(1, 6, len(log)).astype(np.float32)
    return SequenceData("ring", EventLog(log.items, log.offsets, values=stars), tuple(map(str, range(NUM_ITEMS))))


def test_the_head_adds_what_the_tables_know() -> None:
    """A barely trained model does not know the ring, the table of what follows what does."""
    lines: list[str] = []
    found = run_cold(ring(), CONFIG, seed=3, say=lines.append)
    assert set(found["models"]) == {
        "sequence model",
        "fast weights",
        "popularity",
        "item-kNN, recency",
        "EASE, recency",
    }
    assert [row["n"] for row in found["next"]["sizes"]] == list(SIZES)
    assert found["next"]["gain"]["low"] > 0
    assert found["models"]["fast weights"]["next"][4] > 0.8
    assert any("trust" in line for line in lines)
    again = run_cold(ring(), CONFIG, seed=3)
    assert again["models"] == found["models"]


def test_too_few_people_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave a group empty"):
        run_cold(ring(), replace(CONFIG, num_test=60))

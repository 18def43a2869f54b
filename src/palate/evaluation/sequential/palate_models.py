"""Palate on the sequential benchmark: one recipe a data set, all choices made on validation items."""

from collections.abc import Mapping

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.recommend.sequence import EvidenceConfig, SequenceConfig

_SHORT = SequenceConfig(
    SequenceModelConfig(dim=128, num_layers=1, num_heads=2, max_events=50, dropout=0.5),
    BatchConfig(max_events=50, tokens=2048),
    TrainingConfig(num_epochs=40, learning_rate=1e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
    evidence=(
        EvidenceConfig("ease", (100.0,), (0.6, 0.7, 0.8)),
        EvidenceConfig("neighbours", (10.0, 100.0), (0.5, 0.6, 0.7)),
        EvidenceConfig("transitions", (0.0,), (0.0,)),
    ),
)

RECIPES: Mapping[str, SequenceConfig] = {
    "ml-1m": SequenceConfig(
        SequenceModelConfig(dim=128, num_layers=3, num_heads=4, max_events=200, dropout=0.3),
        BatchConfig(max_events=200, tokens=4096),
        TrainingConfig(num_epochs=30, learning_rate=1.5e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
        evidence=(
            EvidenceConfig("ease", (300.0, 1000.0, 3000.0), (0.7, 0.8, 0.9)),
            EvidenceConfig("neighbours", (10.0, 100.0), (0.5, 0.6, 0.7)),
            EvidenceConfig("transitions", (0.0,), (0.0,)),
        ),
        people=3000,
    ),
    "beauty": _SHORT,
    "sports": _SHORT,
    "toys": _SHORT,
}
"""How Palate is trained on each data set."""

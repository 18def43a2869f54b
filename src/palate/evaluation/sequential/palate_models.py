"""Palate on the sequential benchmark: one recipe a data set, all choices made on validation items."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from palate.backbone.batches import BatchConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.encoders.text import TextConfig, encode_texts
from palate.evaluation.sequential.data import SequenceData
from palate.recommend.sequence import EvidenceConfig, SequenceConfig

_SHORT = SequenceConfig(
    SequenceModelConfig(dim=128, num_layers=1, num_heads=2, max_events=50, dropout=0.5),
    BatchConfig(tokens=2048),
    TrainingConfig(num_epochs=40, learning_rate=1e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
    evidence=(
        EvidenceConfig("ease", (100.0,), (0.6, 0.7, 0.8)),
        EvidenceConfig("neighbours", (10.0, 100.0), (0.5, 0.6, 0.7)),
        EvidenceConfig("transitions", (0.0,), (0.0,)),
    ),
)

RECIPES: Mapping[str, SequenceConfig] = {
    "ml-1m": SequenceConfig(
        SequenceModelConfig(
            dim=128,
            num_layers=3,
            num_heads=4,
            max_events=200,
            dropout=0.3,
            loss=LossConfig(distinct=True),  # nobody rates a film twice; where people did little, it takes too much
        ),
        BatchConfig(tokens=4096),
        TrainingConfig(num_epochs=24, learning_rate=1.5e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
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


def with_content(recipe: SequenceConfig, data: SequenceData) -> SequenceConfig:
    """The recipe for a model that also reads what else is known: content, and ratings and profiles where there are any.

    An eighth of the items lose their id in a step, so that content is learned from.
    """
    rated = data.log.values is not None
    model = replace(recipe.model, id_dropout=0.125, rated=rated)
    return replace(recipe, model=model, profiles=data.log.profiles is not None)


def content_of(data: SequenceData, seed: int = 0) -> Float[Tensor, "item content"]:
    """What is said of the items, as features: the texts' vectors, and at most 128 directions of the attributes."""
    parts = []
    if data.item_texts is not None:
        parts.append(encode_texts(data.item_texts, TextConfig(max_length=128)))
    if data.item_attributes is not None:
        weighed = TfidfTransformer().fit_transform(data.item_attributes)
        rank = min(128, weighed.shape[1] - 1)
        if rank > 0:
            found = TruncatedSVD(rank, random_state=seed).fit_transform(weighed)
            parts.append(torch.from_numpy(np.asarray(found, np.float32)))
    return torch.cat(parts, 1)

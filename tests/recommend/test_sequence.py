"""Members and evidence on worlds whose rule is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines.item_item import item_item_scorer
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError, DataError
from palate.recommend.sequence import EvidenceConfig, SequenceConfig, SequenceScorer, fit_sequences
from palate.scorers.item_weights import ease_weights

NUM_ITEMS = 20
CONFIG = SequenceConfig(
    SequenceModelConfig(dim=16, num_layers=1, max_events=10, dropout=0.1),
    BatchConfig(tokens=200),
    TrainingConfig(num_epochs=20, learning_rate=1e-2, warmup_steps=5),
    num_members=2,
    people=60,
)


def ring(seed: int, people: int = 120) -> EventLog:
    """Walks along a ring, one item after the other."""
    starts = np.random.default_rng(seed).integers(0, NUM_ITEMS, people)
    return from_sequences([(start + np.arange(6)) % NUM_ITEMS for start in starts])


def fit(config: SequenceConfig = CONFIG, folder: Path | None = None, seed: int = 0) -> SequenceScorer:
    log = ring(0)
    last = log.items[log.offsets[1:] - 1]
    return fit_sequences(log.cut(1), log.cut(1), last, NUM_ITEMS, config, seed=seed, folder=folder)


def hits(scorer: SequenceScorer, log: EventLog) -> float:
    scores = scorer(log.cut(1))
    return float((scores.argmax(1) == log.items[log.offsets[1:] - 1]).mean())


def test_the_rule_is_found_by_members_and_by_evidence() -> None:
    scorer = fit()
    assert hits(scorer, ring(1)) > 0.95
    assert hits(scorer.alone(), ring(1)) > 0.8
    assert len(scorer.members) == 2
    assert {"ease", "neighbours", "transitions", "weights"} <= set(scorer.settings)


def test_evidence_is_weighed_by_what_it_is_worth() -> None:
    """Untrained members know nothing: all the weight goes to the transitions."""
    idle = replace(CONFIG, training=replace(CONFIG.training, num_epochs=1, learning_rate=1e-9), num_members=1)
    scorer = fit(replace(idle, evidence=(EvidenceConfig("transitions", (0.0,), (0.0,)),)))
    assert hits(scorer, ring(1)) > 0.95
    assert hits(scorer.alone(), ring(1)) < 0.5


def test_same_seed_same_scores_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    first, log = fit(folder=tmp_path), ring(1)
    again = fit(folder=tmp_path)  # finds finished members
    fresh = fit()
    np.testing.assert_array_equal(first(log), again(log))
    np.testing.assert_array_equal(first(log), fresh(log))
    assert not np.array_equal(fit(seed=9)(log), first(log))


def test_members_see_the_past_alone_and_anyone_may_have_no_past() -> None:
    scorer = fit()
    scores = scorer(from_sequences([[], [3, 4]]))
    assert np.isfinite(scores).all()
    together = scorer(from_sequences([[7], [3, 4]]))
    np.testing.assert_allclose(together[1], scores[1], rtol=1e-3, atol=1e-3)


def test_the_weights_are_the_most_likely_ones() -> None:
    """Moving any weight makes the validation targets less likely."""
    from palate.recommend.sequence import _combine, _features

    scorer, log = fit(), ring(0)
    places = np.unique(np.linspace(0, log.num_users - 1, CONFIG.people).astype(np.int64))
    part = log.take(places)
    goals = torch.from_numpy(part.items[part.offsets[1:] - 1].astype(np.int64))
    past = part.cut(1)
    features = _features(scorer.members, scorer.evidence, past)

    def loss(weights: torch.Tensor) -> float:
        scores = _combine(features, weights)
        for row in range(past.num_users):
            scores[row, torch.from_numpy(past.items[past.offsets[row] : past.offsets[row + 1]].astype(np.int64))] = -1e9
        return torch.nn.functional.cross_entropy(scores, goals).item()

    best = loss(scorer.weights)
    start = torch.zeros(len(scorer.weights))
    start[0] = 1
    assert best < loss(start)
    for place in range(len(scorer.weights)):
        for step in (-0.3, 0.3):
            moved = scorer.weights.clone()
            moved[place] += step * max(1.0, abs(float(moved[place])))
            assert loss(moved) > best - 2e-3


def test_evidence_equals_its_model() -> None:
    log = ring(0).cut(1)
    scorer = fit(replace(CONFIG, evidence=(EvidenceConfig("ease", (10.0,), (0.5,)),)))
    wanted = item_item_scorer(ease_weights(log, NUM_ITEMS, 10.0), 0.5, np.zeros(NUM_ITEMS, np.float32))(ring(1))
    np.testing.assert_allclose(scorer.evidence[0](ring(1)), wanted, rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evidence\.kind is 'svd'"):
        EvidenceConfig("svd")
    with pytest.raises(ConfigError, match=r"sequence\.num_members is 0"):
        SequenceConfig(num_members=0)
    with pytest.raises(ConfigError, match="strengths and decays need a value"):
        EvidenceConfig("ease", ())
    log = ring(0)
    with pytest.raises(DataError, match="0 people to validate on and 0 targets"):
        fit_sequences(log, from_sequences([]), np.zeros(0, np.int32), NUM_ITEMS, CONFIG, seed=0)

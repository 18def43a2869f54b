"""The recommender on cold people: train it on everyone else, save and load it, judge once beside its backbone alone.

The protocol is that of `cold_users.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from palate.backbone.batches import BatchConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines import COLD_SEQUENCE_BASELINES, Scorer, select
from palate.config import Config
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.evaluation.sequential.cold_users import (
    SIZES,
    ScoresAt,
    at_counts,
    average_gain,
    compare,
    judge_later,
    judge_next,
    positions_after,
    split_people,
)
from palate.evaluation.sequential.data import SequenceData
from palate.evaluation.sequential.leave_one_out import Held, figures, rank_targets
from palate.evaluation.sequential.served_models import fit_served, scorer_of
from palate.meta.training import MetaConfig
from palate.scorers.item_item import ItemItemConfig
from palate.threads import one_thread

_EVENTS = max(positions_after(SIZES[-1])) + 1
"""Events of a cold person that are looked at."""
OURS, ALONE = "Palate", "its backbone alone"


def _recipe() -> Config:
    return Config(
        model=SequenceModelConfig(dim=64, num_layers=2, max_events=200, dropout=0.2, loss=LossConfig(distinct=True)),
        batches=BatchConfig(2048),
        training=TrainingConfig(num_epochs=18, learning_rate=1.5e-3, warmup_steps=200, precision="bfloat16", ema=0.999),
        item_item=ItemItemConfig(ease_penalty=(100.0, 300.0, 1000.0)),
        meta=MetaConfig(support_sizes=SIZES, min_query=5, window=1),
    )


@dataclass(frozen=True)
class ColdConfig:
    """How a run is made."""

    num_test: int = 1500
    """Cold people."""
    num_validation: int = 400
    """People on whom the baselines choose their decays; Palate is trained on them as on all others."""
    recipe: Config = field(default_factory=_recipe)
    """How the recommender is trained."""


@one_thread()
def run_cold(
    data: SequenceData,
    config: ColdConfig,
    *,
    seed: int = 0,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    workers: int = 1,
) -> dict[str, Any]:
    """Train on other people, judge the cold ones, and return the figures of both protocols as plain values.

    Args:
        data: everyone's sequences.
        config: the settings.
        seed: of the split and of the trainings.
        folder: takes checkpoints and the model.
        say: takes lines about the progress.
        workers: processes that train side by side.

    Raises:
        ConfigError: too few people for the groups, or a model that reads fewer events than the protocol.
        NumericalError: a loss or a score is not finite.
    """
    if config.recipe.model.max_events < _EVENTS:
        raise ConfigError(
            f"cold.recipe.model.max_events is {config.recipe.model.max_events}; the protocol reads {_EVENTS} events"
        )
    groups = split_people(data.log.num_users, num_test=config.num_test, num_validation=config.num_validation, seed=seed)
    kept, training = data.log.take(groups.validation), data.log.take(groups.training)
    others = data.log.take(np.sort(np.concatenate([groups.training, groups.validation])))
    recipe = replace(config.recipe, seed=seed)
    model = fit_served(replace(data, log=others), recipe, folder=folder, say=say, workers=workers)
    cold = data.log.take(groups.test)
    models: dict[str, ScoresAt] = {
        OURS: at_counts(scorer_of(model, data)),
        ALONE: at_counts(scorer_of(model, data, backbone_alone=True)),
        **{name: at_counts(scorer) for name, scorer in _baselines(training, others, kept, data.num_items).items()},
    }
    results: dict[str, Any] = {"seed": seed, "model": model.model_id, "models": {}}
    judged: dict[str, Mapping[str, np.ndarray]] = {}
    for name, scorer in models.items():
        judged[name] = {
            "next": judge_next(scorer, cold, data.num_items),
            "later": judge_later(scorer, cold, data.num_items),
        }
        results["models"][name] = {part: [_mean(value) for value in values.T] for part, values in judged[name].items()}
        say(f"{name}: next {[value and round(value, 4) for value in results['models'][name]['next']]}")
    for part in ("next", "later"):
        ours, theirs = judged[OURS][part], judged[ALONE][part]
        rows = [
            {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in row.items()}
            for row in compare(ours, theirs)
        ]
        hit = np.nansum(theirs, 0) > 0  # short histories leave large sizes without anybody
        gain = average_gain(ours[:, hit], theirs[:, hit])._asdict() if hit.any() else None
        results[part] = {"gain": gain, "sizes": rows}
    return results


def _mean(values: Float64[np.ndarray, "user"]) -> float | None:
    """Mean over the people who count; None where nobody does."""
    real = values[np.isfinite(values)]
    return float(real.mean()) if len(real) else None


def _baselines(training: EventLog, others: EventLog, kept: EventLog, num_items: int) -> dict[str, Scorer]:
    """Each baseline on the people whom Palate is trained on, with what ranks the last items of `kept` best."""
    judged = kept.take(np.flatnonzero(kept.lengths() >= 2))
    held = Held(np.arange(judged.num_users), judged.cut(1), judged.items[judged.offsets[1:] - 1])

    def validate(scorer: Scorer) -> float:
        return float(figures(rank_targets(scorer, held, num_items).removed)["ndcg@10"].mean())

    chosen: dict[str, Scorer] = {}
    for label, baseline in COLD_SEQUENCE_BASELINES.items():
        found = select(baseline, training, num_items, validate)
        chosen[label] = baseline.fit(others, num_items, found.config, found.decay)
    return chosen

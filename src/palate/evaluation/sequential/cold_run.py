"""Fast weights on cold people: train everything on others, judge once, compare with the frozen model alone.

The protocol is that of `cold_users.py`. The model and the item-item tables are fitted on some people, the head on
others, its trust chosen on a third group, and the cold people are judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from palate.backbone.batches import BatchConfig, BatchSource, inputs
from palate.backbone.engine import train
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines.item_item import Scorer, item_item_scorer
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.evaluation.sequential.cold_users import (
    SIZES,
    ScoresAt,
    at_counts,
    average_gain,
    check_causal,
    compare,
    judge_later,
    judge_next,
    positions_after,
    split_people,
)
from palate.evaluation.sequential.data import SequenceData
from palate.evaluation.sequential.leave_one_out import Held, figures, rank_targets
from palate.meta.learner import Params
from palate.meta.next_item_table import NextItemTableConfig, fit_next_item_table
from palate.meta.profile_table import fit_profile_table
from palate.meta.sequence_head import SequenceItems, start_params
from palate.meta.sequence_training import (
    People,
    SequenceTrainingConfig,
    fit_trust,
    make_people,
    scores_at,
    train_head,
)
from palate.scorers.item_weights import ease_weights, neighbour_weights, no_weights
from palate.threads import one_thread

_EVENTS = max(positions_after(SIZES[-1])) + 1
"""Events of a cold person that are looked at."""


@dataclass(frozen=True)
class ColdConfig:
    """How a run is made; all of it was chosen on validation people of other splits."""

    num_test: int = 1500
    """Cold people."""
    num_training: int = 940
    """People whom the head is trained on."""
    num_validation: int = 400
    """People who choose how far the head is trusted."""
    model: SequenceModelConfig = field(
        default_factory=lambda: SequenceModelConfig(dim=64, num_layers=2, loss=LossConfig(distinct=True))
    )
    """The frozen model."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            num_epochs=18, learning_rate=1.5e-3, warmup_steps=200, precision="bfloat16", ema=0.999
        )
    )
    """How it is trained."""
    tokens: int = 2048
    """Events of a batch."""
    ease: float = 100.0
    """λ of the EASE table."""
    table: NextItemTableConfig = field(default_factory=NextItemTableConfig)
    """The table of what follows what."""
    profile_strength: float = 20.0
    """Choices of the average kind that a profile's are mixed with, where people have profiles; 0 leaves them out."""
    head: SequenceTrainingConfig = field(default_factory=lambda: SequenceTrainingConfig(num_epochs=3))
    """The outer loop of the head."""


@one_thread()
def run_cold(
    data: SequenceData,
    config: ColdConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train on other people, judge the cold ones, and return the figures of both protocols as plain values.

    Args:
        data: everyone's sequences; ratings become the grades of the head where there are any.
        config: the settings.
        seed: of the split and of the trainings.
        folder: takes checkpoints of the model.
        say: takes lines about the progress.

    Raises:
        ConfigError: too few people for the groups.
        DataError: the scores of a model depend on later events.
        NumericalError: a loss or a score is not finite.
    """
    if config.model.max_events < _EVENTS:
        raise ConfigError(f"cold.model.max_events is {config.model.max_events}; the protocol reads {_EVENTS} events")
    groups = split_people(
        data.log.num_users,
        num_test=config.num_test,
        num_training=config.num_training,
        num_validation=config.num_validation,
        seed=seed,
    )
    others = data.log.take(groups.backbone)
    model = _train_model(others, data.num_items, config, seed, folder, say)
    ease = ease_weights(others, data.num_items, config.ease)
    follows = fit_next_item_table(others, data.num_items, config.table)
    with torch.no_grad():
        items = SequenceItems(model.items.all(), model.items.bias.detach(), torch.from_numpy(np.stack([ease, follows])))
    told = None
    if config.profile_strength and data.log.profiles is not None:
        told = torch.from_numpy(fit_profile_table(others, data.num_items, config.profile_strength))
    grades = 1 if data.log.values is None else int(data.log.values.max())
    head = start_params(config.model.dim, [0.94, 0.95], num_grades=grades)
    meta, kept = data.log.take(groups.training), data.log.take(groups.validation)
    learners = _people(model, items, told, meta)
    head = train_head(head, items, learners, config.head, seed=seed, say=lambda line: say(f"head: {line}"))
    head = fit_trust(head, items, _people(model, items, told, kept), seed=seed)
    say(f"trust {[round(value, 2) for value in head['fixed.trust'].tolist()]}")

    cold = data.log.take(groups.test)
    models: dict[str, ScoresAt] = {
        "sequence model": partial(_alone, model, items),
        "fast weights": partial(_adapted, model, items, told, head),
        **{name: at_counts(scorer) for name, scorer in _floors(others, kept, data.num_items).items()},
    }
    check_causal(models["fast weights"], cold.take(np.arange(min(8, cold.num_users))), [1, 5, 20])
    results: dict[str, Any] = {"seed": seed, "trust": head["fixed.trust"].tolist(), "models": {}}
    judged: dict[str, Mapping[str, np.ndarray]] = {}
    for name, scorer in models.items():
        judged[name] = {
            "next": judge_next(scorer, cold, data.num_items),
            "later": judge_later(scorer, cold, data.num_items),
        }
        results["models"][name] = {part: [_mean(value) for value in values.T] for part, values in judged[name].items()}
        say(f"{name}: next {[value and round(value, 4) for value in results['models'][name]['next']]}")
    for part in ("next", "later"):
        ours, theirs = judged["fast weights"][part], judged["sequence model"][part]
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


def _train_model(
    log: EventLog, num_items: int, config: ColdConfig, seed: int, folder: Path | None, say: Callable[[str], None]
) -> SequenceModel:
    torch.manual_seed(seed)
    model = SequenceModel(config.model, Catalogue(torch.from_numpy(np.bincount(log.items, minlength=num_items))))
    train(
        model,
        BatchSource(log, BatchConfig(config.tokens), config.model.max_events),
        config.training,
        seed=seed,
        folder=folder,
        on_epoch=lambda record: say(f"epoch {record.epoch}, loss {record.loss:.4f}, {record.cpu_seconds:.0f} CPU s"),
    )
    return model.eval().requires_grad_(False)


def _head_of(log: EventLog) -> EventLog:
    """Everyone's first events: what the protocol looks at."""
    return log.cut(np.maximum(log.lengths() - _EVENTS, 0))


def _people(
    model: SequenceModel,
    items: SequenceItems,
    told: Float[Tensor, "feature item"] | None,
    log: EventLog,
    batch_size: int = 64,
) -> People:
    """First events of people, with the frozen model's states and what their profiles say by the table `told`."""
    part = _head_of(log)
    width = int(part.lengths().max())
    states, rows, grades = [], [], []
    for start in range(0, part.num_users, batch_size):
        some = part.take(np.arange(start, min(start + batch_size, part.num_users)))
        batch = inputs(some, model.config.max_events)
        with torch.no_grad():
            found = model.states(batch).float()
        short = width - batch.items.shape[1]
        states.append(torch.nn.functional.pad(found, (0, 0, 0, short)))
        rows.append(torch.nn.functional.pad(batch.items, (0, short)))
        values = torch.zeros_like(batch.items) if batch.values is None else (batch.values.long() - 1).clamp_min(0)
        grades.append(torch.nn.functional.pad(values, (0, short)))
    lengths = torch.from_numpy(part.lengths())
    known = None if told is None or log.profiles is None else torch.from_numpy(np.array(log.profiles)) @ told
    return make_people(items, torch.cat(rows), torch.cat(grades), lengths, torch.cat(states), known)


def _alone(
    model: SequenceModel, items: SequenceItems, log: EventLog, counts: Sequence[int]
) -> Float32[np.ndarray, "user count item"]:
    batch = inputs(_wide(log, max(counts)), model.config.max_events)
    with torch.no_grad():
        states = model.states(batch).float()[:, list(counts)]
        return np.asarray((states @ items.vectors.T + items.bias).numpy())


def _adapted(
    model: SequenceModel,
    items: SequenceItems,
    told: Float[Tensor, "feature item"] | None,
    head: Params,
    log: EventLog,
    counts: Sequence[int],
) -> Float32[np.ndarray, "user count item"]:
    people = _people(model, items, told, _wide(log, max(counts)))
    with torch.no_grad():
        return np.asarray(scores_at(head, items, people, torch.tensor([list(counts)] * log.num_users)).numpy())


def _wide(log: EventLog, width: int) -> EventLog:
    """The first `width` events of each person; who has fewer is filled up with their last item, which nobody judges."""
    sizes = log.lengths()
    places = log.offsets[:-1, None] + np.minimum(np.arange(width), np.maximum(sizes - 1, 0)[:, None])
    offsets = np.arange(len(sizes) + 1) * width
    values = None if log.values is None else log.values[places].ravel()
    return EventLog(log.items[places].ravel(), offsets.astype(np.int64), values=values, profiles=log.profiles)


def _floors(training: EventLog, kept: EventLog, num_items: int) -> dict[str, Scorer]:
    """Popularity, item-kNN and EASE with recency; the decay is what ranks the last items of people kept back best."""
    popularity = np.bincount(training.items, minlength=num_items).astype(np.float32) / max(training.num_users, 1)
    judged = kept.take(np.flatnonzero(kept.lengths() >= 2))
    held = Held(np.arange(judged.num_users), judged.cut(1), judged.items[judged.offsets[1:] - 1])
    chosen: dict[str, Scorer] = {"popularity": item_item_scorer(no_weights(training, num_items), 1.0, popularity)}
    for name, weights in (
        ("item-kNN, recency", neighbour_weights(training, num_items, 10.0)),
        ("EASE, recency", ease_weights(training, num_items, 300.0)),
    ):
        scorers = [item_item_scorer(weights, decay, popularity) for decay in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)]
        values = [figures(rank_targets(scorer, held, num_items).removed)["ndcg@10"].mean() for scorer in scorers]
        chosen[name] = scorers[int(np.argmax(values))]
    return chosen

"""Choosing the settings of item-item scorers on people whom they were not fitted on."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from palate.data.event_log import EventLog
from palate.metrics import ndcg_at_k, top_k
from palate.scorers.evidence import PER_SCORER, Scorers
from palate.scorers.item_item import SCORERS, ItemItem, ItemItemConfig, Setting

_TOGETHER = 256
"""Tasks whose features are in memory at once."""
_LEAST_SPREAD = 1e-6


def choose_scorers(
    training: EventLog,
    tasks: EventLog,
    relevant: Bool[np.ndarray, "task item"],
    seen: Bool[np.ndarray, "task item"],
    config: ItemItemConfig,
    say: Callable[[str], None] = lambda line: None,
) -> Scorers:
    """Fit each scorer with the setting under which it alone ranks best, and measure the spread of its features.

    Args:
        training: what they are fitted on.
        tasks: what people did who are not in it.
        relevant: what they chose later.
        seen: what is not to be listed.
        config: the settings to choose from.
        say: takes a line for each scorer.

    Raises:
        NumericalError: EASE's matrix cannot be factored, which a larger penalty cures.
    """
    num_items = relevant.shape[1]
    fitted = dict[str, ItemItem]()
    for kind in config.kinds:
        entry = SCORERS[kind]
        best = -1.0
        for strength in entry.strengths(config):
            made = entry.fit(training, num_items, strength, config)
            for decay in entry.decays(config):
                scorer = made._replace(setting=Setting(strength, decay))
                value = _ndcg(scorer, tasks, relevant, seen)
                if value > best:
                    best, fitted[kind] = value, scorer
        strength, decay = fitted[kind].setting
        say(f"{kind}: strength {strength:g}, decay {decay:g}, NDCG@10 {best:.4f}")
    scorers = Scorers(fitted, np.ones(PER_SCORER * len(fitted), np.float32))
    return Scorers(fitted, _spread(scorers, tasks, num_items))


def _ndcg(
    scorer: ItemItem, tasks: EventLog, relevant: Bool[np.ndarray, "task item"], seen: Bool[np.ndarray, "task item"]
) -> float:
    values = [
        ndcg_at_k(top_k(np.where(seen[part], -np.inf, scorer.evidence(tasks.take(part))), 10), relevant[part])
        for part in _parts(tasks)
    ]
    return float(np.concatenate(values).mean())


def _spread(scorers: Scorers, tasks: EventLog, num_items: int) -> np.ndarray:
    """Root of the mean variance of each feature over the catalogue."""
    total = np.zeros(scorers.num_features)
    for part in _parts(tasks):
        total += scorers.features(tasks.take(part), num_items).var(1).sum(0)
    return np.maximum(np.sqrt(total / max(tasks.num_users, 1)), _LEAST_SPREAD).astype(np.float32)


def _parts(tasks: EventLog) -> list[np.ndarray]:
    return [np.arange(start, min(start + _TOGETHER, tasks.num_users)) for start in range(0, tasks.num_users, _TOGETHER)]

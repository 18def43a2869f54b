"""What a profile says of taste before any event: how much more often people like that choose each item.

A row for each feature, such as an age bracket: log (c + a) / (e + a), c how often its people have chosen the item, e
how often they would have if they chose as everyone does, and a some choices of the average kind (c / e under a gamma
prior: DuMouchel, 1999, doi 10.1080/00031305.1999.10474456). A person's evidence is the sum over their features; how
much it counts beside their events, and for how long, is for the head to learn.
"""

import numpy as np
from jaxtyping import Float32

from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError


def fit_profile_table(log: EventLog, num_items: int, strength: float = 20.0) -> Float32[np.ndarray, "feature item"]:
    """Count choices by profile; features are ≥ 0, such as indicators, and `strength` is a, in choices.

    Raises:
        ConfigError: the strength is not above 0.
        DataError: the log has no profiles, a profile has a negative feature, or an item is not in the catalogue.
    """
    if not strength > 0:
        raise ConfigError(f"profile table: the strength is {strength}; it must be above 0")
    if log.profiles is None:
        raise DataError("profile table: the log has no profiles; give them")
    if (log.profiles < 0).any():
        raise DataError("profile table: a profile has a negative feature; encode it as indicators")
    if len(log) and log.items.max() >= num_items:
        raise DataError(f"profile table: the log holds item {log.items.max()}, the catalogue {num_items:,}")
    chosen = np.zeros((log.profiles.shape[1], num_items))
    lengths = log.lengths()
    for feature in range(len(chosen)):
        weights = np.repeat(log.profiles[:, feature].astype(np.float64), lengths)
        chosen[feature] = np.bincount(log.items, weights, minlength=num_items)
    popularity = np.bincount(log.items, minlength=num_items) / max(len(log), 1)
    expected = chosen.sum(1, keepdims=True) * popularity
    table: Float32[np.ndarray, "feature item"] = np.log((chosen + strength) / (expected + strength)).astype(np.float32)
    return table

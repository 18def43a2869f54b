"""What follows what, in closed form: a table B from the events of many people, whose rows add up to evidence.

A person's past after event t is x_t = Σ γ^age · one-hot(event), what comes next y_t = the next few items with falling
weights. B minimises Σ ‖x_t B − y_t‖² + λ‖B‖², so B = (Σ x_t x_tᵀ + λI)⁻¹ Σ x_t y_tᵀ: the linear item-item model of
Choe et al., "Session-aware Linear Item-Item Models for Session-based Recommendation", 2021, arXiv:2103.16104, on whole
histories. The evidence of a person for all items, Σ γ^age · B[event], changes by one row an event.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int

from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError, NumericalError


@dataclass(frozen=True)
class NextItemTableConfig:
    """How far back and ahead the table looks."""

    decay: float = 0.95
    """γ: weight of an event relative to the one after it."""
    penalty: float = 100.0
    """λ, in events: items with fewer are trusted less."""
    horizon: int = 4
    """How many items to come are foretold."""
    horizon_decay: float = 0.6
    """Weight of each of them relative to the one before it."""
    memory: int = 100
    """Events before the newest 300 that are still counted, where a history is longer."""

    def __post_init__(self) -> None:
        for name in ("decay", "horizon_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"table.{name} is {getattr(self, name)}; it must be in (0, 1]")
        if not self.penalty > 0:
            raise ConfigError(f"table.penalty is {self.penalty}; it must be above 0")
        for name in ("horizon", "memory"):
            if getattr(self, name) < 1:
                raise ConfigError(f"table.{name} is {getattr(self, name)}; it must be at least 1")


_STRETCH = 300


def fit_next_item_table(log: EventLog, num_items: int, config: NextItemTableConfig) -> Float32[np.ndarray, "item item"]:
    """Add up the normal equations person by person and solve them in float64: O(events · 400 + items³).

    Raises:
        DataError: an item of the log is not in the catalogue.
        NumericalError: the equations cannot be solved, which a larger penalty cures.
    """
    if len(log) and log.items.max() >= num_items:
        raise DataError(f"table: the log holds item {log.items.max()}, the catalogue {num_items:,}; give its true size")
    seen = np.zeros((num_items, num_items), np.float32)
    followed = np.zeros_like(seen)
    for start, stop in zip(log.offsets[:-1].tolist(), log.offsets[1:].tolist(), strict=True):
        history = log.items[start:stop]
        for first in range(0, len(history) - 1, _STRETCH):
            oldest = max(0, first - config.memory)
            read = history[oldest : first + _STRETCH]
            ahead = history[first + 1 : first + _STRETCH + config.horizon]
            count = min(_STRETCH, len(ahead))
            places = np.arange(first, first + count)[:, None]
            ages = places - np.arange(oldest, oldest + len(read))
            past = np.where(ages >= 0, config.decay ** np.maximum(ages, 0), 0.0).astype(np.float32)
            _add(seen, read, read, past.T @ past)
            _add(followed, read, ahead, past.T @ _targets(count, len(ahead), config))
    system = torch.from_numpy(seen).double()
    system.diagonal().add_(config.penalty)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise NumericalError(f"table: its equations with penalty {config.penalty} cannot be solved; take a larger one")
    table: Float32[np.ndarray, "item item"] = (
        torch.cholesky_solve(torch.from_numpy(followed).double(), factor).float().contiguous().numpy()
    )
    return table


def _targets(count: int, width: int, config: NextItemTableConfig) -> Float32[np.ndarray, "row target"]:
    """Row t: how much each of `width` items to come is foretold after event t; each row adds up to 1."""
    ahead = np.arange(width) - np.arange(count)[:, None]
    inside = (ahead >= 0) & (ahead < config.horizon)
    weights = np.where(inside, config.horizon_decay ** np.maximum(ahead, 0), 0.0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _add(
    total: Float32[np.ndarray, "item item"],
    rows: Int[np.ndarray, "row"],
    columns: Int[np.ndarray, "column"],
    values: Float32[np.ndarray, "row column"],
) -> None:
    """Add to the pairs of items; an item that is there twice counts twice."""
    unique_rows, row = np.unique(rows, return_inverse=True)
    unique_columns, column = np.unique(columns, return_inverse=True)
    if len(unique_rows) == len(rows) and len(unique_columns) == len(columns):
        total[np.ix_(rows, columns)] += values  # NOTE: this form would count repeated items once
        return
    some = np.zeros((len(unique_rows), len(unique_columns)), np.float32)
    np.add.at(some, (row[:, None], column[None]), values)
    total[np.ix_(unique_rows, unique_columns)] += some

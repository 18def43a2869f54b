"""What goes with what: sparse item-item weights with recency, fitted on everyone's events.

The evidence for an item is Σ γ^age · B[event, item] over a person's events, where the latest has age 0. Of each row of
B the largest weights are kept, so that one person's evidence costs as much as their last events have neighbours,
whatever the size of the catalogue. EASE is inverted for the most chosen items alone where there are very many: its cost
grows with the cube of their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.scorers.item_weights import ease_weights, neighbour_weights, transition_weights

_FORGOTTEN = 1e-2
"""Events whose age makes them count less than this are not looked at."""


@dataclass(frozen=True)
class ItemItemConfig:
    """Which item-item scorers there are, and what validation chooses their settings from."""

    kinds: tuple[str, ...] = ("ease", "neighbours", "transitions")
    """Lines of `palate.scorers.SCORERS`; none: the adapted head alone."""
    ease_penalty: tuple[float, ...] = (100.0, 1000.0)
    """EASE's λ."""
    neighbour_shrink: tuple[float, ...] = (10.0, 100.0)
    """Added to the denominator of the neighbours' cosine, in people."""
    decays: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """Weight of an event relative to the one after it."""
    width: int = 256
    """Weights that are kept of each item's row, the largest ones."""
    most_items: int = 8_192
    """Items that EASE and neighbours are fitted on, the most chosen ones: a dense matrix of them is held in memory."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in SCORERS:
                raise ConfigError(f"item_item.kinds names {kind!r}; choose among: {', '.join(SCORERS)}")
        if len(set(self.kinds)) != len(self.kinds):
            raise ConfigError(f"item_item.kinds is {self.kinds}; name each once")
        for name in ("ease_penalty", "neighbour_shrink"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ConfigError(f"item_item.{name} is {getattr(self, name)}; expected numbers above 0")
        if not self.decays or not all(0 <= decay <= 1 for decay in self.decays):
            raise ConfigError(f"item_item.decays is {self.decays}; expected numbers from 0 to 1")
        for name in ("width", "most_items"):
            if getattr(self, name) < 1:
                raise ConfigError(f"item_item.{name} is {getattr(self, name)}; it must be at least 1")


class Setting(NamedTuple):
    """What is chosen of one scorer."""

    strength: float
    """Its penalty or shrinkage; 0 for a scorer without one."""
    decay: float


class ItemItem(NamedTuple):
    """A fitted scorer: rows of weights one after the other, and the decay of events."""

    starts: Int64[np.ndarray, "item_and_one"]
    """Where each item's row begins."""
    items: Int32[np.ndarray, "weight"]
    """The item that a weight is for."""
    weights: Float32[np.ndarray, "weight"]
    setting: Setting

    @property
    def decay(self) -> float:
        """Weight of an event relative to the one after it."""
        return self.setting.decay

    @property
    def num_items(self) -> int:
        """Items that were there when it was fitted."""
        return len(self.starts) - 1

    @property
    def reach(self) -> int:
        """The most recent events that count."""
        return 1 if self.decay == 0 else 2**20 if self.decay == 1 else int(np.log(_FORGOTTEN) / np.log(self.decay)) + 1

    def neighbours(
        self, chosen: Int64[np.ndarray, "event"]
    ) -> tuple[Int32[np.ndarray, "weight"], Float32[np.ndarray, "weight"]]:
        """What the events of one person, the oldest first, say of other items: an item may be named more than once."""
        recent = chosen[-self.reach :]
        ages = np.arange(len(recent) - 1, -1, -1)
        known = recent < self.num_items
        rows = [slice(self.starts[item], self.starts[item + 1]) for item in recent[known].tolist()]
        if not rows:
            return self.items[:0], self.weights[:0]
        factors = (np.float32(self.decay) ** ages[known]).astype(np.float32).tolist()
        return (
            np.concatenate([self.items[row] for row in rows]),
            np.concatenate([factor * self.weights[row] for factor, row in zip(factors, rows, strict=True)]),
        )

    def evidence(self, log: EventLog) -> Float32[np.ndarray, "user item"]:
        """The evidence of every item for everyone of a log; `neighbours`, batched and summed."""
        stops = np.repeat(log.offsets[1:], log.lengths())
        ages = stops - 1 - np.arange(len(log))
        counts = (ages < self.reach) & (log.items < self.num_items)
        factors = np.float32(self.decay) ** ages[counts].astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(counts)])[log.offsets]
        shown = csr_array((factors, log.items[counts], offsets), (log.num_users, self.num_items))
        table = csr_array((self.weights, self.items, self.starts), (self.num_items, self.num_items))
        found: Float32[np.ndarray, "user item"] = (shown @ table).toarray()
        return found


class ScorerEntry(NamedTuple):
    """One line of the table of scorers."""

    fit: Callable[[EventLog, int, float, ItemItemConfig], ItemItem]
    """(training events, number of items, strength, settings) to a scorer in which all events count 1; its decay is
    chosen afterwards."""
    strengths: Callable[[ItemItemConfig], tuple[float, ...]]
    """The strengths to choose from."""
    decays: Callable[[ItemItemConfig], tuple[float, ...]]
    """The decays to choose from."""


def _fit_ease(log: EventLog, num_items: int, strength: float, config: ItemItemConfig) -> ItemItem:
    items, inside = _most_chosen(log, num_items, config.most_items)
    return _sparse(ease_weights(inside, len(items), strength), items, num_items, config.width, strength)


def _fit_neighbours(log: EventLog, num_items: int, strength: float, config: ItemItemConfig) -> ItemItem:
    items, inside = _most_chosen(log, num_items, config.most_items)
    return _sparse(neighbour_weights(inside, len(items), strength), items, num_items, config.width, strength)


def _fit_transitions(log: EventLog, num_items: int, strength: float, config: ItemItemConfig) -> ItemItem:
    items, inside = _most_chosen(log, num_items, config.most_items)
    return _sparse(transition_weights(inside, len(items)), items, num_items, config.width, strength)


SCORERS: Mapping[str, ScorerEntry] = {
    "ease": ScorerEntry(_fit_ease, lambda config: config.ease_penalty, lambda config: config.decays),
    "neighbours": ScorerEntry(_fit_neighbours, lambda config: config.neighbour_shrink, lambda config: config.decays),
    "transitions": ScorerEntry(_fit_transitions, lambda config: (0.0,), lambda config: (0.0,)),
}
"""ease: EASE. neighbours: shrunk cosine. transitions: what followed the last event."""


def _most_chosen(log: EventLog, num_items: int, most: int) -> tuple[Int64[np.ndarray, "kept"], EventLog]:
    """The most chosen items in the order of their numbers, and the events with them, numbered by place among them."""
    if num_items <= most:
        return np.arange(num_items), log
    counts = np.bincount(log.items, minlength=num_items)
    items = np.sort(np.argsort(-counts, kind="stable")[:most])
    place = np.full(num_items, -1, np.int32)
    place[items] = np.arange(most)
    kept = place[log.items] >= 0
    users = np.repeat(np.arange(log.num_users), log.lengths())[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=log.num_users))]).astype(np.int64)
    return items, EventLog(place[log.items[kept]], offsets)


def _sparse(
    weights: Float32[np.ndarray, "kept kept"],
    items: Int64[np.ndarray, "kept"],
    num_items: int,
    width: int,
    strength: float,
) -> ItemItem:
    """The largest weights of each row, by absolute value; rows of items that were left out are empty."""
    lengths = np.zeros(num_items, np.int64)
    columns, values = [], []
    for item, row in zip(items.tolist(), weights, strict=True):
        kept = np.flatnonzero(row)
        if len(kept) > width:
            kept = np.sort(kept[np.argpartition(-np.abs(row[kept]), width)[:width]])
        lengths[item] = len(kept)
        columns.append(items[kept].astype(np.int32))
        values.append(row[kept])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return ItemItem(starts, np.concatenate(columns), np.concatenate(values).astype(np.float32), Setting(strength, 1.0))

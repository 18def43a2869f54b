"""What every baseline shares: its contract, ties broken by popularity, the choice of settings.

A baseline of lists is fitted on a log of everyone's events to a `ListModel`, which scores every item for people from
how much each of their events counts. `at_decay` makes it a `Scorer` of logs, the form in which every table judges a
model: an event counts decay^age, where the latest has age 0. At a decay of 1 all events count alike and their order
does not matter.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from palate.data.event_log import EventLog
from palate.errors import DataError, NumericalError

Scorer: TypeAlias = Callable[[EventLog], Float32[np.ndarray, "user item"]]
"""Scores every item, higher is better, for each person of a batch, given what they did so far.

Items that a person had are scored like any other: whether they may be listed again is the caller's choice. Raises
DataError for an item outside the catalogue.
"""

ListModel: TypeAlias = Callable[[Any], Float32[np.ndarray, "user item"]]
"""Scores every item for each person, given how much each of their items counts: a sparse (user, item) matrix."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class ListBaseline(Generic[Config]):
    """A baseline of lists in one task: how it is fitted, and the grid that validation selects from."""

    label: str
    """Its name in the tables of the task."""
    fit_model: Callable[[EventLog, int, Config], ListModel]
    """(training events, number of items, settings)."""
    configs: tuple[Config, ...]
    """Settings to select from; the first one is the default."""
    decays: tuple[float, ...] = (1.0,)
    """Weights of an event relative to the one after it to select from, each from 0 to 1."""

    def fit(self, training: EventLog, num_items: int, config: Config, decay: float) -> Scorer:
        """Fit one setting; DataError where there is no event, or one outside the catalogue."""
        check_training(training, num_items)
        return at_decay(self.fit_model(training, num_items, config), num_items, decay)


class Trial(NamedTuple):
    """One setting of a grid and what validation said of it (higher is better)."""

    config: Any
    decay: float
    value: float


class Selection(NamedTuple):
    """The best setting of a grid, its scorer (fitted on the training events) and the whole table."""

    config: Any
    decay: float
    scorer: Scorer
    table: tuple[Trial, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What was selected as plain values, the decay where there was one to select."""
        decay = {"decay": self.decay} if len({trial.decay for trial in self.table}) > 1 else {}
        return {**asdict(self.config), **decay}


def select(
    baseline: ListBaseline[Any], training: EventLog, num_items: int, validate: Callable[[Scorer], float]
) -> Selection:
    """Fit every config of a baseline once, try every decay with it, and keep what `validate` values highest.

    Equal values keep the earlier setting. Two fitted models are in memory at a time at most.

    Raises:
        DataError: there is no event, or one outside the catalogue.
        NumericalError: `validate` returned NaN.
    """
    check_training(training, num_items)
    best: tuple[Trial, Scorer] | None = None
    table: list[Trial] = []
    for config in baseline.configs:
        model = baseline.fit_model(training, num_items, config)
        for decay in baseline.decays:
            scorer = at_decay(model, num_items, decay)
            trial = Trial(config, decay, float(validate(scorer)))
            if np.isnan(trial.value):
                raise NumericalError(
                    f"validation of {config} with decay {decay} gave NaN; expected a number; check the validation users"
                )
            table.append(trial)
            if best is None or trial.value > best[0].value:
                best = (trial, scorer)
        del model, scorer  # before the next is made
    assert best is not None, "a baseline has at least one setting"
    return Selection(best[0].config, best[0].decay, best[1], tuple(table))


def at_decay(model: ListModel, num_items: int, decay: float) -> Scorer:
    """Score logs with a fitted model; an event counts decay^age."""
    return lambda events: model(weigh_events(events, num_items, decay))


def weigh_events(events: EventLog, num_items: int, decay: float) -> Any:
    """How much each item counts for each person, a sparse (user, item) matrix: decay^age, an event at a time.

    Raises:
        DataError: an event is with an item outside the catalogue.
    """
    outside = np.flatnonzero((events.items < 0) | (events.items >= num_items))
    if len(outside):
        row = int(np.searchsorted(events.offsets, outside[0], side="right")) - 1
        raise DataError(
            f"events: user row {row} names item {events.items[outside[0]]}; expected indices in 0..{num_items - 1}; "
            "drop items that the training does not hold"
        )
    ages = np.repeat(events.offsets[1:], events.lengths()) - 1 - np.arange(len(events))
    weights = np.float32(decay) ** ages.astype(np.float32)
    shown = csr_array((weights, events.items, events.offsets), (events.num_users, num_items), copy=True)
    if decay == 1:
        shown.sum_duplicates()  # in the order of the items, so that sums over them always round the same way
    return shown


def check_training(training: EventLog, num_items: int) -> None:
    """Refuse a log that nothing can be fitted on: DataError where it has no event, or one outside the catalogue."""
    if not len(training):
        raise DataError(f"training events: {training.num_users:,} people have none; expected at least one event")
    least, most = int(training.items.min()), int(training.items.max())
    if least < 0 or most >= num_items:
        raise DataError(
            f"training events name item {least if least < 0 else most}; expected indices in 0..{num_items - 1}"
        )


def count_popularity(training: EventLog, num_items: int) -> Float32[np.ndarray, "item"]:
    """Events with each item per person; where nobody has an item twice, the share of people who have it."""
    counts = np.bincount(training.items, minlength=num_items).astype(np.float32)
    return counts / np.float32(max(training.num_users, 1))


def break_ties(
    evidence: Float32[np.ndarray, "item"], popularity: Float32[np.ndarray, "item"]
) -> Float32[np.ndarray, "item"]:
    """Order the items without evidence (score 0) by popularity, and leave every other score as it is.

    What is added stays below half a unit in the last place of the smallest non-zero score (2^-25 of it in
    float32), so it rounds away everywhere but at zero and cannot flip real evidence. Without any evidence the
    result is the popularity itself.
    """
    sizes = np.abs(evidence)
    smallest = sizes[sizes > 0].min(initial=np.inf)
    scale = 2.0**-26 * float(smallest) if np.isfinite(smallest) else 1.0
    return evidence + np.float32(scale) * popularity

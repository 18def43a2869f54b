"""What comes of lists and how choices move, read from the store for monitors: rates by model, and drift.

A list counts once it is `horizon` old, so that late choices are in. Each is counted once: what was counted is kept as
numbers, in slices of time, and a reading costs what came since the one before.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, case, func, or_, select

from palate.errors import ConfigError
from palate.evaluation.drift import Adwin
from palate.service.live import choices, shift
from palate.store import events as stored_events
from palate.store import registry
from palate.store.schema import events, recommendations

_HOUR = 3600.0
_SLICE = 3600.0
"""Seconds of lists that are counted together at most."""
_APART = 60.0
"""Seconds by which the order of storing and the times of receipt may disagree, between processes."""
_MOST = 2000
"""Outcomes of a slice that ADWIN is told, evenly spread: it runs beside lists that are being made."""


@dataclass(frozen=True)
class TrendConfig:
    """What monitors read from the store."""

    seconds: float = 60.0
    """How often; 0: not at all."""
    window: float = 24.0
    """Hours of lists that rates are over; for the first day after a start up to one more."""
    horizon: float = 1.0
    """Hours after a list in which what came of it counts; younger lists are not counted yet."""
    conversions: tuple[str, ...] = ("purchase",)
    """Types of events that are conversions."""
    drift_every: int = 10
    """The stability index reads all events since the models changed, so it is renewed every so many times only."""

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ConfigError(f"trends.seconds is {self.seconds}; it must be at least 0")
        for name in ("window", "horizon", "drift_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"trends.{name} is {getattr(self, name)}; it must be above 0")


class Rate(NamedTuple):
    """What came of some lists."""

    lists: int
    chosen: int
    """Lists that an event refers to, other than one that says no."""
    converted: int
    """Lists that a conversion refers to."""

    @property
    def ctr(self) -> float:
        """Share of the lists that led to a choice."""
        return self.chosen / self.lists

    @property
    def conversion(self) -> float:
        """Share of the lists that led to a conversion."""
        return self.converted / self.lists


class Trends(NamedTuple):
    """How things stood at one moment."""

    rates: Mapping[tuple[str, str], Rate]
    """By (variant, model id), of the window; of those without lists none."""
    stability: float
    """Population stability index of what is chosen since the models that serve changed, against before; 0: no more
    than chance would bring."""
    mean: float
    """Share of lists that led to a choice, in the window that ADWIN holds to be alike; NaN before the first."""
    width: int
    """Lists in that window."""
    changes: int
    """How often its older part was dropped, because the share had changed."""


class TrendReader:
    """Follows a store; `read` is called by one thread at a time."""

    def __init__(self, config: TrendConfig) -> None:
        self._config = config
        self._slices: deque[tuple[float, Mapping[tuple[str, str], Rate]]] = deque()
        """(end, counts) of slices of time, the oldest first."""
        self._until = 0.0
        """Lists before are counted."""
        self._seq = 0
        """Events up to this one came before all lists that are not counted yet."""
        self._adwin, self._changes = Adwin(), 0
        self._before: tuple[float, Mapping[str, int]] = (0.0, {})
        """(moment, events by item before it)."""
        self._stability, self._reads = 0.0, 0

    def read(self, connection: Connection, negative: tuple[str, ...], now: float) -> Trends:
        """Take in what is new; the first time, the whole window.

        Args:
            connection: one moment of the store.
            negative: types of events that say no.
            now: seconds since 1970 UTC.
        """
        end = now - _HOUR * self._config.horizon
        oldest = end - _HOUR * self._config.window
        if self._until < oldest:
            self._until = oldest
            self._seq = stored_events.last_received_before(connection, oldest - _APART)
        while self._until < end:
            stop = min(self._until + _SLICE, end)
            self._slices.append((stop, self._count(connection, self._until, stop, negative)))
            self._until = stop
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
        if self._reads % self._config.drift_every == 0:
            self._stability = self._drift(connection)
        self._reads += 1
        rates: dict[tuple[str, str], Rate] = {}
        for _, counted in self._slices:
            for key, rate in counted.items():
                rates[key] = _sum(rates[key], rate) if key in rates else rate
        return Trends(rates, self._stability, self._adwin.mean, self._adwin.width, self._changes)

    def _count(
        self, connection: Connection, since: float, until: float, negative: tuple[str, ...]
    ) -> dict[tuple[str, str], Rate]:
        """Count the lists of a slice, and tell ADWIN of them in their order."""
        self._seq = max(self._seq, stored_events.received_until(connection, since - _APART, self._seq))
        late = until + _HOUR * self._config.horizon + _APART
        last = stored_events.received_until(connection, late, self._seq)
        each = outcomes_of_lists(since, until, (self._seq, last), negative, self._config).subquery()
        shown = func.count()
        counts = select(each.c.variant, each.c.model_id, shown, func.sum(each.c.chosen), func.sum(each.c.converted))
        rows = connection.execute(counts.group_by(each.c.variant, each.c.model_id))
        found = {(variant, model_id): Rate(*map(int, numbers)) for variant, model_id, *numbers in rows}
        total = sum(rate.lists for rate in found.values())
        if total:
            number = func.row_number().over(order_by=(each.c.at, each.c.recommendation_id)).label("number")
            numbered = select(each.c.chosen, number).subquery()
            spread = numbered.c.number % ceil(total / _MOST) == (1 if total > _MOST else 0)
            for chosen in connection.scalars(select(numbered.c.chosen).where(spread).order_by(numbered.c.number)):
                self._changes += self._adwin.observe(float(chosen))
        return found

    def _drift(self, connection: Connection) -> float:
        """What was chosen before is counted once for each change of models."""
        since = registry.current(connection).changed_at
        if self._before[0] != since:
            self._before = since, choices(connection, events.c.received_at < since)
        after = stored_events.last_received_before(connection, since - _APART)
        return shift(self._before[1], choices(connection, events.c.seq > after, events.c.received_at >= since))


def outcomes_of_lists(
    since: float, until: float, seqs: tuple[int, int], negative: tuple[str, ...], config: TrendConfig
) -> Select[Any]:
    """A row for each list shown with `since <= at < until`.

    Columns: recommendation_id, at, variant, model_id, chosen, converted. The last two are 1 where such an event of the
    person the list was for (of a list for a session: of anybody) refers to it and was received within the horizon.

    Args:
        since: seconds since 1970 UTC.
        until: likewise.
        seqs: events with a seq above the first and up to the second are looked at.
        negative: types of events that say no.
        config: horizon and conversions.
    """
    lists, shown = recommendations, recommendations.alias()
    named = (
        select(
            events.c.recommendation_id,
            func.max(case((events.c.event_type.in_(config.conversions), 1), else_=0)).label("converted"),
        )
        .join(shown, shown.c.recommendation_id == events.c.recommendation_id)
        .where(
            events.c.seq > seqs[0],
            events.c.seq <= seqs[1],
            events.c.event_type.not_in(negative),
            or_(shown.c.user_id.is_(None), shown.c.user_id == events.c.user_id),
            events.c.received_at <= shown.c.at + _HOUR * config.horizon,
        )
        .group_by(events.c.recommendation_id)
        .subquery()
    )
    return (
        select(
            lists.c.recommendation_id,
            lists.c.at,
            lists.c.variant,
            lists.c.model_id,
            case((named.c.recommendation_id.is_not(None), 1), else_=0).label("chosen"),
            func.coalesce(named.c.converted, 0).label("converted"),
        )
        .select_from(lists.outerjoin(named, named.c.recommendation_id == lists.c.recommendation_id))
        .where(lists.c.at >= since, lists.c.at < until)
    )


def _sum(one: Rate, other: Rate) -> Rate:
    return Rate(*(a + b for a, b in zip(one, other, strict=True)))

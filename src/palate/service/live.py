"""What people do with lists, as evidence about models: a canary is promoted or ended, a fresh model rolled back.

The unit is a person, once: whether one of the lists of their first `horizon` hours since the experiment began led to a
choice. Counting each list would treat one person's many visits as independent. The intervals hold at every look
(`palate.evaluation.sequential_test`), so looking every minute is free of charge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select

from palate.errors import ConfigError
from palate.evaluation.drift import stability_of_counts
from palate.evaluation.sequential_test import BoundedMean, compare_bounded
from palate.significance import Interval
from palate.store.registry import Pointers
from palate.store.schema import events, recommendations

_HOUR = 3600.0
_MAX_KINDS = 200


@dataclass(frozen=True)
class LiveConfig:
    """When live figures decide about a model."""

    horizon: float = 24.0
    """Hours after a person's first list in which a choice counts."""
    level: float = 0.95
    """Confidence of the sequences."""
    margin: float = 0.0
    """Difference in the share of people with a choice that a canary has to pass, up or down, to be decided."""
    drop: float = 0.2
    """A model that serves everyone is rolled back when its share of people with a choice is below that of the time
    before it by more than this part."""
    watch: float = 72.0
    """Hours after a promotion in which that is looked at; later, seasons would be taken for the model."""
    errors: float = 0.02
    """Share of failed lists above which a canary ends, and a model fresh in service is rolled back."""
    slowdown: float = 4.0
    """Ratio of 99th percentiles of the time a list takes, to the model beside or before it, above which the same
    happens."""
    fewest: int = 200
    """Lists that errors and times are judged by."""

    def __post_init__(self) -> None:
        for name in ("horizon", "watch", "slowdown", "fewest"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"live.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("level", "drop", "errors"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"live.{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not self.margin >= 0:
            raise ConfigError(f"live.margin is {self.margin}; it must be at least 0")


class Verdict(NamedTuple):
    """What live figures say of a model."""

    decision: Literal["better", "worse", "undecided"]
    reason: str
    """One line, with the figures."""
    figure: Interval | None = None
    """Of a canary: the share of people with a choice minus that of the others. Of a fresh model: the share itself."""
    people: Mapping[str, int] | None = None
    """How many that rests on, by variant."""


class Outcome(NamedTuple):
    """One person in an experiment."""

    at: float
    """When they got their first list."""
    variant: str
    chose: bool


def outcomes(
    connection: Connection, since: float, until: float, negative: tuple[str, ...], config: LiveConfig
) -> list[Outcome]:
    """People whose first list since a moment is a horizon ago by `until`, in the order of these lists."""
    lists, shown = recommendations, recommendations.alias()
    first = (
        select(lists.c.user_id, func.min(lists.c.at).label("at"))
        .where(lists.c.at >= since, lists.c.user_id.is_not(None))
        .group_by(lists.c.user_id)
        .having(func.min(lists.c.at) <= until - _HOUR * config.horizon)
        .subquery()
    )
    chosen = (
        select(shown.c.user_id)
        .join(events, events.c.recommendation_id == shown.c.recommendation_id)
        .join(first, first.c.user_id == shown.c.user_id)
        .where(
            events.c.user_id == shown.c.user_id,
            events.c.event_type.not_in(negative),
            shown.c.at >= first.c.at,
            events.c.received_at <= first.c.at + _HOUR * config.horizon,
        )
    )
    found = set(connection.scalars(chosen))
    rows = connection.execute(
        select(first.c.user_id, first.c.at, func.min(lists.c.variant))
        .join(lists, (lists.c.user_id == first.c.user_id) & (lists.c.at == first.c.at))
        .group_by(first.c.user_id, first.c.at)
        .order_by(first.c.at, first.c.user_id)
    )
    return [Outcome(at, variant, user_id in found) for user_id, at, variant in rows]


def judge(
    connection: Connection, pointers: Pointers, negative: tuple[str, ...], config: LiveConfig, now: float
) -> Verdict:
    """What people's choices say of the canary or, without one, of the model that was promoted last."""
    since = pointers.changed_at
    if pointers.canary is not None:
        test = compare_bounded(level=config.level, smallest_share=min(pointers.share, 1 - pointers.share))
        for one in outcomes(connection, since, now, negative, config):
            test = test.observe(one.variant == "canary", float(one.chose), pointers.share)
        mean, low, high = test.interval()
        people = f"{test.counts[1]:,} people with the canary, {test.counts[0]:,} without"
        return Verdict(
            test.decision(config.margin),
            f"share of people with a choice: {mean:+.4f} [{low:+.4f}, {high:+.4f}], {people}",
            Interval(mean, low, high),
            {"served": test.counts[0], "canary": test.counts[1]},
        )
    if pointers.previous is None or not 0 < now - since < _HOUR * config.watch:
        return Verdict("undecided", "nothing to compare with")
    before = outcomes(connection, since - _HOUR * config.watch, since, negative, config)
    after = outcomes(connection, since, now, negative, config)
    if not before or not after:
        return Verdict("undecided", "too few people yet")
    usual = sum(one.chose for one in before) / len(before)
    running = BoundedMean(0.0, 1.0, config.level)
    for one in after:
        running = running.observe(float(one.chose))
    mean, low, high = running.interval()
    reason = f"share of people with a choice {mean:.4f} [{low:.4f}, {high:.4f}] of {len(after):,}, before {usual:.4f}"
    decision: Literal["worse", "undecided"] = "worse" if high < (1 - config.drop) * usual else "undecided"
    return Verdict(decision, reason, Interval(mean, low, high), {"served": len(after)})


def drift_of(connection: Connection, since: float) -> float:
    """Population stability index of what was chosen since a moment against before, over the items chosen most.

    0 where so large an index would come by chance once in a hundred times: small samples have large ones.
    """
    return shift(choices(connection, events.c.received_at < since), choices(connection, events.c.received_at >= since))


def choices(connection: Connection, *conditions: ColumnElement[bool]) -> dict[str, int]:
    """Events of each item, among those of some conditions."""
    rows = connection.execute(select(events.c.item_id, func.count()).where(*conditions).group_by(events.c.item_id))
    return {row[0]: row[1] for row in rows}


def shift(old: Mapping[str, int], new: Mapping[str, int]) -> float:
    """What `drift_of` says, of counted events."""
    if not old or not new:
        return 0.0
    kept = sorted(old, key=lambda item: (-old[item], item))[:_MAX_KINDS]
    tables = [
        {**{item: table.get(item, 0) for item in kept}, "": sum(table.values()) - sum(table.get(i, 0) for i in kept)}
        for table in (old, new)
    ]
    found = stability_of_counts(*tables)
    return found.value if found.p_value < 0.01 else 0.0

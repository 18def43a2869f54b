"""The log of what was shown, and how probable that was: what clicks and off-policy estimates refer to."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, insert, select

from palate.store.append import APPENDERS
from palate.store.schema import recommendations


class ShownList(NamedTuple):
    """One list that was given out."""

    recommendation_id: str
    user_id: str | None
    """None: for an anonymous session."""
    session: bool
    """Whether it was made for the events of a session."""
    model_id: str
    variant: str
    """"served" or "canary"."""
    scenario: str
    at: float
    items: Sequence[str]
    """Item ids, in the order shown."""
    scores: Sequence[float]
    propensities: Sequence[float]
    """Probability of each item to be in the list."""
    asked: Mapping[str, Any] | None = None
    """What was asked for that a plain list is not, as plain values; None: nothing, or it is not known."""


_LISTS = select(*(recommendations.c[name] for name in ShownList._fields))


def add(connection: Connection, lists: Sequence[ShownList]) -> None:
    """Log lists that are not logged yet."""
    if lists:
        connection.execute(insert(recommendations), [shown._asdict() for shown in lists])


def read(connection: Connection, recommendation_ids: Sequence[str]) -> dict[str, ShownList]:
    """Return those of some lists that were logged, by id."""
    appender = APPENDERS[connection.dialect.name]
    query = _LISTS.where(appender.among(recommendations.c.recommendation_id, "wanted"))
    rows = connection.execute(query, {"wanted": appender.pack(list(recommendation_ids))})
    return {row.recommendation_id: ShownList(*row) for row in rows}


def read_window(connection: Connection, since: float, until: float) -> list[ShownList]:
    """Return the lists shown with `since <= at < until`, in the order of time."""
    query = _LISTS.where(recommendations.c.at >= since, recommendations.c.at < until)
    ordered = query.order_by(recommendations.c.at, recommendations.c.recommendation_id)
    return [ShownList(*row) for row in connection.execute(ordered)]


def prune(connection: Connection, before: float) -> int:
    """Remove the lists shown before a time; return how many there were."""
    return connection.execute(delete(recommendations).where(recommendations.c.at < before)).rowcount

"""How the models of a home do with people, at one look: rates, drift, and the canary's test as it stands."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection

from palate.errors import DataError
from palate.evaluation.ab import ShareCheck, check_shares
from palate.service.live import LiveConfig, Verdict, judge
from palate.service.trends import TrendConfig, TrendReader, Trends
from palate.store import registry


class LiveReport(NamedTuple):
    """See `report`."""

    pointers: registry.Pointers
    trends: Trends
    verdict: Verdict
    """Of the canary or, without one, of the model that was promoted last."""
    shares: ShareCheck | None
    """Whether the canary has as many people as its share says; None: no canary, or too few people to tell."""


def report(
    connection: Connection, negative: tuple[str, ...], live: LiveConfig, trends: TrendConfig, now: float
) -> LiveReport:
    """Read how things stand.

    Args:
        connection: one moment of the store.
        negative: types of events that say no.
        live: how models are judged.
        trends: what rates are over.
        now: seconds since 1970 UTC.
    """
    pointers = registry.current(connection)
    verdict = judge(connection, pointers, negative, live, now)
    shares = None
    if pointers.canary is not None and verdict.people is not None:
        shares = _checked(verdict.people, pointers.share)
    return LiveReport(pointers, TrendReader(trends).read(connection, negative, now), verdict, shares)


def _checked(people: Mapping[str, int], share: float) -> ShareCheck | None:
    try:
        return check_shares(people, {"served": 1 - share, "canary": share})
    except DataError:  # too few people for the test
        return None

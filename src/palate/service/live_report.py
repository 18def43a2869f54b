"""How the models of a home do with people, at one look: rates, drift, and the canary's test as it stands."""

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection

from palate.errors import DataError
from palate.evaluation.ab import ShareCheck, check_shares
from palate.service.home import Home
from palate.service.live import LiveConfig, Verdict, judge
from palate.service.opening import load_model
from palate.service.trends import TrendConfig, TrendReader, Trends
from palate.store import Store, registry


class LiveReport(NamedTuple):
    """See `report`."""

    pointers: registry.Pointers
    trends: Trends
    verdict: Verdict
    """Of the canary or, without one, of the model that was promoted last."""
    shares: ShareCheck | None
    """Whether the canary has as many people as its share says; None: no canary, or too few people to tell."""


def live_report(
    home: Path | str,
    store: str | None = None,
    *,
    live: LiveConfig | None = None,
    trends: TrendConfig | None = None,
    now: float | None = None,
) -> LiveReport:
    """Read how things stand in a home, while it serves or not: what `palate live` prints.

    Args:
        home: folder of the service.
        store: its database; None: the SQLite file in the folder.
        live: how models are judged.
        trends: what rates are over.
        now: seconds since 1970 UTC; None: this moment.

    Raises:
        DataError: no model is served yet.
        ModelError: the folder of the served model cannot be read.
        StoreError: there is no such store, or it cannot be read.
    """
    place, now = Home(Path(home)), time.time() if now is None else now
    with closing(Store.open(store or place.database, create=False)) as opened:
        negative = load_model(opened, place, served_model(opened)).config.negative_events
        with opened.read() as connection:
            return report(connection, negative, live or LiveConfig(), trends or TrendConfig(), now)


def served_model(store: Store) -> str:
    """The id of the model that a store's pointer names.

    Raises:
        DataError: there is none yet.
    """
    with store.read() as connection:
        served = registry.current(connection).served
    if served is None:
        raise DataError(f"{store.name}: no model is served yet; start with `palate serve --model FOLDER`")
    return served.model_id


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

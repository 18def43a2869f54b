"""From a service's log to off-policy estimates: what a model's best lists would have earned where others were shown.

A list earns one for each of its items that its person then chose. The context of a logged list is its person at that
moment: the events received until then. The target is a model's list for that person and for what was asked (filter,
exclusions, diversity, length) but without exploration, so it shows each of its items with probability 1. Four kinds of
lists say nothing here and are left out: those of sessions, whose events are not stored; those in which nothing was left
to chance; those that the model may have learned from; and those that cannot be made again, because the catalogue no
longer knows their filter or the log does not hold all that was asked.

The reward model of the doubly robust estimate is the share of an item's showings that were chosen, drawn towards the
share of all as `shrink` more showings would. Each half of the people is judged by the shares of the other half, so
that no outcome is used twice (cross-fitting: Chernozhukov et al., Double/Debiased Machine Learning, 2018, section 3,
doi 10.1111/ectj.12097). It need not be right: the propensities are.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from sqlalchemy import Connection, select

from palate.data.episodes import EventMeaning
from palate.errors import ConfigError, DataError
from palate.evaluation.off_policy import OffPolicyConfig, OffPolicyReport, OffPolicyValue, evaluate_off_policy
from palate.service.asked import request_of
from palate.service.home import Home
from palate.service.lists import ListConfig, adapt, make_list
from palate.service.live_report import served_model
from palate.service.models import plain
from palate.service.opening import load_model
from palate.service.people import Person, Stored, fold
from palate.service.shelf import Item, Shelf, make_shelf
from palate.store import Store, items, recommendations
from palate.store import events as stored_events
from palate.store import people as stored_people
from palate.store.recommendations import ShownList
from palate.store.rows import StoredEvent
from palate.store.schema import events

_HOUR = 3600.0
_DAY = 24 * _HOUR
_TOGETHER = 1_000
"""People whose events are read together."""

Planner = Callable[[Sequence[ShownList]], Sequence[Sequence[str] | None]]
"""Logged lists to what the target would have shown in the place of each; None: that cannot be told."""


@dataclass(frozen=True)
class LogConfig:
    """What of a log is read, and how it is judged."""

    horizon: float = 24.0
    """Hours after a list in which a choice counts; younger lists are left out."""
    kinds: tuple[str, ...] = ()
    """Types of events that are choices; empty: all that do not say no."""
    scenario: str | None = None
    """Of which lists; None: of all."""
    most: int = 10_000
    """The newest so many lists are read."""
    shrink: float = 20.0
    """Showings that the share of all counts for in the reward model."""
    estimates: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    """Clipping and intervals."""

    def __post_init__(self) -> None:
        for name in ("horizon", "most", "shrink"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"log.{name} is {getattr(self, name)}; it must be above 0")


class Log(NamedTuple):
    """The lists of a log that speak of other ways of making them."""

    lists: Sequence[ShownList]
    """Each has a person, and an item that was not certain to be in it."""
    chosen: frozenset[tuple[str, str]]
    """(recommendation_id, item_id) of what was chosen."""
    sessions: int
    """Lists left out because they were for sessions."""
    certain: int
    """Lists left out because all of their items were certain."""


class LogReport(NamedTuple):
    """What the log says of a target."""

    logged: OffPolicyValue
    """What the lists that were shown earned: choices a list."""
    target: OffPolicyReport
    """What the target's would have earned."""
    unmade: int
    """Lists left out because they cannot be made again."""


class ModelReport(NamedTuple):
    """What a home's log says of the best lists of a model in its registry."""

    model_id: str
    log: Log
    found: LogReport


def off_policy_report(
    home: Path | str,
    store: str | None = None,
    *,
    model_id: str | None = None,
    days: float = 14.0,
    config: LogConfig | None = None,
    now: float | None = None,
) -> ModelReport:
    """Estimate from a home's log what a model's best lists would have earned: what `palate off-policy` prints.

    Args:
        home: folder of the service, while it serves or not.
        store: its database; None: the SQLite file in the folder.
        model_id: of the registry; None: the served one.
        days: lists of so many days are read, but none from before the newest event that the model was trained on.
        config: which of these lists, and how they are judged.
        now: seconds since 1970 UTC; None: this moment.

    Raises:
        DataError: no model is served yet, no list explores, or too few lists say anything of the model's.
        ModelError: there is no such model, or its folder cannot be read.
        StoreError: there is no such store, or it cannot be read.
    """
    place, now = Home(Path(home)), time.time() if now is None else now
    with closing(Store.open(store or place.database, create=False)) as opened:
        name = model_id or served_model(opened)
        model = load_model(opened, place, name)
        since = max(now - _DAY * days, model.trained_until)
        with opened.read() as connection:
            log = read_log(connection, since, now, model.config.negative_events, config)
            stored = [Item(row.item_id, plain(row.attributes), row.hidden) for row in items.read_all(connection)]
            shelf = make_shelf(model, stored, items.newest_revision(connection))
            return ModelReport(name, log, evaluate_log(log, greedy(connection, shelf), config))


def read_log(
    connection: Connection, since: float, now: float, negative: tuple[str, ...], config: LogConfig | None = None
) -> Log:
    """Read the lists shown since a moment, and what came of them.

    Args:
        connection: one moment of the store.
        since: seconds since 1970 UTC, such as the newest event that the target has learned from.
        now: likewise; lists younger than the horizon are left out.
        negative: types of events that say no.
        config: what is read.

    Raises:
        DataError: no list explores.
    """
    config = config or LogConfig()
    found = recommendations.read_window(connection, since, now - _HOUR * config.horizon)
    found = [one for one in found if one.items and config.scenario in (None, one.scenario)]
    named = [one for one in found if one.user_id is not None]
    lists = [one for one in named if min(one.propensities) < 1][-config.most :]
    certain = sum(min(one.propensities) == 1 for one in named)
    if not lists:
        raise DataError(
            f"log: no exploration in {len(named):,} lists of people ({len(found) - len(named):,} of sessions apart), "
            'so it does not say what other lists would have earned; ask for lists with "explore": "thompson" (a list '
            f"counts {config.horizon:g} hours after it was shown, and if the model has not learned from it)"
        )
    shown = {one.recommendation_id: one for one in lists}
    after = stored_events.last_received_before(connection, lists[0].at)
    columns = ("recommendation_id", "user_id", "item_id", "event_type", "received_at")
    query = select(*(events.c[name] for name in columns)).where(
        events.c.seq > after, events.c.recommendation_id.is_not(None)
    )
    chosen = set()
    for name, user_id, item_id, kind, received in connection.execute(query):
        one = shown.get(name)
        counts = kind in config.kinds if config.kinds else kind not in negative
        if one is not None and counts and user_id == one.user_id and received <= one.at + _HOUR * config.horizon:
            chosen.add((name, item_id))
    kept = {(name, item) for name, item in chosen if item in shown[name].items}
    return Log(lists, frozenset(kept), len(found) - len(named), certain)


def greedy(connection: Connection, shelf: Shelf, config: ListConfig | None = None) -> Planner:
    """The best lists of the model on a shelf, for people as they were when each list was made, and for what was asked.

    Their attributes, those of items, and which items are hidden, are as they are now. `config` is the service's.
    """
    config = config or ListConfig()

    def plan(lists: Sequence[ShownList]) -> list[list[str] | None]:
        places: dict[str, list[int]] = {}
        for place, one in enumerate(lists):
            assert one.user_id is not None
            places.setdefault(one.user_id, []).append(place)
        planned: list[list[str] | None] = [None] * len(lists)
        everyone = sorted(places)
        for start in range(0, len(everyone), _TOGETHER):
            some = everyone[start : start + _TOGETHER]
            done = stored_events.read_of_people(connection, some)
            known = stored_people.read(connection, some)
            for user_id in some:
                attributes = plain(known[user_id].attributes) if user_id in known else {}
                for place in places[user_id]:
                    one = lists[place]
                    person = _person_at(attributes, done[user_id], one.at, shelf.model.config.meaning)
                    planned[place] = _best(shelf, person, one, config)
        return planned

    return plan


def evaluate_log(log: Log, plan: Planner, config: LogConfig | None = None) -> LogReport:
    """Estimate what a target's lists would have earned.

    Raises:
        DataError: the lists are of one person, none can be made again, or the target shows nothing of what was shown.
    """
    config = config or LogConfig()
    planned = [(one, items) for one, items in zip(log.lists, plan(log.lists), strict=True) if items is not None]
    if not planned:
        raise DataError(
            f"log: none of {len(log.lists):,} lists can be made again: the catalogue no longer knows their filters, or "
            "they asked for more than is logged; name other lists by their scenario, or read more days"
        )
    shown = pl.DataFrame(
        [
            (one.recommendation_id, one.user_id, item, propensity, float((one.recommendation_id, item) in log.chosen))
            for one, _ in planned
            for item, propensity in zip(one.items, one.propensities, strict=True)
        ],
        schema=["context", "user_id", "item_id", "propensity", "reward"],
        orient="row",
    )
    wanted = pl.DataFrame(
        [
            (one.recommendation_id, one.user_id, item, probability)
            for one, items in planned
            for item, probability in [(item, 1.0) for item in items] or [(one.items[0], 0.0)]
        ],
        schema={"context": pl.String, "user_id": pl.String, "item_id": pl.String, "probability": pl.Float64},
        orient="row",
    )
    itself = shown.select("context", "item_id", probability=pl.lit(1.0))
    logged = evaluate_off_policy(shown.with_columns(propensity=pl.lit(1.0)), itself, config.estimates).values["ips"]
    half = _halves(shown["user_id"].unique().sort().to_list(), config.estimates.seed)
    target = evaluate_off_policy(
        _with_estimates(shown, shown, half, config.shrink),
        _with_estimates(wanted, shown, half, config.shrink),
        config.estimates,
    )
    return LogReport(logged, target, len(log.lists) - len(planned))


def _person_at(
    attributes: dict[str, str | float | bool | None], done: Sequence[StoredEvent], at: float, meaning: EventMeaning
) -> Person:
    """Someone as they were known at a moment."""
    return fold(Stored(attributes, [one for one in done if one.received_at <= at]), meaning)


def _best(shelf: Shelf, person: Person, shown: ShownList, config: ListConfig) -> list[str] | None:
    """The list that the service would have made without exploration; None: it cannot be told."""
    request = request_of(shown)
    if request is None:
        return None
    state, unused = adapt(shelf, person, shown.at).state, np.random.default_rng(0)
    try:
        return [line.item_id for line in make_list(shelf, state, request, config, unused)]
    except DataError:  # the filter names what the catalogue no longer has
        return None


def _halves(people: Sequence[str], seed: int) -> pl.DataFrame:
    """Which half each of some people belongs to, drawn at random."""
    half = np.random.default_rng(seed).permutation(len(people)) % 2
    return pl.DataFrame({"user_id": people, "half": half})


def _with_estimates(rows: pl.DataFrame, shown: pl.DataFrame, half: pl.DataFrame, shrink: float) -> pl.DataFrame:
    """Rows with what their items earned the other half of the people."""
    told = shown.join(half, on="user_id").with_columns(half=1 - pl.col("half"))
    overall = told.group_by("half").agg(overall=pl.col("reward").mean())
    earned = told.group_by("half", "item_id").agg(total=pl.col("reward").sum(), showings=pl.len())
    found = rows.join(half, on="user_id", maintain_order="left").join(overall, on="half", maintain_order="left")
    found = found.join(earned, on=("half", "item_id"), how="left", maintain_order="left")
    total, showings = pl.col("total").fill_null(0.0), pl.col("showings").fill_null(0)
    return found.with_columns(estimate=(total + shrink * pl.col("overall")) / (showings + shrink))

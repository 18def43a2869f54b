"""Batch learning: all events of the store, a candidate that goes on from the served model, and the gate.

What is newer than the window's start is kept from the candidate and judges it beside the served model. A candidate that
passes is served, to everyone or at first as a canary; one that does not stays in the registry with the reason. The run
may be killed at any moment: the next one takes up the same plan and goes on from the last checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import polars as pl

from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.files import write_atomically
from palate.data.log import INTERACTION_SCHEMA
from palate.errors import ConfigError, ModelError
from palate.evaluation.replay import Decision, gate, window_start
from palate.pipeline import train
from palate.progress import Reporter
from palate.service.home import Home
from palate.service.opening import load_model, register
from palate.store import Store, events, items, people, registry
from palate.store.attributes import as_frame
from palate.threads import one_thread

Say = Callable[[str], None]
_EVER = 1e15
_PLAN = "plan.json"


@dataclass(frozen=True)
class RetrainConfig:
    """What becomes of a candidate that passes the gate."""

    canary: float = 0.0
    """Share of the people whom it serves at first, until the live figures decide; 0: it serves everyone at once."""
    workers: int = 1
    """Processes that train."""

    def __post_init__(self) -> None:
        if not 0 <= self.canary < 1:
            raise ConfigError(f"retrain.canary is {self.canary}; it must be from 0 to below 1")


class Outcome(NamedTuple):
    """How a run ended."""

    model_id: str
    decision: Decision


class Plan(NamedTuple):
    """Which events a run learns from and is judged by; fixed when it begins, so that one that was killed goes on."""

    served: str
    """The model that is gone on from."""
    since: float
    """Events from here on judge; those before are learned from."""
    until: float
    """Events later than this came after the plan was made, and wait for the next run."""


@one_thread()
def retrain(store: Store, home: Home, config: RetrainConfig, *, say: Say = lambda line: None) -> Outcome:
    """Train a candidate, judge it, and serve it if it passes.

    Raises:
        ModelError: nothing is served, or the served model has learned from the events that should judge: come back
            when there are newer ones.
        DataError: too little to learn from.
        StoreError: the store cannot be read or written.
        NumericalError: the training failed.
    """
    with store.read() as connection:
        pointers = registry.current(connection)
    if pointers.served is None:
        raise ModelError("no model is served yet; start with `palate serve --model FOLDER`")
    served = load_model(store, home, pointers.served.model_id)
    whole = dataset_of(store)
    plan = _plan(home, served.model_id, whole, window_start(whole, served.config.gate))
    if served.trained_until >= plan.since:
        days = (served.trained_until - plan.since) / 86_400
        raise ModelError(
            f"the served model has learned from all but the newest events; a window of {served.config.gate.window:g} "
            f"days to judge by is complete in {days:.1f} days of events (or lower gate.window)"
        )
    told = _until(whole, plan.since)
    say(f"learning from {told.interactions.height:,} events of {whole.interactions.height:,}")
    reporter = Reporter()
    candidate = train(told, start=served, checkpoints=home.work, workers=config.workers, reporter=reporter)
    register(store, home, candidate, {})
    judged = _until(whole, plan.until, including=True)
    decision = gate(candidate, served, judged, served.config.gate, seed=served.config.seed)
    say(decision.reason)
    now = time.time()
    with store.write() as connection:
        registry.report(connection, candidate.model_id, decision.to_dict(), refused=not decision.promote)
        if decision.promote and config.canary:
            registry.start_canary(connection, candidate.model_id, config.canary, now)
        elif decision.promote:
            registry.promote(connection, candidate.model_id, now)
    shutil.rmtree(home.work, ignore_errors=True)
    return Outcome(candidate.model_id, decision)


def dataset_of(store: Store) -> Dataset:
    """Everything in the store, as a data set; items that only events name are described by nothing.

    Raises:
        DataError: there are no events.
    """
    with store.read() as connection:
        log = events.read_window(connection, -_EVER, _EVER)
        described = as_frame("item_id", [(row.item_id, row.attributes) for row in items.read_all(connection)])
        known = as_frame("user_id", [(row.user_id, row.attributes) for row in people.read_all(connection)])
    interactions = log.with_columns(
        timestamp=pl.from_epoch((pl.col("timestamp") * 1e6).round().cast(pl.Int64), time_unit="us")
    ).select(INTERACTION_SCHEMA.names())
    named = interactions.select(pl.col("item_id").unique()).join(described, on="item_id", how="anti")
    catalog = pl.concat([described, named.sort("item_id")], how="diagonal")
    return Dataset("store", interactions, Catalog.infer(catalog), Profiles.infer(known))


def _plan(home: Home, served: str, whole: Dataset, since: float) -> Plan:
    """The plan of a run that was killed, or a new one."""
    file = home.work / _PLAN
    try:
        plan = Plan(**json.loads(file.read_bytes()))
        if plan.served == served:
            return plan
    except (OSError, ValueError, TypeError):
        pass  # none, or not ours: a new one takes its place
    until = _seconds(whole.interactions["timestamp"].max())
    plan = Plan(served, since, until)
    write_atomically(file, json.dumps(plan._asdict()).encode())
    return plan


def _until(whole: Dataset, moment: float, *, including: bool = False) -> Dataset:
    """The events before a moment, or until it."""
    seconds = pl.col("timestamp").dt.epoch("us") / 1e6
    return replace(whole, interactions=whole.interactions.filter(seconds <= moment if including else seconds < moment))


def _seconds(moment: object) -> float:
    return pl.Series([moment], dtype=pl.Datetime("us")).dt.epoch("us")[0] / 1e6  # type: ignore[no-any-return]

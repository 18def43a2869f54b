"""Figures of the running system for Prometheus: events, lists, what comes of them, drift, and what went wrong."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from palate.service.serving import Made, Variants
from palate.service.trends import Trends

_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5)
_RECENT = 2000
"""Lists by which the state of a model is judged."""
_RATE_SECONDS = 300.0
"""What the rate of events is over."""


class Vitals:
    """How a model's most recent lists went."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=_RECENT)
        """What those that were made took."""
        self.failed: deque[bool] = deque(maxlen=_RECENT)
        """Of those asked for, whether they failed through no fault of the request."""

    def slow(self) -> float:
        """The 99th percentile of the seconds; 0 without any."""
        return float(np.percentile(list(self.seconds), 99)) if self.seconds else 0.0

    def share_failed(self) -> float:
        """Share of the lists asked for that failed; 0 without any."""
        return sum(self.failed) / len(self.failed) if self.failed else 0.0


class Monitors:
    """Counters of one process. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = CollectorRegistry()
        self._clock, self._began = clock, clock()
        self._taken: deque[tuple[int, int]] = deque()
        """(second, events acknowledged in it), the oldest first."""
        self._rate = self._gauge("palate_event_rate", "Events acknowledged a second, over the last five minutes.")
        rates = ("variant", "model")
        self._ctr = self._gauge(
            "palate_ctr",
            "Share of lists shown, in a rolling window (a day) that ends a horizon (an hour) ago, to which an event "
            "of the same person referred within a horizon; what says no does not count.",
            rates,
        )
        self._conversion = self._gauge(
            "palate_conversion", "Share of the same lists to which a conversion referred within a horizon.", rates
        )
        self._judged = self._gauge("palate_lists_judged", "Lists that these shares are of.", rates)
        self._psi = self._gauge(
            "palate_drift_psi",
            "Population stability index of the items chosen since the models that serve changed, against before; 0 "
            "where chance alone may bring as much. NaN before the first reading.",
        )
        self._adwin = self._gauge(
            "palate_drift_adwin",
            "Share of lists that led to a choice, in the window over which ADWIN finds no change. NaN before any.",
        )
        self._width = self._gauge("palate_drift_adwin_lists", "Lists in that window.")
        self._changes = self._gauge(
            "palate_drift_adwin_changes",
            "Changes of that share that ADWIN found since the start, in the window of the start too.",
        )
        self.trends: Trends | None = None
        """What was last read from the store; exchanged as a whole."""
        self._events = Counter("palate_events", "Events by what became of them.", ("outcome",), registry=self._registry)
        self._lists = Counter(
            "palate_lists",
            "Lists by model, variant, and whether they are personal or for someone about whom nothing is known.",
            ("model", "variant", "kind"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "palate_list_seconds",
            "Seconds that adapting to a person and ranking took.",
            ("variant",),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._lost = Counter(
            "palate_lists_not_logged", "Lists that were shown but not logged.", registry=self._registry
        )
        self._items = Gauge("palate_items", "Items that can be listed.", registry=self._registry)
        self._coverage = Gauge(
            "palate_coverage", "Share of these items that were in a list since the start.", registry=self._registry
        )
        self._waiting = Gauge("palate_rows_waiting", "Rows that wait to be written.", registry=self._registry)
        self._people = Gauge("palate_people_in_memory", "People held in memory.", registry=self._registry)
        self._failed = Counter(
            "palate_lists_failed", "Lists that could not be made, by model.", ("model",), registry=self._registry
        )
        self._rollbacks = Counter(
            "palate_rollbacks", "Models that live figures took out of service.", registry=self._registry
        )
        self._vitals: dict[str, Vitals] = {}
        self._shown: set[str] = set()
        self._lock = threading.Lock()

    def took(self, accepted: int, duplicates: int, refused: int) -> None:
        """Count a batch of events."""
        second = int(self._clock())
        with self._lock:
            before = self._taken.pop()[1] if self._taken and self._taken[-1][0] == second else 0
            self._taken.append((second, before + accepted))
            self._drop_old()
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)
        self._events.labels("refused").inc(refused)

    def listed(self, made: Sequence[Made]) -> None:
        """Count lists."""
        for one in made:
            kind = "fallback" if one.list.fallback else "personal"
            self._lists.labels(one.list.model_id, one.list.variant, kind).inc()
            self._seconds.labels(one.list.variant).observe(one.seconds)
            vitals = self.vitals(one.list.model_id)
            vitals.seconds.append(one.seconds)
            vitals.failed.append(False)
        with self._lock:
            self._shown.update(line.item_id for one in made for line in one.list.items)

    def failed(self, model_id: str) -> None:
        """Count a list that could not be made."""
        self._failed.labels(model_id).inc()
        self.vitals(model_id).failed.append(True)

    def rolled_back(self) -> None:
        """Count a model that live figures took out of service."""
        self._rollbacks.inc()

    def vitals(self, model_id: str) -> Vitals:
        """How a model's most recent lists went."""
        return self._vitals.setdefault(model_id, Vitals())

    def lost(self, lists: int) -> None:
        """Count lists that could not be logged."""
        self._lost.inc(lists)

    def text(self, variants: Variants, waiting: int, people: int) -> bytes:
        """Everything in the text format of Prometheus."""
        listed = int(variants.served.listed.sum())
        with self._lock:
            self._items.set(listed)
            self._coverage.set(min(1.0, len(self._shown) / max(1, listed)))
            self._waiting.set(waiting)
            self._people.set(people)
            self._drop_old()
            seconds = min(_RATE_SECONDS, max(1.0, self._clock() - self._began))
            self._rate.set(sum(number for _, number in self._taken) / seconds)
            self._set_trends(self.trends)
            return generate_latest(self._registry)

    def _set_trends(self, trends: Trends | None) -> None:
        for gauge in (self._ctr, self._conversion, self._judged):
            gauge.clear()  # a model that has gone leaves no figure behind
        for labels, rate in ({} if trends is None else trends.rates).items():
            self._ctr.labels(*labels).set(rate.ctr)
            self._conversion.labels(*labels).set(rate.conversion)
            self._judged.labels(*labels).set(rate.lists)
        self._psi.set(math.nan if trends is None else trends.stability)
        self._adwin.set(math.nan if trends is None else trends.mean)
        self._width.set(0 if trends is None else trends.width)
        self._changes.set(0 if trends is None else trends.changes)

    def _drop_old(self) -> None:
        while self._taken and self._taken[0][0] <= self._clock() - _RATE_SECONDS:
            self._taken.popleft()

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, meaning, labels, registry=self._registry)

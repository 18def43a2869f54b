"""What monitors read from the store, against counts by hand, on SQLite and PostgreSQL."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from palate.data.event import Event
from palate.errors import ConfigError
from palate.service import trends
from palate.service.live import LiveConfig
from palate.service.live_report import report
from palate.service.monitors import Monitors
from palate.service.serving import Variants
from palate.service.trends import Rate, TrendConfig, TrendReader, outcomes_of_lists
from palate.store import Store, events, recommendations, registry
from palate.store.recommendations import ShownList

NOW = 2_000_000.0
HOUR = 3600.0
NEGATIVE = ("cancel",)
CONFIG = TrendConfig(window=2.0, drift_every=1)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def shown(name: str, at: float, user: str | None = "u", variant: str = "served", model: str = "m") -> ShownList:
    return ShownList(name, user, user is None, model, variant, "default", at, ["a", "b"], [2.0, 1.0], [1.0, 1.0])


def add(store: Store, *lists: ShownList) -> None:
    with store.write() as connection:
        recommendations.add(connection, lists)


def happen(store: Store, at: float, *rows: tuple[str, str, str | None], item: str = "a") -> None:
    """(user, kind, list) at a moment."""
    with store.write() as connection:
        number = events.count(connection)
        done = [
            Event(user, item, kind, at, event_id=f"e{number + n}", recommendation_id=name)
            for n, (user, kind, name) in enumerate(rows)
        ]
        events.append(connection, done, at)


def read(store: Store, reader: TrendReader, now: float = NOW):  # type: ignore[no-untyped-def]
    with store.read() as connection:
        return reader.read(connection, NEGATIVE, now)


def test_rates_by_variant_are_those_counted_by_hand(store: Store) -> None:
    at = NOW - 2 * HOUR
    add(
        store,
        shown("clicked", at),
        shown("bought", at + 1),
        shown("refused", at + 2),
        shown("another's", at + 3),
        shown("late", at + 4),
        shown("nothing", at + 5),
        shown("session", at + 6, user=None),
        shown("tried", at + 7, variant="canary", model="new"),
        shown("tried in vain", at + 8, variant="canary", model="new"),
        shown("too old", NOW - 3 * HOUR - 1),
        shown("too young", NOW - HOUR + 1),
    )
    happen(
        store,
        at + 60,
        ("u", "click", "clicked"),
        ("u", "click", "clicked"),  # twice is a list once
        ("u", "click", "bought"),
        ("u", "purchase", "bought"),
        ("u", "cancel", "refused"),
        ("v", "click", "another's"),
        ("v", "click", "session"),
        ("u", "purchase", "tried"),
        ("u", "purchase", "too old"),
        ("u", "purchase", None),
        ("u", "purchase", "of no log"),
    )
    happen(store, at + 4 + HOUR + 1, ("u", "purchase", "late"))
    happen(store, NOW - 1, ("u", "purchase", "too young"))
    found = read(store, TrendReader(CONFIG))
    assert found.rates == {("served", "m"): Rate(7, 3, 1), ("canary", "new"): Rate(2, 1, 1)}
    assert found.rates["served", "m"].ctr == 3 / 7
    assert found.rates["canary", "new"].conversion == 1 / 2
    assert found.mean == pytest.approx(4 / 9)
    assert found.width == 9
    other = TrendReader(TrendConfig(window=2.0, conversions=("click",)))
    assert read(store, other).rates["served", "m"].converted == 3


def test_what_is_read_bit_by_bit_is_what_is_read_at_once(store: Store) -> None:
    rng = np.random.default_rng(0)
    reader, now = TrendReader(CONFIG), NOW
    for step in range(40):
        now = NOW + 600 * step
        names = [f"r{step}-{n}" for n in range(rng.integers(5))]
        add(
            store,
            *(
                shown(name, now - 500 + n, variant=str(rng.choice(["served", "canary"])))
                for n, name in enumerate(names)
            ),
        )
        old = [f"r{rng.integers(max(0, step - 8), step + 1)}-{n}" for n in range(3)]
        happen(store, now - 100, *(("u", str(rng.choice(["click", "purchase", "cancel"])), name) for name in old))
        found = read(store, reader, now)
    again = read(store, TrendReader(CONFIG), now)
    assert found.rates == again.rates
    assert sum(rate.lists for rate in found.rates.values()) > 10
    assert 0 < sum(rate.chosen for rate in found.rates.values()) < sum(rate.lists for rate in found.rates.values())


def test_the_stability_index_moves_with_the_choices(store: Store) -> None:
    rng = np.random.default_rng(1)
    with store.write() as connection:
        registry.add(connection, registry.Model("m", "m", "candidate", 0.0, None, {}, "0" * 64))
        registry.promote(connection, "m", NOW - 5000)

    def choose(at: float, items: str) -> None:
        for item in items:
            happen(store, at, *[("u", "click", None)] * int(rng.integers(90, 110)), item=item)

    reader = TrendReader(CONFIG)
    choose(NOW - 6000, "abcd")
    assert read(store, reader, NOW).stability == 0.0
    choose(NOW - 4000, "abcd")
    assert read(store, reader, NOW + 1).stability == 0.0
    choose(NOW - 3000, "ddddddd")
    assert read(store, reader, NOW + 2).stability > 0.2
    assert read(store, TrendReader(CONFIG), NOW + 2).stability == read(store, reader, NOW + 3).stability
    with store.write() as connection:  # after another model: choices are as they were just before
        registry.add(connection, registry.Model("n", "n", "candidate", 0.0, None, {}, "0" * 64))
        registry.promote(connection, "n", NOW - 2000)
    assert read(store, reader, NOW + 4).stability == 0.0


def test_adwin_finds_when_lists_stop_leading_to_choices(store: Store) -> None:
    def serve(begin: float, every: int) -> None:
        names = [f"r{begin}-{n}" for n in range(300)]
        add(store, *(shown(name, begin + n) for n, name in enumerate(names)))
        happen(store, begin + 400, *(("u", "click", name) for name in names[::every]))

    reader = TrendReader(CONFIG)
    serve(NOW - 2.5 * HOUR, 2)
    before = read(store, reader)
    assert (before.changes, before.mean, before.width) == (0, 0.5, 300)
    serve(NOW - HOUR + 10, 20)
    assert read(store, reader).width == 300, "not old enough"
    after = read(store, reader, NOW + HOUR)
    assert after.changes >= 1
    assert after.mean < 0.2


def test_of_many_lists_adwin_is_told_of_some_evenly_spread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trends, "_MOST", 100)
    at = NOW - 1.5 * HOUR
    add(store, *(shown(f"r{n:03}", at + n) for n in range(250)))
    happen(store, at + 400, *(("u", "click", f"r{n:03}") for n in range(0, 250, 6)))
    found = read(store, TrendReader(CONFIG))
    assert found.width == 84, "every third"
    assert found.mean == 42 / 84, "of those every other"
    assert found.rates["served", "m"] == Rate(250, 42, 0), "rates are of all"


def test_lists_are_found_by_time_and_events_by_number(store: Store) -> None:
    if store.dialect != "sqlite":
        pytest.skip("PostgreSQL chooses by what is in the tables")
    query = outcomes_of_lists(NOW - HOUR, NOW, (3, 9), NEGATIVE, CONFIG)
    text = str(query.compile(store.engine, compile_kwargs={"literal_binds": True}))
    with store.read() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert any("INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in line for line in plan), plan
    assert any("ix_recommendations_at" in line for line in plan), plan
    assert not any(line.startswith(("SCAN events", "SCAN recommendations")) for line in plan), plan


def test_the_report_says_whether_the_groups_are_as_large_as_they_should_be(store: Store) -> None:
    with store.write() as connection:
        for name in ("old", "new"):
            registry.add(connection, registry.Model(name, name, "candidate", 0.0, None, {}, "0" * 64))
        registry.promote(connection, "old", NOW - 9 * HOUR)
        registry.start_canary(connection, "new", 0.5, NOW - 3 * HOUR)
    at = NOW - 2.5 * HOUR
    for number in range(200):
        variant = "canary" if number % 2 else "served"
        add(store, shown(f"r{number}", at + number, f"u{number}", variant))
    happen(store, at + 300, *((f"u{n}", "click", f"r{n}") for n in range(200) if n % 2 or n % 10 == 0))

    def look():  # type: ignore[no-untyped-def]
        with store.read() as connection:
            return report(connection, NEGATIVE, LiveConfig(horizon=1.0), CONFIG, NOW)

    found = look()
    assert found.verdict.decision == "better"
    assert found.verdict.figure.low > 0
    assert found.verdict.people == {"served": 100, "canary": 100}
    assert not found.shares.mismatch
    assert found.trends.rates["served", "m"] == Rate(100, 20, 0)
    for number in range(200, 300):
        add(store, shown(f"r{number}", at + number, f"u{number}"))
    assert look().shares.mismatch


def test_the_rate_of_events_is_over_five_minutes() -> None:
    now = [1000.0]
    monitors = Monitors(clock=lambda: now[0])

    def rate() -> float:
        return figure(monitors, "palate_event_rate ")

    assert rate() == 0.0
    now[0] += 10
    monitors.took(50, 7, 3)
    monitors.took(50, 0, 0)
    assert rate() == 10.0  # of the ten seconds there have been
    now[0] += 90
    assert rate() == 1.0
    now[0] += 190
    monitors.took(200, 0, 0)
    assert rate() == pytest.approx(300 / 290)
    now[0] += 100
    assert rate() == pytest.approx(200 / 300)
    now[0] += 400
    assert rate() == 0.0


def figure(monitors: Monitors, name: str) -> float:
    [line] = [one for one in text_of(monitors).splitlines() if one.startswith(name)]
    return float(line.rpartition(" ")[2])


def text_of(monitors: Monitors) -> str:
    return monitors.text(Variants(ThreeItems()), 0, 0).decode()  # type: ignore[arg-type]


class ThreeItems:
    """A shelf, as far as monitors look."""

    listed = np.ones(3, bool)


def test_what_was_read_is_shown_and_what_is_gone_is_not(store: Store) -> None:
    monitors = Monitors()
    assert math.isnan(figure(monitors, "palate_drift_psi "))
    assert math.isnan(figure(monitors, "palate_drift_adwin "))
    assert "palate_ctr{" not in text_of(monitors)
    add(store, shown("one", NOW - 2 * HOUR), shown("two", NOW - 2 * HOUR), shown("new", NOW - HOUR + 1, model="n"))
    happen(store, NOW - 2 * HOUR, ("u", "purchase", "one"))
    reader = TrendReader(CONFIG)
    monitors.trends = read(store, reader)
    assert figure(monitors, 'palate_ctr{model="m",variant="served"}') == 0.5
    assert figure(monitors, 'palate_conversion{model="m",variant="served"}') == 0.5
    assert figure(monitors, 'palate_lists_judged{model="m",variant="served"}') == 2
    assert figure(monitors, "palate_drift_psi ") == 0.0
    assert figure(monitors, "palate_drift_adwin ") == 0.5
    assert figure(monitors, "palate_drift_adwin_lists ") == 2
    monitors.trends = read(store, reader, NOW + 2 * HOUR)
    assert 'model="m"' not in text_of(monitors)
    assert figure(monitors, 'palate_ctr{model="n",variant="served"}') == 0.0


@pytest.mark.parametrize("settings", [{"seconds": -1.0}, {"window": 0.0}, {"horizon": -1.0}, {"drift_every": 0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="trends"):
        TrendConfig(**settings)  # type: ignore[arg-type]

"""Live figures decide about models: on planted worlds where the truth is known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from palate.data.event import Event
from palate.errors import ConfigError
from palate.service.live import LiveConfig, drift_of, judge, outcomes
from palate.store import Store, events, recommendations, registry
from palate.store.recommendations import ShownList

CONFIG = LiveConfig(horizon=1.0)
NEGATIVE = ("cancel",)
START = 1_000_000.0
HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path / 'live.db'}")
    yield opened
    opened.close()


def model(name: str) -> registry.Model:
    return registry.Model(name, name, "candidate", 0.0, None, {}, "0" * 64)


def shown(number: int, user: str | None, at: float, variant: str = "served") -> ShownList:
    return ShownList(f"r{number}", user, user is None, "m", variant, "default", at, ["a", "b"], [2.0, 1.0], [1.0, 1.0])


def world(
    store: Store,
    rates: dict[str, float],
    *,
    people: int,
    begin: float,
    share: float = 0.5,
    seed: int = 0,
    first: int = 0,
) -> None:
    """People get one list each, a second apart, and choose from it with the rate of their variant."""
    rng = np.random.default_rng(seed)
    lists, done = [], []
    for number in range(first, first + people):
        at = begin + number - first
        variant = "canary" if rng.random() < share else "served"
        lists.append(shown(number, f"u{number}", at, variant))
        if rng.random() < rates[variant]:
            done.append(
                Event(f"u{number}", "a", "click", at + 10, event_id=f"e{number}", recommendation_id=f"r{number}")
            )
    with store.write() as connection:
        recommendations.add(connection, lists)
        for event in done:  # received when they happened
            events.append(connection, [event], event.timestamp)


def canary(store: Store, share: float = 0.5) -> registry.Pointers:
    with store.write() as connection:
        for name in ("old", "new"):
            registry.add(connection, model(name))
        registry.promote(connection, "old", START - 1000)
        registry.start_canary(connection, "new", share, START)
        return registry.current(connection)


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ({"served": 0.1, "canary": 0.4}, "better"),
        ({"served": 0.4, "canary": 0.1}, "worse"),
        ({"served": 0.3, "canary": 0.3}, "undecided"),
    ],
)
def test_a_canary_is_judged_by_the_share_of_people_with_a_choice(
    store: Store, rates: dict[str, float], wanted: str
) -> None:
    pointers = canary(store)
    world(store, rates, people=1500, begin=START)
    with store.read() as connection:
        verdict = judge(connection, pointers, NEGATIVE, CONFIG, START + 3 * HOUR)
        early = judge(connection, pointers, NEGATIVE, CONFIG, START + 0.9 * HOUR)
    assert verdict.decision == wanted, verdict.reason
    assert early.decision == "undecided"  # nobody's horizon is over


def test_a_model_that_serves_everyone_is_held_against_the_time_before(store: Store) -> None:
    with store.write() as connection:
        for name in ("old", "new"):
            registry.add(connection, model(name))
        registry.promote(connection, "old", START - 1e6)
        registry.promote(connection, "new", START)
        pointers = registry.current(connection)
    world(store, {"served": 0.4}, people=800, begin=START - 10 * HOUR, share=0.0)
    world(store, {"served": 0.1}, people=800, begin=START + 1, share=0.0, first=5000)
    with store.read() as connection:
        assert judge(connection, pointers, NEGATIVE, CONFIG, START + 3 * HOUR).decision == "worse"
        assert judge(connection, pointers, NEGATIVE, CONFIG, START + 100 * HOUR).decision == "undecided"


def test_a_fresh_model_that_does_as_well_stays(store: Store) -> None:
    with store.write() as connection:
        for name in ("old", "new"):
            registry.add(connection, model(name))
        registry.promote(connection, "old", START - 1e6)
        registry.promote(connection, "new", START)
        pointers = registry.current(connection)
    world(store, {"served": 0.3}, people=800, begin=START - 10 * HOUR, share=0.0)
    with store.read() as connection:
        assert judge(connection, pointers, NEGATIVE, CONFIG, START + 3 * HOUR).reason == "too few people yet"
    world(store, {"served": 0.3}, people=800, begin=START + 1, share=0.0, first=5000)
    with store.read() as connection:
        assert judge(connection, pointers, NEGATIVE, CONFIG, START + 3 * HOUR).decision == "undecided"


def test_a_person_counts_once_and_only_with_what_came_of_their_lists(store: Store) -> None:
    with store.write() as connection:
        recommendations.add(
            connection,
            [
                shown(1, "one", START, "canary"),
                shown(2, "one", START + 10, "canary"),
                shown(3, "two", START + 1),
                shown(4, "three", START + 2),
                shown(5, None, START + 3),
                shown(6, "four", START + 4),
                shown(7, "late", START + 2 * HOUR),
            ],
        )
        for row in (
            Event("one", "a", "click", START + 20, event_id="a", recommendation_id="r2"),
            Event("one", "a", "click", START + 21, event_id="b", recommendation_id="r2"),
            Event("two", "a", "cancel", START + 20, event_id="c", recommendation_id="r3"),
            Event("three", "a", "click", START + 2 * HOUR, event_id="d", recommendation_id="r4"),
            Event("four", "a", "click", START + 20, event_id="e"),
        ):
            events.append(connection, [row], row.timestamp)
    with store.read() as connection:
        found = outcomes(connection, START, START + 2.5 * HOUR, NEGATIVE, CONFIG)
    assert [(one.variant, one.chose) for one in found] == [
        ("canary", True),
        ("served", False),
        ("served", False),
        ("served", False),
    ]


def test_drift_is_seen_when_choices_change(store: Store) -> None:
    rng = np.random.default_rng(0)

    def some(prefix: str, items: list[str], at: float) -> None:
        with store.write() as connection:
            rows = [Event("u", str(rng.choice(items)), "click", at, event_id=f"{prefix}{n}") for n in range(400)]
            events.append(connection, rows, at)

    some("a", ["a", "b", "c"], 10.0)
    with store.read() as connection:
        assert drift_of(connection, 20.0) == 0.0
    some("b", ["a", "b", "c"], 20.0)
    with store.read() as connection:
        assert drift_of(connection, 20.0) == 0.0
    some("c", ["c", "d"], 30.0)
    with store.read() as connection:
        assert drift_of(connection, 30.0) > 0.25


@pytest.mark.parametrize("settings", [{"horizon": 0.0}, {"drop": 1.0}, {"margin": -1.0}, {"level": 0.0}, {"fewest": 0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="live"):
        LiveConfig(**settings)  # type: ignore[arg-type]

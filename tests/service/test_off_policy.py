"""From a store's log to estimates: a planted world whose truth is known, and the real model end to end."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning
from palate.data.event import Event
from palate.errors import ConfigError, DataError
from palate.evaluation.off_policy import OffPolicyConfig
from palate.recommend import Recommender
from palate.service.asked import asked_of
from palate.service.contract import Condition, Filter, ListRequest
from palate.service.home import Home
from palate.service.lists import ListConfig, adapt, make_list
from palate.service.models import plain
from palate.service.off_policy import Log, LogConfig, evaluate_log, greedy, read_log
from palate.service.people import Person, Stored, fold
from palate.service.shelf import Item, Shelf, make_shelf
from palate.store import Store, StoredEvent, events, items, recommendations
from palate.store.recommendations import ShownList

NOW = 2_000_000_000.0
HOUR = 3600.0
NEGATIVE = ("cancel",)
MEANING = EventMeaning(frozenset(), frozenset())
CONFIG = LogConfig(estimates=OffPolicyConfig(num_resamples=200))
KINDS = ("cup", "tea")
ITEMS = ("a", "b", "c", "d")
LOGGING = {"cup": (0.4, 0.3, 0.2, 0.1), "tea": (0.1, 0.2, 0.3, 0.4)}
"""Probability of each item to be the one that is shown, to each kind of person."""
RATES = {"cup": (0.1, 0.2, 0.3, 0.6), "tea": (0.5, 0.3, 0.2, 0.1)}
"""Probability with which each is then chosen."""
WANTED = {"cup": "d", "tea": "a"}
"""What the target shows: what people like best, and the log shows least."""
TRUTH = (0.6 + 0.5) / 2
AS_SHOWN = sum(p * r for kind in KINDS for p, r in zip(LOGGING[kind], RATES[kind], strict=True)) / 2


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def shown(name: str, user: str | None, at: float, items: Sequence[str], propensities: Sequence[float]) -> ShownList:
    scores = [0.0] * len(items)
    return ShownList(name, user, user is None, "m", "served", "default", at, list(items), scores, list(propensities))


def world(store: Store, seed: int, *, people: int = 300) -> None:
    """Half of the people are of each kind; each comes three times and is shown one item, by chance."""
    rng = np.random.default_rng(seed)
    lists, done = [], []
    for number in range(people):
        kind = KINDS[number % 2]
        for visit in range(3):
            name, at = f"s{seed}-{number}-{visit}", NOW - 48 * HOUR + number + visit * HOUR
            place = int(rng.choice(4, p=LOGGING[kind]))
            lists.append(shown(name, f"{kind}-{number}", at, [ITEMS[place]], [LOGGING[kind][place]]))
            if rng.random() < RATES[kind][place]:
                done.append((at, name, f"{kind}-{number}", ITEMS[place]))
    done.sort()
    with store.write() as connection:
        recommendations.add(connection, lists)
        for at, name, user, item in done:
            events.append(
                connection, [Event(user, item, "click", at + 5, event_id=name, recommendation_id=name)], at + 5
            )


def wanted(lists: Sequence[ShownList]) -> list[list[str]]:
    return [[WANTED[str(one.user_id).partition("-")[0]]] for one in lists]


def log_of(store: Store, config: LogConfig = CONFIG) -> Log:
    with store.read() as connection:
        return read_log(connection, 0.0, NOW, NEGATIVE, config)


def test_intervals_hold_the_truth_of_a_planted_world(store: Store) -> None:
    world(store, 0)
    log = log_of(store)
    assert len(log.lists) == 900
    found = evaluate_log(log, wanted, CONFIG)
    assert found.logged.asymptotic.low <= AS_SHOWN <= found.logged.asymptotic.high
    assert set(found.target.values) == {"ips", "snips", "dr"}
    for value in found.target.values.values():
        for interval in value:
            assert interval.low <= TRUTH <= interval.high
            assert interval.low > found.logged.asymptotic.high  # the target is better, and the log says so
    width = {name: value.asymptotic.high - value.asymptotic.low for name, value in found.target.values.items()}
    assert width["dr"] < width["ips"]
    assert width["snips"] < width["ips"]
    assert found.target.overlap.num_people == 300
    assert found.target.overlap.largest_weight == 10.0
    assert 60 < found.target.overlap.num_matched < 130


def test_intervals_hold_as_often_as_they_say(tmp_path: Path) -> None:
    held = {"ips": 0, "snips": 0, "dr": 0}
    for seed in range(40):
        opened = Store.open(f"sqlite:///{tmp_path / f'{seed}.db'}")
        world(opened, seed, people=60)
        found = evaluate_log(log_of(opened), wanted, CONFIG)
        opened.close()
        for name, value in found.target.values.items():
            held[name] += value.bootstrap.low <= TRUTH <= value.bootstrap.high
    # Of 40 at 95 %, fewer than 33 come in one run of ten thousand; small samples fall a little short.
    assert min(held.values()) >= 33, held


def test_without_exploration_nothing_is_said(store: Store) -> None:
    with store.write() as connection:
        recommendations.add(
            connection,
            [
                shown("1", "u", NOW - 30 * HOUR, ["a", "b"], [1.0, 1.0]),
                shown("2", None, NOW - 30 * HOUR, ["a", "b"], [0.5, 0.5]),
                shown("3", "u", NOW - HOUR, ["a", "b"], [0.5, 0.5]),
            ],
        )
    with pytest.raises(DataError, match=r"^log: no exploration in 1 lists of people \(1 of [^\n]*thompson[^\n]*$"):
        log_of(store)


def test_what_counts_as_a_choice(store: Store) -> None:
    at = NOW - 30 * HOUR
    config = LogConfig(kinds=("purchase",))
    with store.write() as connection:
        lists = [shown(name, "u", at, ["a", "b"], [0.5, 1.0]) for name in ("1", "2", "3", "4", "5")]
        certain = shown("6", "u", at, ["a", "b"], [1.0, 1.0])
        recommendations.add(connection, [*lists, certain, shown("7", None, at, ["a"], [0.5])])
        rows = [
            ("u", "a", "click", "1", at + 1),
            ("u", "a", "click", "1", at + 2),
            ("u", "b", "purchase", "1", at + 3),
            ("u", "a", "cancel", "2", at + 4),
            ("v", "a", "click", "3", at + 5),
            ("u", "not shown", "click", "4", at + 6),
            ("u", "a", "click", None, at + 7),
            ("u", "a", "click", "6", at + 8),
            ("u", "a", "click", "5", at + 24 * HOUR + 1),
        ]
        for number, (user, item, kind, name, when) in enumerate(rows):
            events.append(
                connection, [Event(user, item, kind, when, event_id=f"e{number}", recommendation_id=name)], when
            )
    log = log_of(store)
    assert sorted(one.recommendation_id for one in log.lists) == ["1", "2", "3", "4", "5"]
    assert log.chosen == {("1", "a"), ("1", "b")}
    assert (log.sessions, log.certain) == (1, 1)
    assert log_of(store, config).chosen == {("1", "b")}
    assert len(log_of(store, LogConfig(most=2)).lists) == 2
    with pytest.raises(DataError, match="no exploration"):
        log_of(store, LogConfig(scenario="cart"))
    with pytest.raises(DataError, match="at least two people"):
        evaluate_log(log, lambda lists: [["a"] for _ in lists])


def test_a_list_that_the_target_would_leave_empty_earns_nothing(store: Store) -> None:
    world(store, 1)
    log = log_of(store)
    half = evaluate_log(log, lambda lists: [[] if n % 3 else one for n, one in enumerate(wanted(lists))], CONFIG)
    whole = evaluate_log(log, wanted, CONFIG)
    assert 0.2 < half.target.values["dr"].asymptotic.mean / whole.target.values["dr"].asymptotic.mean < 0.47


def test_a_models_lists_are_those_that_the_service_would_have_made_then(served_home: Home, model: Recommender) -> None:
    store = Store.open(served_home.database)
    with store.read() as connection:
        stored = [Item(row.item_id, plain(row.attributes), row.hidden) for row in items.read_all(connection)]
    shelf = make_shelf(model, stored, 0)
    request = ListRequest(user_id="new", k=5, explore="thompson")
    rng, lists, best = np.random.default_rng(0), [], []
    begin = NOW - 100 * HOUR
    for number in range(30):
        user, done = f"new-{number % 3}", []
        at = begin + number * HOUR
        with store.read() as connection:
            done = events.read_events(connection, user)
        state = adapt(shelf, fold(Stored({}, done), MEANING), at).state if done else adapt(shelf, Person({}), at).state
        made = make_list(shelf, state, request, ListConfig(), rng)
        best.append([line.item_id for line in make_list(shelf, state, ListRequest(k=5), ListConfig(), rng)])
        lists.append(shown(f"r{number}", user, at, [line.item_id for line in made], [line.propensity for line in made]))
        with store.write() as connection:
            recommendations.add(connection, lists[-1:])
            chosen = Event(
                user, made[0].item_id, "click", at + 9, event_id=f"e{number}", recommendation_id=f"r{number}"
            )
            events.append(connection, [chosen], at + 9)
    with store.read() as connection:
        log = read_log(connection, begin, NOW, NEGATIVE, CONFIG)
        plan = greedy(connection, shelf)
        places = {one.recommendation_id: place for place, one in enumerate(lists)}
        assert plan(log.lists) == [best[places[one.recommendation_id]] for one in log.lists]
        assert len(log.lists) > 15
        assert len({tuple(one or ()) for one in plan(log.lists)}) > 10, "people move on"
        found = evaluate_log(log, plan, CONFIG)
    store.close()
    assert found.logged.asymptotic.mean == 1.0  # one choice a list
    assert found.target.overlap.coverage > 0.5
    for value in found.target.values.values():
        assert np.isfinite([*value.asymptotic, *value.bootstrap]).all()


@pytest.fixture
def shelf(model: Recommender, shop: Dataset) -> Shelf:
    rows = shop.items.frame.iter_rows(named=True)
    stored = [Item(row["item_id"], {"taste": row["item_id"].split("-")[0]}, False) for row in rows]
    return make_shelf(model, stored, 0)


def test_a_list_is_made_again_for_what_was_asked(store: Store, shelf: Shelf) -> None:
    """Everyone has bought two toys; each list is made again as the service would make it, without chance in it."""
    bought = ("toys-01", "toys-02")
    toys = Filter(all=(Condition("taste", "eq", "toys"),))
    gardens = Filter(none=(Condition("taste", "in", ("toys", "kitchen")),))
    requests = [
        ListRequest("plain"),
        ListRequest("short", k=3),
        ListRequest("filtered", filter=gardens),
        ListRequest("all toys", filter=toys, k=40),
        ListRequest("all toys, those had too", filter=toys, k=40, include_seen=True),
        ListRequest("excluded", filter=toys, exclude=("toys-03", "toys-04", "unknown"), k=40),
        ListRequest("varied", diversity=0.9),
    ]
    rng, at = np.random.default_rng(0), NOW - 30 * HOUR
    done = [StoredEvent(Event("", item), place, at - HOUR) for place, item in enumerate(bought, start=1)]
    lists, wanted = {}, {}
    for request in requests:
        user = str(request.user_id)
        state = adapt(shelf, fold(Stored({}, done), MEANING), at).state
        made = make_list(shelf, state, replace(request, explore="thompson"), ListConfig(), rng)
        one = shown(user, user, at, [line.item_id for line in made], [line.propensity for line in made])
        lists[user] = one._replace(asked=asked_of(request))
        wanted[user] = [line.item_id for line in make_list(shelf, state, request, ListConfig(), rng)]
    with store.write() as connection:
        recommendations.add(connection, list(lists.values()))
        for user in lists:
            before = [Event(user, item, "purchase", at - HOUR, event_id=f"{user} {item}") for item in bought]
            events.append(connection, before, at - HOUR)
    with store.read() as connection:
        read = recommendations.read_window(connection, 0.0, NOW)
        found = dict(zip([str(one.user_id) for one in read], greedy(connection, shelf)(read), strict=True))
    assert found == wanted
    assert len(wanted["plain"]) == 10
    assert wanted["short"] == wanted["plain"][:3]
    assert {item.split("-")[0] for item in wanted["filtered"]} == {"garden"}
    every = {f"toys-{number:02}" for number in range(20)}
    assert set(wanted["all toys"]) == every - {*bought}
    assert set(wanted["all toys, those had too"]) == every
    assert set(wanted["excluded"]) == every - {*bought, "toys-03", "toys-04"}
    assert wanted["varied"] != wanted["plain"]


def test_the_target_gives_no_probability_to_what_a_filter_forbids(store: Store, shelf: Shelf) -> None:
    """Newcomers are offered toys alone, by chance; a target that forgot the filter would want other things."""
    toys = Filter(all=(Condition("taste", "eq", "toys"),))
    asked = asked_of(ListRequest("u", k=5, filter=toys))
    rng, at = np.random.default_rng(0), NOW - 30 * HOUR
    lists = []
    for number in range(60):
        drawn = [f"toys-{place:02}" for place in rng.permutation(20)[:5]]
        lists.append(shown(f"r{number}", f"u{number}", at, drawn, [0.25] * 5)._replace(asked=asked))
    with store.write() as connection:
        recommendations.add(connection, lists)
    with store.read() as connection:
        log, plan = read_log(connection, 0.0, NOW, NEGATIVE, CONFIG), greedy(connection, shelf)
        planned = plan(log.lists)
        found = evaluate_log(log, plan, CONFIG)
        forgotten = plan([one._replace(asked=None) for one in log.lists])
    assert all(item.startswith("toys-") for items in planned for item in items or ["none"])
    assert not all(item.startswith("toys-") for items in forgotten for item in items or ["none"])
    assert found.unmade == 0
    assert found.target.overlap.coverage > 0.8


def test_lists_that_cannot_be_made_again_are_counted(store: Store, shelf: Shelf) -> None:
    at, toys = NOW - 30 * HOUR, [f"toys-{number:02}" for number in range(5)]
    gone = ListRequest("u", k=5, filter=Filter(all=(Condition("colour", "eq", "red"),)))
    long = ListRequest("u", k=5, exclude=("x" * 200,) * 100)
    rest = ListRequest("u", filter=Filter(all=(Condition("taste", "eq", "toys"),)), k=5)
    lists = [
        shown(f"{kind}{number}", f"u{number}", at, toys, [0.5] * 5)._replace(asked=asked_of(request))
        for number in range(3)
        for kind, request in {"gone": gone, "long": long, "rest": rest}.items()
    ]
    with store.read() as connection:
        plan = greedy(connection, shelf)
        found = evaluate_log(Log(lists, frozenset([("gone0", "toys-01")]), 0, 0), plan, CONFIG)
        assert found.unmade == 6
        assert found.target.overlap.num_contexts == 3
        assert found.logged.asymptotic.mean == 0.0  # of the same lists
        lost = Log([one for one in lists if not one.recommendation_id.startswith("rest")], frozenset(), 0, 0)
        with pytest.raises(DataError, match=r"^log: none of 6 lists can be made again[^\n]*$"):
            evaluate_log(lost, plan, CONFIG)


@pytest.mark.parametrize("settings", [{"horizon": 0.0}, {"most": 0}, {"shrink": -1.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="log"):
        LogConfig(**settings)  # type: ignore[arg-type]

"""Lists from a shelf: filters, hidden and new items, exclusions, exploration, diversity; and what is kept of people."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning
from palate.data.event import Event
from palate.errors import ConfigError, DataError
from palate.recommend import Recommender
from palate.service.contract import Condition, Filter, Listed, ListRequest
from palate.service.lists import ListConfig, adapt, make_list
from palate.service.people import Person
from palate.service.shelf import Item, Shelf, exchanged, make_shelf, refreshed

CONFIG = ListConfig()
MEANING = EventMeaning(frozenset(), frozenset())


@pytest.fixture(scope="module")
def stored(shop: Dataset) -> list[Item]:
    return [
        Item(
            row["item_id"],
            {
                "title": row["title"],
                "price": row["price"],
                "taste": row["item_id"].split("-")[0],
                "rare": row["item_id"].endswith("9") or None,
            },
            False,
        )
        for row in shop.items.frame.iter_rows(named=True)
    ]


@pytest.fixture(scope="module")
def shelf(model: Recommender, stored: list[Item]) -> Shelf:
    return make_shelf(model, stored, 60)


def person_of(events: Sequence[str], **attributes: str | float | bool | None) -> Person:
    person = Person(attributes)
    for number, item in enumerate(events):
        assert person.take(Event("ann", item), float(number), MEANING)
    return person


def listed(
    shelf: Shelf, events: Sequence[str] = (), seed: int = 0, now: float = 100.0, **request: object
) -> list[Listed]:
    adapted = adapt(shelf, person_of(events), now)
    asked = ListRequest(**request)  # type: ignore[arg-type]
    return make_list(shelf, adapted.state, asked, CONFIG, np.random.default_rng(seed))


def ids(lines: Sequence[Listed]) -> list[str]:
    return [line.item_id for line in lines]


def test_a_plain_list_is_the_recommenders_own(shelf: Shelf, model: Recommender) -> None:
    events = ["garden-01", "toys-03", "garden-05"]
    ours, theirs = listed(shelf, events), model.recommend(events, 10)
    assert ids(ours) == [line.item_id for line in theirs]
    assert [line.score for line in ours] == pytest.approx([line.score for line in theirs])
    assert [(line.title, line.reason, line.because) for line in ours] == [
        (line.title, line.reason, line.because) for line in theirs
    ]
    assert {line.propensity for line in ours} == {1.0}
    assert [line.rank for line in ours] == list(range(1, 11))
    assert {line.parts for line in ours} == {None}


def test_a_list_says_what_each_scorer_adds_where_it_is_asked_to(shelf: Shelf, model: Recommender) -> None:
    events = ["garden-01", "toys-03", "garden-05"]
    ours, theirs = listed(shelf, events, parts=True), model.recommend(events, 10)
    for line, same in zip(ours, theirs, strict=True):
        assert line.parts == pytest.approx(same.parts)
        assert sum((line.parts or {}).values()) == pytest.approx(line.score, abs=1e-4)


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        (Condition("taste", "eq", "toys"), lambda item: item.attributes["taste"] == "toys"),
        (Condition("taste", "ne", "toys"), lambda item: item.attributes["taste"] != "toys"),
        (Condition("price", "lt", 8.0), lambda item: item.attributes["price"] < 8),
        (Condition("price", "ge", 8.0), lambda item: item.attributes["price"] >= 8),
        (Condition("price", "le", 8.0), lambda item: item.attributes["price"] <= 8),
        (Condition("price", "gt", 8.0), lambda item: item.attributes["price"] > 8),
        (Condition("taste", "in", ("toys", "garden")), lambda item: item.attributes["taste"] != "kitchen"),
        (Condition("title", "contains", "red"), lambda item: "red" in item.attributes["title"]),
        (Condition("rare", "missing"), lambda item: item.attributes["rare"] is None),
        (Condition("rare", "eq", True), lambda item: item.attributes["rare"] is True),
    ],
    ids=lambda value: value.op if isinstance(value, Condition) else "",
)
def test_a_filter_leaves_what_fits_and_all_of_it(shelf: Shelf, condition: Condition, fits) -> None:  # type: ignore[no-untyped-def]
    lines = listed(shelf, k=100, filter=Filter(all=(condition,)))
    assert set(ids(lines)) == {item.item_id for item in shelf.items.values() if fits(item)}
    opposite = listed(shelf, k=100, filter=Filter(none=(condition,)))
    assert set(ids(lines)).isdisjoint(ids(opposite))
    assert len(lines) + len(opposite) == len(shelf.items)


def test_filters_nest(shelf: Shelf) -> None:
    cheap, dear = Condition("price", "lt", 6.0), Condition("price", "gt", 10.0)
    toys = Condition("taste", "eq", "toys")
    lines = listed(shelf, k=100, filter=Filter(all=(toys, Filter(any=(cheap, dear)))))
    wanted = {
        item.item_id
        for item in shelf.items.values()
        if item.attributes["taste"] == "toys" and not 6 <= item.attributes["price"] <= 10  # type: ignore[operator]
    }
    assert set(ids(lines)) == wanted
    assert len(listed(shelf, k=100, filter=Filter())) == len(shelf.items)


def test_one_is_not_true(shelf: Shelf) -> None:
    number, truth = (Filter(all=(Condition("price", "eq", value),)) for value in (1.0, True))
    assert number == truth, "as Python sees them"
    shelf.allowed(number)
    with pytest.raises(DataError, match="the attribute is a number"):
        shelf.allowed(truth)


@pytest.mark.parametrize(
    "condition",
    [
        Condition("colour", "eq", "red"),
        Condition("price", "eq", "cheap"),
        Condition("taste", "lt", 3.0),
        Condition("price", "in", 3.0),
        Condition("price", "eq", (3.0,)),
        Condition("price", "contains", 3.0),
        Condition("price", "eq"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(shelf: Shelf, condition: Condition) -> None:
    with pytest.raises(DataError, match="filter"):
        listed(shelf, filter=Filter(all=(condition,)))


def test_seen_and_excluded_items_are_left_out(shelf: Shelf) -> None:
    events = ["garden-01", "garden-02"]
    best = ids(listed(shelf, events))
    assert set(events).isdisjoint(best)
    assert set(events) <= set(ids(listed(shelf, events, k=100, include_seen=True)))
    assert ids(listed(shelf, events, exclude=(best[0], "nobody knows this"), k=9)) == best[1:]


def test_a_hidden_item_goes_and_comes_back(shelf: Shelf, stored: list[Item]) -> None:
    best = ids(listed(shelf))[0]
    item = shelf.items[best]
    hidden = refreshed(shelf, [item._replace(hidden=True)], 61)
    assert best not in ids(listed(hidden, k=100))
    assert len(listed(hidden, k=100)) == len(stored) - 1
    assert best not in ids(listed(hidden, k=100, filter=Filter(all=(Condition("price", "gt", 0.0),))))
    assert ids(listed(refreshed(hidden, [item], 62))) == ids(listed(shelf))
    assert (shelf.revision, hidden.revision) == (60, 61)


def test_an_item_that_the_store_lacks_is_not_listed(model: Recommender, stored: list[Item]) -> None:
    assert "toys-01" not in ids(listed(make_shelf(model, [i for i in stored if i.item_id != "toys-01"], 1), k=100))


def test_a_new_item_is_listed_by_its_content_and_changes_nobody_elses_score(shelf: Shelf) -> None:
    events = ["toys-01", "toys-02", "toys-03"]
    new = Item("new", {"title": "blue toys puzzle", "price": 7.0, "taste": "toys"}, False)
    longer = refreshed(shelf, [new, Item("other", {"title": "kitchen whisk"}, False)], 62)
    lines = {line.item_id: line.score for line in listed(longer, events, k=100)}
    assert lines["new"] > lines["other"]
    before = {line.item_id: line.score for line in listed(shelf, events, k=100)}
    assert {item: lines[item] for item in before} == before
    assert listed(longer, [*events, "new"])[0].because is not None
    unread = refreshed(shelf, [new._replace(hidden=True)], 62)
    assert "new" not in unread.model.vocabulary


def test_another_model_has_the_same_items(shelf: Shelf, model: Recommender) -> None:
    longer = refreshed(shelf, [Item("new", {"title": "blue toys puzzle"}, False)], 61)
    other = exchanged(longer, model)
    assert "new" in other.model.vocabulary
    assert other.revision == 61
    assert other.token is not longer.token


def test_titles_are_the_stores(shelf: Shelf) -> None:
    item = shelf.items[ids(listed(shelf))[0]]
    renamed = refreshed(shelf, [item._replace(attributes={**item.attributes, "title": "renamed"})], 61)
    assert listed(renamed)[0].title == "renamed"


def test_thompson_explores_and_says_how_likely_each_item_was(shelf: Shelf) -> None:
    events = ["toys-01"]
    lists = [listed(shelf, events, seed=seed, explore="thompson") for seed in range(20)]
    assert len({tuple(ids(lines)) for lines in lists}) > 10
    assert all(0 < line.propensity <= 1 for lines in lists for line in lines)
    assert any(line.propensity < 0.9 for lines in lists for line in lines)
    assert ids(listed(shelf, events, seed=3, explore="thompson")) == ids(lists[3])
    assert all(set(events).isdisjoint(ids(lines)) for lines in lists)
    assert {line.propensity for line in listed(shelf, events, explore="ucb")} == {1.0}


def test_diversity_keeps_the_best_and_changes_the_rest(shelf: Shelf) -> None:
    events = ["toys-01", "toys-02", "toys-03", "toys-04"]
    plain, varied = listed(shelf, events), listed(shelf, events, diversity=0.8)
    assert ids(varied)[0] == ids(plain)[0]
    tastes = [len({item.split("-")[0] for item in ids(lines)}) for lines in (plain, varied)]
    assert tastes[1] > tastes[0]


def test_a_list_is_never_longer_than_what_is_left(shelf: Shelf) -> None:
    few = Filter(all=(Condition("price", "lt", 4.0),))
    left = ids(listed(shelf, k=100, filter=few))
    for request in ({}, {"explore": "thompson"}, {"diversity": 0.5}, {"explore": "ucb", "diversity": 1.0}):
        assert set(ids(listed(shelf, k=50, filter=few, **request))) == set(left)
    nothing = Filter(all=(Condition("price", "lt", -1.0),))
    for request in ({}, {"explore": "thompson"}, {"diversity": 0.5}):
        assert listed(shelf, filter=nothing, **request) == []


def test_adapting_again_happens_only_after_an_event_or_a_visit(shelf: Shelf, model: Recommender) -> None:
    visits = replace(model.config, model=replace(model.config.model, visit_gap=12.0))
    shelf = exchanged(shelf, replace(model, config=visits))
    person = person_of(["toys-01"])
    first = adapt(shelf, person, 10.0)
    assert adapt(shelf, person, 20.0) is first
    later = adapt(shelf, person, 1e9)
    assert later is not first
    assert later.state.history.returning
    person.take(Event("ann", "toys-02"), 2e9, MEANING)
    assert (
        adapt(shelf, person, 2e9).state.history.items.tolist()
        == shelf.model.vocabulary.index(["toys-01", "toys-02"]).tolist()
    )
    other = refreshed(shelf, [], 61)
    assert adapt(other, person, 2e9) is not adapt(shelf, person, 2e9)


def test_what_is_kept_equals_adapting_from_nothing(shelf: Shelf) -> None:
    events = ["toys-01", "garden-02", "toys-03", "kitchen-04"]
    person = Person({"country": "Italy"})
    for number, item in enumerate(events):
        person.take(Event("ann", item), float(number), MEANING)
        kept = adapt(shelf, person, 50.0).state
        fresh = adapt(shelf, person_of(events[: number + 1], country="Italy"), 50.0).state
        assert all(np.array_equal(kept.fast[name].numpy(), fresh.fast[name].numpy()) for name in fresh.fast)


def test_a_profile_is_read_and_what_the_model_cannot_read_is_not(shelf: Shelf) -> None:
    assert not adapt(shelf, person_of([]), 0.0).personal
    assert adapt(shelf, person_of(["toys-01"]), 0.0).personal
    known = adapt(shelf, person_of([], country="Italy", shoe_size=40.0), 0.0)
    assert known.personal
    assert not adapt(shelf, person_of([], country=3.0, age="old"), 0.0).personal
    plain = adapt(shelf, person_of([]), 0.0)
    assert any(not np.array_equal(known.state.fast[n].numpy(), plain.state.fast[n].numpy()) for n in known.state.fast)


def test_exploring_asks_for_a_learner_that_can(shelf: Shelf) -> None:
    learner = replace(shelf.model.config.meta, learner="maml")
    other = replace(shelf.model, config=replace(shelf.model.config, meta=learner, learner={}))
    with pytest.raises(ConfigError, match="posterior"):
        make_list(
            exchanged(shelf, other),
            adapt(shelf, person_of(["toys-01"]), 0.0).state,
            ListRequest(explore="thompson"),
            CONFIG,
            np.random.default_rng(0),
        )

"""What a list holds: its order, its filters, and that it follows the planted taste."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.catalog import Catalog
from palate.recommend import Recommendation, Recommender
from palate.recommend.retrieval import RetrievalConfig

TASTES = ("garden", "kitchen", "toys")
ids = st.builds("{}-{:02}".format, st.sampled_from(TASTES), st.integers(0, 19))
shared = settings(max_examples=25)


def taste(item: str) -> str:
    return item.split("-")[0]


def listed(lines: list[Recommendation]) -> list[str]:
    return [line.item_id for line in lines]


def scores_of(model: Recommender, events: Any) -> dict[str, float]:
    return {line.item_id: line.score for line in model.recommend(events, len(model.vocabulary), include_seen=True)}


@shared
@given(events=st.lists(ids, max_size=20), k=st.integers(1, 70))
def test_a_list_is_ranked_and_holds_nothing_seen(model: Recommender, events: list[str], k: int) -> None:
    lines = model.recommend(events, k)
    assert [line.rank for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) == min(k, 60 - len(set(events)))
    scores = [line.score for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert len(set(listed(lines))) == len(lines)
    assert not set(listed(lines)) & set(events)
    titles = dict(zip(model.vocabulary.ids, model.titles, strict=True))
    assert all(line.title == titles[line.item_id] for line in lines)


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("events", [[], ["garden-01"], ["toys-01", "kitchen-02", "toys-19"], "user-003"], ids=str)
def test_what_the_scorers_add_is_the_score(model: Recommender, events: Any, returning: bool) -> None:
    """Of items in training, of items that came after and inherit from their kin, and whatever is known."""
    extended = model.add_items(
        Catalog.infer(pl.DataFrame({"item_id": ["new-1"], "title": ["garden tool 01"], "price": [3.0]}))
    )
    for known in (model, extended):
        lines = known.recommend(events, 100, include_seen=True, returning=returning, profile=None)
        assert len(lines) == len(known.vocabulary)
        for line in lines:
            assert sum(line.parts.values()) == pytest.approx(line.score, abs=1e-4)
            assert list(line.parts) == ["sequence", "adapted", "popularity", *known.scorers.fitted]
        item_item = [abs(line.parts[name]) for line in lines for name in known.scorers.fitted]
        assert any(item_item) == (len(events) > 0 and not returning)


@shared
@given(events=st.lists(ids, max_size=8), filtered=st.sets(ids, max_size=12))
def test_filters_take_from_the_whole_list_and_change_no_score(
    model: Recommender, events: list[str], filtered: set[str]
) -> None:
    whole = {line.item_id: line.score for line in model.recommend(events, 60)}
    without = {line.item_id: line.score for line in model.recommend(events, 60, exclude=filtered)}
    assert without == {item: score for item, score in whole.items() if item not in filtered}
    among = {line.item_id: line.score for line in model.recommend(events, 60, candidates=filtered)}
    assert among == {item: score for item, score in whole.items() if item in filtered}
    everything = {line.item_id: line.score for line in model.recommend(events, 60, include_seen=True)}
    assert set(everything) == set(model.vocabulary.ids)
    assert {item: score for item, score in everything.items() if item not in events} == whole


def test_exclude_holds_even_for_what_is_seen(model: Recommender) -> None:
    lines = model.recommend(["toys-01", "toys-02"], 60, include_seen=True, exclude=["toys-01"])
    assert "toys-02" in listed(lines)
    assert "toys-01" not in listed(lines)


def test_a_shorter_list_is_the_start_of_a_longer_one(model: Recommender) -> None:
    assert model.recommend(["toys-01"], 3) == model.recommend(["toys-01"], 30)[:3]


@pytest.mark.parametrize("size", [0, 1, 3, 16, 20])
def test_one_person_and_a_batch_get_the_same_scores(model: Recommender, size: int) -> None:
    events = {name: [f"{name}-{(7 * place) % 20:02}" for place in range(size)] for name in TASTES}
    profiles: list[dict[str, object]] = [{"country": "France", "age": 30.0}, {"country": "Italy"}, {}]
    histories = [model.adapt(items).history for items in events.values()]
    batch = model.score_many(histories, torch.stack([model.encode_profile(profile) for profile in profiles]))
    for row, (items, profile) in enumerate(zip(events.values(), profiles, strict=True)):
        alone = {line.item_id: line.score for line in model.recommend(items, 60, profile=profile, include_seen=True)}
        np.testing.assert_allclose(batch[row], [alone[name] for name in model.vocabulary.ids], rtol=0, atol=1e-5)


def test_people_in_a_batch_do_not_meet(model: Recommender) -> None:
    histories = [model.adapt([f"{name}-01", f"{name}-02"]).history for name in TASTES]
    profiles = model.encode_profile(None).expand(3, -1)
    together = model.score_many(histories, profiles)
    for row in range(3):
        np.testing.assert_allclose(together[row], model.score_many([histories[row]], profiles[:1])[0], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("name", TASTES)
@pytest.mark.parametrize("start", [0, 5, 11])
def test_a_planted_taste_is_found_after_three_events(model: Recommender, name: str, start: int) -> None:
    lines = model.recommend([f"{name}-{start + step:02}" for step in range(3)])
    # A list that knew nothing would hold 3.3 of them.
    assert sum(taste(line.item_id) == name for line in lines) >= 8


def test_the_reason_is_one_of_the_persons_events(model: Recommender) -> None:
    events = ["garden-01", "toys-03"]
    lines = model.recommend(events)
    titles = dict(zip(model.vocabulary.ids, model.titles, strict=True))
    named = [line for line in lines if line.because is not None]
    assert named
    for line in named:
        assert line.because in events
        assert line.reason == f"goes with {titles[line.because]}"
    assert {taste(line.item_id) == taste(str(line.because)) for line in named} == {True}


@pytest.mark.parametrize("name", TASTES)
def test_similar_items_are_of_the_same_taste(model: Recommender, name: str) -> None:
    for place in (0, 8, 18):
        item = f"{name}-{place:02}"
        lines = model.similar_items(item)
        assert len(lines) == 10
        assert item not in listed(lines)
        assert sum(taste(line.item_id) == name for line in lines) >= 8
        cosines = [line.score for line in lines]
        assert cosines == sorted(cosines, reverse=True)
        assert all(-1.0001 <= cosine <= 1.0001 for cosine in cosines)
        assert len(model.similar_items(item, 100)) == 59


def test_likeness_is_mutual(model: Recommender) -> None:
    there = {line.item_id: line.score for line in model.similar_items("garden-01", 60)}
    back = {line.item_id: line.score for line in model.similar_items("toys-02", 60)}
    assert there["toys-02"] == pytest.approx(back["garden-01"], abs=1e-6)


def cancels(items: list[str], refused: list[str]) -> pl.DataFrame:
    """Choices, then refusals of other items."""
    rows = [(item, "purchase") for item in items] + [(item, "cancel") for item in refused]
    return pl.DataFrame(
        {
            "item_id": [item for item, _ in rows],
            "event_type": [kind for _, kind in rows],
            "timestamp": [datetime(2024, 3, 1) + timedelta(minutes=row) for row in range(len(rows))],
        }
    )


@pytest.mark.parametrize("chosen", [[], ["toys-01", "toys-02"]], ids=["alone", "beside choices"])
def test_a_refusal_lowers_the_neighbours_and_is_never_listed(model: Recommender, chosen: list[str]) -> None:
    refused = ["garden-01", "garden-04"]
    before, after = scores_of(model, chosen), scores_of(model, cancels(chosen, refused))

    def change(name: str) -> float:
        items = [item for item in model.vocabulary.ids if taste(item) == name and item not in refused]
        return float(np.mean([after[item] - before[item] for item in items]))

    assert change("garden") < change("kitchen") - 0.05
    assert change("garden") < change("toys") - 0.05
    assert not set(listed(model.recommend(cancels(chosen, refused), 60))) & {*refused, *chosen}


def test_a_choice_taken_back_is_refused_and_one_made_again_is_chosen(model: Recommender) -> None:
    taken_back = cancels(["toys-01", "garden-01"], ["garden-01"])
    assert model.adapt(taken_back).history.items.tolist() == model.vocabulary.index(["toys-01"]).tolist()
    assert model.adapt(taken_back).history.refused.tolist() == model.vocabulary.index(["garden-01"]).tolist()
    again = pl.concat([taken_back, cancels(["garden-01"], []).with_columns(timestamp=datetime(2024, 4, 1))])
    assert model.adapt(again).history.refused.tolist() == []
    assert model.recommend(again) != model.recommend(taken_back)


def test_only_the_most_recent_events_count_but_all_are_left_out(model: Recommender) -> None:
    old = [f"toys-{place:02}" for place in range(10)]
    recent = [f"garden-{place:02}" for place in range(16)]  # as many as the tiny backbone reads
    both, alone = model.recommend([*old, *recent], 60), model.recommend(recent, 60)
    assert listed(both) == [item for item in listed(alone) if item not in old]


def test_what_the_model_was_given_makes_a_difference(model: Recommender) -> None:
    lists = {tuple(listed(model.recommend([f"{name}-{place:02}"]))) for name in TASTES for place in range(5)}
    assert len(lists) >= 12


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_index_lists_what_scoring_everything_lists(model: Recommender, kind: str) -> None:
    searched = replace(model, retrieval=RetrievalConfig(kind, dense_until=10, target_recall=1.0))
    for events in ([], ["garden-03"], ["toys-01", "toys-02", "kitchen-05"]):
        for filters in ({}, {"exclude": ["toys-07"]}, {"candidates": ["garden-01", "toys-09"]}, {"include_seen": True}):
            wanted, found = model.recommend(events, 12, **filters), searched.recommend(events, 12, **filters)
            assert listed(found) == listed(wanted)
            assert [line.score for line in found] == pytest.approx([line.score for line in wanted], rel=1e-4, abs=1e-4)
            assert [line.reason for line in found] == [line.reason for line in wanted]

"""The prequential replay against a slow loop, what it must not see, and what the gate makes of it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from palate.config import Config, GateConfig
from palate.data.catalog import Catalog
from palate.data.choices import read_choices
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.errors import ConfigError, ModelError
from palate.evaluation.replay import MISS, Replay, compare, gate, replay, window_start
from palate.recommend import Recommender
from palate.scorers.kin import no_kin

CUT = datetime(2024, 1, 1) + timedelta(days=140)
SINCE = (CUT - datetime(1970, 1, 1)).total_seconds()
GATE = GateConfig(window=60.0, k=5, min_people=10, num_resamples=300)


@pytest.fixture(scope="module")
def found(model: Recommender, shop: Dataset) -> Replay:
    return replay({"candidate": model, "served": model}, shop, SINCE, 10_000)


def poorer(model: Recommender) -> Recommender:
    """The same model with item rows that say nothing."""
    mixed = torch.randperm(len(model.vocabulary), generator=torch.Generator().manual_seed(0))
    rows = type(model.items)(*(column[mixed] for column in model.items))
    return replace(model, item_table=replace(model.item_table, rows=rows))


def test_every_rank_is_that_of_the_list_that_would_have_been_served(
    found: Replay, model: Recommender, shop: Dataset
) -> None:
    """By loops: the person's rows until the event, adapted to and ranked one at a time."""
    profiles = {row["user_id"]: row for row in shop.users.frame.iter_rows(named=True)}
    expected = []
    for user in sorted(set(found.users), key=found.users.index):
        rows = shop.interactions.filter(pl.col("user_id") == user)
        for place, row in enumerate(rows.iter_rows(named=True)):
            before = rows.head(place)
            seen = set(before["item_id"])
            if row["timestamp"] < CUT or row["event_type"] == "cancel" or row["item_id"] in seen:
                continue
            lines = model.recommend(
                before, 100, profile={"country": profiles[user]["country"], "age": profiles[user]["age"]}
            )
            listed = [line.item_id for line in lines]
            assert not seen & set(listed)
            expected.append((user, row["item_id"], listed.index(row["item_id"])))
    assert list(zip(found.users, found.items, found.ranks[0].tolist(), strict=True)) == expected
    assert (np.diff(found.times)[np.array(found.users[1:]) == np.array(found.users[:-1])] >= 0).all()


def test_nothing_later_changes_what_came_before(found: Replay, model: Recommender, shop: Dataset) -> None:
    """Another future for a person who is read: every rank before it stays, and something after it changes."""
    user = found.users[0]
    own = [time for time, owner in zip(found.times, found.users, strict=True) if owner == user]
    middle = datetime(1970, 1, 1) + timedelta(seconds=own[len(own) // 2])
    later = (pl.col("user_id") == user) & (pl.col("timestamp") > middle)
    log = shop.interactions.with_columns(
        item_id=pl.when(later).then(pl.lit("toys-18")).otherwise("item_id"),
        event_type=pl.when(later).then(pl.lit("purchase")).otherwise("event_type"),
    )
    other = replay({"candidate": model}, replace(shop, interactions=log), SINCE, 10_000)
    moment = (middle - datetime(1970, 1, 1)).total_seconds()

    def before(part: Replay) -> list[tuple[str, str, float, int]]:
        rows = zip(part.users, part.items, part.times.tolist(), part.ranks[0].tolist(), strict=True)
        return [row for row in rows if row[0] != user or row[2] <= moment]

    assert before(other) == before(found)
    assert len(before(found)) < len(found.users)
    assert len(other.users) < len(found.users)


def test_an_item_that_one_model_does_not_know_is_a_miss_for_it(model: Recommender, shop: Dataset) -> None:
    late = {f"{taste}-{place}" for taste in ("garden", "kitchen", "toys") for place in (17, 18, 19)}
    fewer = replace(
        model.item_table,
        vocabulary=type(model.vocabulary)(model.vocabulary.ids[: model.num_trained]),
        titles=model.titles[: model.num_trained],
        rows=type(model.items)(*(column[: model.num_trained] for column in model.items)),
        kin=no_kin(),
    )
    small = replace(model, item_table=fewer)
    found = replay({"large": model, "small": small}, shop, SINCE, 10_000)
    unknown = np.array([item in late for item in found.items])
    assert unknown.any()
    assert ((found.ranks[1] == MISS) == unknown).all()
    assert (found.ranks[0] >= 0).all()
    for metric in ("ndcg", "hit_rate", "reciprocal_rank"):
        values = found.values(metric, 5)
        assert (values[1][unknown] == 0).all()
        assert values.max() <= 1
    alone = replay({"small": small}, shop, SINCE, 10_000)
    assert set(alone.items).isdisjoint(late), "what no model knows is not asked for"


def test_metrics_by_hand() -> None:
    found = Replay(("a",), ("u",) * 4, ("i",) * 4, np.zeros(4), np.array([[0, 2, 7, MISS]]))
    assert found.values("hit_rate", 3).tolist() == [[1, 1, 0, 0]]
    np.testing.assert_allclose(found.values("ndcg", 3), [[1, 0.5, 0, 0]])
    np.testing.assert_allclose(found.values("reciprocal_rank", 3), [[1, 1 / 3, 1 / 8, 0]])


def test_differences_are_over_people_not_events() -> None:
    """One person with a hundred events is one draw: the interval is wide however many events there are."""
    users = ("many",) * 100 + ("few", "fewer")
    ranks = np.array([[0] * 100 + [9, 9], [9] * 100 + [0, 0]])
    found = Replay(("a", "b"), users, ("i",) * 102, np.zeros(102), ranks)
    compared = compare(found, "hit_rate", GATE)
    assert compared.difference.mean == pytest.approx(98 / 102)
    assert compared.difference.low == -1
    assert (compared.num_people, compared.num_events) == (3, 102)


def test_equal_models_pass_and_a_poorer_one_does_not(model: Recommender, shop: Dataset) -> None:
    strict = replace(GATE, margin=0.0)
    same = gate(model, model, shop, strict)
    assert same.promote
    assert same.metrics["ndcg"].difference == (0, 0, 0)
    worse, better = gate(poorer(model), model, shop, strict), gate(model, poorer(model), shop, strict)
    assert (worse.promote, better.promote) == (False, True)
    assert worse.reason.startswith("refused: ndcg@5 ")
    assert better.metrics["ndcg"].difference.low > 0
    lenient = gate(poorer(model), model, shop, replace(GATE, margin=5.0))
    assert lenient.promote, "the margin is what allows it"
    assert all("\n" not in decision.reason for decision in (same, worse, better))
    assert gate(model, model, shop, strict).to_dict() == same.to_dict()


def test_who_has_seen_the_window_is_refused(model: Recommender, shop: Dataset) -> None:
    since = window_start(shop, GATE)
    newest = shop.interactions["timestamp"].max()
    assert isinstance(newest, datetime)
    assert since == (newest - datetime(1970, 1, 1)).total_seconds() - 60 * 86_400
    late = replace(model, trained_until=since)
    for candidate, served, named in ((late, model, "candidate"), (model, late, "served model")):
        decision = gate(candidate, served, shop, GATE)
        assert not decision.promote
        assert decision.reason.startswith(f"refused: the {named} has learned from events until 2024-0")
        assert decision.to_dict()["metrics"] == {}
    with pytest.raises(ModelError, match=r"^replay: late has learned from events until [^\n]*\Z"):
        replay({"late": late}, shop, since, 100)
    just_before = replace(model, trained_until=np.nextafter(since, 0))
    assert gate(just_before, model, shop, GATE).promote


def test_too_few_people_decide_nothing(model: Recommender, shop: Dataset) -> None:
    decision = gate(model, model, shop, replace(GATE, min_people=41))
    assert not decision.promote
    assert decision.reason.startswith("refused: 40 people chose something new since ")


def test_whole_people_are_drawn_where_there_are_too_many_events(
    found: Replay, model: Recommender, shop: Dataset
) -> None:
    some = replay({"candidate": model}, shop, SINCE, 100, seed=1)
    assert 50 < len(some.users) <= 100
    rows = set(zip(found.users, found.items, found.times.tolist(), found.ranks[0].tolist(), strict=True))
    drawn = set(zip(some.users, some.items, some.times.tolist(), some.ranks[0].tolist(), strict=True))
    assert drawn < rows
    assert {row for row in rows if row[0] in set(some.users)} == drawn
    assert set(replay({"candidate": model}, shop, SINCE, 100, seed=2).users) != set(some.users)


def test_a_list_for_another_visit_is_asked_for_as_one(model: Recommender, shop: Dataset, tiny: Config) -> None:
    """The model is told of a gap as it is in service; without `visit_gap` it is not."""
    asked: list[bool] = []

    def listen(histories: Any, profiles: Any) -> Any:
        asked.extend(history.returning for history in histories)
        return np.zeros((len(histories), len(model.vocabulary)), np.float32)

    for gap, expected in ((0.0, {False}), (24.0, {False, True})):
        asked.clear()
        timed = replace(model, config=replace(tiny, model=replace(tiny.model, visit_gap=gap)))
        object.__setattr__(timed, "score_many", listen)
        replay({"timed": timed}, shop, SINCE, 10_000)
        assert set(asked) == expected


def test_models_that_read_events_otherwise_cannot_be_compared(model: Recommender, shop: Dataset, tiny: Config) -> None:
    other = replace(model, config=replace(tiny, negative_events=("skip",)))
    with pytest.raises(ConfigError, match="negative_events differ"):
        replay({"one": model, "other": other}, shop, SINCE, 100)


def test_ratings_before_an_event_are_replayed_with_it(
    model: Recommender, shop: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate asks a model that reads ratings as the service does: with those that were there by then."""
    rated = replace(model, config=replace(model.config, rating_events=("purchase",)))
    log = shop.interactions.with_columns(weight=1.0 + pl.col("item_id").str.tail(1).cast(pl.Float64) % 5)
    asked: list[History] = []
    scored = Recommender.score_many

    def score(self: Recommender, histories: Sequence[History], profiles: Tensor) -> np.ndarray:
        asked.extend(histories)
        return scored(self, histories, profiles)

    monkeypatch.setattr(Recommender, "score_many", score)
    replay({"one": rated}, replace(shop, interactions=log), SINCE, 10_000)
    digits = [int(name[-1]) for name in model.vocabulary.ids]
    assert any(len(history.items) for history in asked)
    for history in asked:
        if len(history.items):
            assert history.ratings is not None
            assert history.ratings.tolist() == [1.0 + digits[item] % 5 for item in history.items]
    other = replace(model, config=replace(model.config, rating_events=()))
    with pytest.raises(ConfigError, match="rating_events differ"):
        replay({"one": model, "other": other}, shop, SINCE, 100)


def test_a_new_item_counts_once_it_is_listed(model: Recommender, shop: Dataset) -> None:
    """A choice of an item that came after training is judged for the model to which it was added."""
    new = Catalog.infer(pl.DataFrame({"item_id": ["new-toys"], "title": ["soft toys bunny"], "price": [7.0]}))
    log = shop.interactions
    user = log["user_id"][-1]
    row = log.tail(1).with_columns(item_id=pl.lit("new-toys"), event_type=pl.lit("purchase"))
    items = Catalog.infer(pl.concat([shop.items.frame, new.frame.select(shop.items.frame.columns)]))
    dataset = replace(shop, interactions=pl.concat([log, row]), items=items)
    found = replay({"knows": model.add_items(new), "does not": model}, dataset, SINCE, 10_000)
    (place,) = (place for place, item in enumerate(found.items) if item == "new-toys")
    assert found.users[place] == user
    assert found.ranks[0, place] >= 0
    assert found.ranks[1, place] == MISS
    histories = read_choices(dataset.interactions, model.add_items(new).vocabulary, model.config.meaning)
    assert histories[user].items[-1] == len(model.vocabulary)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"k": 0}, "gate.k is 0"),
        ({"window": 0.0}, "gate.window is 0"),
        ({"margin": -0.1}, "gate.margin is -0.1"),
        ({"confidence": 1.0}, "gate.confidence is 1"),
        ({"min_people": 0}, "gate.min_people is 0"),
    ],
)
def test_a_bad_setting_is_named(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GateConfig(**bad)


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gate.metric is 'recall'; expected one of ndcg, hit_rate, reciprocal_rank"):
        Config.from_dict({"gate": {"metric": "recall"}})

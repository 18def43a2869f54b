"""People in training, judged on what they choose after the cut."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from palate.baselines import NEWCOMER_BASELINES
from palate.config import Config
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.data.splitting import Split, temporal_split
from palate.evaluation.few_shot import Judged, Newcomers, palate_models
from palate.evaluation.report import few_shot_table, write_report
from palate.evaluation.run import evaluate
from palate.evaluation.warm import MIN_NEW_ITEMS, SUPPORT_SIZES, evaluate_warm, returning_after
from palate.recommend import Recommender


@pytest.fixture(scope="module")
def returning_shop(shop: Dataset, model: Recommender, tiny: Config) -> Dataset:
    """The shop, in which 20 people of the training come back: for eleven items of their taste, and for old ones."""
    cut = temporal_split(shop, str(tiny.evaluation.cut)).cut
    trained = model.vocabulary.ids[: model.num_trained]
    rng = np.random.default_rng(5)
    events: list[tuple[str, str, str, Any]] = []
    for row, user in enumerate(list(model.users)[:20]):
        old = [model.vocabulary.ids[item] for item in model.users[user].items]
        taste = ("garden", "kitchen", "toys")[int(user.removeprefix("user-")) % 3]
        fresh = sorted(set(trained).difference(old), key=lambda item: (not item.startswith(taste), rng.random()))
        bought = [old[0], *fresh[: MIN_NEW_ITEMS - row % 2], old[-1]]  # every second has one new item too few
        events += [(user, item, "purchase", cut + timedelta(hours=1 + at)) for at, item in enumerate(bought)]
        events.append((user, fresh[-1], "cancel", cut + timedelta(hours=30)))
    added = pl.DataFrame(events, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row")
    log = pl.concat(
        [shop.interactions, added.cast({"timestamp": shop.interactions["timestamp"].dtype})], how="diagonal"
    ).with_columns(pl.col("weight").fill_null(1.0))
    return replace(shop, interactions=log.sort("timestamp", maintain_order=True))


@pytest.fixture(scope="module")
def split(returning_shop: Dataset, tiny: Config) -> Split:
    return temporal_split(returning_shop, str(tiny.evaluation.cut))


def test_judged_is_who_comes_back_for_enough_that_is_new(split: Split, model: Recommender) -> None:
    found = returning_after(split, model)
    assert found is not None
    assert list(found.people.ids) == list(model.users)[:20:2]
    for user, history, known in zip(found.people.ids, found.people.histories, found.known, strict=True):
        before = model.users[user]
        assert known == len(before.items)
        assert np.array_equal(history.items[:known], before.items)
        assert len(history.items) == known + MIN_NEW_ITEMS
        assert len(set(history.items.tolist())) == len(history.items)
        assert (np.diff(history.times) >= 0).all()


def test_ratings_of_both_sides_of_the_cut_are_read(returning_shop: Dataset, model: Recommender, tiny: Config) -> None:
    rated = replace(model, config=replace(model.config, rating_events=("purchase",)))
    log = returning_shop.interactions.with_columns(weight=pl.lit(4.0))
    found = returning_after(temporal_split(replace(returning_shop, interactions=log), str(tiny.evaluation.cut)), rated)
    assert found is not None
    for history, known in zip(found.people.histories, found.known, strict=True):
        assert history.ratings is not None
        assert (history.ratings[:known] == 1).all(), "the weights of the events in training are on record"
        assert (history.ratings[known:] == 4).all()


def test_old_items_are_never_listed_and_new_ones_are_relevant(split: Split, model: Recommender) -> None:
    found = returning_after(split, model)
    assert found is not None
    whole = found.people.histories

    def oracle(histories: Any) -> np.ndarray:
        scores = np.zeros((len(histories), model.num_trained), np.float32)
        for row, (known, history) in enumerate(zip(histories, whole, strict=True)):
            scores[row, history.items] = 1.0
            scores[row, known.items] = 9.0
        return scores

    figures = evaluate_warm(model, split, palate_models, [Judged("oracle", "baseline", {}, oracle)])
    assert figures is not None
    assert figures["support_sizes"] == list(SUPPORT_SIZES)
    assert figures["num_users"] == 10
    points = {entry["name"]: [point["mean"] for point in entry["metrics"]["ndcg@5"]] for entry in figures["models"]}
    assert points["oracle"] == [1.0] * len(SUPPORT_SIZES)
    assert [row["best_baseline"] for row in figures["comparisons"]] == ["oracle"] * len(SUPPORT_SIZES)
    assert points["Palate"][0] > 0.3  # a third of the catalogue is of their taste, less what they have


def test_palate_is_told_who_has_yet_to_come_back_and_nobody_else_is(split: Split, model: Recommender) -> None:
    told: list[list[bool]] = []

    def spy(model: Recommender, people: Newcomers) -> list[Judged]:
        def score(histories: Sequence[History]) -> np.ndarray:
            told.append([history.returning for history in histories])
            return np.zeros((len(histories), model.num_trained), np.float32)

        return [Judged("spy", "palate", {}, score)]

    def flat(histories: Sequence[History]) -> np.ndarray:
        assert not any(history.returning for history in histories)
        return np.zeros((len(histories), model.num_trained), np.float32)

    evaluate_warm(model, split, spy, [Judged("flat", "baseline", {}, flat)])
    assert told == [[True] * 10, [False] * 10, [False] * 10]  # at 0, 1 and 5 new items


def test_the_whole_evaluation_shows_them(returning_shop: Dataset, model: Recommender, tmp_path: Any) -> None:
    results = evaluate(model, returning_shop)
    warm = results["warm"]
    assert [entry["name"] for entry in warm["models"]] == ["Palate", "backbone alone", *NEWCOMER_BASELINES]
    table = few_shot_table(results, "warm")
    assert "by items known since the cut, 10 customers" in str(table.title)
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Customers who come back" in page
    assert "since the cut" in page


def test_nobody_comes_back(shop: Dataset, model: Recommender, tiny: Config) -> None:
    assert returning_after(temporal_split(shop, str(tiny.evaluation.cut)), model) is None

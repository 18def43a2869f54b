"""The few-shot curve: who is judged, on what, and against whom."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.baselines import NEWCOMER_BASELINES
from palate.config import Config, EvaluationConfig
from palate.data.catalog import Profiles
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.data.splitting import Split, temporal_split
from palate.errors import DataError, NumericalError
from palate.evaluation.few_shot import (
    Judged,
    Newcomers,
    ScoreHistories,
    compare,
    few_shot_curve,
    fit_baselines,
    later_items,
    newcomers_after,
    palate_models,
    rank,
)
from palate.progress import Reporter
from palate.recommend import Recommender

NUM_ITEMS = 30
SETTINGS = EvaluationConfig(support_sizes=(0, 1, 3), k=4, min_items=7, num_resamples=50)


def history(items: Sequence[int]) -> History:
    return History(np.array(items, np.int64), np.arange(len(items), dtype=np.float64), np.zeros(0, np.int64))


@pytest.fixture(scope="module")
def people() -> Newcomers:
    rng = np.random.default_rng(0)
    histories = tuple(history(rng.permutation(NUM_ITEMS)[: 7 + row].tolist()) for row in range(8))
    return Newcomers(tuple(f"p{row}" for row in range(8)), histories, torch.zeros(8, 0))


def knowing(people: Newcomers, *, later: float, support: float = 0.0) -> ScoreHistories:
    """Knows what everyone will choose, and scores that and the support as told; all else is 0."""

    def score(histories: Sequence[History]) -> np.ndarray:
        scores = np.zeros((len(histories), NUM_ITEMS), dtype=np.float32)
        for row, (known, whole) in enumerate(zip(histories, people.histories, strict=True)):
            scores[row, whole.items] = later
            scores[row, known.items] = support
        return scores

    return score


def judged(name: str, score: ScoreHistories, kind: str = "baseline") -> Judged:
    return Judged(name, kind, {}, score)


def means(curve: dict[str, Any], name: str, metric: str = "ndcg@4") -> list[float]:
    return [point["mean"] for model in curve["models"] if model["name"] == name for point in model["metrics"][metric]]


def test_an_oracle_has_one_and_its_opposite_nothing_at_every_size(people: Newcomers) -> None:
    models = [
        judged("oracle", knowing(people, later=1.0), "palate"),
        judged("opposite", knowing(people, later=-1.0)),
        judged("echo", knowing(people, later=1.0, support=100.0)),
    ]
    curve = few_shot_curve(models, people, NUM_ITEMS, SETTINGS, seed=0)
    assert curve["support_sizes"] == [0, 1, 3]
    assert curve["num_users"] == 8
    assert curve["metric"] == "ndcg@4"
    for metric in ("ndcg@4", "hit_rate@4", "map@4", "mrr@4", "precision@4"):
        assert means(curve, "oracle", metric) == [1.0] * 3
        assert means(curve, "opposite", metric) == [0.0] * 3
        assert means(curve, "echo", metric) == [1.0] * 3, "the support was listed or counted"
    for line in curve["comparisons"]:
        assert line["best_baseline"] == "echo"
        assert (line["difference"], line["significant"]) == (0.0, False)


def test_everyone_is_judged_at_every_size_on_what_came_before_it(people: Newcomers) -> None:
    asked: list[list[list[int]]] = []

    def note(histories: Sequence[History]) -> np.ndarray:
        asked.append([known.items.tolist() for known in histories])
        return np.zeros((len(histories), NUM_ITEMS), dtype=np.float32)

    few_shot_curve(
        [judged("noted", note, "palate"), judged("other", knowing(people, later=0))],
        people,
        NUM_ITEMS,
        SETTINGS,
        seed=0,
    )
    assert asked == [[whole.items[:size].tolist() for whole in people.histories] for size in (0, 1, 3)]


def test_sizes_that_leave_nothing_to_predict_are_left_out(people: Newcomers) -> None:
    config = replace(SETTINGS, support_sizes=(0, 6, 7, 20))
    models = [judged("oracle", knowing(people, later=1.0), "palate"), judged("other", knowing(people, later=0.0))]
    assert few_shot_curve(models, people, NUM_ITEMS, config, seed=0)["support_sizes"] == [0, 6]


def test_targets_can_be_fixed_for_all_sizes(people: Newcomers) -> None:
    """Who lists only items 1 and 2 of a history is right at N = 0, and wrong once targets start at 3."""

    def early(histories: Sequence[History]) -> np.ndarray:
        scores = np.zeros((len(histories), NUM_ITEMS), dtype=np.float32)
        for row, whole in enumerate(people.histories):
            scores[row, whole.items[1:3]] = 1.0
            scores[row, whole.items[3:]] = -1.0
        return scores

    models = [judged("early", early, "palate"), judged("other", knowing(people, later=1.0))]
    moving = few_shot_curve(models, people, NUM_ITEMS, SETTINGS, seed=0)
    fixed = few_shot_curve(models, people, NUM_ITEMS, SETTINGS, seed=0, targets_from=3)
    assert means(moving, "early", "hit_rate@4") == [1.0, 1.0, 0.0]
    assert means(fixed, "early", "hit_rate@4") == [0.0, 0.0, 0.0]


def test_what_was_known_before_is_support_at_every_size(people: Newcomers) -> None:
    """As if everyone's first items lay before the curve begins: listed never, counted never, read always."""
    known = [row % 3 for row in range(len(people.histories))]
    asked: list[list[int]] = []

    def note(histories: Sequence[History]) -> np.ndarray:
        asked.append([len(history.items) for history in histories])
        return knowing(people, later=1.0, support=9.0)(histories)

    curve = few_shot_curve(
        [judged("noted", note, "palate"), judged("other", knowing(people, later=-1.0))],
        people,
        NUM_ITEMS,
        SETTINGS,
        seed=0,
        known=known,
    )
    assert asked == [[before + size for before in known] for size in (0, 1, 3)]
    assert means(curve, "noted") == [1.0] * 3
    assert means(curve, "other") == [0.0] * 3


def test_a_model_that_scores_nan_fails_the_run(people: Newcomers) -> None:
    models = [judged("broken", lambda h: np.full((len(h), NUM_ITEMS), np.nan, np.float32), "palate")]
    with pytest.raises(NumericalError, match="NaN"):
        few_shot_curve(models, people, NUM_ITEMS, SETTINGS, seed=0)


def test_coverage_counts_the_catalogue(people: Newcomers) -> None:
    models = [
        judged("same", knowing(people, later=0.0), "palate"),  # ties: items 0 to 3 for everyone, less the support
        judged("oracle", knowing(people, later=1.0)),
    ]
    curve = few_shot_curve(models, people, NUM_ITEMS, SETTINGS, seed=0)
    assert means(curve, "same", "coverage@4")[0] == pytest.approx(4 / NUM_ITEMS)
    assert means(curve, "oracle", "coverage@4")[0] > 4 / NUM_ITEMS


def test_palate_is_set_against_the_best_other_at_each_size() -> None:
    models = [judged(name, lambda h: np.zeros((0, 0)), kind) for name, kind in (("a", "baseline"), ("P", "palate"))]
    models += [judged("b", lambda h: np.zeros((0, 0)), "ablation")]
    values = {
        "P": {0: np.array([0.5, 0.7, 0.6]), 5: np.array([0.1, 0.2, 0.3])},
        "a": {0: np.array([0.2, 0.4, 0.3]), 5: np.array([0.0, 0.0, 0.0])},
        "b": {0: np.array([0.1, 0.1, 0.1]), 5: np.array([0.2, 0.3, 0.4])},
    }
    ahead, behind = compare(models, values, SETTINGS, 0)
    assert (ahead["n"], ahead["best_baseline"]) == (0, "a")
    assert ahead["difference"] == pytest.approx(0.3)
    assert (ahead["low"], ahead["high"]) == (pytest.approx(0.3), pytest.approx(0.3))
    assert ahead["relative"] == pytest.approx(1.0)
    assert ahead["significant"] is True
    assert (behind["n"], behind["best_baseline"]) == (5, "b")
    assert behind["difference"] == pytest.approx(-0.1)
    assert behind["relative"] == pytest.approx(-1 / 3)


@given(st.data())
def test_a_list_is_the_best_of_what_is_not_in_the_support(data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(8)))
    size, k = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    scores = np.array([data.draw(st.permutations(range(8)))], dtype=np.float32)
    expected = sorted(set(range(8)) - set(order[:size]), key=lambda item: -scores[0, item])[:k]
    assert rank(lambda h: scores.copy(), [history(order)], [size], k)[0].tolist() == expected


def test_what_comes_later_is_relevant() -> None:
    relevant = later_items([history([4, 2, 0]), history([1, 3])], [1, 0], 5)
    assert relevant.tolist() == [[True, False, True, False, False], [False, True, False, True, False]]


# ---------------------------------------------------------------------------------------- on the small shop


@pytest.fixture(scope="module")
def split(shop: Dataset, tiny: Config) -> Split:
    return temporal_split(shop, str(tiny.evaluation.cut))


def test_newcomers_are_the_cold_users_with_enough_items(
    model: Recommender, shop: Dataset, split: Split, tiny: Config
) -> None:
    found = newcomers_after(split, shop.users.frame, model, tiny.evaluation)
    trained = set(model.vocabulary.ids[: model.num_trained])
    expected = {}
    for user in sorted(set(split.cold_user_events["user_id"])):
        events = split.cold_user_events.filter(pl.col("user_id") == user, pl.col("event_type") == "purchase")
        items = [item for item in dict.fromkeys(events["item_id"]) if item in trained]
        if len(items) >= tiny.evaluation.min_items:
            expected[user] = items
    assert list(found.ids) == list(expected)
    assert 0 < len(expected) < 40, "the world should hold people with too few items"
    for user, seen in zip(found.ids, found.histories, strict=True):
        assert [model.vocabulary.ids[item] for item in seen.items] == expected[user]
        assert len(seen.refused) == 0
    assert not set(found.ids) & set(model.users)
    for user, features in zip(found.ids, found.profiles, strict=True):
        row = shop.users.frame.row(by_predicate=pl.col("user_id") == user, named=True)
        assert torch.equal(features, model.encode_profile({"age": row["age"], "country": row["country"]}))


def test_nobody_to_judge_is_said_in_one_line(model: Recommender, shop: Dataset, split: Split, tiny: Config) -> None:
    config = replace(tiny.evaluation, min_items=99)
    with pytest.raises(DataError, match=r"^evaluation: no cold user has 99 distinct items that training [^\n]*\Z"):
        newcomers_after(split, shop.users.frame, model, config)


def test_profiles_that_lack_an_attribute_are_refused(
    model: Recommender, shop: Dataset, split: Split, tiny: Config
) -> None:
    users = Profiles.from_ids(shop.users.frame["user_id"]).frame
    with pytest.raises(DataError, match=r'^profiles: no column "age"[^\n]*\Z'):
        newcomers_after(split, users, model, tiny.evaluation)


def test_the_judged_model_is_the_served_one(model: Recommender, shop: Dataset, split: Split, tiny: Config) -> None:
    people = newcomers_after(split, shop.users.frame, model, tiny.evaluation)
    known = model.num_trained
    served, alone = palate_models(model, people)
    heads = [seen.head(3) for seen in people.histories]
    assert np.array_equal(served.score(heads), model.score_many(heads, people.profiles)[:, :known])
    assert np.array_equal(alone.score(heads), model.backbone_scores(heads, people.profiles)[:, :known])
    assert (served.kind, alone.kind) == ("palate", "ablation")
    for row in (0, 7, 19):
        seen = heads[row]
        events = pl.DataFrame(
            {
                "item_id": [model.vocabulary.ids[item] for item in seen.items],
                "timestamp": [datetime(1970, 1, 1) + timedelta(seconds=second) for second in seen.times],
            }
        )
        person = shop.users.frame.row(by_predicate=pl.col("user_id") == people.ids[row], named=True)
        profile = {name: value for name, value in person.items() if name != "user_id"}
        listed = model.recommend(events, 5, profile=profile, candidates=model.vocabulary.ids[:known])
        places = model.vocabulary.index([line.item_id for line in listed])
        assert rank(served.score, people.histories, [3] * len(people.histories), 5)[row].tolist() == places.tolist()


def test_baselines_are_chosen_and_fitted_without_the_judged_people(model: Recommender, tiny: Config) -> None:
    with Reporter().stage("fit") as stage:
        baselines = fit_baselines(model, tiny, stage)
    assert [entry.name for entry in baselines] == list(NEWCOMER_BASELINES)
    assert {entry.kind for entry in baselines} == {"baseline"}
    for entry in baselines:
        scores = entry.score([history([]), history([0, 1])])
        assert scores.shape == (2, model.num_trained)
        assert np.isfinite(scores).all()
    popularity = next(entry for entry in baselines if entry.name == "popularity")
    counts = np.bincount(np.concatenate([seen.items for seen in model.users.values()]), minlength=model.num_trained)
    np.testing.assert_allclose(popularity.score([history([])])[0], counts / len(model.users), rtol=1e-6)


def test_at_a_later_cut_those_seen_before_it_are_not_judged(shop: Dataset, tiny: Config, model: Recommender) -> None:
    later = temporal_split(shop, temporal_split(shop, str(tiny.evaluation.cut)).cut + timedelta(days=10))
    found = newcomers_after(later, shop.users.frame, model, tiny.evaluation)
    assert not set(found.ids) & set(later.train_users)

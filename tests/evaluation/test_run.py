"""A whole evaluation on the small shop: its figures, its refusals, and that it can be repeated."""

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from palate.baselines import NEWCOMER_BASELINES
from palate.config import Config
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.splitting import default_cut, temporal_split
from palate.errors import DataError
from palate.evaluation.few_shot import newcomers_after
from palate.evaluation.run import evaluate
from palate.pipeline import train
from palate.recommend import Recommender


@pytest.fixture(scope="module")
def results(model: Recommender, shop: Dataset) -> dict[str, Any]:
    return evaluate(model, shop)


def untimed(results: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ between two runs on one machine."""
    plain = copy.deepcopy(results)
    for stage in plain["training"]["stages"]:
        del stage["seconds"]
    del plain["environment"]["seconds"], plain["environment"]["peak_memory_mb"]
    return plain


def curve(part: dict[str, Any], name: str, metric: str = "ndcg@5") -> list[float]:
    model = next(model for model in part["models"] if model["name"] == name)
    return [point["mean"] for point in model["metrics"][metric]]


def test_the_result_is_plain_json(results: dict[str, Any]) -> None:
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_a_second_evaluation_says_the_same(results: dict[str, Any], model: Recommender, shop: Dataset) -> None:
    assert untimed(evaluate(model, shop)) == untimed(results)


def test_the_split_is_described(results: dict[str, Any], shop: Dataset, tiny: Config, model: Recommender) -> None:
    split = temporal_split(shop, str(tiny.evaluation.cut))
    assert results["split"] == {
        "cut": tiny.evaluation.cut,
        "train_users": 110,
        "train_items": 51,
        "train_interactions": split.train.height,
        "cold_users": 40,
        "cold_items": 9,
    }
    assert results["dataset"]["num_interactions"] == shop.interactions.height
    assert results["environment"]["model_id"] == model.model_id


def test_every_model_has_every_point(results: dict[str, Any], tiny: Config) -> None:
    few_shot = results["few_shot"]
    assert few_shot["support_sizes"] == list(tiny.evaluation.support_sizes)
    assert [model["name"] for model in few_shot["models"]] == ["Palate", "backbone alone", *NEWCOMER_BASELINES]
    for model in few_shot["models"]:
        for points in model["metrics"].values():
            assert [point["n"] for point in points] == few_shot["support_sizes"]
            assert all(0 <= point["mean"] <= 1 for point in points)
            assert all(point["low"] is None or point["low"] <= point["mean"] <= point["high"] for point in points)


def test_the_planted_taste_is_found(results: dict[str, Any]) -> None:
    few_shot = results["few_shot"]
    assert curve(few_shot, "Palate")[1] > curve(few_shot, "Palate")[0]
    for name in ("constant", "random", "popularity"):
        for ours, theirs in zip(curve(few_shot, "Palate"), curve(few_shot, name), strict=True):
            assert ours > theirs + 0.05


def test_cold_items_are_judged_among_themselves(results: dict[str, Any]) -> None:
    cold = results["cold_items"]
    assert cold["num_items"] == 9
    assert 0 < cold["num_users"] <= results["few_shot"]["num_users"]
    names = [model["name"] for model in cold["models"]]
    assert names == ["Palate", "backbone alone", "text similarity", "random"]
    assert curve(cold, "Palate")[-1] > curve(cold, "random")[-1] + 0.1
    # The targets are the same at every N, and so is what chance does with them.
    assert len(set(curve(cold, "random"))) == 1
    assert all(curve(cold, name, "coverage@5")[0] <= 1 for name in names)


def test_cold_targets_are_those_chosen_after_the_largest_support(
    results: dict[str, Any], model: Recommender, shop: Dataset, tiny: Config
) -> None:
    """By hand: who has five known items, then a sixth, and from that moment on chooses a cold one."""
    split = temporal_split(shop, str(tiny.evaluation.cut))
    purchases = split.cold_user_events.filter(pl.col("event_type") == "purchase").sort("timestamp")
    people = newcomers_after(split, shop.users.frame, model, tiny.evaluation).ids
    ever, after = 0, 0
    for user in people:
        log = purchases.filter(pl.col("user_id") == user).select("item_id", "timestamp").rows()
        first = {item: when for item, when in reversed(log) if item not in split.cold_items}
        sixth = sorted(first.values())[5]
        cold = [when for item, when in log if item in split.cold_items]
        ever += bool(cold)
        after += any(when >= sixth for when in cold)
    assert results["cold_items"]["num_users"] == after < ever


def test_a_list_of_all_cold_items_has_every_target(model: Recommender, shop: Dataset, tiny: Config) -> None:
    nine = replace(model, config=replace(tiny, evaluation=replace(tiny.evaluation, k=9)))
    cold = evaluate(nine, shop)["cold_items"]
    for name in ("Palate", "random", "text similarity"):
        assert curve(cold, name, "recall@9") == [1.0] * 4


def test_examples_are_lists_that_the_model_would_serve(
    results: dict[str, Any], model: Recommender, shop: Dataset
) -> None:
    assert len(results["customers"]) == 3
    for customer in results["customers"]:
        assert customer["label"] == "a new customer after 5 items"
        support = [line["item_id"] for line in customer["support"]]
        assert [line["title"] for line in customer["support"]] == [shop.items.titles()[item] for item in support]
        served = model.recommend(support, profile=customer["profile"])
        told = [
            {name: value for name, value in line.items() if name != "bought_later"} for line in customer["recommended"]
        ]
        assert told == [line._asdict() for line in served]
        events = shop.interactions.filter(pl.col("user_id") == customer["user_id"], pl.col("event_type") == "purchase")
        bought = set(events["item_id"]) & set(model.vocabulary.ids[: model.num_trained])
        assert set(support) <= bought
        for line in customer["recommended"]:
            if line["bought_later"]:
                assert line["item_id"] in bought
    assert any(line["bought_later"] for customer in results["customers"] for line in customer["recommended"])


def test_the_curves_of_training_are_kept(results: dict[str, Any], tiny: Config) -> None:
    curves = {entry["name"]: entry["points"] for entry in results["training"]["curves"]}
    assert [point[0] for point in curves["backbone loss"]] == [1, 2, 3, 4, 5]  # the last one on everyone
    assert [point[0] for point in curves["meta validation"]] == [0, 10, 20]
    assert [point[0] for point in curves["meta loss"]] == [10, 20]


def test_a_model_that_knows_the_judged_people_is_refused(shop: Dataset, tiny: Config) -> None:
    leaky = train(shop, tiny)
    with pytest.raises(DataError, match=r"^the model was trained on 40 of the people[^\n]*'user-110'[^\n]*\Z"):
        evaluate(leaky, shop)


def test_a_model_that_does_not_know_its_people_is_refused(model: Recommender, shop: Dataset) -> None:
    with pytest.raises(DataError, match="holds no people"):
        evaluate(model.without_people(), shop)


def test_the_evidence_against_chance_is_reported(results: dict[str, Any], model: Recommender) -> None:
    assert results["training"]["quality"] == model.training["quality"]
    assert results["training"]["quality"]["num_users"] == 6  # a third of each of two folds of 11


def test_a_model_that_knows_the_judged_time_is_refused(shop: Dataset, tiny: Config) -> None:
    """Nobody of the judged people, but what others did after the cut: next month's fashion."""
    split = temporal_split(shop, str(tiny.evaluation.cut))
    # The shop's early people stop before the cut; let one of them come back.
    one = split.train.tail(1).with_columns(item_id=pl.lit("toys-19"), timestamp=split.cut + timedelta(days=1))
    log = pl.concat([shop.interactions, one]).sort("timestamp", maintain_order=True)
    world = replace(shop, interactions=log)
    cold = temporal_split(world, split.cut).cold_user_events["user_id"].unique().implode()
    learned = replace(world, interactions=log.filter(~pl.col("user_id").is_in(cold)))
    with pytest.raises(DataError, match=r"^the model was trained on events at or after the cut[^\n]*\Z"):
        evaluate(train(learned, tiny), world)


def test_an_earlier_cut_is_refused_and_a_bad_one_named(model: Recommender, shop: Dataset, tiny: Config) -> None:
    early = datetime.fromisoformat(str(tiny.evaluation.cut)) - timedelta(days=60)
    with pytest.raises(DataError, match="the model was trained on"):
        evaluate(model, shop, early)
    with pytest.raises(DataError, match=r"^cut: cannot read 'soon'[^\n]*\Z"):
        evaluate(model, shop, "soon")


def test_the_cut_is_taken_from_the_call_then_the_config_then_the_data(
    model: Recommender, shop: Dataset, tiny: Config, results: dict[str, Any]
) -> None:
    later = datetime.fromisoformat(str(tiny.evaluation.cut)) + timedelta(hours=1)
    assert evaluate(model, shop, later)["split"]["cut"] == later.isoformat()
    assert results["split"]["cut"] == tiny.evaluation.cut
    undecided = replace(model, config=replace(tiny, evaluation=replace(tiny.evaluation, cut=None)))
    # The moment after three quarters of the events lies after what this model has learned, so nothing leaks.
    assert evaluate(undecided, shop)["split"]["cut"] == default_cut(shop).isoformat()


def test_less_is_judged_where_less_is_known(shop: Dataset, early_shop: Dataset, tiny: Config) -> None:
    items = Catalog.from_ids(shop.items.frame["item_id"])
    users = Profiles.from_ids(shop.users.frame["user_id"])
    bare = train(replace(early_shop, items=items, users=users), tiny)
    results = evaluate(bare, replace(shop, items=items, users=users))
    assert results["cold_items"] is None
    assert [customer["profile"] for customer in results["customers"]] == [{}] * 3
    assert curve(results["few_shot"], "Palate")[2] > curve(results["few_shot"], "popularity")[2]


def test_attributes_that_the_model_never_saw_are_left_aside(
    model: Recommender, shop: Dataset, results: dict[str, Any]
) -> None:
    users = Profiles.infer(shop.users.frame.with_columns(height=pl.lit(1.8)))
    again = evaluate(model, replace(shop, users=users))
    assert again["few_shot"] == results["few_shot"]
    assert again["customers"] == results["customers"]

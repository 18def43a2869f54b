"""The few-shot curve and the whole evaluation: oracles, leaks, repeatability."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from palate import Dataset, Recommender, evaluate, train
from palate.config import Config
from palate.data.episodes import History
from palate.data.splitting import temporal_split
from palate.errors import DataError
from palate.evaluation.few_shot import Judged, few_shot_curve, later_items, newcomers_after, rank


@pytest.fixture(scope="module")
def results(model: Recommender, shop: Dataset) -> dict[str, Any]:
    return evaluate(model, shop)


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    training = {"curves": results["training"]["curves"]}
    return results | {"environment": None, "training": training}


def test_a_second_evaluation_is_identical_and_is_json(
    model: Recommender, shop: Dataset, results: dict[str, Any]
) -> None:
    assert without_times(evaluate(model, shop)) == without_times(results)
    json.dumps(results, allow_nan=False)


def test_the_oracle_is_perfect_and_its_opposite_is_not(model: Recommender, shop: Dataset) -> None:
    config = model.config.evaluation
    people = newcomers_after(temporal_split(shop, config.cut or ""), shop.users.frame, model, config)
    assert len(people.ids) >= 10

    def knows(histories: Sequence[History]) -> np.ndarray:
        scores = np.zeros((len(people.ids), model.num_trained), dtype=np.float32)
        for row, history in enumerate(people.histories):
            scores[row, history.items] = 1.0
        return scores

    judged = [
        Judged("Palate", "palate", {}, knows),
        Judged("opposite", "baseline", {}, lambda histories: -knows(histories)),
    ]
    curve = few_shot_curve(judged, people, model.num_trained, config, seed=0)
    oracle, opposite = (entry["metrics"][curve["metric"]] for entry in curve["models"])
    assert all(point["mean"] == pytest.approx(1.0) for point in oracle)
    assert all(point["mean"] < 0.2 for point in opposite)
    assert [row["best_baseline"] for row in curve["comparisons"]] == ["opposite"] * len(config.support_sizes)
    assert all(row["significant"] and row["difference"] > 0.8 for row in curve["comparisons"])


def test_the_support_is_neither_listed_nor_relevant() -> None:
    history = History(np.array([3, 1, 4]), np.zeros(3), np.zeros(0, np.int64))
    ranked = rank(lambda histories: np.ones((1, 6), dtype=np.float32), [history], 2, 6)
    assert ranked.tolist() == [[0, 2, 4, 5, -1, -1]]
    assert np.flatnonzero(later_items([history], 2, 6)[0]).tolist() == [4]


def test_the_scorer_never_sees_what_comes_later() -> None:
    seen: list[list[int]] = []

    def watch(histories: Sequence[History]) -> np.ndarray:
        seen.extend(history.items.tolist() for history in histories)
        return np.zeros((len(histories), 6), dtype=np.float32)

    rank(watch, [History(np.array([3, 1, 4]), np.zeros(3), np.array([5]))], 1, 3)
    assert seen == [[3]]


def test_a_model_that_knows_the_people_is_refused(shop: Dataset, tiny: Config) -> None:
    leaky = train(shop, replace(tiny, pretraining=replace(tiny.pretraining, num_epochs=1)))
    with pytest.raises(DataError, match="trained on"):
        evaluate(leaky, shop)


def test_the_report_has_every_baseline_and_the_cold_items(results: dict[str, Any]) -> None:
    names = {entry["name"] for entry in results["few_shot"]["models"]}
    assert {"Palate", "backbone alone", "popularity", "item_knn", "ease", "als", "constant", "random"} == names
    assert results["cold_items"]["num_items"] == results["split"]["cold_items"]
    assert results["customers"][0]["recommended"][0]["rank"] == 1


def test_training_does_not_depend_on_what_comes_after_the_cut(model: Recommender, shop: Dataset, tiny: Config) -> None:
    split = temporal_split(shop, tiny.evaluation.cut or "")
    # The same past, a catalogue and people cut down to it: nothing of the future is even within reach.
    past = Dataset(
        shop.name,
        split.train,
        replace(shop.items, frame=shop.items.frame.filter(shop.items.frame["item_id"].is_in(list(split.train_items)))),
        replace(shop.users, frame=shop.users.frame.filter(shop.users.frame["user_id"].is_in(list(split.train_users)))),
    )
    assert train(past, tiny).model_id == model.model_id

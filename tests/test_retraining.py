"""Going on from a served model: what is kept, what is new, what it costs, and what it must not see."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from palate.backbone.ensemble import Job
from palate.backbone.run_state import RunState, save_run
from palate.config import Config, GateConfig, RetrainingConfig
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.errors import ConfigError, DataError
from palate.evaluation.replay import compare, replay
from palate.meta.quality import MIN_USERS, Quality
from palate.meta.training import meta_train
from palate.pipeline import train
from palate.pipeline.members import make_job, retraining_jobs
from palate.pipeline.newcomers import newcomers_since
from palate.pipeline.preparing import prepare
from palate.recommend import Recommender

UNTIL = datetime(2024, 1, 1) + timedelta(days=172)
"""When the retraining happens: newcomers and new items have come since the cut of the served model."""


@pytest.fixture(scope="module")
def later_shop(shop: Dataset) -> Dataset:
    return replace(shop, interactions=shop.interactions.filter(pl.col("timestamp") < UNTIL))


@pytest.fixture(scope="module")
def again(tiny: Config) -> Config:
    return replace(tiny, retraining=RetrainingConfig(num_epochs=2, num_steps=10, min_newcomers=5))


@pytest.fixture(scope="module")
def retrained(model: Recommender, later_shop: Dataset, again: Config) -> Recommender:
    return train(later_shop, again, start=model)


def turned(shop: Dataset) -> Dataset:
    """Since the cut half of each taste's items are bought by the next one's people: content and old events mislead."""
    tastes = ("garden", "kitchen", "toys")
    moved = {f"{one}-{n:02}": f"{tastes[place - 2]}-{n:02}" for place, one in enumerate(tastes) for n in range(10)}
    late = pl.col("timestamp") >= datetime.fromisoformat("2024-05-20")
    item = pl.when(late).then(pl.col("item_id").replace(moved)).otherwise("item_id")
    return replace(shop, interactions=shop.interactions.with_columns(item_id=item))


def test_it_is_as_good_as_a_full_training_and_better_than_the_stale_model_at_less_cost(
    model: Recommender, shop: Dataset, again: Config
) -> None:
    world = turned(shop)
    past = replace(world, interactions=world.interactions.filter(pl.col("timestamp") < UNTIL))
    begin = time.process_time()
    retrained = train(past, again, start=model)
    middle = time.process_time()
    full = train(past, again)
    assert middle - begin < 0.8 * (time.process_time() - middle)
    since = (UNTIL - datetime(1970, 1, 1)).total_seconds()
    found = replay({"retrained": retrained, "stale": model, "full": full}, world, since, 10_000)
    config = GateConfig(num_resamples=500)
    over_stale = compare(found, "ndcg", config).difference
    over_full = compare(found._replace(ranks=found.ranks[[0, 2]]), "ndcg", config).difference
    assert over_stale.low > 0, "what is new was learned"
    assert over_full.low < 0 < over_full.high, "and as well as from nothing"
    assert abs(over_full.mean) < over_stale.mean, "more than half of what a full training gains"


def test_a_served_head_that_is_shown_to_fail_newcomers_is_carried_over(
    model: Recommender, later_shop: Dataset, again: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Quality(40, 0.01, 0.3, -0.4, -0.2)
    monkeypatch.setattr("palate.meta.training.compare_with_chance", lambda *_: worse)
    carried = train(later_shop, again, start=model)
    said = carried.training["start"]["head"]  # type: ignore[index]
    assert said == f"carried over: meta-training of ridge: {worse.describe()}"
    assert carried.training["meta validation"] == []
    assert "quality" not in carried.training, "it is the served model's head, which was looked at when it was trained"


def test_a_few_newcomers_whom_the_served_head_fails_are_no_evidence(
    model: Recommender, shop: Dataset, again: Config
) -> None:
    world = turned(shop)
    past = replace(world, interactions=world.interactions.filter(pl.col("timestamp") < UNTIL))
    retrained = train(past, again, start=model)
    quality: Any = retrained.training["quality"]
    assert quality["ndcg"] < quality["random"], "tastes have turned"
    assert quality["num_users"] < MIN_USERS
    assert quality["verdict"] == "inconclusive"
    assert not retrained.training["start"]["head"].startswith("carried over")  # type: ignore[index]


def test_the_same_seed_gives_the_same_bytes(
    model: Recommender, retrained: Recommender, later_shop: Dataset, again: Config, tmp_path: Path
) -> None:
    train(later_shop, again, start=model).save(tmp_path / "one")
    retrained.save(tmp_path / "other")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name
    # A model that was saved and read again is the same start, and so is one whose people are kept elsewhere.
    model.save(tmp_path / "served")
    assert train(later_shop, again, start=Recommender.load(tmp_path / "served")).model_id == retrained.model_id
    assert train(later_shop, again, start=model.without_people()).model_id == retrained.model_id
    assert train(later_shop, replace(again, seed=1), start=model).model_id != retrained.model_id


def test_a_killed_retraining_goes_on_to_the_same_model(
    model: Recommender,
    retrained: Recommender,
    later_shop: Dataset,
    again: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[tuple[Path, int]] = []

    def stop_after(limit: float) -> Callable[..., None]:
        def save(folder: Path, tensors: Mapping[str, Tensor], state: RunState) -> None:
            save_run(folder, tensors, state)
            saved.append((folder, state.step))
            if len(saved) == limit:
                raise KeyboardInterrupt

        return save

    total = again.num_members * again.retraining.num_epochs
    for stop in (1, total - 1):
        monkeypatch.setattr("palate.backbone.training_run.save_run", stop_after(stop))
        with pytest.raises(KeyboardInterrupt):
            train(later_shop, again, start=model, checkpoints=tmp_path)
    monkeypatch.setattr("palate.backbone.training_run.save_run", stop_after(np.inf))
    assert train(later_shop, again, start=model, checkpoints=tmp_path).model_id == retrained.model_id
    assert len(saved) == total, "an epoch was trained twice or never"
    # Another start does not see these checkpoints, though data, settings and seed are the same.
    moved = replace(model, backbone=_moved(model))
    assert train(later_shop, again, start=moved, checkpoints=tmp_path).model_id != retrained.model_id
    assert len(set(saved)) == len(saved) == total + again.retraining.num_epochs, "the other member's is the same"


def _moved(model: Recommender) -> Any:
    backbone = deepcopy(model.backbone)
    with torch.no_grad():
        backbone.models()[0].start += 0.1
    return backbone


def test_workers_change_nothing(model: Recommender, retrained: Recommender, later_shop: Dataset, again: Config) -> None:
    assert train(later_shop, again, start=model, workers=2).model_id == retrained.model_id


def test_known_items_keep_their_rows_by_id_and_new_ones_begin_with_their_content(
    model: Recommender, later_shop: Dataset, again: Config
) -> None:
    gone = pl.col("item_id").is_in(["garden-03", "toys-16"])
    fewer = replace(later_shop, interactions=later_shop.interactions.filter(~gone))
    prepared = prepare(fewer, again, start=model)
    old = model.vocabulary.ids[: model.num_trained]
    kept = [item for item in old if item not in ("garden-03", "toys-16")]
    assert prepared.vocabulary.ids[: len(kept)] == tuple(kept)
    new = prepared.vocabulary.ids[len(kept) :]
    assert new
    assert list(new) == sorted(new)
    for job, member in zip(retraining_jobs(model, prepared, again), model.backbone.models(), strict=True):
        assert job.start is not None
        table, bias = job.start["items.table.weight"], job.start["items.bias"]
        places = torch.from_numpy(model.vocabulary.index(kept))
        served = dict(member.state_dict())
        assert torch.equal(table[: len(kept)], served["items.table.weight"][places])
        assert torch.equal(bias[: len(kept)], served["items.bias"][places])
        assert (table[len(kept) :] == 0).all(), "content alone speaks for a new item"
        counts = [sum(item in history.items for history in prepared.histories.values()) for item in range(len(table))]
        order = np.argsort(counts[len(kept) :], kind="stable")
        assert (bias[len(kept) :][torch.from_numpy(order)].diff() >= 0).all(), "who has more events has the higher bias"
        for name, value in served.items():
            if not name.startswith(("items.table.", "items.bias")):
                assert torch.equal(job.start[name], value)
    assert (torch.cat([prepared.content]) == model.encode_items(_rows(later_shop, prepared.vocabulary.ids))).all()


def _rows(dataset: Dataset, ids: tuple[str, ...]) -> Catalog:
    order = pl.DataFrame({"item_id": list(ids)})
    return replace(dataset.items, frame=order.join(dataset.items.frame, on="item_id", maintain_order="left"))


def test_new_items_and_new_people_are_served(model: Recommender, retrained: Recommender, later_shop: Dataset) -> None:
    trained = retrained.vocabulary.ids[: retrained.num_trained]
    new = set(trained) - set(model.vocabulary.ids[: model.num_trained])
    assert len(new) > 3
    assert set(retrained.vocabulary.ids) == set(model.vocabulary.ids), "items without events are listed by content"
    newcomers = sorted(set(retrained.users) - set(model.users))
    assert len(newcomers) > 20
    assert len(retrained.recommend(newcomers[0])) == 10
    for taste in ("garden", "kitchen", "toys"):
        own = sorted(item for item in new if item.startswith(taste))
        listed = [line.item_id for line in retrained.recommend([*own[:1], f"{taste}-01"])]
        assert sum(item.startswith(taste) for item in listed) >= 6


def test_what_a_model_has_learned_until_is_recorded(
    model: Recommender, retrained: Recommender, early_shop: Dataset, later_shop: Dataset, tmp_path: Path
) -> None:
    for trained, dataset in ((model, early_shop), (retrained, later_shop)):
        newest = dataset.interactions["timestamp"].max()
        assert isinstance(newest, datetime)
        assert trained.trained_until == (newest - datetime(1970, 1, 1)).total_seconds()
        trained.save(tmp_path / "model")
        assert Recommender.load(tmp_path / "model").trained_until == trained.trained_until
    assert retrained.training["start"] == {
        "model_id": model.model_id,
        "head": Recommender.load(tmp_path / "model").training["start"]["head"],  # type: ignore[index]
    }


def test_only_people_whom_the_served_model_has_never_seen_play_the_newcomer(
    model: Recommender, later_shop: Dataset, again: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomers = newcomers_since(model, later_shop, again)
    assert len(newcomers) >= again.retraining.min_newcomers
    assert not set(newcomers) & set(model.users)
    for history in newcomers.values():
        assert history.times[0] > model.trained_until
        assert len(history.items) >= again.meta.min_items
        assert history.items.max() < model.num_trained
    # They meet the served model itself: nothing that was trained on them takes part.
    met = []

    def listen(head: Any, params: Any, scorers: Any, worlds: Any, *arguments: Any, **settings: Any) -> Any:
        met.append((params, worlds))
        return meta_train(head, params, scorers, worlds, *arguments, **settings)

    monkeypatch.setattr("palate.pipeline.head.meta_train", listen)
    train(later_shop, again, start=model)
    [(params, [(items, _, _)])] = met
    assert params is model.params
    assert torch.equal(items.features, model.items.features[: model.num_trained])
    assert torch.equal(items.vectors, model.items.vectors[: model.num_trained])
    assert torch.equal(items.bias, model.items.bias[: model.num_trained])


def test_with_too_few_newcomers_the_head_is_carried_over_and_that_is_said(
    model: Recommender, later_shop: Dataset, again: Config
) -> None:
    config = replace(again, retraining=replace(again.retraining, min_newcomers=41))
    carried = train(later_shop, config, start=model)
    for name, value in model.params.items():
        if name not in ("fixed.spectrum", "fixed.vector_covariance", "fixed.feature_covariance"):
            assert torch.equal(carried.params[name], value), name
    assert carried.training["meta loss"] == carried.training["meta validation"] == []
    said = carried.training["start"]["head"]  # type: ignore[index]
    assert said.startswith("carried over: ")
    assert said.endswith("meta-training needs 41 (retraining.min_newcomers)")
    assert carried.recommend(["toys-01"])


def test_the_settings_are_by_default_those_of_the_served_model(model: Recommender, later_shop: Dataset) -> None:
    assert train(later_shop, start=model).config == model.config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: replace(c, num_members=1), "num_members"),
        (lambda c: replace(c, model=replace(c.model, dim=8)), "model"),
        (lambda c: replace(c, text=replace(c.text, max_length=32)), "text"),
        (lambda c: replace(c, attributes=replace(c.attributes, numeric="robust")), "attributes"),
        (lambda c: replace(c, evidence=replace(c.evidence, content_dim=8)), r"evidence\.content_dim"),
        (lambda c: replace(c, meta=replace(c.meta, learner="anil")), r"meta\.learner"),
        (lambda c: replace(c, learner={"noise": 2.0}), "learner"),
    ],
)
def test_settings_under_which_weights_mean_something_else_are_refused(
    model: Recommender, later_shop: Dataset, again: Config, change: Callable[[Config], Config], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{named}: the served model was trained with [^\n]*\Z"):
        train(later_shop, change(again), start=model)


def test_a_new_column_waits_and_a_missing_one_is_refused(
    model: Recommender, retrained: Recommender, later_shop: Dataset, again: Config
) -> None:
    items, users = later_shop.items.frame, later_shop.users.frame
    wider = replace(
        later_shop,
        items=Catalog.infer(items.with_columns(weight=pl.lit(3.0), maker=pl.lit("Ada"))),
        users=Profiles.infer(users.with_columns(city=pl.lit("Rome"))),
    )
    assert train(wider, again, start=model).model_id == retrained.model_id
    for less in (
        replace(later_shop, items=Catalog.infer(items.drop("price"))),
        replace(later_shop, items=Catalog.infer(items.drop("title"))),
        replace(later_shop, users=Profiles.infer(users.drop("age"))),
    ):
        with pytest.raises(DataError, match=r"^[^\n]*(price|text|age)[^\n]*\Z"):
            train(less, again, start=model)


def test_a_text_that_was_not_there_waits(early_shop: Dataset, later_shop: Dataset, again: Config) -> None:
    bare = replace(early_shop, items=Catalog(early_shop.items.frame, None, ("price",), ()))
    served = train(bare, again)
    assert train(later_shop, start=served).recommend(["toys-01"])


def test_another_world_is_no_continuation(model: Recommender, later_shop: Dataset, again: Config) -> None:
    renamed = replace(
        later_shop,
        interactions=later_shop.interactions.with_columns(item_id="other-" + pl.col("item_id")),
        items=Catalog.infer(later_shop.items.frame.with_columns(item_id="other-" + pl.col("item_id"))),
    )
    with pytest.raises(DataError, match="none of the items that the model was trained on is left"):
        train(renamed, again, start=model)


def test_a_job_without_a_start_is_known_by_what_it_was_before(early_shop: Dataset, tiny: Config) -> None:
    prepared = prepare(early_shop, tiny)
    job = make_job("everyone", 0, prepared.histories, prepared, tiny)
    assert isinstance(job, Job)
    assert job.start is None
    assert job.training == tiny.training


@pytest.mark.parametrize(
    "bad", [{"num_epochs": 0}, {"rate": 0.0}, {"rate": 1.5}, {"num_steps": 0}, {"min_newcomers": 2}]
)
def test_a_bad_setting_is_named(bad: dict[str, Any]) -> None:
    (setting,) = bad
    with pytest.raises(ConfigError, match=rf"retraining.{setting} is "):
        RetrainingConfig(**bad)

"""From a data set to a recommender: what a model depends on, and what it must not depend on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Job, Trained, run_jobs
from palate.backbone.run_state import RunState, save_run
from palate.config import Config, RefitConfig
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.episodes import EMPTY_HISTORY
from palate.data.event_log import from_histories
from palate.data.splitting import temporal_split
from palate.errors import ConfigError, DataError
from palate.evaluation.few_shot import newcomers_after
from palate.meta.training import World, meta_train
from palate.pipeline import train
from palate.pipeline.members import refit_training
from palate.pipeline.newcomers import deal, newcomers_of, split_newcomers
from palate.pipeline.preparing import prepare
from palate.pipeline.shared import alone, assemble
from palate.progress import Reporter
from palate.recommend import Recommender
from people import choices_of


def scores_of(model: Recommender, events: list[str]) -> dict[str, float]:
    return {line.item_id: line.score for line in model.recommend(events, 100, include_seen=True)}


def with_events(dataset: Dataset, keep: pl.Expr) -> Dataset:
    return replace(dataset, interactions=dataset.interactions.filter(keep))


def test_the_same_seed_gives_the_same_model(model: Recommender, early_shop: Dataset, tiny: Config) -> None:
    again = train(early_shop, tiny)
    assert again.model_id == model.model_id
    assert scores_of(again, ["toys-01"]) == scores_of(model, ["toys-01"])
    assert again.training == model.training


def test_another_seed_or_setting_gives_another_model(model: Recommender, early_shop: Dataset, tiny: Config) -> None:
    configs = [
        replace(tiny, seed=1),
        replace(tiny, meta=replace(tiny.meta, learner="anil")),
        replace(tiny, model=replace(tiny.model, dim=8)),
        replace(tiny, batches=replace(tiny.batches, window=1)),
        replace(tiny, negative_events=()),
        replace(tiny, num_members=3),
        replace(tiny, refit=RefitConfig(share=0.0)),
    ]
    assert len({model.model_id, *(train(early_shop, config).model_id for config in configs)}) == 8


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Job], list[Trained]]]:
    """What is trained from here on, one entry for members that are trained together."""
    seen: list[tuple[list[Job], list[Trained]]] = []

    def run(jobs: list[Job], workers: int, on_epoch: Callable[[float], None]) -> list[Trained]:
        seen.append((jobs, run_jobs(jobs, workers, on_epoch)))
        return seen[-1][1]

    monkeypatch.setattr("palate.pipeline.members.run_jobs", run)
    return seen


def test_each_member_is_trained_without_the_newcomers_whom_the_head_meets_with_it(
    early_shop: Dataset, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, worlds = watch(monkeypatch), list[World]()

    def listen(head: Any, params: Any, scorers: Any, met: list[World], *arguments: Any, **settings: Any) -> Any:
        worlds.extend(met)
        return meta_train(head, params, scorers, met, *arguments, **settings)

    monkeypatch.setattr("palate.pipeline.head.meta_train", listen)
    model = train(early_shop, tiny)
    (jobs, trained), (again, last) = seen
    prepared = prepare(early_shop, tiny)
    everyone = prepared.histories
    newcomers = newcomers_of(everyone, tiny)[1]
    folds = deal(newcomers, tiny.num_members)
    assert len(folds) == len(worlds) == tiny.num_members == 2
    assert sorted(user for fold in folds for user in fold) == sorted(newcomers)
    for member, (job, fold, world) in enumerate(zip(jobs, folds, worlds, strict=True)):
        others = everyone.without(fold)
        assert job.chosen.num_users == len(others) == len(everyone) - len(fold)
        assert job.chosen.items.tolist() == others.chosen.items.tolist()
        # The people of the world are those of the fold, and what it says of the items is that member's alone.
        people = sum(len(episodes.user.unique()) for episodes in (world.train, world.validation))
        assert people == len(fold)
        dim, other = tiny.model.dim, 1 - member
        assert world.items.vectors[:, member * dim : (member + 1) * dim].any()
        assert not world.items.vectors[:, other * dim : (other + 1) * dim].any()
        assert not world.train.support.state[:, other * dim : (other + 1) * dim].any()
        torch.testing.assert_close(world.items.bias, trained[member].weights["items.bias"])
    # Then they go on to everyone, from those weights and for less time, and serve.
    for job, before, after, served in zip(again, trained, last, model.backbone.models(), strict=True):
        assert job.chosen.num_users == len(everyone)
        assert (job.training.num_epochs, job.training.learning_rate) == (1, tiny.training.learning_rate)
        assert job.start is not None
        assert all(torch.equal(job.start[name], value) for name, value in before.weights.items())
        assert torch.equal(served.items.bias, after.weights["items.bias"])
    seen.clear()
    train(early_shop, replace(tiny, refit=RefitConfig(share=0.0)))
    assert len(seen) == 1, "without a refit they serve as they are"


def test_what_a_newcomer_did_reaches_only_the_members_of_other_folds(
    early_shop: Dataset, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another past for one newcomer, of as many events: the member of that fold is the same, the other is not."""
    seen = watch(monkeypatch)
    train(early_shop, tiny)
    folds = deal(newcomers_of(prepare(early_shop, tiny).histories, tiny)[1], 2)
    someone = next(iter(folds[0]))
    theirs = pl.col("user_id") == someone
    turned = early_shop.interactions.filter(theirs)
    turned = turned.with_columns(item_id=turned["item_id"].reverse())
    log = pl.concat([early_shop.interactions.filter(~theirs), turned]).sort("timestamp", maintain_order=True)
    train(replace(early_shop, interactions=log), tiny)
    (_, before), _, (_, after), _ = seen
    assert all(torch.equal(value, after[0].weights[name]) for name, value in before[0].weights.items())
    assert any(not torch.equal(value, after[1].weights[name]) for name, value in before[1].weights.items())


@pytest.mark.parametrize("bad", [{"share": -0.1}, {"share": 1.1}, {"rate": 0.0}, {"rate": 2.0}])
def test_a_bad_refit_is_named(bad: dict[str, float]) -> None:
    (name,) = bad
    with pytest.raises(ConfigError, match=rf"refit\.{name} is"):
        RefitConfig(**bad)


def test_one_member_has_all_newcomers_for_its_fold(
    early_shop: Dataset, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    train(early_shop, replace(tiny, num_members=1))
    histories = prepare(early_shop, tiny).histories
    [[first], [last]] = [jobs for jobs, _ in seen]
    assert first.chosen.num_users == len(newcomers_of(histories, tiny)[0])
    assert last.chosen.num_users == len(histories)


def test_few_newcomers_are_the_folds_of_some_members(tiny: Config) -> None:
    people = choices_of([EMPTY_HISTORY] * 8)
    assert [len(fold) for fold in deal(people, 4)] == [4, 4]
    assert [len(fold) for fold in deal(people.take(np.arange(3)), 4)] == [3]
    assert [len(fold) for fold in deal(people, 1)] == [8]


def test_a_member_that_speaks_alone_says_what_it_says_as_the_only_one(
    early_shop: Dataset, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    train(early_shop, tiny)
    (_, trained), _ = seen
    prepared = prepare(early_shop, tiny)
    content = prepared.content[:, :4]
    both = assemble(trained, prepared.histories, prepared, content, tiny, 0.0)
    single = replace(tiny, num_members=1)
    people = list(prepared.histories.values())[:5]
    profiles = torch.stack(list(prepared.profiles.values())[:5])
    for member in (0, 1):
        only = assemble(trained[member : member + 1], prepared.histories, prepared, content, single, 0.0)
        backbone, items = alone(both, member, tiny)
        read = inputs(from_histories(people), tiny.model.max_events)._replace(profiles=profiles)
        with torch.no_grad():
            said = backbone.last_states(read, items.vectors) @ items.vectors.T + items.bias
            expected = only.backbone.last_states(read, only.items.vectors) @ only.items.vectors.T + only.items.bias
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)
        # Its features compare items as those of the only one do; what is left over is zero.
        kernel, other = (part.features @ part.features.T for part in (items, only.items))
        torch.testing.assert_close(kernel, other, rtol=1e-3, atol=1e-3)


def test_members_that_read_ratings_see_them_everywhere(
    rated_model: Recommender, shop: Dataset, early_shop: Dataset
) -> None:
    """In training, from one person and from many, where they are judged, and in the seal of kept fast weights."""
    log = early_shop.interactions.with_columns(
        event_type=pl.lit("rating"), weight=1.0 + pl.col("item_id").str.tail(1).cast(pl.Float64) % 5
    )
    config = replace(rated_model.config, model=replace(rated_model.config.model, rated=True))
    model = train(replace(early_shop, interactions=log), config)
    items = list(model.vocabulary.ids[:3])
    high, low = (model.adapt(dict.fromkeys(items, rating)) for rating in (5.0, 1.0))
    assert not torch.equal(high.fast["state"], low.fast["state"])
    profile = model.encode_profile(None)
    batched = model.score_many([high.history, low.history], torch.stack([profile, profile]))
    for state, scores in zip((high, low), batched, strict=True):
        places, values = model.rank(state, 5, excluded=np.zeros(0, np.int64))
        np.testing.assert_allclose(values, scores[places], rtol=1e-3, atol=1e-3)
    everything = shop.interactions.with_columns(
        event_type=pl.lit("rating"), weight=1.0 + pl.col("item_id").str.tail(1).cast(pl.Float64) % 5
    )
    split = temporal_split(replace(shop, interactions=everything), datetime.fromisoformat(str(config.evaluation.cut)))
    newcomers = newcomers_after(split, shop.users.frame, model, config.evaluation)
    for history in newcomers.histories:
        assert history.ratings is not None
        assert not np.isnan(history.ratings).any()
    kept = model.dump_state(high, profile)
    assert model.load_state(kept, high.history, profile) is not None
    assert model.load_state(kept, low.history, profile) is None
    with pytest.raises(DataError, match="nobody has rated anything"):
        train(early_shop, config)


def test_workers_change_nothing(model: Recommender, early_shop: Dataset, tiny: Config) -> None:
    assert train(early_shop, tiny, workers=2).model_id == model.model_id


def test_nothing_after_the_cut_is_in_the_model(
    model: Recommender, shop: Dataset, early_shop: Dataset, tiny: Config
) -> None:
    """Another future: other events, other new people and other new items, cut at the same moment."""
    cut = datetime.fromisoformat(str(tiny.evaluation.cut))
    rng = np.random.default_rng(3)
    log = shop.interactions
    late = log.filter(pl.col("timestamp") >= cut)
    shuffled = late.with_columns(pl.Series("item_id", rng.permutation(late["item_id"].to_numpy()), dtype=pl.String))
    unseen = ~pl.col("item_id").is_in(early_shop.interactions["item_id"].unique().implode())
    items = shop.items.frame.with_columns(
        title=pl.when(unseen).then(pl.lit("moon rocket")).otherwise("title"),
        price=pl.when(unseen).then(pl.lit(9999.0)).otherwise("price"),
    )
    unborn = ~pl.col("user_id").is_in(early_shop.interactions["user_id"].unique().implode())
    users = shop.users.frame.with_columns(
        country=pl.when(unborn).then(pl.lit("Atlantis")).otherwise("country"),
        age=pl.when(unborn).then(pl.lit(900.0)).otherwise("age"),
    )
    other = Dataset(
        "another future",
        pl.concat([log.filter(pl.col("timestamp") < cut), shuffled]),
        Catalog.infer(items),
        Profiles.infer(users),
    )
    assert other.fingerprint() != shop.fingerprint()
    learned = replace(other, interactions=temporal_split(other, cut).train)
    assert train(learned, tiny).model_id == model.model_id
    # The check can fail: a few events before the cut do make a difference.
    fewer = replace(early_shop, interactions=early_shop.interactions.head(-20))
    assert train(fewer, tiny).model_id != model.model_id


def test_an_interrupted_run_goes_on_to_the_same_model(
    model: Recommender, early_shop: Dataset, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[Path, int]] = []

    def stop_after(limit: float) -> Callable[..., None]:
        def save(folder: Path, tensors: Mapping[str, Tensor], state: RunState) -> None:
            save_run(folder, tensors, state)
            saved.append((folder, state.step))
            if len(saved) == limit:
                raise KeyboardInterrupt

        return save

    again = refit_training(tiny)
    assert again is not None
    total = tiny.num_members * (tiny.training.num_epochs + again.num_epochs)
    for stop in (1, total - 2):  # in the first member, then in the last
        monkeypatch.setattr("palate.backbone.training_run.save_run", stop_after(stop))
        with pytest.raises(KeyboardInterrupt):
            train(early_shop, tiny, checkpoints=tmp_path)
    monkeypatch.setattr("palate.backbone.training_run.save_run", stop_after(np.inf))
    assert train(early_shop, tiny, checkpoints=str(tmp_path)).model_id == model.model_id
    assert len(set(saved)) == len(saved) == total, "an epoch was trained twice or never"
    assert len({folder for folder, _ in saved}) == 2 * tiny.num_members


def test_a_run_does_not_go_on_from_the_checkpoints_of_another(
    model: Recommender, early_shop: Dataset, tiny: Config, tmp_path: Path
) -> None:
    assert train(early_shop, tiny, checkpoints=tmp_path).model_id == model.model_id
    fewer = replace(early_shop, interactions=early_shop.interactions.head(-40))
    slower = replace(tiny, training=replace(tiny.training, learning_rate=1e-3))
    for dataset, config in ((early_shop, replace(tiny, seed=1)), (early_shop, slower), (fewer, tiny)):
        assert train(dataset, config, checkpoints=tmp_path).model_id == train(dataset, config).model_id


def test_progress_is_reported_in_stages(early_shop: Dataset, tiny: Config) -> None:
    reporter = Reporter()
    train(early_shop, tiny, reporter=reporter)
    assert [stage.name for stage in reporter.stages] == ["encode content", "pre-train", "meta-train"]
    assert reporter.stages[0].detail.startswith("51 items")


def test_the_number_of_threads_is_put_back(early_shop: Dataset, tiny: Config) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(early_shop, tiny)
        assert torch.get_num_threads() == 2
        with pytest.raises(DataError):
            train(with_events(early_shop, pl.col("user_id") == "user-000"), tiny)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_too_little_data_is_said_in_one_line(early_shop: Dataset, tiny: Config) -> None:
    with pytest.raises(DataError, match=r"^meta-training: 0 people with at least 8 distinct items[^\n]*min_items\Z"):
        train(replace(early_shop, interactions=early_shop.interactions.head(5)), tiny)
    with pytest.raises(DataError, match=r"^meta-training: 1 people[^\n]*expected at least 3[^\n]*\Z"):
        train(with_events(early_shop, pl.col("user_id").is_in([f"user-00{n}" for n in range(5)])), tiny)
    alone = replace(tiny, meta=replace(tiny.meta, held_out=0.999))
    with pytest.raises(DataError, match=r"^meta-training: 5 people[^\n]*\Z"):
        train(with_events(early_shop, pl.col("user_id").is_in([f"user-00{n}" for n in range(5)])), alone)


def test_episodes_that_nobody_is_long_enough_for(early_shop: Dataset, tiny: Config) -> None:
    with pytest.raises(DataError, match=r"^meta-training[^\n]*50 distinct items; lower meta.min_query\Z"):
        train(early_shop, replace(tiny, meta=replace(tiny.meta, min_query=50)))


def test_events_that_only_refuse_teach_nothing(early_shop: Dataset, tiny: Config) -> None:
    with pytest.raises(DataError, match=r"^shop: every event is of a type in negative_events[^\n]*\Z"):
        train(with_events(early_shop, pl.col("event_type") == "cancel"), tiny)


def test_an_unknown_learner(tiny: Config) -> None:
    with pytest.raises(ConfigError, match=r"^meta.learner is 'bridge'; choose one of: ridge, laplace[^\n]*\Z"):
        replace(tiny, meta=replace(tiny.meta, learner="bridge"))


def bare_items(shop: Dataset) -> Dataset:
    return replace(shop, items=Catalog.from_ids(shop.items.frame["item_id"]))


def no_text(shop: Dataset) -> Dataset:
    return replace(shop, items=Catalog(shop.items.frame, None, ("price",), ()))


def text_alone(shop: Dataset) -> Dataset:
    return replace(shop, items=Catalog(shop.items.frame, "title", (), ()))


def no_profiles(shop: Dataset) -> Dataset:
    return replace(shop, users=Profiles.from_ids(shop.users.frame["user_id"]))


def gaps(shop: Dataset) -> Dataset:
    some = pl.int_range(pl.len()) % 3 == 0
    items = shop.items.frame.with_columns(pl.when(~some).then(pl.col("title", "price")))
    users = shop.users.frame.with_columns(pl.when(~some).then(pl.col("country", "age")))
    return replace(shop, items=Catalog.infer(items), users=Profiles.infer(users))


@pytest.mark.parametrize(
    "less",
    [bare_items, no_text, text_alone, no_profiles, gaps, lambda shop: no_profiles(bare_items(shop))],
    ids=["ids alone", "no text", "text alone", "no profiles", "gaps", "events alone"],
)
def test_less_data_still_trains_and_finds_the_taste(
    early_shop: Dataset, tiny: Config, less: Callable[[Dataset], Dataset], tmp_path: Path
) -> None:
    model = train(less(early_shop), tiny)
    sold = model.vocabulary.ids[: model.num_trained]
    hits = [
        line.item_id.startswith(taste)
        for taste in ("garden", "kitchen", "toys")
        for line in model.recommend([f"{taste}-0{n}" for n in range(4)], candidates=sold)
    ]
    assert sum(hits) >= 18  # of 30; chance gives 10 ± 2.4
    assert all(np.isfinite(score) for score in scores_of(model, []).values())
    model.save(tmp_path / "model")
    assert Recommender.load(tmp_path / "model").recommend(["toys-01"]) == model.recommend(["toys-01"])


def test_items_without_events_are_known_by_content_alone(early_shop: Dataset, tiny: Config) -> None:
    """Two unsold items that read the same score the same; exchanging two descriptions exchanges their scores."""
    frame = early_shop.items.frame
    late = ["garden-17", "garden-18", "kitchen-17"]
    described = frame.with_columns(
        title=pl.when(pl.col("item_id").is_in(late[:2])).then(pl.lit("brass garden bell")).otherwise("title"),
        price=pl.when(pl.col("item_id").is_in(late[:2])).then(pl.lit(5.0)).otherwise("price"),
    )
    events = ["garden-01", "garden-02"]
    scores = scores_of(train(replace(early_shop, items=Catalog.infer(described)), tiny), events)
    assert scores["garden-17"] == scores["garden-18"]
    names = {"garden-18": "kitchen-17", "kitchen-17": "garden-18"}
    exchanged = described.with_columns(pl.col("item_id").replace(names))
    swapped = scores_of(train(replace(early_shop, items=Catalog.infer(exchanged)), tiny), events)
    assert scores["garden-18"] > scores["kitchen-17"]
    assert swapped == pytest.approx({names.get(item, item): score for item, score in scores.items()}, abs=1e-6)


def test_only_people_and_items_with_choices_are_learned(early_shop: Dataset, tiny: Config) -> None:
    refuser = pl.DataFrame(
        [("nobody", "toys-03", "cancel", 1.0, datetime(2024, 1, 5), None, None)],
        schema=early_shop.interactions.schema,
        orient="row",
    )
    dataset = Dataset(
        "with a refuser",
        pl.concat([early_shop.interactions, refuser]).sort("timestamp", maintain_order=True),
        early_shop.items,
        Profiles(
            pl.concat([early_shop.users.frame, pl.DataFrame({"user_id": ["nobody"]})], how="diagonal"),
            ("age",),
            ("country",),
        ),
    )
    prepared, plain = prepare(dataset, tiny), prepare(early_shop, tiny)
    assert prepared.vocabulary == plain.vocabulary
    assert list(prepared.histories) == list(plain.histories) == sorted(set(early_shop.interactions["user_id"]))
    assert torch.equal(prepared.content, plain.content)
    assert prepared.profile_encoder == plain.profile_encoder


def test_newcomers_are_the_same_at_every_call_and_apart_from_the_others(model: Recommender, tiny: Config) -> None:
    others, newcomers = newcomers_of(model.users, tiny)
    assert [list(part) for part in newcomers_of(model.users, tiny)] == [list(others), list(newcomers)]
    assert not set(others) & set(newcomers)
    assert set(others) | set(newcomers) == set(model.users)
    assert all(len(history.items) >= tiny.meta.min_items for history in newcomers.values())
    assert list(newcomers) != list(newcomers_of(model.users, replace(tiny, seed=5))[1])
    training, validating = split_newcomers(newcomers)
    assert not set(training) & set(validating)
    assert set(training) | set(validating) == set(newcomers)
    assert len(validating) == len(newcomers) // 3


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        ("laplace", {"noise": 1}),
        ("maml", {"num_steps": 2, "step_size": 0.1, "penalty": "l2"}),
        ("mamo", {}),
        ("neural-process", {"latent": 8}),
        ("clusters", {"num_classes": 2}),
    ],
)
def test_any_learner_serves(
    early_shop: Dataset, tiny: Config, learner: str, settings: dict[str, float], tmp_path: Path
) -> None:
    config = replace(tiny, meta=replace(tiny.meta, learner=learner, num_steps=4), learner=settings)
    model = train(early_shop, config)
    model.save(tmp_path / "model")
    again = Recommender.load(tmp_path / "model")
    assert again.config.learner == settings
    for events in ([], ["garden-01"], ["garden-01", "toys-02", "garden-03"]):
        assert [line._asdict() for line in again.recommend(events, 5)] == [
            line._asdict() for line in model.recommend(events, 5)
        ]


def test_settings_of_a_learner_are_checked(tiny: Config) -> None:
    with pytest.raises(ConfigError, match=r"learner ridge has no setting .noize.; did you mean noise\?"):
        replace(tiny, learner={"noize": 1.0})
    with pytest.raises(ConfigError, match=r"learner.num_steps is 0; it must be at least 1"):
        replace(tiny, meta=replace(tiny.meta, learner="maml"), learner={"num_steps": 0})

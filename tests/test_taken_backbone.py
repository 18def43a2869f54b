"""A model that was pre-trained on its own, as the shared model of a recommender."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.cli import app
from palate.config import Config
from palate.data.dataset import Dataset
from palate.data.episodes import is_held_out
from palate.data.event_log import open_events
from palate.encoders.text import TextConfig, encode_texts
from palate.errors import ConfigError, DataError, ModelError
from palate.meta.training import World, meta_train
from palate.pipeline import train
from palate.pretrain import PretrainConfig, load_model, pretrain, write_log
from palate.recommend import Recommender

SHARE = 0.3
SMALL = PretrainConfig(
    model=SequenceModelConfig(dim=8, num_layers=1, max_events=20, dropout=0.1, timed=True),
    batches=BatchConfig(tokens=256),
    training=TrainingConfig(num_epochs=3, learning_rate=1e-2, warmup_steps=2),
    judged=0,
)


@pytest.fixture(scope="module")
def bare(tiny: Config) -> Config:
    """Settings without a shape of the shared model."""
    return replace(tiny, model=Config().model)


@pytest.fixture(scope="module")
def folder(early_shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trained on ids and times."""
    place = tmp_path_factory.mktemp("backbone")
    write_log(early_shop.interactions, place / "events", held_out=SHARE)
    pretrain(place / "events", place / "model", SMALL, quiet=True)
    return place / "model"


@pytest.fixture(scope="module")
def reading(early_shop: Dataset, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trained on ids and titles."""
    place = tmp_path_factory.mktemp("reading")
    frame = early_shop.items.frame
    vectors = encode_texts(frame["title"].to_list(), tiny.text)
    content = dict(zip(frame["item_id"].to_list(), vectors.numpy(), strict=True))
    write_log(early_shop.interactions, place / "events", content, held_out=SHARE)
    pretrain(place / "events", place / "model", SMALL, quiet=True)
    return place / "model"


@pytest.fixture(scope="module")
def served(early_shop: Dataset, bare: Config, folder: Path) -> Recommender:
    return train(early_shop, replace(bare, backbone=str(folder)))


def test_people_are_left_out_of_the_events_by_their_ids(early_shop: Dataset, tmp_path: Path) -> None:
    people = early_shop.interactions["user_id"].unique().to_list()
    left_out = [user for user in people if is_held_out(user, SHARE)]
    assert 0.15 * len(people) < len(left_out) < 0.45 * len(people)
    assert [user for user in people if is_held_out(user, 0.1)] == [u for u in left_out if is_held_out(u, 0.1)]
    log = write_log(early_shop.interactions, tmp_path, held_out=SHARE)
    kept = early_shop.interactions.filter(~pl.col("user_id").is_in(left_out))
    assert open_events(tmp_path).num_users == log.num_users == kept["user_id"].n_unique()
    assert len(log) == len(kept)
    for bad in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="held_out is"):
            write_log(early_shop.interactions, tmp_path, held_out=bad)


def test_its_weights_serve_as_they_are(served: Recommender, folder: Path, early_shop: Dataset) -> None:
    taken = load_model(folder)
    assert served.config.model == taken.model.config
    known = [name for name in served.vocabulary.ids[: served.num_trained] if name in taken.items]
    rows = torch.from_numpy(taken.items.index(known))
    vectors = taken.model.items.all().detach()[rows]
    torch.testing.assert_close(served.items.vectors[: len(known)], vectors)
    [member] = served.backbone.models()
    for name, value in taken.model.blocks.state_dict().items():
        assert torch.equal(member.blocks.state_dict()[name], value), name
    # One person and many are read alike, times included.
    state = served.adapt({"toys-01": 1.0, "toys-05": 1.0})
    together = served.score_many([state.history], served.encode_profile(None)[None])[0]
    places, scores = served.rank(state, 5, excluded=np.zeros(0, np.int64))
    np.testing.assert_allclose(scores, together[places], rtol=1e-3, atol=1e-3)
    hits = [line.item_id.startswith("toys") for line in served.recommend([f"toys-0{n}" for n in range(4)])]
    assert sum(hits) >= 6


def test_the_head_meets_only_people_whom_it_has_not_seen(
    early_shop: Dataset, bare: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = list[World]()

    def listen(head: Any, params: Any, scorers: Any, met: list[World], *arguments: Any, **settings: Any) -> Any:
        worlds.extend(met)
        return meta_train(head, params, scorers, met, *arguments, **settings)

    monkeypatch.setattr("palate.pipeline.head.meta_train", listen)
    model = train(early_shop, replace(bare, backbone=str(folder)))
    unseen = [
        user
        for user, history in model.users.items()
        if is_held_out(user, SHARE) and len(history.items) >= bare.meta.min_items
    ]
    [world] = worlds
    assert sum(len(part.user.unique()) for part in (world.train, world.validation)) == len(unseen) > 10


def test_it_is_saved_loaded_and_trained_on(
    served: Recommender, early_shop: Dataset, shop: Dataset, bare: Config, folder: Path, tmp_path: Path
) -> None:
    served.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model")
    assert loaded.recommend(["toys-01"]) == served.recommend(["toys-01"])
    assert loaded.model_id == served.model_id
    # Late items have no row of their own, and can be listed all the same.
    late = loaded.recommend(["toys-01"], candidates=["toys-18", "garden-18"])
    assert all(np.isfinite(line.score) for line in late)
    again = train(shop, start=loaded)
    assert again.config.model == served.config.model
    assert again.recommend(["toys-18"])


def test_content_that_it_read_is_read_again(early_shop: Dataset, bare: Config, reading: Path, tmp_path: Path) -> None:
    model = train(early_shop, replace(bare, backbone=str(reading)))
    taken = load_model(reading)
    new = list(model.vocabulary.ids[model.num_trained :])
    assert new
    expected = taken.model.items.encode_new(
        encode_texts([model.item_table.titles[model.vocabulary.index([name])[0]] for name in new], bare.text)
    )
    torch.testing.assert_close(model.items.vectors[model.num_trained :], expected.detach(), rtol=1e-3, atol=1e-4)
    model.save(tmp_path / "model")
    assert Recommender.load(tmp_path / "model").recommend(["toys-01"]) == model.recommend(["toys-01"])
    other = replace(early_shop, items=replace(early_shop.items, text=None))
    with pytest.raises(DataError, match="backbone: it reads other content"):
        train(other, replace(bare, backbone=str(reading)))


def test_what_cannot_be_served_is_refused_before_anything_is_computed(
    early_shop: Dataset, bare: Config, tiny: Config, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no trained sequence model"):
        train(early_shop, replace(bare, backbone=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model: the backbone in .* brings its own"):
        train(early_shop, replace(tiny, backbone=str(folder)))
    with pytest.raises(ConfigError, match="num_members: the backbone"):
        train(early_shop, replace(bare, num_members=3, backbone=str(folder)))
    early = replace(bare.evaluation, cut="2024-02-01")
    with pytest.raises(ConfigError, match=r"evaluation\.cut 2024-02-01: it has seen what it would be judged by"):
        train(early_shop, replace(bare, backbone=str(folder), evaluation=early))
    write_log(early_shop.interactions, tmp_path / "events")  # everybody
    pretrain(tmp_path / "events", tmp_path / "all", SMALL, quiet=True)
    with pytest.raises(DataError, match=r"meta-training: 0 of .* new to the model in"):
        train(early_shop, replace(bare, backbone=str(tmp_path / "all")))
    kinds = replace(SMALL, model=replace(SMALL.model, num_kinds=2))
    pretrain(tmp_path / "events", tmp_path / "kinds", kinds, quiet=True)
    with pytest.raises(ConfigError, match="reads kinds of events"):
        train(early_shop, replace(bare, backbone=str(tmp_path / "kinds")))


def test_who_came_later_is_a_newcomer_too(early_shop: Dataset, shop: Dataset, bare: Config, tmp_path: Path) -> None:
    write_log(early_shop.interactions, tmp_path / "events")  # everybody until the cut
    pretrain(tmp_path / "events", tmp_path / "model", SMALL, quiet=True)
    uncut = replace(bare.evaluation, cut=None)
    model = train(shop, replace(bare, backbone=str(tmp_path / "model"), evaluation=uncut))
    assert model.training["quality"]


def test_a_model_that_went_on_has_seen_what_the_older_one_has(
    early_shop: Dataset, folder: Path, tmp_path: Path
) -> None:
    write_log(early_shop.interactions, tmp_path / "events")
    newer = pretrain(tmp_path / "events", tmp_path / "newer", SMALL, start=folder, quiet=True)
    assert load_model(folder).held_out == SHARE
    assert newer.held_out == 0.0
    assert newer.until >= load_model(folder).until


def test_from_a_log_to_a_list_on_the_command_line(early_shop: Dataset, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PALATE_HOME", str(tmp_path / "home"))
    early_shop.interactions.select("user_id", "item_id", "timestamp", "event_type").write_csv(tmp_path / "log.csv")
    run = CliRunner()
    settings = """
        [data]
        interactions = "log.csv"
        [evidence]
        rank = 24
        [meta]
        support_sizes = [0, 1, 3]
        min_items = 8
        num_steps = 4
        validate_every = 2
    """
    (tmp_path / "shop.toml").write_text(settings)
    (tmp_path / "large.toml").write_text("judged = 0\n[model]\ndim = 8\nnum_layers = 1\n[training]\nnum_epochs = 1\n")
    for command in (
        ["events", str(tmp_path / "log.csv"), "--out", str(tmp_path / "events"), "--held-out", "0.3"],
        [
            "pretrain",
            str(tmp_path / "events"),
            "--out",
            str(tmp_path / "large"),
            "--config",
            str(tmp_path / "large.toml"),
        ],
        [
            "train",
            "--config",
            str(tmp_path / "shop.toml"),
            "--backbone",
            str(tmp_path / "large"),
            "--out",
            str(tmp_path / "m"),
        ],
    ):
        result = run.invoke(app, command)
        assert result.exit_code == 0, result.output
    result = run.invoke(app, ["recommend", "--items", "toys-01", "--model", str(tmp_path / "m"), "--json"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.output)) > 0


def test_text_settings_default(tiny: Config) -> None:
    """`palate events` encodes with the settings that a training has by default."""
    assert TextConfig().model == Config().text.model

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from palate.backbone.batches import BatchConfig, inputs
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import EventLog, from_sequences, open_events
from palate.data.log import validate_interactions
from palate.errors import ConfigError, DataError, ModelError
from palate.pretrain import PretrainConfig, Pretrained, load_model, pretrain, write_log

NUM_ITEMS = 14
CONFIG = PretrainConfig(
    SequenceModelConfig(dim=16, num_layers=1, max_events=8, dropout=0.0),
    BatchConfig(tokens=200),
    TrainingConfig(num_epochs=30, learning_rate=1e-2, warmup_steps=5),
)
READS = replace(CONFIG, model=replace(CONFIG.model, id_dropout=0.3))


def shop(prefix: str = "item", first: int = 0, people: int = 60, seed: int = 0) -> pl.DataFrame:
    """People who walk along a ring of items, from `first` on."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        start = int(rng.integers(0, NUM_ITEMS))
        for step in range(6):
            item = first + (start + step) % NUM_ITEMS
            when = datetime(2024, 1, 1) + timedelta(minutes=100 * person + step)
            rows.append((f"u{person}", f"{prefix}{item:02}", when, "view" if step % 2 else "buy"))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event_type"], orient="row")
    return validate_interactions(frame, source="test")


def ring_content(prefix: str = "item", first: int = 0) -> dict[str, np.ndarray]:
    """Where an item stands on the ring."""
    angles = 2 * np.pi * np.arange(NUM_ITEMS) / NUM_ITEMS
    waves = [np.cos(k * angles) for k in (1, 2, 3)] + [np.sin(k * angles) for k in (1, 2, 3)]
    table = np.stack(waves, 1).astype(np.float32)
    return {f"{prefix}{first + place:02}": table[place] for place in range(NUM_ITEMS)}


def hits(trained: Pretrained, events: Path) -> float:
    """How often the next item of the ring comes first."""
    log = open_events(events)
    past = EventLog(log.items, log.offsets).cut(1)
    scores = trained.model.scores(inputs(past, 8))
    return float((scores.argmax(1).numpy() == log.items[log.offsets[1:] - 1]).mean())


def test_a_log_is_written_by_person_and_time(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["b", "a", "b", "a"],
            "item_id": ["y", "x", "x", "z"],
            "timestamp": [datetime(2024, 1, day) for day in (4, 2, 3, 1)],
            "event_type": ["view", "buy", "buy", "view"],
            "weight": [1.0, 2.0, 3.0, 4.0],
        }
    )
    write_log(validate_interactions(frame, source="test"), tmp_path)
    log = open_events(tmp_path)
    assert log.items.tolist() == [2, 0, 0, 1]  # a: z, x; b: x, y
    assert log.offsets.tolist() == [0, 2, 4]
    assert log.kinds is not None
    assert log.kinds.tolist() == [1, 0, 0, 1]
    assert log.values is not None
    assert log.values.tolist() == [4, 2, 3, 1]
    assert log.seconds is not None
    assert (np.diff(log.seconds)[[0, 2]] == 86_400).all()


def test_a_model_learns_is_saved_and_is_the_same_again(tmp_path: Path) -> None:
    write_log(shop(), str(tmp_path / "events"))  # a path may be text, everywhere
    trained = pretrain(tmp_path / "events", tmp_path / "one", CONFIG)
    assert hits(trained, tmp_path / "events") > 0.9
    assert len(trained.history) == 30
    again = load_model(str(tmp_path / "one"))
    # The last events of 60 people were kept from it; half of these people say how good it is.
    assert trained.quality is not None
    assert trained.quality["people"] == 30
    assert trained.quality["model"]["hr@10"]["mean"] > 0.9
    assert again.quality == trained.quality
    assert pretrain(tmp_path / "events", tmp_path / "one", CONFIG).quality == trained.quality  # is done already
    silent = pretrain(tmp_path / "events", tmp_path / "silent", replace(CONFIG, judged=0))
    assert silent.quality is None
    assert silent.history != trained.history  # which has read all events
    other = pretrain(str(tmp_path / "events"), str(tmp_path / "two"), CONFIG)
    for name, value in trained.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("config", [CONFIG, READS], ids=["ids", "content"])
def test_new_items_join_a_trained_model(tmp_path: Path, config: PretrainConfig) -> None:
    reads = config is READS
    write_log(shop(), tmp_path / "old", ring_content() if reads else None)
    pretrain(tmp_path / "old", tmp_path / "model", config)
    # Seven items are known, seven are new; the vocabulary comes in another order.
    write_log(shop(first=7), tmp_path / "new", ring_content(first=7) if reads else None)
    grown = pretrain(tmp_path / "new", tmp_path / "grown", config, start=str(tmp_path / "model"))
    assert grown.items.ids == tuple(f"item{number:02}" for number in range(21))
    known = load_model(tmp_path / "model").items
    assert grown.items.ids[: len(known)] == known.ids
    log = open_events(tmp_path / "new")
    place = grown.items.index([f"item{7 + number:02}" for number in range(NUM_ITEMS)])
    rows = [place[log.items[a:b]] for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]
    past = from_sequences([row[:-1] for row in rows])
    found = grown.model.scores(inputs(past, 8)).argmax(1).numpy()
    assert (found == np.array([row[-1] for row in rows])).mean() > 0.9


def test_another_shop_starts_from_what_content_says(tmp_path: Path) -> None:
    write_log(shop(people=300), tmp_path / "one", ring_content())
    pretrain(tmp_path / "one", tmp_path / "model", READS)
    write_log(shop("other"), tmp_path / "two", ring_content("other"))
    brief = replace(READS, training=replace(READS.training, num_epochs=0, max_steps=1, learning_rate=1e-6))
    moved = pretrain(tmp_path / "two", tmp_path / "moved", brief, start=tmp_path / "model", transfer=True)
    fresh = pretrain(tmp_path / "two", tmp_path / "fresh", brief)
    assert hits(moved, tmp_path / "two") > 0.5
    assert hits(fresh, tmp_path / "two") < 0.3


@pytest.mark.parametrize("table", ["full", "sharded"])
def test_two_workers_train_the_model_of_one(tmp_path: Path, table: str) -> None:
    write_log(shop(people=20), tmp_path / "events")
    model = replace(CONFIG.model, item_table=ItemTableConfig(table))
    brief = replace(CONFIG, model=model, training=replace(CONFIG.training, num_epochs=2))
    one = pretrain(tmp_path / "events", tmp_path / "one", brief)
    two = pretrain(tmp_path / "events", tmp_path / "two", brief, workers=2)
    assert [record.loss for record in two.history] == pytest.approx([record.loss for record in one.history], abs=1e-4)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of events"):
        pretrain(tmp_path / "nothing", tmp_path / "model", CONFIG)
    write_log(shop(people=5), tmp_path / "events")
    with pytest.raises(ModelError, match="no trained sequence model"):
        pretrain(tmp_path / "events", tmp_path / "model", CONFIG, start=tmp_path / "older")
    with pytest.raises(ConfigError, match="no model to start from"):
        pretrain(tmp_path / "events", tmp_path / "model", CONFIG, transfer=True)
    with pytest.raises(DataError, match=r"item 'item\d+' has no content"):
        write_log(shop(people=5), tmp_path / "events", {})
    pretrain(tmp_path / "events", tmp_path / "model", replace(CONFIG, training=TrainingConfig(num_epochs=1)))
    wider = replace(CONFIG, model=replace(CONFIG.model, dim=32))
    with pytest.raises(ConfigError, match="its settings differ"):
        pretrain(tmp_path / "events", tmp_path / "wider", wider, start=tmp_path / "model")


def test_what_is_known_of_people_is_read(tmp_path: Path) -> None:
    people = {f"u{number}": np.array([number % 2, 1], np.float32) for number in range(60)}
    write_log(shop(), tmp_path / "events", profiles=people)
    log = open_events(tmp_path / "events")
    assert log.profiles is not None
    names = sorted(people)  # as the log has them
    assert log.profiles[:, 0].tolist() == [people[name][0] for name in names]
    brief = replace(CONFIG, training=replace(CONFIG.training, num_epochs=2))
    trained = pretrain(tmp_path / "events", tmp_path / "model", brief)
    assert trained.model.profile.shape == (2, 16)
    assert not torch.equal(*trained.model.scores(inputs(log.cut(9), 8))[[names.index("u0"), names.index("u1")]])
    write_log(shop(), tmp_path / "plain")
    with pytest.raises(DataError, match="0 profile features, the older model reads 2"):
        pretrain(tmp_path / "plain", tmp_path / "other", brief, start=tmp_path / "model")
    with pytest.raises(DataError, match=r"person 'u10' has no profile \(58 lack it\)"):
        write_log(shop(), tmp_path / "part", profiles={"u0": people["u0"], "u1": people["u1"]})


def test_who_is_read_from_the_middle_on_begins_as_everyone_where_training_saw_starts_alone(tmp_path: Path) -> None:
    write_log(shop(), tmp_path / "events")
    brief = replace(
        CONFIG,
        batches=replace(CONFIG.batches, first_tile=True),
        training=replace(CONFIG.training, num_epochs=2),
    )
    model = pretrain(tmp_path / "events", tmp_path / "model", brief).model
    assert model.start.abs().sum() > 0
    assert torch.equal(model.start, model.resume)

"""New items warm up from their first events: better with every chooser, nobody's weights touched, nothing forgotten."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.dataset import Dataset
from palate.errors import DataError
from palate.pipeline import train
from palate.recommend import Recommender

AFTER = datetime(2024, 1, 1) + timedelta(days=141)
TASTES = ("garden", "kitchen", "toys")
NEW = pl.DataFrame({"item_id": list("abc"), "title": ["a thing"] * 3, "price": [7.0] * 3})
"""Three new items that read the same: only their choosers can tell what they are."""


@pytest.fixture(scope="module")
def extended(model: Recommender) -> Recommender:
    return model.add_items(Catalog.infer(NEW))


def choices(number: int) -> pl.DataFrame:
    """People of each taste (their row tells it) who choose the new item that belongs to them, one a day."""
    rows = [
        (f"user-{3 * turn + place:03}", item, AFTER + timedelta(days=turn))
        for turn in range(number)
        for place, item in enumerate("abc")
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def places(model: Recommender) -> list[int]:
    """Where each new item stands for people of its taste who have not chosen it."""
    found = []
    for place, item in enumerate("abc"):
        for turn in range(20, 34):
            lines = model.recommend(f"user-{3 * turn + place:03}", 100)
            found.append([line.item_id for line in lines].index(item))
    return found


def test_it_is_never_worse_than_content_alone_and_gets_better(extended: Recommender) -> None:
    alone = np.array(places(extended))
    means = [alone.mean()]
    for number in (1, 3, 10):
        warm = np.array(places(extended.with_item_events(choices(number))))
        difference = alone - warm
        assert difference.mean() > 1.96 * difference.std() / np.sqrt(len(difference)) >= 0
        means.append(warm.mean())
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.55 * means[0]


def test_it_is_its_choosers_taste_that_an_item_takes_on(extended: Recommender) -> None:
    warm = extended.with_item_events(choices(10))
    for place, item in enumerate("abc"):
        nearest = [line.item_id.split("-")[0] for line in warm.similar_items(item, 6) if len(line.item_id) > 1]
        assert nearest.count(TASTES[place]) > len(nearest) / 2
        # Of the three, people list that of their own taste first.
        lines = warm.recommend([f"{TASTES[place]}-{n:02}" for n in range(4)], candidates=list("abc"))
        assert lines[0].item_id == item


def test_without_events_nothing_changes(extended: Recommender) -> None:
    same = extended.with_item_events(choices(0))
    assert all(torch.equal(*pair) for pair in zip(same.items, extended.items, strict=True))


def test_old_items_keep_their_rows_but_for_popularity(extended: Recommender) -> None:
    warm, known = extended.with_item_events(choices(5)), extended.num_trained
    assert torch.equal(warm.items.features[:known], extended.items.features[:known])
    assert torch.equal(warm.items.vectors[:known], extended.items.vectors[:known])
    assert torch.equal(warm.items.bias[:known], extended.items.bias[:known])
    unchosen = [
        place for place in range(known, len(extended.vocabulary)) if extended.vocabulary.ids[place] not in "abc"
    ]
    assert unchosen
    for before, after in zip(extended.items, warm.items, strict=True):
        assert torch.equal(after[unchosen], before[unchosen]), "a new item that nobody chose is as before"
    assert warm.model_id == extended.model_id
    assert all(torch.equal(warm.params[name], value) for name, value in extended.params.items())
    # A repeat by someone in training is no new chooser.
    repeat = pl.DataFrame(
        {"user_id": ["user-000"], "item_id": [extended.vocabulary.ids[extended.users["user-000"].items[0]]]}
    ).with_columns(timestamp=pl.lit(AFTER))
    again = extended.with_item_events(repeat)
    counts = extended.item_table.posterior.counts.argsort()
    assert (again.items.popularity[:known][counts].diff() >= -1e-6).all()


def test_all_at_once_is_the_same_as_in_steps_in_any_order(extended: Recommender) -> None:
    events = choices(6)
    once = extended.with_item_events(events)
    steps = extended.with_item_events(events.head(7)).with_item_events(events)
    mixed = extended.with_item_events(events.sample(fraction=1.0, shuffle=True, seed=1))
    for other in (steps, mixed):
        assert all(torch.equal(*pair) for pair in zip(other.items, once.items, strict=True))
    back = once.with_item_events(events.clear())
    assert all(torch.equal(*pair) for pair in zip(back.items, extended.items, strict=True))
    assert back.item_table.base is None


def test_items_can_be_added_before_or_after(model: Recommender, extended: Recommender) -> None:
    events = choices(6)
    late = Catalog.infer(pl.DataFrame({"item_id": ["d"], "title": ["garden bell"], "price": [3.0]}))
    one = extended.with_item_events(events).add_items(late)
    other = extended.add_items(late).with_item_events(events)
    torch.testing.assert_close(one.items.features, other.items.features)
    torch.testing.assert_close(one.items.vectors, other.items.vectors)
    torch.testing.assert_close(one.items.bias, other.items.bias)
    assert one.item_table.base is not None
    assert len(one.item_table.base.features) == len(one.vocabulary)
    known = model.with_item_events(events)  # of items that it does not have, nothing is taken in
    assert len(known.vocabulary) == len(model.vocabulary)


def test_a_saved_model_goes_on_from_there(extended: Recommender, tmp_path: Path) -> None:
    warm = extended.with_item_events(choices(4))
    warm.save(tmp_path / "warm")
    again = Recommender.load(tmp_path / "warm")
    assert again.recommend(["toys-01"], 60) == warm.recommend(["toys-01"], 60)
    further, expected = again.with_item_events(choices(9)), extended.with_item_events(choices(9))
    assert all(torch.equal(*pair) for pair in zip(further.items, expected.items, strict=True))
    again.save(tmp_path / "again")
    for file in (tmp_path / "warm").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_people_can_be_kept_elsewhere(extended: Recommender, early_shop: Dataset) -> None:
    """Without people in the model, their earlier events in the table say the same."""
    bare = extended.without_people()
    past = early_shop.interactions.select("user_id", "item_id", "timestamp", "event_type")
    events = choices(5).with_columns(
        event_type=pl.lit("purchase"), timestamp=pl.col("timestamp").cast(pl.Datetime("us"))
    )
    found = bare.with_item_events(pl.concat([past, events]))
    expected = extended.with_item_events(events)
    torch.testing.assert_close(found.items.features, expected.items.features)
    torch.testing.assert_close(found.items.popularity, expected.items.popularity)


def test_a_state_holds_on(extended: Recommender) -> None:
    state = extended.adapt(["toys-01", "toys-02"])
    warm = extended.with_item_events(choices(10))
    ranked = [line.item_id for line in warm.recommend(state, candidates=list("abc"))]
    assert ranked[0] == "c"


def test_what_is_later_than_now_is_refused(extended: Recommender) -> None:
    with pytest.raises(DataError, match=r"^events: one is at [^\n]*, after now"):
        extended.with_item_events(choices(3), now=AFTER + timedelta(days=1))
    tasks = replace(extended.config.item_tasks, trust=1.0)
    trusting = replace(extended, config=replace(extended.config, item_tasks=tasks))
    early = trusting.with_item_events(choices(3), now=AFTER + timedelta(days=3))
    late = trusting.with_item_events(choices(3), now=AFTER + timedelta(days=90))
    place = extended.vocabulary.get("a")
    assert late.items.popularity[place] < early.items.popularity[place], "nobody has chosen it for months"


def test_a_trend_is_a_setting(early_shop: Dataset, tiny: Config, model: Recommender) -> None:
    """With a half-life what is chosen now counts more than what was, in training and after."""
    trend = train(early_shop, replace(tiny, evidence=replace(tiny.evidence, half_life=5.0)))
    assert trend.model_id != model.model_id
    item = model.vocabulary.ids[int(model.item_table.posterior.counts.argmin())]
    events = pl.DataFrame(
        [(f"new-{n}", item, AFTER + timedelta(hours=n)) for n in range(12)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )

    def rise(one: Recommender) -> int:
        place = one.vocabulary.get(item)
        assert place is not None
        ranks = [
            int((part.items.popularity > part.items.popularity[place]).sum())
            for part in (one, one.with_item_events(events))
        ]
        return ranks[0] - ranks[1]

    assert rise(trend) > rise(model)
    place = trend.vocabulary.get(item)
    assert trend.with_item_events(events).items.popularity.argmax() == place


def test_a_retraining_starts_from_the_rows_before(
    model: Recommender, extended: Recommender, early_shop: Dataset, tiny: Config
) -> None:
    """Newcomers who chose since are tasks of the head: what they did must not be in the rows that it meets."""
    warm = model.with_item_events(
        early_shop.interactions.tail(30).with_columns(pl.col("timestamp") + timedelta(days=9))
    )
    assert warm.item_table.base is not None
    assert train(early_shop, tiny, start=warm).model_id == train(early_shop, tiny, start=model).model_id

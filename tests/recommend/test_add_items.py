"""Items that come after training: listed by their content alone, and at nobody's cost."""

import polars as pl
import pytest

from palate.data.catalog import Catalog
from palate.data.dataset import Dataset
from palate.errors import DataError, ModelError
from palate.recommend import Recommender

NEW = pl.DataFrame(
    {
        "item_id": ["new-garden", "new-kitchen", "new-toys"],
        "title": ["green garden shears", "steel kitchen sieve", "soft toys bunny"],
        "price": [7.5, 8.0, 7.0],
    }
)


@pytest.fixture(scope="module")
def extended(model: Recommender) -> Recommender:
    return model.add_items(Catalog.infer(NEW))


def scores_of(model: Recommender, events: list[str]) -> dict[str, float]:
    return {line.item_id: line.score for line in model.recommend(events, 100, include_seen=True)}


@pytest.mark.parametrize("events", [[], ["garden-01"], ["toys-01", "kitchen-02", "toys-19"]], ids=len)
def test_old_scores_stay_as_they_are(model: Recommender, extended: Recommender, events: list[str]) -> None:
    before, after = scores_of(model, events), scores_of(extended, events)
    assert {item: after[item] for item in before} == before
    assert set(after) - set(before) == set(NEW["item_id"])


@pytest.mark.parametrize("taste", ["garden", "kitchen", "toys"])
def test_a_new_item_stands_near_its_taste(extended: Recommender, taste: str) -> None:
    news = extended.recommend([f"{taste}-01", f"{taste}-02", f"{taste}-03"], candidates=NEW["item_id"].to_list())
    assert news[0].item_id == f"new-{taste}"
    assert news[0].title == NEW.row(by_predicate=pl.col("item_id") == f"new-{taste}", named=True)["title"]
    nearest = [line.item_id.split("-") for line in extended.similar_items(f"new-{taste}", 5)]
    assert sum(taste in name for name in nearest) >= 4


def test_an_event_on_a_new_item_is_read(extended: Recommender) -> None:
    lines = extended.recommend(["new-toys"])
    assert sum(line.item_id.startswith("toys") for line in lines) >= 7
    assert "new-toys" not in [line.item_id for line in lines]


def test_the_model_itself_is_not_changed(model: Recommender, extended: Recommender) -> None:
    assert extended.model_id == model.model_id
    assert len(extended.vocabulary) == len(model.vocabulary) + 3
    assert extended.num_trained == model.num_trained
    assert "new-toys" not in model.vocabulary
    assert len(model.items.features) == len(model.vocabulary)


def test_adding_what_is_known_adds_nothing(model: Recommender, extended: Recommender, shop: Dataset) -> None:
    assert model.add_items(shop.items) is model
    assert extended.add_items(Catalog.infer(NEW)) is extended
    both = model.add_items(Catalog.infer(pl.concat([NEW, shop.items.frame.select(NEW.columns)])))
    assert both.vocabulary == extended.vocabulary
    assert scores_of(both, ["toys-01"]) == scores_of(extended, ["toys-01"])


def test_late_items_of_the_catalogue_are_listed_from_the_start(model: Recommender) -> None:
    late = model.vocabulary.ids[model.num_trained :]
    assert set(late) == {f"{taste}-{place}" for taste in ("garden", "kitchen", "toys") for place in (17, 18, 19)}
    events = ["garden-01", "garden-02", "garden-03"]
    ranked = [line.item_id.split("-")[0] for line in model.recommend(events, candidates=late)]
    assert ranked[:3] == ["garden"] * 3


def test_a_state_holds_for_the_longer_catalogue(model: Recommender, extended: Recommender) -> None:
    state = model.adapt(["garden-01"])
    assert extended.recommend(state) == extended.recommend(["garden-01"])


def test_a_state_that_knows_more_items_than_the_model_is_refused(model: Recommender, extended: Recommender) -> None:
    with pytest.raises(ModelError, match=r"^the state names items beyond the 60 of this model[^\n]*\Z"):
        model.recommend(extended.adapt(["new-toys"]))


@pytest.mark.parametrize("dropped", ["title", "price"])
def test_a_catalogue_that_lacks_what_training_had_is_refused(model: Recommender, dropped: str) -> None:
    word = "no text column" if dropped == "title" else "'price'"
    with pytest.raises(DataError, match=rf"^[^\n]*{word}[^\n]*\Z"):
        model.add_items(Catalog.infer(NEW.drop(dropped)))

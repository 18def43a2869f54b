"""The item table: what is added goes to its end, and the table that was there stays as it was."""

import polars as pl
import pytest
import torch

from palate.data.catalog import Catalog
from palate.data.episodes import EventMeaning
from palate.errors import DataError
from palate.recommend import Recommender
from palate.recommend.item_table import ItemTable

NEW = Catalog.infer(
    pl.DataFrame({"item_id": ["garden-01", "new"], "title": ["old", "garden gnome"], "price": [1.0, 3.0]})
)
NOTHING = EventMeaning(frozenset(), frozenset())


@pytest.fixture(scope="module")
def table(model: Recommender) -> ItemTable:
    return model.item_table


def longer(model: Recommender) -> ItemTable:
    new = model.item_table.unknown(NEW)
    assert new is not None
    content = model.encode_items(new)
    with torch.inference_mode():
        return model.item_table.with_items(new, content, model.backbone.encode_new(content))


def test_only_what_is_not_in_the_table_is_new(table: ItemTable) -> None:
    new = table.unknown(NEW)
    assert new is not None
    assert new.frame["item_id"].to_list() == ["new"]
    known = Catalog.infer(NEW.frame.head(1))
    assert table.unknown(known) is None


def test_new_items_come_last(model: Recommender, table: ItemTable) -> None:
    number, more = len(table), longer(model)
    assert len(more) == number + 1
    assert more.vocabulary.ids[number] == "new"
    assert more.titles[number] == "garden gnome"
    assert more.num_trained == table.num_trained
    for before, after in zip(table.rows, more.rows, strict=True):
        assert torch.equal(after[:number], before)
    added = more.rows_from(number)
    assert [len(column) for column in added] == [1] * 4
    assert float(added.bias[0]) == float(table.rows.bias[: table.num_trained].min())
    assert float(added.popularity[0]) == pytest.approx(table.unseen_popularity)
    assert len(table.vocabulary) == len(table.rows.bias) == number, "the table itself is as it was"


def test_scoring_rows_have_the_bias_behind_the_vectors(table: ItemTable) -> None:
    rows = table.scoring_rows
    assert torch.equal(rows.in_context[:, :-1], table.rows.vectors)
    assert torch.equal(rows.in_context[:, -1], table.rows.bias)
    assert table.scoring_rows is rows


def test_choices_are_taken_in_and_given_back(model: Recommender) -> None:
    more = longer(model)
    events = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["new", "new"], "timestamp": ["2025-01-01", "2025-01-02"]})
    choices, now = more.read_choices(events, {}, 0.0, NOTHING, None)
    with torch.inference_mode():
        warm = more.with_choices(choices, now, model.config.item_tasks, model.config.evidence)
    assert warm.rows_of_training is more.rows
    assert not torch.equal(warm.rows.popularity, more.rows.popularity)
    assert warm.without_choices().rows is more.rows
    assert more.without_choices() is more


def test_an_event_after_now_is_refused(table: ItemTable) -> None:
    events = pl.DataFrame({"user_id": ["a"], "item_id": ["garden-01"], "timestamp": ["2025-01-02"]})
    with pytest.raises(DataError, match="after now"):
        table.read_choices(events, {}, 0.0, NOTHING, "2025-01-01")

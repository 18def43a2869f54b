"""The readers on small folders of their formats, and on the real files where these are here."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palate.errors import ConfigError, DataError
from palate.evaluation.sequential.data import SEQUENCE_DATA, open_sequences
from palate.evaluation.sequential.table import DATASETS

DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    films = tmp_path / "movielens-1m"
    films.mkdir()
    events = [(2, 1, 10, 5), (2, 0, 7, None), (2, 2, 30, 3), (1, 0, 30, 1), (1, 1, 7, 2)]
    schema = ["user_id", "position", "item_id", "rating"]
    pl.DataFrame(events, schema=schema, orient="row").write_parquet(films / "sequences.parquet")
    pl.DataFrame(
        {
            "item_id": [30, 10, 99],
            "title": ["Heat (1995)", "Tootsie (1982)", "Unseen (1950)"],
            "genres": ["Action | Crime", "Comedy", "Western"],
            "plot": ["A thief.", "An actor.", "Nobody."],
        }
    ).write_parquet(films / "items.parquet")
    pl.DataFrame(
        {"user_id": [2, 1, 3], "gender": ["F", "M", "M"], "age": [25, 1, 56], "occupation": [20, 0, 3]}
    ).write_parquet(films / "users.parquet")
    amazon = tmp_path / "amazon-2014"
    amazon.mkdir()
    (amazon / "Beauty.txt").write_text("2 5 3\n1 3 8 5\n")
    (amazon / "Beauty_item2attributes.json").write_text(json.dumps({"3": [2, 10], "8": [10], "77": [4]}))
    return tmp_path


def test_movielens(folder: Path) -> None:
    data = open_sequences("ml-1m", folder)
    assert data.item_ids == ("7", "10", "30")
    assert data.num_items == 3
    assert data.log.items.tolist() == [2, 0, 0, 1, 2]
    assert data.log.offsets.tolist() == [0, 2, 5]
    assert data.log.values is not None
    assert data.log.values.tolist() == [1, 2, 4, 5, 3]
    assert data.item_texts == ("", "Tootsie (1982). Comedy. An actor.", "Heat (1995). Action, Crime. A thief.")
    assert data.item_attributes is not None
    assert data.item_attributes.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert data.log.profiles is not None
    male_student, woman = data.log.profiles
    assert np.flatnonzero(male_student).tolist() == [1, 2, 9]
    assert np.flatnonzero(woman).tolist() == [0, 4, 29]


def test_amazon(folder: Path) -> None:
    data = open_sequences("beauty", folder)
    assert data.item_ids == ("3", "5", "8")
    assert data.log.items.tolist() == [0, 2, 1, 1, 0]
    assert data.log.offsets.tolist() == [0, 3, 5]
    assert data.item_attributes is not None
    assert data.item_attributes.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert (data.item_texts, data.log.profiles) == (None, None)


@pytest.mark.parametrize("name", sorted(SEQUENCE_DATA))
def test_a_missing_folder_is_one_line_that_says_where_to_get_the_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not readable .*get ML-1M from grouplens.org.*--data") as caught:
        open_sequences(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_damage_is_named(folder: Path) -> None:
    path = folder / "amazon-2014" / "Beauty.txt"
    for content, message in (("1 2 3\n2 x\n", "line 2 is not"), ("1 2\n\n", "line 2 is not"), ("1\n", "no event")):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            open_sequences("beauty", folder)
    path.write_text("1 2 3\n")
    path.with_name("Beauty_item2attributes.json").write_text("[1]")
    with pytest.raises(DataError, match="is not a table of items"):
        open_sequences("beauty", folder)
    path = folder / "movielens-1m" / "users.parquet"
    pl.read_parquet(path).filter(pl.col("user_id") != 2).write_parquet(path)
    with pytest.raises(DataError, match=r"people that users.parquet lacks"):
        open_sequences("ml-1m", folder)
    with pytest.raises(ConfigError, match="choose one of: ml-1m, beauty"):
        open_sequences("netflix", folder)


def test_every_reader_has_a_line_in_the_table_of_data() -> None:
    assert list(SEQUENCE_DATA) == list(DATASETS)


@pytest.mark.skipif(not DATA.exists(), reason="the data sets for research are not here")
@pytest.mark.parametrize(
    ("name", "people", "items", "events", "attributes"),
    [
        ("ml-1m", 6040, 3416, 999_588, 18),
        ("beauty", 22_363, 12_101, 198_502, 637),
        ("sports", 35_598, 18_357, 296_337, 2277),
        ("toys", 19_412, 11_924, 167_597, 1027),
    ],
)
def test_the_real_files(name: str, people: int, items: int, events: int, attributes: int) -> None:
    data = open_sequences(name, DATA)
    assert (data.log.num_users, data.num_items, len(data.log)) == (people, items, events)
    assert data.item_attributes is not None
    assert data.item_attributes.shape == (items, attributes)
    # Nobody has an item twice: a target is never among what was seen.
    users = np.repeat(np.arange(people), data.log.lengths())
    assert len(np.unique(users * items + data.log.items)) == events
    assert data.log.lengths().min() >= 5
